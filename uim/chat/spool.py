"""The spool: what makes "queued" hold while the database is away, also through a kill of this process.

The writer keeps its line in order, copies what waits into the spool and appends it when the database is back. Whatever is still
in the spool then belonged to a process that is gone, and is drained here: from its start, in order, appended, and only then taken
out. Rule: who appends a text first makes no difference, for its key finds the first copy (storage.md §4, models/spool.py); and a
text is judged when it is appended, never when it is queued.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import trio

from uim.chat.appending import MAX_BATCH, PLANS, append_apart, inserted
from uim.log import get_logger
from uim.model.message import Draft, Entry
from uim.store import epochs, messages
from uim.store import spool as store
from uim.store.epochs import Epoch
from uim.store.messages import Outcome
from uim.store.postgres import Connection, ConnectionLost, DatabaseError, connect, in_short
from uim.store.redis import RedisAway, RedisLink
from uim.store.spool import Spooled

LOOK_EVERY_S: Final = 1.0
REST_S: Final = 0.5
# What is in the spool at the start is drained before the first connection, if that takes no longer.
FIRST_WITHIN_S: Final = 5.0

log = get_logger(__name__)


class _Elsewhere(Exception):
    """Another process drains."""


class Spool:
    """One a process. `may_keep(draft)`: whether its sender is known to be a member. `is_settled()`: whether our own writer has
    appended all that it has queued; before that the spool's texts are the writer's business.

    `on_appended(entries)` hears, in log order and without awaiting, of what has been drained.
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        log_id: UUID,
        database_url: str,
        may_keep: Callable[[Draft], bool],
        is_settled: Callable[[], bool],
        on_appended: Callable[[list[Entry]], None],
        settle: Callable[[Connection], Awaitable[Epoch]] = epochs.settle,
        max_bytes: int = store.MAX_BYTES,
    ) -> None:
        self._link = link
        self._log_id = log_id
        self._url = database_url
        self._may_keep = may_keep
        self._is_settled = is_settled
        self._on_appended = on_appended
        self._settle = settle
        self._max_bytes = max_bytes
        self._trouble = self._waits_for = ""
        # Why what is left in the spool cannot be appended; empty while it can, or nothing is left.
        self.trouble = ""
        self.drained = self.dead_letters = 0

    # -- for the writer ---------------------------------------------------------------------------------------------------------

    async def keep(self, drafts: list[Draft]) -> list[str | None] | None:
        """An id for each draft that is on Redis's disk now; None for one whose sender is not known here as a member, and from
        where on the spool is full.

        None for all where Redis is away or does not write to disk. Within 5 s. Cancelled, they may be kept.
        """
        kept = [draft for draft in drafts if self._may_keep(draft)]
        try:
            ids = await store.add(self._link, self._log_id, [store.packed(draft) for draft in kept], max_bytes=self._max_bytes)
        except RedisAway as away:
            self._say(f"nothing can be queued: {away}")
            return None
        self._say("the spool is full" if len(ids) < len(kept) else "")
        given = {id(draft): spool_id for draft, spool_id in zip(kept, ids, strict=False)}
        return [given.get(id(draft)) for draft in drafts]

    def _say(self, trouble: str) -> None:
        """Log what stands in the way, once until it changes."""
        if trouble and trouble != self._trouble:
            log.error(trouble, alert=True)
        self._trouble = trouble

    def forget(self, spool_ids: list[str], drafts: list[Draft]) -> None:
        """Take out what the writer has appended. Lost while Redis is away: then it is drained once more, as repeats."""
        self._link.send(*store.removal(self._log_id, spool_ids, sum(len(store.packed(draft)) for draft in drafts)))

    # -- the task ---------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drain what nobody else does, until cancelled. Started once what was there at first is drained, or cannot be now."""
        with trio.move_on_after(FIRST_WITHIN_S):
            await self._look()
        task_status.started()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        if not self._link.is_up or not self._is_settled():
            self.trouble = ""
            return
        try:
            if await store.length(self._link, self._log_id):
                async with await connect(self._url, name="spool", settings=PLANS) as tx:
                    await self._settle(tx)
                    await self._drain(tx)
            self._waits_for = self.trouble = ""
        except RedisAway as away:
            self.trouble = ""
            self._wait("redis", away)
        except ConnectionLost as lost:
            self._wait("the database", lost)
            self.trouble = f"what was left queued cannot be appended: {in_short(lost)}"
        except _Elsewhere:
            return

    def _wait(self, what: str, why: Exception) -> None:
        """Told once: it is looked for each second, for hours perhaps."""
        if self._waits_for != what:
            log.info(f"draining waits for {what}", error=next(iter(str(why).splitlines()), ""))
        self._waits_for = what

    async def _drain(self, tx: Connection) -> None:
        while self._is_settled() and (spooled := await store.oldest(self._link, self._log_id, MAX_BATCH)):
            readable = [(one, one.draft) for one in spooled if one.draft is not None]
            drafts = [draft for _, draft in readable]
            outcomes = await append_apart(partial(_append_in_turn, tx), drafts)
            entries = inserted(drafts, outcomes)
            self._on_appended(entries)
            self.drained += len(entries)
            self._note(spooled, drafts, outcomes)
            await self._link.call(
                *store.removal(self._log_id, [one.spool_id for one in spooled], sum(one.size_bytes for one in spooled))
            )

    def _note(self, spooled: Sequence[Spooled], drafts: Sequence[Draft], outcomes: Sequence[Outcome | DatabaseError]) -> None:
        """Say what nobody is told: the senders' process is gone, and their clients learn it by repeating."""
        for one in spooled:
            if one.draft is None:
                self._bury("this release cannot read it", spool_id=one.spool_id)
        for draft, outcome in zip(drafts, outcomes, strict=True):
            if isinstance(outcome, DatabaseError):
                self._bury(in_short(outcome), user_id=str(draft.sender_id), client_message_id=draft.client_message_id)
            elif outcome.verdict not in ("inserted", "duplicate"):
                log.info("refused at the drain", code=outcome.verdict, user_id=str(draft.sender_id))

    def _bury(self, reason: str, **where: str) -> None:
        self.dead_letters += 1
        log.error("dead letter", reason=reason, alert=True, **where)


async def _append_in_turn(tx: Connection, drafts: Sequence[Draft]) -> list[Outcome]:
    async with tx.transaction():
        if not await store.take_turn(tx):
            raise _Elsewhere
        return await messages.append(tx, drafts)
