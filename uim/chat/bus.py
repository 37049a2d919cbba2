"""What processes tell each other: log batches, receipts, changed conversations, ended logins, replaced connections.

One Redis channel, its name beginning with the log's id. Rule: the bus is a hint: it may lose, repeat and reorder; the log comes
from the database anyway, ended logins and replaced connections by the tailer's query, the rest at the next reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import trio

from uim.log import get_logger
from uim.model.message import Entry
from uim.store.receipts import Advance
from uim.store.redis import RedisAway, RedisLink

COUNT_LISTENERS_EVERY_S: Final = 1.0

log = get_logger(__name__)


class LogEntry(msgspec.Struct, array_like=True, frozen=True):
    message_id: int
    conversation_id: UUID
    seq: int
    sender_id: UUID
    client_message_id: str | None
    content: str
    message_type: str
    metadata: str | None
    created_at: datetime
    deleted: bool


class Told(msgspec.Struct, array_like=True, frozen=True):
    """A receipt and, for a read, the reader's unread count."""

    conversation_id: UUID
    user_id: UUID
    kind: str
    after: int
    up_to: int
    at: datetime
    senders: list[UUID]
    unread: int


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message on the bus; a process fills in what it has to say."""

    process: UUID
    log: list[LogEntry] = []
    receipts: list[Told] = []
    changed: list[UUID] = []
    ended: list[UUID] = []
    replaced: list[tuple[UUID, str, int]] = []
    typing: list[tuple[UUID, UUID, bool, list[UUID]]] = []
    profiles: list[UUID] = []


class Bus:
    """One a process. The `on_…` callbacks take what others say; they do not await."""

    def __init__(
        self,
        link: RedisLink,
        *,
        log_id: UUID,
        process_id: UUID,
        on_log: Callable[[list[Entry]], None],
        on_receipts: Callable[[list[Advance], dict[tuple[UUID, UUID], int]], None],
        on_changed: Callable[[UUID], None],
        on_ended: Callable[[Iterable[UUID]], None],
        on_replaced: Callable[[UUID, str, int], None],
        on_typing: Callable[[UUID, UUID, bool, list[UUID]], None] = lambda conversation_id, user_id, is_typing, members: None,
        on_profile: Callable[[UUID], None],
    ) -> None:
        self._link = link
        self._process_id = process_id
        self._channel = f"{log_id}:bus"
        self._on_log = on_log
        self._on_receipts = on_receipts
        self._on_changed = on_changed
        self._on_ended = on_ended
        self._on_replaced = on_replaced
        self._on_typing = on_typing
        self._on_profile = on_profile
        self._decoder = msgspec.msgpack.Decoder(Word)
        self._others_hear = True
        link.subscribe(self._channel, self._heard)

    # -- saying -----------------------------------------------------------------------------------------------------------

    def appended(self, entries: list[Entry]) -> None:
        if entries and self._others_hear:
            self._say(log=[_packed(entry) for entry in entries])

    def told(self, advances: list[Advance], unread: dict[tuple[UUID, UUID], int]) -> None:
        if advances and self._others_hear:
            self._say(
                receipts=[
                    Told(a.conversation_id, a.user_id, a.kind, a.after, a.up_to, a.at, a.senders,
                         unread.get((a.conversation_id, a.user_id), 0))
                    for a in advances
                ]
            )  # fmt: skip

    def changed(self, conversation_id: UUID) -> None:
        self._say(changed=[conversation_id])

    def ended(self, login_id: UUID) -> None:
        self._say(ended=[login_id])

    def replaced(self, user_id: UUID, device_id: str, connection_no: int) -> None:
        if connection_no > 1:
            self._say(replaced=[(user_id, device_id, connection_no)])

    def typing(self, conversation_id: UUID, user_id: UUID, is_typing: bool, members: Sequence[UUID]) -> None:
        if self._others_hear:
            self._say(typing=[(conversation_id, user_id, is_typing, members)])

    def profile_changed(self, user_id: UUID) -> None:
        self._say(profiles=[user_id])

    def _say(self, **said: Any) -> None:
        self._link.send("PUBLISH", self._channel, msgspec.msgpack.encode(Word(self._process_id, **said)))

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def _heard(self, data: bytes) -> None:
        try:
            word = self._decoder.decode(data)
        except msgspec.MsgspecError as odd:
            log.warning("a word on the bus that this release does not know", error=str(odd))
            return
        if word.process == self._process_id:
            return
        if word.log:
            self._on_log([_unpacked(entry) for entry in word.log])
        if word.receipts:
            advances = [Advance(t.conversation_id, t.user_id, t.kind, t.after, t.up_to, t.at, t.senders) for t in word.receipts]
            self._on_receipts(advances, {(t.conversation_id, t.user_id): t.unread for t in word.receipts if t.kind == "read"})
        for conversation_id in word.changed:
            self._on_changed(conversation_id)
        if word.ended:
            self._on_ended(word.ended)
        for replaced in word.replaced:
            self._on_replaced(*replaced)
        for typing in word.typing:
            self._on_typing(*typing)
        for user_id in word.profiles:
            self._on_profile(user_id)

    # -- the task ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Know whether anybody else listens: a lone process does not publish its log batches."""
        task_status.started()
        while True:
            try:
                reply = await self._link.call("PUBSUB", "NUMSUB", self._channel)
                self._others_hear = int(reply[1]) > 1
            except RedisAway:
                self._others_hear = True
            await trio.sleep(COUNT_LISTENERS_EVERY_S)


def _packed(entry: Entry) -> LogEntry:
    return LogEntry(entry.message_id, entry.conversation_id, entry.seq, entry.sender_id, entry.client_message_id,
                    entry.content, entry.message_type, entry.metadata, entry.created_at, entry.deleted)  # fmt: skip


def _unpacked(said: LogEntry) -> Entry:
    return Entry(said.message_id, said.conversation_id, said.seq, said.sender_id, said.client_message_id,
                 said.content, said.message_type, said.metadata, said.created_at, said.deleted)  # fmt: skip
