"""What both apps answer: sessions as JSON, from any worker."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from jidoka_shm import (
    IllegalTransition,
    JidokaError,
    ReadContended,
    RegistryClosed,
    RegistryFull,
    RegistryNotFound,
    SessionClient,
    SessionNotFound,
    VersionConflict,
    WriterUnavailable,
)

#: The status of each error; of those that an error is one of the first counts. What is not here is
#: a fault, which the server answers with 500.
STATUSES: list[tuple[int, tuple[type[Exception], ...]]] = [
    (404, (SessionNotFound,)),
    (409, (IllegalTransition, VersionConflict)),
    (503, (WriterUnavailable, RegistryNotFound, RegistryClosed, ReadContended)),
    (507, (RegistryFull,)),
    # Also a body that is no JSON.
    (400, (ValueError, TypeError, RecursionError)),
]


@functools.cache
def sessions() -> SessionClient:
    """Return this process's client, made at its first request: the registry may come later."""
    return SessionClient(os.environ["SESSIONS"])


def answer(method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON that a request is answered with."""
    try:
        found = _answer(method, path.removeprefix("/sessions").strip("/"), _object(body))
    except (JidokaError, ValueError, TypeError, RecursionError) as error:
        for status, kinds in STATUSES:
            if isinstance(error, kinds):
                return status, {"error": str(error)}
        raise
    return 200, {"worker": os.getpid(), **found}


def _object(body: bytes) -> dict[str, Any]:
    """Return the object that a request's body holds; an empty one where there is no body."""
    found = json.loads(body) if body else {}
    if not isinstance(found, dict):
        msg = "the body must be an object of JSON"
        raise TypeError(msg)
    return found


def _answer(method: str, session_id: str, body: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "GET":
            return sessions().get_session_info(session_id).to_dict()
        case "POST":
            # A session of this worker's own ends with the worker, however that ends.
            pid = os.getpid() if body.pop("mine", False) else None
            return {"session_id": str(sessions().create_session(body, pid=pid))}
        case "PATCH":
            return sessions().update_session(session_id, **body).to_dict()
        case "DELETE":
            sessions().terminate_session(session_id)
            return {}
    msg = f"no method {method}"
    raise ValueError(msg)
