"""The rooms of conversations on a real database with the real writer, and people to sit in them.

What the tests of conversations and history share; it has no tests of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import msgspec
import psycopg
import trio

from uim.chat.conversations import Conversations
from uim.chat.history import History
from uim.chat.writer import Writer
from uim.model.conversation import ConversationView
from uim.model.message import Draft, Entry, Posted
from uim.store import messages, people, receipts
from uim.store.postgres import Connection, Pool, Statement


@dataclass(frozen=True)
class Rooms:
    pool: Pool
    writer: Writer
    conversations: Conversations
    history: History
    appended: list[Entry]
    made: list[UUID]
    names: dict[UUID, str] = field(default_factory=dict)

    async def person(self, name: str) -> UUID:
        async with self.pool.transaction() as tx:
            user_id = await people.add_account(
                tx,
                username=name,
                email=f"{name}@example.org",
                password_hash="-",
                display_name=name.title(),
                self_conversation_id=uuid4(),
            )
        self.names[user_id] = name
        return user_id

    async def people(self, *names: str) -> list[UUID]:
        return [await self.person(name) for name in names]

    async def group(self, owner: UUID, *others: UUID, name: str = "Tea") -> UUID:
        view, made = await self.conversations.make_group(user_id=owner, name=name, member_ids=others)
        assert made
        return view.conversation_id

    async def pair(self, one: UUID, other: UUID) -> UUID:
        view, _ = await self.conversations.make_one_on_one(user_id=one, other_id=other)
        return view.conversation_id

    async def say(self, sender: UUID, conversation_id: UUID, content: str) -> Posted:
        return await self.writer.post(Draft(conversation_id, sender, str(uuid4()), content, None))

    async def told(self, conversation_id: UUID) -> list[str]:
        """The conversation's whole log in words: `ada: created name=Tea type=group`, `bob: "hello"`."""
        async with self.pool.connection() as tx:
            entries = await messages.entries_after(tx, 0, 10_000)
        return [self._words(entry) for entry in entries if entry.conversation_id == conversation_id]

    def _words(self, entry: Entry) -> str:
        sender = self.names[entry.sender_id]
        if entry.message_type == "text":
            return f'{sender}: "{entry.content}"'
        facts = {key: self.names.get(_id(value), value) for key, value in entry.event.items() if key != "event"}
        return " ".join([f"{sender}:", entry.event["event"], *(f"{key}={value}" for key, value in facts.items())])

    async def sees(self, user_id: UUID, conversation_id: UUID, **place: Any) -> list[dict[str, Any]]:
        page = await self.history.page(user_id=user_id, conversation_id=conversation_id, **{"limit": 100, **place})
        return cast(list[dict[str, Any]], msgspec.json.decode(msgspec.json.encode(page.items)))

    async def texts(self, user_id: UUID, conversation_id: UUID) -> list[str]:
        return [item["content"] for item in await self.sees(user_id, conversation_id) if item["message_type"] == "text"]

    async def view(self, user_id: UUID, conversation_id: UUID) -> ConversationView:
        return await self.conversations.view(user_id=user_id, conversation_id=conversation_id)

    async def block(self, user_id: UUID, blocked_id: UUID) -> None:
        await self.run("insert into blocks (user_id, blocked_id) values (%s, %s)", user_id, blocked_id)

    async def run(self, statement: str, *values: object) -> None:
        async with self.pool.connection() as tx:
            await tx.execute(statement, values)

    async def confirm(self, user_id: UUID, conversation_id: UUID, *, delivered: int = 0, read: int = 0) -> None:
        """Move that user's watermarks, as their devices would."""
        async with self.pool.connection() as tx:
            await receipts.advance(tx, {(conversation_id, user_id): (delivered, read)})


def _id(value: object) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        return UUID(int=0)


@asynccontextmanager
async def rooms_on(database_url: str) -> AsyncIterator[Rooms]:
    pool = Pool(database_url, 4)
    appended: list[Entry] = []
    made: list[UUID] = []
    writer = Writer(database_url, appended.extend)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        yield Rooms(pool, writer, Conversations(pool, writer, made.append), History(pool), appended, made)
        nursery.cancel_scope.cancel()
    pool.close_idle()


def roles(view: ConversationView, names: Mapping[UUID, str]) -> dict[str, str]:
    """Who is what: {"ada": "owner", "bob": "member"}."""
    return {names[participant.user_id]: participant.role for participant in view.participants}


async def rows_touched(tx: Connection, statement: Statement, values: Sequence[Any]) -> int:
    """How many rows the scans of this statement have looked at: what it costs, on any machine."""
    cursor = psycopg.AsyncRawCursor(tx)
    await cursor.execute(b"explain (analyze, timing off, format json) " + statement.sql, values)
    row = await cursor.fetchone()
    assert row is not None
    touched = 0
    waiting = [row[0][0]["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        if "Relation Name" in node:
            touched += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return int(touched)
