"""Watching a registry from an asyncio loop: the same steps, with no thread and no blocked loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from .arguments import check_seconds
from .differences import Change

if TYPE_CHECKING:
    from typing import Self

    from .watching import Watch

#: Changes that are handed out at most before the loop's other tasks get a turn.
_TURN: Final = 128


class AsyncChanges(AsyncIterator[Change]):
    """``Changes`` for ``async for``. A task that is cancelled while it waits loses no change."""

    def __init__(self, watch: Watch, timeout: float | None) -> None:
        """Take what looks.

        Args:
            watch: that.
            timeout: end after so many seconds without a change; None is never.
        """
        self._watch = watch
        self._timeout = math.inf if timeout is None else check_seconds("timeout", timeout)
        self._is_over = False
        self._in_turn = 0

    def __aiter__(self) -> Self:
        self._is_over = False
        return self

    async def __anext__(self) -> Change:
        deadline = time.monotonic() + self._timeout
        self._in_turn += 1
        if self._in_turn >= _TURN:
            await self._pause(0.0, deadline)
        mark = self._watch.telling.mark()
        try:
            while not self._is_over:
                found = self._watch.step(deadline)
                if isinstance(found, Change):
                    return found
                if found is None:
                    self._is_over = True
                else:
                    await self._pause(found, deadline)
        except BaseException:
            self._watch.telling.go_back(mark)
            raise
        raise StopAsyncIteration

    async def _pause(self, seconds: float, deadline: float) -> None:
        """Wait until a step is worth while."""
        # By timers alone: a task that wakes at each poll would cost half as much again.
        self._in_turn = 0
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        timer: asyncio.TimerHandle

        def poll() -> None:
            nonlocal timer
            try:
                pause = self._watch.poll(deadline)
            except Exception as error:  # noqa: BLE001 - who waits gets it
                # Here: a step that follows at once does not look again, so it would not meet it.
                ready.set_exception(error)
                return
            if pause is not None:
                timer = loop.call_later(pause, poll)
            elif not ready.done():
                ready.set_result(None)

        timer = loop.call_later(seconds, poll)
        try:
            await ready
        finally:
            timer.cancel()

    def __repr__(self) -> str:
        return f"AsyncChanges({self._watch.name!r}, {len(self._watch)} sessions known)"
