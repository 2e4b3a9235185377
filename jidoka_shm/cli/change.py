"""The commands that change sessions, and the registry's size, through its service."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import click

from jidoka_shm.client import SessionClient
from jidoka_shm.session import SessionStatus

from .inspection import open_reader
from .options import (
    bad_values_are_wrong_usage,
    id_argument,
    id_option,
    json_option,
    map_option,
    name_argument,
)
from .output import print_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from .inspection import Json

#: How long a resize may take, in seconds: one of the largest table that there can be takes several
#: times as long as a client waits by default.
_RESIZE: Final = 60.0

_metadata = map_option("--metadata", "Its metadata, an object; default: empty.")
_new_metadata = map_option("--metadata", "Its new metadata, an object that replaces the old.")
_llm_config = map_option("--llm-config", "Its model configuration, an object; default: empty.")
_new_llm_config = map_option("--llm-config", "Its new model configuration, likewise.")
_pid = click.option(
    "--pid", type=click.IntRange(min=1), metavar="PID", help="Its owner process; it ends with it."
)
_ttl = click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="In how long it expires.",
)
_no_pid = click.option("--no-pid", is_flag=True, help="It has no owner process any more.")
_no_ttl = click.option("--no-ttl", is_flag=True, help="It does not expire any more.")


@contextlib.contextmanager
def _client(name: str, **options: Any) -> Iterator[SessionClient]:  # noqa: ANN401 - a client's own
    # A client would wait for a registry to appear; the command says at once that there is none.
    open_reader(name).close()
    with bad_values_are_wrong_usage(), SessionClient(name, **options) as client:
        yield client


@click.command()
@name_argument
@_metadata
@_llm_config
@_pid
@_ttl
@id_option("--id", "Its id; default: a new one.")
@json_option
def create(name: str, *, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - create_session's
    """Create a session in the registry NAME and print its id."""
    with _client(name) as client:
        session_id = client.create_session(**options)
        if as_json:
            print_json(client.get_session_info(session_id).to_dict())
        else:
            click.echo(str(session_id))


@click.command()
@name_argument
@id_argument
@click.option(
    "--status", type=click.Choice([str(status) for status in SessionStatus]), help="Its new status."
)
@_new_metadata
@_new_llm_config
@_pid
@_no_pid
@_ttl
@_no_ttl
@click.option(
    "--expected-version",
    type=click.IntRange(min=1),
    metavar="VERSION",
    help="Change it only if it is at this version.",
)
@json_option
def update(name: str, session_id: UUID, *, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - update_session's
    """Change the session ID of the registry NAME and print its new version.

    What no option names stays as it is. Without options it is a heartbeat.
    """
    fields = _fields(options)
    with _client(name) as client:
        session = client.update_session(session_id, **fields)
    if as_json:
        print_json(session.to_dict())
    else:
        click.echo(f"{session.session_id} is {session.status}, version {session.version}")


def _fields(options: Json) -> Json:
    """Return the arguments of an update: the options that were given, ``--no-`` ones as None."""
    fields: Json = {}
    for key in ("pid", "ttl"):
        if options.pop(f"no_{key}"):
            if options[key] is not None:
                msg = f"--{key} and --no-{key} exclude each other"
                raise click.UsageError(msg)
            fields[key] = None
    return fields | {key: value for key, value in options.items() if value is not None}


@click.command()
@name_argument
@id_argument
@click.option("--error", metavar="TEXT", help="What went wrong.")
@json_option
def terminate(name: str, session_id: UUID, *, error: str | None, as_json: bool) -> None:
    """End the session ID of the registry NAME.

    It reads as terminated for the service's cleanup delay, and is gone then.
    """
    with _client(name) as client:
        client.terminate_session(session_id, error)
    if as_json:
        print_json({"name": name, "session_id": str(session_id), "terminated": True})
    else:
        click.echo(f"terminated {session_id}")


@click.command()
@name_argument
@click.option(
    "--capacity",
    type=click.IntRange(min=1),
    required=True,
    metavar="SLOTS",
    help="Slots then; a session takes one or more.",
)
@click.option(
    "--slot-size",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Bytes a slot then, a multiple of 64; default: as before.",
)
@json_option
def resize(name: str, *, capacity: int, slot_size: int | None, as_json: bool) -> None:
    """Move the sessions of the registry NAME to a table of another size, and print what it is now.

    Larger or smaller, whatever the service's own limits of growing say. Readers go on; changes wait
    meanwhile. The size that it has is no change.
    """
    with _client(name, timeout=_RESIZE) as client:
        client.resize(capacity, slot_size)
        now = client.stats()
    if as_json:
        keys = ("name", "capacity", "slot_size", "generation")
        print_json({key: getattr(now, key) for key in keys})
    else:
        size = f"{now.capacity} slots of {now.slot_size} bytes"
        click.echo(f"{name} has {size}, in generation {now.generation}")
