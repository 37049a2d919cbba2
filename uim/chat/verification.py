"""The whole look through the database, and the mending of what is derived.

Rule: a look is one snapshot and changes nothing; mending begins after it, looks again at what it is to mend, and leaves alone
whatever is not derived from other rows: that is for a person, with a backup.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import trio

from uim.chat.indexer import block_of, full_runs
from uim.model.folding import SEPARATOR, fold, signature_of
from uim.store import mending, packing, verification
from uim.store.invariants import CURSORS, SEARCH, WATERMARKS, Invariant
from uim.store.log_invariants import BLOCKS, EPOCHS, LOG, RECORDS, SENDERS
from uim.store.packing import Due, Packed
from uim.store.postgres import Connection, Deadlines, connect
from uim.store.seat_invariants import CONVERSATIONS, DEVICES, FRIENDS, HIDDEN, RECEIPTS, SEATS, STAYS, USERS
from uim.store.verification import Finding, Progress, StoredBlock

WALKS: Final = (RECORDS, EPOCHS, LOG, SENDERS, USERS, CONVERSATIONS, SEATS, STAYS, RECEIPTS, DEVICES, FRIENDS, HIDDEN, BLOCKS)
HELD: Final = Invariant("search blocks hold what their entries say", "", "", SEARCH)
PACK_AT_ONCE: Final = 2_000
# More than these in one run are mended by the next.
MOST_TO_PACK: Final = 10_000
# Another process may be packing a step.
PACKER_WITHIN_S: Final = 30.0
_SETTINGS: Final = {"statement_timeout": "60000", "enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}


@dataclass(slots=True)
class Report:
    """What a look has found: a finding for each rule. `head`: the newest entry then; `rows`: what was looked at."""

    head: int
    at: datetime
    findings: list[Finding] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    # Conversations whose blocks hold something else than their entries.
    misheld: set[UUID] = field(default_factory=set)

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.number]


def _quietly(what: str, seen: int) -> None:
    pass


async def verify(database_url: str, progress: Progress = _quietly) -> Report:
    """Look through everything, in one snapshot. Raises psycopg.Error. Cancelled, nothing has changed."""
    async with verification.snapshot(database_url) as tx:
        report = Report(*await verification.head(tx))

        def note(what: str, seen: int) -> None:
            report.rows[what] = seen
            progress(what, seen)

        for walk in WALKS:
            report.findings += await verification.look(tx, walk, note)
        report.findings.append(await _look_into_blocks(tx, report, note))
    return report


async def _look_into_blocks(tx: Connection, report: Report, progress: Progress) -> Finding:
    finding = Finding(HELD)
    seen = 0
    async for blocks in verification.stored_blocks(tx):
        for block in blocks:
            if not _holds_its_entries(block) and not await _may_hold_more(tx, block):
                if len(report.misheld) < MOST_TO_PACK:
                    report.misheld.add(block.conversation_id)
                finding.add(1, [f"conversation {block.conversation_id}, block up to {block.last_message_id}"])
        seen += len(blocks)
        progress("texts of search blocks", seen)
        await trio.lowlevel.checkpoint()
    return finding


def _holds_its_entries(block: StoredBlock) -> bool:
    folded = SEPARATOR.join(map(fold, block.texts))
    return len(block.texts) == len(block.message_ids) and block.folded == folded and block.signature == signature_of(folded)


async def _may_hold_more(tx: Connection, block: StoredBlock) -> bool:
    return not (await verification.deletions_to_come(tx, block.conversation_id)).isdisjoint(block.message_ids)


# -- mending --------------------------------------------------------------------------------------------------------------

Mended = Callable[[str, int], None]


async def repair(database_url: str, report: Report, mended: Mended) -> None:
    """Mend what the report has found wrong and is derived; `mended(what, how many)` hears of each kind. Raises psycopg.Error.

    Safe beside running servers, and to repeat. Cancelled, or broken off, what is mended by then stays so.
    """
    kinds = {finding.invariant.mend for finding in report.wrong}
    async with await connect(database_url, name="repair", settings=_SETTINGS, deadlines=Deadlines(answer_s=65.0)) as tx:
        if WATERMARKS in kinds:
            mended("watermarks", await _mend_watermarks(tx))
        if CURSORS in kinds:
            mended("cursors", await _mend_cursors(tx))
        if SEARCH in kinds:
            mended("place up to which the log is packed for search", await _mend_position(tx))
            mended("conversations packed again for search", await _mend_blocks(tx, report.misheld))


async def _mend_watermarks(tx: Connection) -> int:
    number = 0
    async for _, ends in verification.steps(tx, SEATS):
        wrong = await mending.broken(tx, SEATS, ends, mend=WATERMARKS, columns="conversation_id, user_id")
        for start in range(0, len(wrong), mending.AT_ONCE):
            seats = [(row[0], row[1]) for row in wrong[start : start + mending.AT_ONCE]]
            number += await mending.set_watermarks_right(tx, seats)
    return number


async def _mend_cursors(tx: Connection) -> int:
    number = 0
    while moved := await mending.set_cursors_right(tx):
        number += moved
    return number


async def _mend_position(tx: Connection) -> int:
    async with _packing(tx):
        return int(await mending.set_position_right(tx))


async def _mend_blocks(tx: Connection, misheld: set[UUID]) -> int:
    wrong = set(misheld)
    for walk in (CONVERSATIONS, BLOCKS):
        async for _, ends in verification.steps(tx, walk):
            wrong |= {row[0] for row in await mending.broken(tx, walk, ends, mend=SEARCH, columns="conversation_id")}
    for conversation_id in sorted(wrong):
        async with _packing(tx):
            await mending.drop_blocks(tx, conversation_id)
        while await _pack_on(tx, conversation_id):
            pass
    return len(wrong)


async def _pack_on(tx: Connection, conversation_id: UUID) -> bool:
    """Pack the next stretch of a conversation; whether that was anything."""
    async with _packing(tx) as at:
        stretch = await mending.next_to_pack(
            tx, conversation_id, above=at.horizon, up_to=at.message_id, limit=PACK_AT_ONCE
        )
        if stretch is None:
            return False
        packed = 0
        for entries in full_runs(await packing.unpacked(tx, Due(conversation_id, *stretch), above=at.horizon)):
            await packing.add_block(tx, await block_of(conversation_id, entries, rest_share=0.0))
            packed += 1
        return packed > 0


@asynccontextmanager
async def _packing(tx: Connection) -> AsyncIterator[Packed]:
    """A transaction with the right to pack. Waits for a process that has it; raises TimeoutError if it keeps it."""
    give_up_at = trio.current_time() + PACKER_WITHIN_S
    while True:
        async with tx.transaction():
            at = await packing.take_position(tx)
            if at is not None:
                yield at
                return
        if trio.current_time() > give_up_at:
            raise TimeoutError("another process packs for search and does not end")
        await trio.sleep(0.05)
