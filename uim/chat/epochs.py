"""Which epoch of the log this process lives in, and what happens here when another begins.

Asked on each new connection of writer, spool and tailer, and whenever the log ends below what has been handed on, or jumps. Rule:
before anything of a new epoch is appended or handed on here, everything that was known from before is dropped in one step, and
every client comes back to hear of it (house.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

import trio

from uim.log import get_logger
from uim.store import epochs as store
from uim.store.epochs import Epoch, Seen
from uim.store.postgres import Connection, ConnectionLost, DatabaseAway, DatabaseError
from uim.store.redis import RedisAway, RedisLink

REMEMBER_EVERY_S: Final = 1.0

log = get_logger(__name__)


class Epochs:
    """One a process. `position()`: up to where the log has been handed on here. `on_begun(epoch)`, without awaiting, hears of
    each epoch that begins while this process lives."""

    def __init__(
        self, link: RedisLink, *, log_id: UUID, position: Callable[[], int], on_begun: Callable[[Epoch], None]
    ) -> None:
        self._link = link
        self._log_id = log_id
        self._position = position
        self._on_begun = on_begun
        self._recalled = Seen()
        self.present = Epoch(0, 0, 0)

    async def settle(self, tx: Connection) -> Epoch:
        """On a connection that may lead to another server than the last: the epoch that holds there, begun if need be.

        Raises DatabaseAway, also where the database holds no log.
        """
        try:
            epoch = await store.settle(tx, self.seen)
        except DatabaseError as error:
            if isinstance(error, ConnectionLost):
                raise
            # Somebody restores it just now: there is no log there yet.
            raise DatabaseAway(str(error)) from error
        return self._take(epoch)

    async def look(self, tx: Connection) -> Epoch:
        """The epoch that another process has begun: the log went on where this one did not expect it."""
        return self._take(await store.latest(tx))

    @property
    def seen(self) -> Seen:
        highest = max(self._position(), self.present.base - 1, self._recalled.highest)
        return Seen(max(self.present.number, self._recalled.number), highest)

    def _take(self, epoch: Epoch) -> Epoch:
        # An answer that was under way while somebody settled on a newer one; bases only grow.
        if epoch.base <= self.present.base:
            return self.present
        is_first = not self.present.number
        self.present = epoch
        if not is_first:
            log.warning("a new epoch of the log", epoch=epoch.number, base=epoch.base, after=epoch.after, alert=True)
            self._on_begun(epoch)
        return epoch

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Remember in Redis how far the log went, until cancelled. Started once what was remembered is known, or Redis is away."""
        try:
            self._recalled = await store.recall(self._link, self._log_id)
        except RedisAway as away:
            log.info("nothing is remembered of the log", error=str(away))
        task_status.started()
        while True:
            await trio.sleep(REMEMBER_EVERY_S)
            store.remember(self._link, self._log_id, self.seen)
