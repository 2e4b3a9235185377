"""Tests that are coroutines: each runs in a loop of asyncio's, and in one of uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

try:
    from uvloop import new_event_loop as new_uvloop
except ModuleNotFoundError:
    new_uvloop = None
else:
    # Its first loop opens a pipe for signals, which stays.
    new_uvloop().close()

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

#: How often the loop turns while a test lets it do what it can do without waiting.
_TURNS: Final = 10

_LOOPS: Final = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if new_uvloop is not None:
    _LOOPS.append(pytest.param(new_uvloop, id="uvloop"))

each_loop = pytest.mark.parametrize("new_loop", _LOOPS)


def run(
    main: Coroutine[Any, Any, T],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> T:
    """Run a coroutine in a new loop and return what it returns."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


def in_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: it runs once in each kind of loop."""

    @functools.wraps(test)
    def work(*, new_loop: Callable[[], asyncio.AbstractEventLoop], **given: object) -> None:
        run(test(**given), new_loop)

    signature = inspect.signature(test)
    loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), loop]
    work.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return each_loop(work)


async def turns(count: int = _TURNS) -> None:
    """Let the loop do what it can do without waiting."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition while the loop runs; the limit only catches hanging."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - no event tells of what the conditions ask for
            await asyncio.sleep(0.001)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def outcomes(calls: list[Awaitable[Any]]) -> list[Any]:
    """Return what each of many calls at once returns or raises."""
    return await asyncio.gather(*calls, return_exceptions=True)
