"""When people were last seen, written behind.

Rule: bounded, and nobody waits for it: while the database is away the newest time of each person is kept; beyond the bound it is
lost, and an older one stays.
"""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Final
from uuid import UUID

import trio

from uim.errors import UIMError
from uim.store import presence as store
from uim.store.postgres import Pool

REST_S: Final = 0.5
USERS_AT_ONCE: Final = 100
MAX_WAITING: Final = 50_000


class LastSeen:
    """One a process; `run` is its task."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._seen_at: dict[UUID, datetime] = {}
        self._wake = trio.Event()

    def note(self, user_id: UUID, at: datetime) -> None:
        """That user was here until then. Does not await."""
        if user_id in self._seen_at or len(self._seen_at) < MAX_WAITING:
            self._seen_at[user_id] = at
            self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._seen_at:
                await self._write(dict(islice(self._seen_at.items(), USERS_AT_ONCE)))

    async def _write(self, batch: dict[UUID, datetime]) -> None:
        try:
            async with self._pool.connection() as tx:
                await store.set_last_seen(tx, batch)
        except UIMError as refused:
            if refused.code != "unavailable":
                raise
            await trio.sleep(REST_S)
            return
        for user_id, at in batch.items():
            if self._seen_at[user_id] == at:
                del self._seen_at[user_id]
