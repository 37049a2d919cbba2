"""The offline queue in Redis: `offline:user:{user_id}`, the newest entries that came for somebody who was not there.

A list of JSON elements {epoch, from, id, entry}, at most 500, for 24 hours; `from` is an id such that nothing this user may see
lies between it and `id`. So elements make a chain, and what is missing in the list (lost, trimmed, never pushed) shows. Rule: a
page is taken only along the chain; where it breaks, PostgreSQL goes on (storage.md §4, models/offline_queue.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from uim.model.message import Entry
from uim.store.redis import Command, RedisLink

LIFE_S: Final = 24 * 3_600
MOST: Final = 500
# A list of long texts would weigh 20 MB; what is longer is left to PostgreSQL.
MOST_ENTRY_BYTES: Final = 4_096

_PUSH: Final = f"""redis.call('RPUSH', KEYS[1], unpack(ARGV))
redis.call('LTRIM', KEYS[1], -{MOST}, -1)
redis.call('EXPIRE', KEYS[1], {LIFE_S})"""

# From the first element above a cursor on, by halves: the list is in the order of ids, but for what several processes pushed at
# once. What that makes it leave out is a gap like any other. Sending all 500 would take longer than PostgreSQL's answer.
_READ: Final = """local low, high, after = 0, redis.call('LLEN', KEYS[1]), tonumber(ARGV[1])
while low < high do
    local middle = math.floor((low + high) / 2)
    if tonumber(string.match(redis.call('LINDEX', KEYS[1], middle), '"id":(%d+)')) <= after then low = middle + 1
    else high = middle end
end
return redis.call('LRANGE', KEYS[1], low, low + ARGV[2] - 1)"""


class _Kept(msgspec.Struct, frozen=True):
    """An entry as the log has it."""

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


class Element(msgspec.Struct, frozen=True, rename={"after": "from"}):
    """One entry in one user's queue. `epoch`: its base, which no other epoch has."""

    epoch: int
    after: int
    id: int
    entry: msgspec.Raw


_decode: Final = msgspec.json.Decoder(Element).decode
_decode_entry: Final = msgspec.json.Decoder(_Kept).decode


def key(user_id: UUID) -> str:
    return f"offline:user:{user_id}"


def shared_part(entry: Entry) -> bytes | None:
    """What the elements of all users have in common, encoded once; None for an entry that is too long to keep."""
    kept = _Kept(entry.message_id, entry.conversation_id, entry.seq, entry.sender_id, entry.client_message_id,
                 entry.content, entry.message_type, entry.metadata, entry.created_at, entry.deleted)  # fmt: skip
    encoded = msgspec.json.encode(kept)
    return b',"id":%d,"entry":%b}' % (entry.message_id, encoded) if len(encoded) <= MOST_ENTRY_BYTES else None


def element(*, epoch: int, after: int, shared: bytes) -> bytes:
    return b'{"epoch":%d,"from":%d%b' % (epoch, after, shared)


def push_command(user_id: UUID, elements: Sequence[bytes]) -> Command:
    """Add to a user's queue, oldest first."""
    return ("EVAL", _PUSH, 1, key(user_id), *elements)


async def read(link: RedisLink, user_id: UUID, *, after: int, limit: int) -> list[bytes]:
    """The elements of a user's queue that come next after a cursor. Raises RedisAway, also for a list that is not ours."""
    found: list[bytes] = await link.call("EVAL", _READ, 1, key(user_id), after, limit)
    return found


async def forget(link: RedisLink, user_ids: Iterable[UUID]) -> None:
    """Remove the queues of these users. Raises RedisAway; then nobody knows whether they are there."""
    await link.call("DEL", *(key(user_id) for user_id in user_ids))


def chain(held: Iterable[bytes], *, epoch: int, after: int, above: int, up_to: int, limit: int) -> list[Entry]:
    """Of a queue the entries that follow a cursor without a gap, oldest first: exactly what the log has there.

    `epoch` is the base of the present one; of what lies not in (above, up_to] nothing is believed. Raises one of UNREADABLE
    for an element that is none.
    """
    elements: dict[int, Element] = {}
    for one in map(_decode, held):
        if one.epoch == epoch and above < one.id <= up_to and one.id > after:
            # Of two that different processes pushed the one whose `from` lies lower says more; both are true.
            known = elements.get(one.id)
            if known is None or one.after < known.after:
                elements[one.id] = one
    page: list[Entry] = []
    position = after
    for at in sorted(elements):
        if elements[at].after > position or len(page) >= limit:
            break
        page.append(_entry(elements[at]))
        position = at
    return page


def _entry(one: Element) -> Entry:
    kept = _decode_entry(one.entry)
    return Entry(kept.message_id, kept.conversation_id, kept.seq, kept.sender_id, kept.client_message_id,
                 kept.content, kept.message_type, kept.metadata, kept.created_at, kept.deleted)  # fmt: skip
