"""A client that the service has accepted: what it sent, its turns, and the replies that it is owed.

What a client may cost is bounded: one frame that is not whole yet, one piece of what it sent, and
replies up to ``_HIGH`` that it has not read; while it reads none, nothing more is read from it.
What arrives together is carried out together and answered by one write, but for at most
``_TURN`` requests at a time, so that no client keeps the others or a deadline waiting.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from .errors import ForkedHandle, RegistryClosed
from .logs import log
from .protocol import (
    Failed,
    FrameBuffer,
    ProtocolError,
    Refused,
    Resize,
    decode_request,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .protocol import Reply, Request
    from .server import Server

#: Requests of one client that are carried out before others get their turn.
_TURN: Final = 128

#: Bytes of replies that may wait for a client to read them.
_HIGH: Final = 1 << 18


class Accepted(asyncio.BufferedProtocol):
    """One client.

    Attributes:
        pid: its process.
    """

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.pid = 0
        self._server = server
        self._answer = server.answer
        # Once a client, or each request would pay for a log that nobody reads.
        if log.isEnabledFor(logging.DEBUG):
            self._answer = self._answer_and_log
        self._buffer = FrameBuffer()
        self._frames: Iterator[bytes] = iter(())
        self._is_full = self._is_busy = self._is_waiting = self._is_finishing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet a client, or refuse it."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_HIGH)
        reason = self._server.admit(self, transport.get_extra_info("socket"))
        if reason is None:
            self._transport.write(self._server.greeting)
        else:
            self._refuse(reason)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return where to receive: one place for all, since what is there is taken at once.

        A plain protocol receives into new bytes of 256 KiB, which the system has to map and unmap
        each time: half of what an echo of a small message takes.
        """
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        self.take(bytes(self._server.buffer[:nbytes]))

    def take(self, data: bytes) -> None:
        """Carry out what came; nothing more comes before that is done."""
        self._frames = iter(self._buffer.feed(data))
        self._is_busy = True
        self._turn()
        # Not before: most often all is done by now, and each of the two costs a system call.
        if self._is_busy:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Wait for the client to read its replies."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on."""
        self._is_full = False
        # Else its turn comes anyway, and a second one each round would be more than its share.
        if not self._is_waiting:
            self._turn()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Forget a client."""
        self._is_busy = False
        self._server.dismiss(self)

    def finish(self) -> None:
        """Close once what came is carried out and the replies are gone."""
        self._is_finishing = True
        if not self._is_busy:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def forget(self) -> None:
        """Close the descriptor in a forked child."""
        sock: Any = self._transport.get_extra_info("socket")
        sock._sock.close()  # noqa: SLF001 - what get_extra_info wraps has no close

    def _turn(self) -> None:
        """Carry out some of what came, and answer it with one write."""
        self._is_waiting = False
        if not self._is_busy or self._is_full or self._transport.is_closing():
            return
        replies: list[bytes] = []
        go_on = self._carry_out(replies)
        self._transport.write(b"".join(replies))
        go_on()

    def _carry_out(self, replies: list[bytes]) -> Callable[[], None]:
        """Carry out a turn's share, add its replies, and return what is to be done behind them."""
        try:
            return self._wait if self._spend_turn(replies) else self._rest
        except ProtocolError as error:
            text = "registry %r: refused a client: %s"
            reason = str(error)
            self._server.seldom.warning(text, reason, client_pid=self.pid)
        except (RegistryClosed, ForkedHandle):
            # Its client finds the next writer, and sends again what was not answered.
            return self._transport.close
        except Exception:  # noqa: BLE001 - it is logged, whatever it is
            # A client whose request is never answered must not wait for ever, and nobody knows
            # what became of it. What follows it is not to be carried out either.
            reason = "this service failed, and its log says how"
            text = "registry %r: a request could not be carried out"
            self._server.seldom.exception(text, client_pid=self.pid)
        return functools.partial(self._refuse, reason)

    def _spend_turn(self, replies: list[bytes]) -> bool:
        """Carry out a turn's share, add its replies, and return whether it was used up."""
        size = 0
        for frame in self._frames:
            replies.append(encode(self._answer(decode_request(frame))))
            size += len(replies[-1])
            if len(replies) >= _TURN or size >= _HIGH:
                return True
        return False

    def _wait(self) -> None:
        """Let the others have their turns."""
        self._is_waiting = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _rest(self) -> None:
        """Wait for more of the client, or end where that is wanted."""
        self._is_busy = False
        if self._is_finishing:
            self._transport.close()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _answer_and_log(self, request: Request) -> Reply:
        reply = self._server.answer(request)
        if type(reply) is Failed:
            self._log_refused(request, reply.error)
        return reply

    def _log_refused(self, request: Request, error: str) -> None:
        name, pid = self._server.name, self.pid
        extra = {"registry": name, "client_pid": pid, "error": error}
        if isinstance(request, Resize):
            text = "registry %r: process %d: no resize to %d slots: %s"
            extra |= {"capacity": request.capacity}
            log.debug(text, name, pid, request.capacity, error, extra=extra)
        else:
            kind, session_id = type(request).__name__.lower(), str(UUID(bytes=request.session_id))
            text = "registry %r: process %d: no %s of session %s: %s"
            extra |= {"session_id": session_id}
            log.debug(text, name, pid, kind, session_id, error, extra=extra)

    def _refuse(self, reason: str) -> None:
        self._is_busy = False
        self._transport.write(encode(Refused(reason)))
        self._transport.close()
