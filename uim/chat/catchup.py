"""Catching up: pages from a connection's cursor, then live without a seam.

Connecting, reconnecting, coming back after a year, a slow reader, a resend: all are this. Rule: a page and the position it is
complete to come from one statement; after a page that is not full, going live is one step without an await: the position has
reached the tailer's, or the ring reaches back to it, or the next page is read (storage.md §2, models/handover.py). The first page
may come from the offline queue instead; it is never the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Final
from uuid import UUID

import msgspec
import trio

from uim.chat.offline import Offline
from uim.chat.outbox import Outbox
from uim.chat.tailer import Tailer
from uim.chat.turns import Turns
from uim.errors import UIMError
from uim.model.message import Entry
from uim.store import conversations, deletion, messages
from uim.store.postgres import Pool
from uim.wire.frames import hidden_object, message_object, raw_frame, sync_batch_payload

PAGE_ENTRIES: Final = 100
# 128 KiB, less what a frame puts around its entries.
PAGE_BYTES: Final = 127 * 1024
REST_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """A page, encoded: at most PAGE_ENTRIES and about PAGE_BYTES. `full`: there is more before the head."""

    entries: list[Entry]
    messages: list[bytes]
    conversations: list[bytes]
    position: int
    full: bool

    def payload(self, *, has_more: bool) -> bytes:
        return sync_batch_payload(self.messages, self.conversations, next_sync_id=self.position, has_more=has_more)


class CatchUp:
    """Reads pages for connections and for GET /api/sync."""

    def __init__(self, pool: Pool, tailer: Tailer, offline: Offline, turns: Turns) -> None:
        self._pool = pool
        self._turns = turns
        self._tailer = tailer
        self._offline = offline

    async def read(self, *, user_id: UUID, after: int, limit: int = PAGE_ENTRIES) -> Batch:
        """The next page above `after`. Raises UIMError `unavailable`."""
        async with self._pool.connection() as tx:
            page = await messages.page_after(tx, user_id=user_id, after=after, limit=limit)
            changed = list({entry.conversation_id for entry in page.entries if _makes_or_changes(entry)})
            views = await conversations.views(tx, user_id=user_id, conversation_ids=changed) if changed else {}
            hidden = await deletion.hidden_of(tx, user_id=user_id, message_ids=[entry.message_id for entry in page.entries])
        objects = {conversation_id: msgspec.json.encode(view) for conversation_id, view in views.items()}
        return _bounded(page, objects, user_id, hidden)

    async def read_queue(self, *, user_id: UUID, after: int) -> Batch | None:
        """The page above `after` as far as the offline queue has it; None if it has none of it.

        There is always more to come: only the database knows that nothing follows, and what a conversation looks like now.
        """
        held = await self._offline.page(user_id=user_id, after=after, limit=PAGE_ENTRIES)
        entries = list(takewhile(lambda entry: not _makes_or_changes(entry), held))
        if not entries:
            return None
        return _bounded(messages.Page(entries, entries[-1].message_id, True), {}, user_id, frozenset())

    def nothing(self, outbox: Outbox, request_id: str | None, *, up_to: int) -> bool:
        """Queue a page for a connection for which there is nothing up to there; whether it is live now. Does not await."""
        return self._push(outbox, Batch([], [], [], up_to, False), request_id)

    async def run(self, outbox: Outbox, request_id: str | None = None) -> None:
        """Bring a connection from `outbox.sent` to live. Returns once it is live, or closed. Waits while the database is away."""
        if outbox.is_fresh and (queued := await self.read_queue(user_id=outbox.user_id, after=outbox.sent)) is not None:
            self._push(outbox, queued, request_id)
        while not outbox.closed:
            if not outbox.may_read_page():
                await outbox.progress()
                continue
            try:
                # Twenty devices that come at once are one user, and others come too.
                async with self._turns.turn(outbox.user_id):
                    batch = await self.read(user_id=outbox.user_id, after=outbox.sent)
            except UIMError as refused:
                if refused.code != "unavailable":
                    raise
                await trio.sleep(REST_S)
                continue
            if self._push(outbox, batch, request_id):
                return

    def _push(self, outbox: Outbox, batch: Batch, request_id: str | None) -> bool:
        """Queue the page, and go live if it was the last. No await in here: it is the step of the hand-over."""
        since = None if batch.full else self._tailer.since(batch.position, outbox.user_id)
        has_more = since is None
        data = raw_frame("SYNC_BATCH", batch.payload(has_more=has_more), request_id)
        outbox.push_page(data, batch.entries, batch.position)
        if since is None:
            return False
        outbox.go_live()
        for entry in since:
            outbox.offer(entry)
        return True


def _makes_or_changes(entry: Entry) -> bool:
    # A one-on-one has no entry of its own making: its first text brings its object.
    return entry.message_type == "system" or (entry.seq == 1 and entry.message_type == "text")


def _bounded(page: messages.Page, objects: dict[UUID, bytes], user_id: UUID, hidden: frozenset[int]) -> Batch:
    """Cut a page where it grows over PAGE_BYTES, counting each conversation's object with the first entry that needs it."""
    encoded: list[bytes] = []
    shown: dict[UUID, bytes] = {}
    size = 0
    for entry in page.entries:
        # What everybody gets is encoded once; what this user has hidden is a small object of its own.
        text = hidden_object(entry) if entry.message_id in hidden else message_object(entry, own=entry.sender_id == user_id)
        view = objects.get(entry.conversation_id, b"") if entry.conversation_id not in shown and _makes_or_changes(entry) else b""
        if encoded and size + len(text) + len(view) > PAGE_BYTES:
            kept = page.entries[: len(encoded)]
            return Batch(kept, encoded, list(shown.values()), kept[-1].message_id, True)
        encoded.append(text)
        if view:
            shown[entry.conversation_id] = view
        size += len(text) + len(view)
    return Batch(page.entries, encoded, list(shown.values()), page.position, page.full)
