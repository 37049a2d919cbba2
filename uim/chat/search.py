"""Looking for messages in one's own conversations: the newest first, back to thirty days ago.

The log is walked down in stretches of ids that grow, so that a common word ends the search among the newest; in each stretch
the texts that hold it are named by the store, and their rows read again. Rule: what is shown as a match was found in the row
that is shown, for this user, now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import msgspec
import trio
from msgspec import Meta

from uim.errors import invalid, not_found, unavailable
from uim.model.folding import fold, matches, probes_of
from uim.model.ids import MAX_MESSAGE_ID
from uim.model.message import DeliveryCounts, Entry
from uim.store import history, search
from uim.store.postgres import Connection, Pool
from uim.store.search import Extent
from uim.wire.frames import check_text, tracked_message
from uim.wire.paging import cursor_of, mark_of

MIN_CHARS: Final = 2
MAX_HIGHLIGHTS: Final = 100
# Of the ids of the whole log; 50 busy conversations have some 300 blocks in it.
FIRST_STRETCH: Final = 20_000
GROWTH: Final = 8
# One search of a very talkative member keeps a processor busy for a tenth of a second: sending messages comes first.
AT_ONCE: Final = 2
WAIT_S: Final = 5.0


class _Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page ended: the next one has what is below."""

    message_id: Annotated[int, Meta(ge=0, le=MAX_MESSAGE_ID)]


@dataclass(frozen=True, slots=True)
class Hit:
    """An encoded message and where in its content the match stands, [start, end) in code points."""

    message: bytes
    highlights: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class SearchPage:
    items: list[Hit]
    next: str | None


class Search:
    """The room of search. Everything here only reads; cancelling has no effect but that. `first_stretch`: of how many ids."""

    def __init__(self, pool: Pool, *, first_stretch: int = FIRST_STRETCH) -> None:
        self._pool = pool
        self._first_stretch = first_stretch
        self._turns = trio.Semaphore(AT_ONCE)

    async def page(
        self, *, user_id: UUID, q: str, conversation_id: UUID | None = None, cursor: str | None = None, limit: int
    ) -> SearchPage:
        """The newest messages that hold `q` without regard to case, spaces at its ends aside, below the cursor's place.

        Raises `validation_failed` for less than MIN_CHARS code points, folded or not, `not_found` for a conversation that is
        not this user's, `unavailable` if others search for too long.
        """
        wanted = _wanted(q)
        below = mark_of(cursor, _Mark).message_id if cursor is not None else MAX_MESSAGE_ID + 1
        async with self._turn(), self._pool.connection() as tx:
            where = await search.extent(tx, user_id=user_id, conversation_id=conversation_id)
            if conversation_id is not None and not where.conversation_ids:
                raise not_found("no such conversation")
            found = await _Look(tx, user_id, where, wanted).down(below, limit + 1, self._first_stretch)
            here = found[:limit]
            counts = await _counts(tx, user_id, [entry for entry, _ in here])
        items = [Hit(_shown(entry, user_id, counts), highlights) for entry, highlights in here]
        return SearchPage(items, cursor_of(_Mark(here[-1][0].message_id)) if len(found) > limit else None)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        with trio.move_on_after(WAIT_S) as waited:
            await self._turns.acquire()
        if waited.cancelled_caught:
            raise unavailable("too many others are searching")
        try:
            yield
        finally:
            self._turns.release()


def _wanted(q: str) -> str:
    trimmed = check_text(q, "q").strip()
    folded = fold(trimmed)
    # Folding makes some longer and some shorter: an i with a dot above is one letter.
    if min(len(trimmed), len(folded)) < MIN_CHARS:
        raise invalid("q", f"must have at least {MIN_CHARS} characters, spaces at its ends aside")
    return folded


_Found = list[tuple[Entry, list[tuple[int, int]]]]


class _Look:
    """One search down the log."""

    def __init__(self, tx: Connection, user_id: UUID, where: Extent, wanted: str) -> None:
        self._tx = tx
        self._user_id = user_id
        self._where = where
        self._wanted = wanted
        self._probes = probes_of(wanted)

    async def down(self, below: int, enough: int, length: int) -> _Found:
        """The newest matches below an id, `enough` of them or all that there are; `length` is the first stretch's."""
        found: _Found = []
        floor = max(self._where.horizon + 1, min(self._where.since, default=MAX_MESSAGE_ID))
        below = min(below, self._where.head + 1)
        while below > floor and len(found) < enough:
            candidates, down_to = await self._stretch(max(floor, below - length), below, enough)
            found += await self._confirmed(candidates, enough - len(found))
            # Above the packed part every text is read and folded: these stretches stay small.
            length *= GROWTH if below <= self._where.packed_up_to else 1
            below = down_to
            await trio.lowlevel.checkpoint()
        return found

    async def _stretch(self, least: int, below: int, enough: int) -> tuple[list[int], int]:
        """The ids of texts that seem to match, the newest first, and the id from which on these are all."""
        runs = await search.tails(self._tx, self._where, least=least, below=below)
        blocks, down_to = await search.blocks(
            self._tx, self._where, wanted=self._wanted, probes=self._probes, least=least, below=below, limit=enough
        )
        ids = {message_id for run in (*runs, *blocks) for message_id in run.holding(self._wanted)}
        return sorted((message_id for message_id in ids if down_to <= message_id < below), reverse=True), down_to

    async def _confirmed(self, candidates: list[int], enough: int) -> _Found:
        found: _Found = []
        at = 0
        while at < len(candidates) and len(found) < enough:
            ids = candidates[at : at + enough]
            at += enough
            for entry in await search.still_visible(self._tx, user_id=self._user_id, message_ids=ids):
                highlights = matches(entry.content, self._wanted, limit=MAX_HIGHLIGHTS)
                if highlights:
                    found.append((entry, highlights))
        return found[:enough]


async def _counts(tx: Connection, user_id: UUID, entries: list[Entry]) -> dict[int, DeliveryCounts]:
    counts: dict[int, DeliveryCounts] = {}
    own = [entry for entry in entries if history.is_own(entry, user_id)]
    for conversation_id in {entry.conversation_id for entry in own}:
        here = [entry for entry in own if entry.conversation_id == conversation_id]
        counts |= await history.delivery_counts(tx, sender_id=user_id, conversation_id=conversation_id, entries=here)
    return counts


def _shown(entry: Entry, user_id: UUID, counts: dict[int, DeliveryCounts]) -> bytes:
    own, status = entry.sender_id == user_id, counts.get(entry.message_id)
    return msgspec.json.encode(tracked_message(entry, own=own, status=status))
