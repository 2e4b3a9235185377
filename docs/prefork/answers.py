"""What both apps answer: sessions as JSON, from any worker."""

from __future__ import annotations

import functools
import os
from typing import Any

from jidoka_shm import (
    JidokaError,
    RegistryClosed,
    RegistryNotFound,
    SessionClient,
    SessionNotFound,
    WriterUnavailable,
)


@functools.cache
def sessions() -> SessionClient:
    """Return this process's client, made at its first request: the registry may come later."""
    return SessionClient(os.environ["SESSIONS"])


def answer(method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON that a request is answered with."""
    try:
        found = _answer(method, path.removeprefix("/sessions").strip("/"), body)
    except SessionNotFound as error:
        return 404, {"error": str(error)}
    except (WriterUnavailable, RegistryNotFound, RegistryClosed) as error:
        return 503, {"error": str(error)}
    except (JidokaError, ValueError, TypeError) as error:
        return 400, {"error": str(error)}
    return 200, {"worker": os.getpid(), **found}


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
