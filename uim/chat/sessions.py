"""The connections of all processes, as Redis shows them to operators and to other tools (specification 5.3.1).

`session:{user_id}:{device_id}` is JSON for 90 s, refreshed by heartbeats; `sessions:{user_id}` is the set of its devices. Rule:
nothing is decided by these keys: what is connected here is in the switchboard, and a device's newest connection in its cursor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from uim.chat.outbox import Outbox
from uim.model.ids import rfc3339
from uim.store.redis import RedisLink

LIFE_S: Final = 90

# Only the connection that the key names may take it away: the device may have come back elsewhere by now.
_LEAVE: Final = """
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held)['session_id'] == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('SREM', KEYS[2], ARGV[2])
end
return 1"""


# One command, where three would each pay for the way into Redis: there are as many as heartbeats.
_STAY: Final = """
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1"""


class Sessions:
    """Writes the keys behind the connections' backs; while Redis is away there is nothing to write."""

    def __init__(self, link: RedisLink, process_id: UUID, wall_clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._process_id = process_id
        self._wall_clock = wall_clock
        self._here: dict[UUID, dict[str, Any]] = {}

    def came(self, outbox: Outbox, client_info: dict[str, str | None]) -> None:
        now = self._now()
        self._here[outbox.session_id] = {
            "session_id": outbox.session_id,
            "user_id": outbox.user_id,
            "device_id": outbox.device_id,
            "connected_at": now,
            "last_heartbeat": now,
            "client_info": client_info,
            "process": self._process_id,
        }
        self._write(outbox)

    def beat(self, outbox: Outbox) -> None:
        held = self._here.get(outbox.session_id)
        if held is not None:
            held["last_heartbeat"] = self._now()
            self._write(outbox)

    def left(self, outbox: Outbox) -> None:
        if self._here.pop(outbox.session_id, None) is not None:
            self._link.send("EVAL", _LEAVE, 2, *_keys(outbox), str(outbox.session_id), outbox.device_id)

    def _write(self, outbox: Outbox) -> None:
        told = msgspec.json.encode(self._here[outbox.session_id])
        self._link.send("EVAL", _STAY, 2, *_keys(outbox), told, outbox.device_id, LIFE_S)

    def _now(self) -> str:
        return rfc3339(datetime.fromtimestamp(self._wall_clock(), UTC))


def _keys(outbox: Outbox) -> tuple[str, str]:
    return f"session:{outbox.user_id}:{outbox.device_id}", f"sessions:{outbox.user_id}"
