"""The systems that are measured, each in a module of its own, and why one of them cannot be."""

from __future__ import annotations

import importlib
import shutil
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from .base import Peer

#: Where the class of each system is. The foreign ones are what ``--peers`` chooses from.
OWN: Final = {
    "jidoka_shm": "own:Embedded",
    "jidoka_shm service": "service:Service",
    "jidoka_shm async": "service:Async",
    "jidoka_shm 64 clients": "service:Crowd",
}
FOREIGN: Final = {
    "dict": "builtin:Dict",
    "lmdb": "py_lmdb:Lmdb",
    "sqlite": "sqlite:Sqlite",
    "redis": "redis_socket:Redis",
    "manager": "manager:Manager",
    "ultradict": "ultra_dict:Ultra",
    "shared-memory-dict": "shared_dict:SharedDict",
    "iceoryx2": "blackboard:Blackboard",
    "ets": "ets:Ets",
    "genserver": "ets:GenServer",
    "echo": "echo:Echo",
}


def load(name: str) -> type[Peer]:
    """Return a system's class.

    Raises:
        ModuleNotFoundError: where a package that it needs is not installed.
    """
    module, _, cls = (OWN | FOREIGN)[name].partition(":")
    return cast("type[Peer]", getattr(importlib.import_module(f"{__name__}.{module}"), cls))


def why_missing(name: str) -> str | None:
    """Return why a system cannot be measured here, or None where it can."""
    try:
        return load(name).missing()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"


def redis_server() -> str | None:
    """Return the path of a Redis or Valkey server, or None where there is none."""
    return shutil.which("redis-server") or shutil.which("valkey-server")
