"""Arguments and options that several commands have, and the types of their values."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from jidoka_shm.arguments import check_mode, parse_session_id
from jidoka_shm.errors import InvalidMetadata, InvalidName, InvalidSessionId, JidokaError
from jidoka_shm.layout import check_name

from . import inspection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from click.decorators import FC


def _to_name(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        return check_name(value)
    except InvalidName as error:
        raise click.BadParameter(str(error)) from error


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in inspection.names() if name.startswith(incomplete)]


def _to_id(_: click.Context, __: click.Parameter, value: str | None) -> UUID | None:
    if value is None:
        return None
    try:
        return parse_session_id(value)
    except InvalidSessionId as error:
        msg = f"{error.value} is no id: it is 32 hexadecimal digits, with or without hyphens"
        raise click.BadParameter(msg) from error


def _to_map(_: click.Context, __: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        msg = f"not JSON: {error}"
        raise click.BadParameter(msg) from error
    if not isinstance(found, dict):
        msg = 'not an object of JSON: give one like \'{"project": "jidoka"}\''
        raise click.BadParameter(msg)
    return found


class FileMode(click.ParamType[int]):
    """A file mode in octal digits, as ``chmod`` takes it."""

    name = "mode"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the mode that the digits say."""
        try:
            return value if isinstance(value, int) else check_mode(int(str(value), 8))
        except ValueError:
            self.fail(f"{value!r} is none of 600, 604, 640 and 644", param, ctx)


def id_option(flag: str, help_text: str) -> Callable[[FC], FC]:
    """Return an option that takes a session's id."""
    return click.option(flag, "session_id", metavar="ID", callback=_to_id, help=help_text)


def map_option(flag: str, help_text: str) -> Callable[[FC], FC]:
    """Return an option that takes a map as JSON."""
    return click.option(flag, metavar="JSON", callback=_to_map, help=help_text)


name_argument = click.argument("name", callback=_to_name, shell_complete=_complete_name)
id_argument = click.argument("session_id", metavar="ID", callback=_to_id)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def bad_values_are_wrong_usage() -> Iterator[None]:
    """Make wrong usage of what the library says of a value that an option could not check."""
    try:
        yield
    except InvalidMetadata as error:
        raise click.UsageError(str(error)) from error
    except JidokaError:
        raise
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
