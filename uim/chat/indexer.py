"""Packs the log for search, behind it and off its writer's path: every second, what has come since.

Each process runs one; the one that finds the position free does the step. Rule: whatever is not packed yet search reads from
the log, so this room may be late, and stop, without anybody missing a message; at most half of its time is spent working, and
after each piece of a block it makes room for those who talk: where all talk alike, all their blocks are full at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

import trio

from uim.log import get_logger
from uim.model.folding import SEPARATOR, Signing, fold
from uim.store import packing
from uim.store.packing import BLOCK_BYTES, BLOCK_ENTRIES, Block, Packed, Span, Unpacked
from uim.store.postgres import Connection, ConnectionLost, connect

STEP_EVERY_S: Final = 1.0
DROP_EVERY_S: Final = 600.0
REST_S: Final = 2.0
# Rest after a piece of a block, as a share of what it took.
REST_SHARE: Final = 3.0
# No step waits for its commit to be on the disk: what a crash takes back is packed again.
_SETTINGS: Final = {"synchronous_commit": "off", "statement_timeout": "4000"}

log = get_logger(__name__)


class Indexer:
    """The room that packs; one a process."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._drop_at = 0.0
        self._is_cut_off = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pack until cancelled; what is half done then is rolled back. Waits while the database is away."""
        task_status.started()
        while True:
            try:
                async with await connect(self._url, name="indexer", settings=_SETTINGS) as tx:
                    await self._follow(tx)
            except ConnectionLost as lost:
                # Once: it may be away for hours.
                if not self._is_cut_off:
                    log.warning("packing for search waits for the database", error=str(lost).splitlines()[0])
                self._is_cut_off = True
                await trio.sleep(REST_S)

    async def _follow(self, tx: Connection) -> None:
        while True:
            began_at = trio.current_time()
            more = await step(tx)
            self._is_cut_off = False
            if began_at >= self._drop_at and not more:
                more = await drop(tx)
                self._drop_at = began_at if more else began_at + DROP_EVERY_S
            await trio.sleep(trio.current_time() - began_at if more else STEP_EVERY_S)


async def step(tx: Connection) -> bool:
    """Pack the next stretch of the log, unless another process does; whether there is more of it."""
    async with tx.transaction():
        at = await packing.take_position(tx)
        span = await packing.next_span(tx, after=at.message_id) if at is not None else None
        if at is None or span is None:
            return False
        # A long log that is met for the first time; a short stretch is not worth a guess from its newest entry.
        is_old = span.is_old and span.is_full
        if not is_old:
            await _pack(tx, span, above=at.horizon)
        await packing.move_position(tx, Packed(span.end, span.end if is_old else at.horizon))
    return span.is_full


async def drop(tx: Connection) -> bool:
    """Remove some of what is too old to be found, unless another process packs; whether there was any."""
    async with tx.transaction():
        at = await packing.take_position(tx)
        if at is None:
            return False
        highest = await packing.drop_old(tx)
        if highest > at.horizon:
            # Times never decrease along the log: what is below an entry that is too old is too old as well.
            await packing.move_position(tx, Packed(at.message_id, highest))
        return highest > 0


async def _pack(tx: Connection, span: Span, *, above: int) -> None:
    for due in span.due:
        for entries in full_runs(await packing.unpacked(tx, due, above=above)):
            await packing.add_block(tx, await block_of(due.conversation_id, entries))
    # What was deleted is in no answer already; here it leaves the block's text.
    for message_id in span.deleted:
        around = await packing.block_around(tx, message_id)
        if around is not None:
            entries = await packing.unpacked(tx, around, above=0)
            await packing.replace_block(tx, await block_of(around.conversation_id, entries))


def full_runs(entries: list[Unpacked]) -> Iterator[list[Unpacked]]:
    """The entries in runs that fill a block each; those at the end that fill none are left away."""
    run: list[Unpacked] = []
    size_bytes = 0
    for entry in entries:
        run.append(entry)
        size_bytes += len(entry.text.encode())
        if len(run) == BLOCK_ENTRIES or size_bytes >= BLOCK_BYTES:
            yield run
            run, size_bytes = [], 0


async def block_of(conversation_id: UUID, entries: list[Unpacked], *, rest_share: float = REST_SHARE) -> Block:
    """A block of these entries, ready to be stored: milliseconds of work, with a rest after each piece of it."""
    began_at = trio.current_time()
    folded = SEPARATOR.join(fold(entry.text) for entry in entries)
    signing = Signing(folded)
    for _ in signing:
        await trio.sleep(rest_share * (trio.current_time() - began_at))
        began_at = trio.current_time()
    return Block(conversation_id, entries, signing.signature, folded)
