"""jidoka_shm: live sessions in shared memory, one writer, lock-free readers in any process.

``SessionManager`` writes a registry, ``SessionReader`` reads it from any process on the host, and
``SessionClient`` and ``AsyncSessionClient`` read it and ask its writer for changes. Names are
imported when they are first used, so a reader or blocking client loads neither asyncio nor the
command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asyncclient import AsyncSessionClient
    from .asyncsupervisor import AsyncSessionSupervisor
    from .client import SessionClient
    from .differences import Change, ChangeKind
    from .errors import (
        CorruptRegistry,
        DirectoryForbidden,
        ForeignLoop,
        ForkedHandle,
        FormatMismatch,
        IllegalTransition,
        InvalidMetadata,
        InvalidName,
        InvalidSessionId,
        JidokaError,
        OwnerNotAlive,
        ReadContended,
        RecordTooLarge,
        ReentrantCall,
        RegistryClosed,
        RegistryForbidden,
        RegistryFull,
        RegistryNotFound,
        SessionExists,
        SessionNotFound,
        SessionNotStarted,
        SessionNotSupervised,
        UnsupportedPlatform,
        VersionConflict,
        WriterAlreadyRunning,
        WriterUnavailable,
    )
    from .handles import Sessions, Stats
    from .manager import SessionManager
    from .pipeline import AsyncPipeline, Pipeline
    from .reader import SessionReader
    from .ready import session_ready
    from .recovery import Recovery
    from .session import Session, SessionStatus
    from .supervisor import SessionSupervisor
    from .usage import Usage

__version__ = "0.1.0"

#: Where each public name is; the errors are all in errors.py.
_HOMES = {
    "AsyncPipeline": "pipeline",
    "AsyncSessionClient": "asyncclient",
    "AsyncSessionSupervisor": "asyncsupervisor",
    "Change": "differences",
    "ChangeKind": "differences",
    "Pipeline": "pipeline",
    "Recovery": "recovery",
    "Session": "session",
    "SessionClient": "client",
    "SessionManager": "manager",
    "SessionReader": "reader",
    "SessionStatus": "session",
    "SessionSupervisor": "supervisor",
    "Sessions": "handles",
    "Stats": "handles",
    "Usage": "usage",
    "session_ready": "ready",
}

__all__ = [
    "AsyncPipeline",
    "AsyncSessionClient",
    "AsyncSessionSupervisor",
    "Change",
    "ChangeKind",
    "CorruptRegistry",
    "DirectoryForbidden",
    "ForeignLoop",
    "ForkedHandle",
    "FormatMismatch",
    "IllegalTransition",
    "InvalidMetadata",
    "InvalidName",
    "InvalidSessionId",
    "JidokaError",
    "OwnerNotAlive",
    "Pipeline",
    "ReadContended",
    "RecordTooLarge",
    "Recovery",
    "ReentrantCall",
    "RegistryClosed",
    "RegistryForbidden",
    "RegistryFull",
    "RegistryNotFound",
    "Session",
    "SessionClient",
    "SessionExists",
    "SessionManager",
    "SessionNotFound",
    "SessionNotStarted",
    "SessionNotSupervised",
    "SessionReader",
    "SessionStatus",
    "SessionSupervisor",
    "Sessions",
    "Stats",
    "UnsupportedPlatform",
    "Usage",
    "VersionConflict",
    "WriterAlreadyRunning",
    "WriterUnavailable",
    "session_ready",
]


if not TYPE_CHECKING:  # or a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name is
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        module = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
        value = globals()[name] = getattr(module, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
