"""Which processes live: a lease each, and what to do about one that has run out.

`process:{id}` lives 15 s and is written anew every 5 s; all ids are in one set. Rule: whoever finds a lease run out lets go for
the dead one, as often as it takes; one that was only slow finds its own lease gone, says again what it holds, and judges nobody
in that turn: what kept it from Redis may have kept the others too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from uim.log import get_logger
from uim.store.presence import HELD_LIFE_S, held_key
from uim.store.redis import RedisLink

LEASE_S: Final = 15.0
EVERY_S: Final = 5.0

log = get_logger(__name__)


class Leases:
    """`keep` is one turn, to be taken every EVERY_S. `let_go(process_id, user_ids)` acts for a dead process; raises RedisAway."""

    def __init__(
        self,
        link: RedisLink,
        *,
        log_id: UUID,
        process_id: UUID,
        let_go: Callable[[UUID, list[UUID]], Awaitable[None]],
        lease_s: float = LEASE_S,
    ) -> None:
        self._link = link
        self._all = f"{log_id}:processes"
        self._process_id = process_id
        self._let_go = let_go
        self._lease_ms = int(lease_s * 1000)

    async def keep(self) -> bool:
        """Write our lease and look after the others'. Gives whether ours still stood. Raises RedisAway."""
        stood, _, _, found = await self._link.call_all(
            [
                ("SET", _key(self._process_id), "1", "PX", self._lease_ms, "GET"),
                ("SADD", self._all, str(self._process_id)),
                ("EXPIRE", held_key(self._process_id), HELD_LIFE_S),
                ("SMEMBERS", self._all),
            ]
        )
        others = [UUID(name.decode()) for name in found if name.decode() != str(self._process_id)]
        if others and stood is not None:
            alive = await self._link.call_all([("EXISTS", _key(process_id)) for process_id in others])
            for process_id, lives in zip(others, alive, strict=True):
                if not lives:
                    await self._bury(process_id)
        return stood is not None

    async def _bury(self, process_id: UUID) -> None:
        held = [UUID(name.decode()) for name in await self._link.call("SMEMBERS", held_key(process_id))]
        log.info("a process's lease has run out", process=str(process_id), users=len(held))
        await self._let_go(process_id, held)
        # It may have come back to life meanwhile: then it says again what it holds, and enters itself again.
        await self._link.call_all([("DEL", held_key(process_id)), ("SREM", self._all, str(process_id))])


def _key(process_id: UUID) -> str:
    return f"process:{process_id}"
