"""A WSGI app: ``gunicorn wsgi_app:app``."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from answers import answer

if TYPE_CHECKING:
    from collections.abc import Callable


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer one request."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    status, found = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], body)
    text = json.dumps(found).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append(("Retry-After", "1"))
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [text]
