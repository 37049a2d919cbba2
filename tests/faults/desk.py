"""A real writer on a real database, whose line may lead through the proxy, and people who write.

The rest of its rooms reach the database directly, so that a test sees what is in it while the writer's line is broken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import trio

from tests.rooms import Rooms
from uim.chat.appending import Append
from uim.chat.conversations import Conversations
from uim.chat.history import History
from uim.chat.writer import Writer
from uim.errors import UIMError
from uim.model.message import Draft, Entry, Posted
from uim.store.postgres import Connection, Deadlines, Pool

QUICK = Deadlines(connect_s=0.3, answer_s=0.3)
GIVE_UP_AFTER_S = 0.8
WAIT_S = 10.0


@dataclass
class Answers:
    """What the writer has answered to a series of submitted drafts, in the order of the answers."""

    wanted: int
    came: list[tuple[str, Posted | UIMError]] = field(default_factory=list)
    complete: trio.Event = field(default_factory=trio.Event)

    def take(self, client_id: str, what: Posted | UIMError) -> None:
        self.came.append((client_id, what))
        if len(self.came) == self.wanted:
            self.complete.set()

    async def all(self) -> list[str | int]:
        """Of each draft, in order: the id that it got, negative for a duplicate's; or the code of its refusal."""
        with trio.fail_after(WAIT_S):
            await self.complete.wait()
        return [_short(what) for _, what in self.came]


def _short(what: Posted | UIMError) -> str | int:
    if isinstance(what, UIMError):
        return what.code
    return -what.message_id if what.duplicate else what.message_id


def submit(writer: Writer, *drafts: Draft) -> Answers:
    """All in one step, so that they make one batch."""
    answers = Answers(len(drafts))
    for draft in drafts:

        def answer(what: Posted | UIMError, client_id: str = draft.client_message_id) -> None:
            answers.take(client_id, what)

        writer.submit(draft, answer)
    return answers


@dataclass(frozen=True)
class Desk(Rooms):
    async def texts_in_log(self) -> list[tuple[int, int, str, str]]:
        """(message_id, seq, client id, content) of every text, in log order."""
        async with self.pool.connection() as tx:
            cursor = await tx.execute(
                """select message_id, seq, client_message_id, content from messages
                    where message_type = 'text' order by message_id"""
            )
            return [(row[0], row[1], row[2], row[3]) for row in await cursor.fetchall()]

    async def events_in_log(self, conversation_id: UUID) -> list[str]:
        async with self.pool.connection() as tx:
            cursor = await tx.execute(
                "select metadata ->> 'event' from messages where conversation_id = %s and message_type = 'system' order by seq",
                (conversation_id,),
            )
            return [row[0] for row in await cursor.fetchall()]


def text(conversation_id: UUID, sender_id: UUID, client_id: str = "", content: str = "hello") -> Draft:
    return Draft(conversation_id, sender_id, client_id or str(uuid4()), content, None)


def rename(conversation_id: UUID, user_id: UUID, name: str) -> Callable[[Connection, Append], Awaitable[str]]:
    """A verb that changes a row, appends two entries and has a result that differs at each try."""

    async def act(tx: Connection, append: Append) -> str:
        await tx.execute("update conversations set name = %s where conversation_id = %s", (name, conversation_id))
        for _ in range(2):
            await append(
                conversation_id=conversation_id,
                sender_id=user_id,
                message_type="system",
                event={"event": "renamed", "name": name},
            )
        return f"{name} {append.entries[0].message_id} {uuid4()}"

    return act


@asynccontextmanager
async def desk_on(database_url: str, *, through: str | None = None, running: bool = True) -> AsyncIterator[Desk]:
    """`through`: where the writer finds the database, if not at `database_url`; then it is quick to lose patience."""
    pool = Pool(database_url, 4)
    appended: list[Entry] = []
    made: list[UUID] = []
    if through is None:
        writer = Writer(database_url, appended.extend)
    else:
        writer = Writer(through, appended.extend, give_up_after_s=GIVE_UP_AFTER_S, deadlines=QUICK)
    async with trio.open_nursery() as nursery:
        if running:
            await nursery.start(writer.run)
        yield Desk(pool, writer, Conversations(pool, writer, made.append), History(pool), appended, made)
        nursery.cancel_scope.cancel()
    pool.close_idle()
