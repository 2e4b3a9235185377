"""The demo: real processes, a writer killed at full speed, and what readers and heir then see."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jidoka_shm import ownership
from jidoka_shm.errors import RegistryNotFound

from . import proofs
from .children import PATIENCE, Worker, check, wait
from .figures import Figures
from .ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SECONDS: Final = 10.0
_COMMITS: Final = 100_000


def sample_path() -> Path:
    """Return the sample of sessions that comes with the package."""
    return Path(__file__).parent.parent / "data" / "sessions.jsonl"


class Demo:
    """One run."""

    def __init__(
        self, sessions: Path, *, readers: int, seconds: float | None, careless: bool
    ) -> None:
        self._samples = proofs.load(sessions)
        self._count = len(self._samples)
        self._readers = readers
        self._seconds = _SECONDS if seconds is None else seconds
        # Without a time of the user's own, the run goes on until it has proven something.
        self._commits = _COMMITS if seconds is None else 0
        self._careless = careless
        self._run = str(uuid4())
        self._name = f"demo-{os.getpid()}-{self._run[:8]}"

    def run(self, *, quiet: bool) -> Figures:
        """Run it, leave nothing behind, and return the figures.

        Args:
            quiet: show no progress.
        """
        with contextlib.ExitStack() as undo:
            # A signal that would end this process at once would leave the registry behind.
            for number in (signal.SIGTERM, signal.SIGHUP):
                undo.callback(signal.signal, number, signal.signal(number, _end))
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
            proofs.save(folder / "sessions", self._samples)
            undo.callback(self._unlink)
            progress = undo.enter_context(_progress(quiet=quiet))
            return self._phases(undo, folder, progress)

    def _unlink(self) -> None:
        with contextlib.suppress(RegistryNotFound):
            ownership.remove(self._name)

    def _phases(self, undo: contextlib.ExitStack, folder: Path, progress: Progress) -> Figures:
        book = Ledger(folder / "ledger", self._count)
        task = progress.add_task("loading", total=self._seconds)

        def start(role: str, **options: Any) -> Worker:  # noqa: ANN401 - whatever JSON takes
            worker = Worker(role, name=self._name, run=self._run, **options)
            undo.callback(worker.discard)
            return worker

        def show(text: str, begun: float) -> None:
            line = f"{text}: {book.changes():,} commits"
            progress.update(task, description=line, completed=time.monotonic() - begun)

        files = {name: str(folder / name) for name in ("sessions", "ledger")}
        writer = start("write", **files)
        wait(functools.partial(writer.has_said, "created"), writer)
        readers = [
            start("read", count=self._count, seed=seed, careless=self._careless)
            for seed in range(self._readers)
        ]
        for reader in readers:
            wait(functools.partial(reader.has_said, "ready"), reader)

        begun = time.monotonic()
        self._until(0.5, begun, book, [writer, *readers], lambda: show("writing", begun))
        acknowledged = int((book.acknowledged > 0).sum())
        writer.kill()
        before = sum(reader.last.get("look_ups", 0) for reader in readers)
        for reader in readers:
            show("no writer", begun)
            wait(functools.partial(reader.has_denied, "writer_alive"), reader)
            wait(functools.partial(reader.has_reported, reader.reports + 1), reader)
        without = sum(reader.last["look_ups"] for reader in readers) - before

        heir = start("write", **files)
        wait(functools.partial(heir.has_said, "recovered"), heir)
        self._until(1.0, begun, book, [heir, *readers], lambda: show("taken over", begun))
        ends = [reader.stop() for reader in readers]
        seconds = time.monotonic() - begun
        found = heir.stop()
        return self._figures(seconds, ends, found, acknowledged, without, book.changes())

    def _until(
        self,
        part: float,
        begun: float,
        book: Ledger,
        workers: list[Worker],
        show: Callable[[], None],
    ) -> None:
        """Wait until a part of the time has passed and of the commits are made."""
        limit = begun + self._seconds + PATIENCE
        while time.monotonic() < limit:
            if (
                time.monotonic() - begun >= part * self._seconds
                and book.changes() >= part * self._commits
            ):
                return
            check(*workers)
            show()
            time.sleep(0.05)
        msg = f"the demo did not come to its end within {PATIENCE:g} s of its time"
        raise TimeoutError(msg)

    def _figures(  # noqa: PLR0913, PLR0917 - one argument a source
        self,
        seconds: float,
        ends: list[dict[str, Any]],
        found: dict[str, Any],
        acknowledged: int,
        without: int,
        commits: int,
    ) -> Figures:
        times = [key for key in ends[0] if key.endswith("_ns")]
        return Figures(
            seconds=seconds,
            readers=tuple(
                {
                    "look_ups_per_second": end["look_ups"] / seconds,
                    **{key: end[key] for key in times},
                }
                for end in ends
            ),
            look_ups=sum(end["look_ups"] for end in ends),
            look_ups_without_writer=without,
            commits=commits,
            retries=sum(end["retries"] for end in ends),
            overlapped=sum(end["overlapped"] for end in ends),
            torn=sum(end["torn"] for end in ends) + found["torn"],
            acknowledged=acknowledged,
            recovered=found["recovered"],
            lost=found["lost"] + found["dropped"],
            problems=tuple(found["problems"]),
            careless=self._careless,
        )


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    with bar:
        yield bar
