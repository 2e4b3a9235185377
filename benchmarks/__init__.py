"""What jidoka_shm costs, beside what a program would use otherwise: ``python -m benchmarks``."""
