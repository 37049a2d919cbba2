"""The admin socket: a unix socket, for its owner alone, over which a running server is asked what it knows.

A question is one line of JSON, the answer another; then the connection ends. Rule: whatever is asked, and however badly, the
server goes on: few connections, one question at a time, deadlines at each step, bounded answers, one error boundary.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
import trio
from msgspec import Meta

from uim.log import get_logger

MAX_CONNECTIONS: Final = 4
MAX_QUESTION_BYTES: Final = 16 * 1024
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
ASK_WITHIN_S: Final = 2.0
ANSWER_WITHIN_S: Final = 10.0
MOST: Final = 1_000

log = get_logger(__name__)


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tasks`: of one user (an id or a name) or of all, that many connections in full. `trace`: of a message, for these users."""

    ask: Literal["tasks", "trace"]
    user: str | None = None
    most: Annotated[int, Meta(ge=0, le=MOST)] = 20
    message_id: int = 0
    users: Annotated[list[UUID], Meta(max_length=200)] = []


class Unanswered(msgspec.Struct, frozen=True):
    error: str


Answers = Mapping[str, Callable[[Question], Awaitable[object]]]


async def serve(
    listening: socket.socket, answers: Answers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on a socket that listens already, until cancelled. `answers`: what is asked → who answers."""
    door = _Door(answers)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    async with trio.open_nursery() as visitors:
        task_status.started()
        # It outlives EMFILE and its like: says so, waits a moment, accepts again.
        await trio.serve_listeners(door.meet, [listener], handler_nursery=visitors)


class _Door:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._visitors = 0
        self._one_at_a_time = trio.Lock()

    async def meet(self, stream: trio.SocketStream) -> None:
        """One connection: the one error boundary around it."""
        self._visitors += 1
        try:
            await self._talk(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        except Exception:
            # Whoever asked sees the connection end without an answer, and says where to look.
            log.exception("a question over the admin socket failed")
        finally:
            self._visitors -= 1

    async def _talk(self, stream: trio.SocketStream) -> None:
        # Read first in any case: who is hung up on with words on the way may never see the answer.
        with trio.move_on_after(ASK_WITHIN_S) as patience:
            line = await _read_line(stream)
        if patience.cancelled_caught:
            return
        is_one_too_many = self._visitors > MAX_CONNECTIONS
        answer = Unanswered("too many questions at once") if is_one_too_many else await self._answer(line)
        data = msgspec.json.encode(answer)
        if len(data) > MAX_ANSWER_BYTES:
            data = msgspec.json.encode(Unanswered("the answer is too long: ask for less of it"))
        with trio.move_on_after(ANSWER_WITHIN_S):
            await stream.send_all(data + b"\n")
            await stream.send_eof()

    async def _answer(self, line: bytes) -> object:
        try:
            question = msgspec.json.decode(line, type=Question)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Unanswered(f"not understood: {error}")
        try:
            with trio.fail_after(ANSWER_WITHIN_S):
                async with self._one_at_a_time:
                    return await self._answers[question.ask](question)
        except trio.TooSlowError:
            return Unanswered(f"no answer within {ANSWER_WITHIN_S:.0f} s")


async def _read_line(stream: trio.SocketStream) -> bytes:
    """What comes before the first line feed, or before the peer stops sending, or up to the bound."""
    line = bytearray()
    while len(line) <= MAX_QUESTION_BYTES and b"\n" not in line:
        received = await stream.receive_some(MAX_QUESTION_BYTES)
        if not received:
            break
        line += received
    return bytes(line.partition(b"\n")[0])
