"""The spool in Redis: texts that were accepted while the database was away, where a kill of this process does not reach them.

One stream, `{log id}:spool:messages`, and its size in bytes beside it. Rule: an id is given only for what Redis has on its disk;
what is taken out has been committed, or refused for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from uim.model.message import Draft
from uim.store.postgres import Connection
from uim.store.redis import UNREADABLE, RedisLink
from uim.store.scripts import SPOOL_ADD, SPOOL_REMOVE

# Some 200,000 texts of usual length, or 1,500 of the longest.
MAX_BYTES: Final = 64 * 1024 * 1024


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    conversation_id: UUID
    sender_id: UUID
    client_message_id: str
    content: str
    metadata: str | None
    origin: UUID | None


@dataclass(frozen=True, slots=True)
class Spooled:
    """A draft in the spool. `draft` is None for what this release cannot read."""

    spool_id: str
    size_bytes: int
    draft: Draft | None


def _keys(log_id: UUID) -> tuple[str, str]:
    return f"{log_id}:spool:messages", f"{log_id}:spool:bytes"


def packed(draft: Draft) -> bytes:
    """A draft as it stands in the stream."""
    return msgspec.msgpack.encode(
        _Packed(draft.conversation_id, draft.sender_id, draft.client_message_id, draft.content, draft.metadata, draft.origin)
    )


async def add(link: RedisLink, log_id: UUID, drafts: Sequence[bytes], *, max_bytes: int = MAX_BYTES) -> list[str]:
    """Append packed drafts in order, on disk before this returns; an id for each from the first on that there was room for.

    Raises RedisAway: then they may be in the stream all the same.
    """
    reply = await link.call_durably("EVAL", SPOOL_ADD.text, 2, *_keys(log_id), max_bytes, *drafts)
    return [spool_id.decode() for spool_id in reply]


async def oldest(link: RedisLink, log_id: UUID, count: int) -> list[Spooled]:
    """The first in the stream, in order. Raises RedisAway."""
    found = await link.call("XRANGE", _keys(log_id)[0], "-", "+", "COUNT", count)
    return [_spooled(spool_id.decode(), fields) for spool_id, fields in found]


def _spooled(spool_id: str, fields: dict[bytes, bytes] | Sequence[bytes]) -> Spooled:
    pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=False))
    # Whoever else may write there: an entry that is none of ours is one that cannot be read.
    data = pairs.get(b"draft", b"")
    try:
        said = msgspec.msgpack.decode(data, type=_Packed)
    except UNREADABLE:
        return Spooled(spool_id, len(data), None)
    draft = Draft(said.conversation_id, said.sender_id, said.client_message_id, said.content, said.metadata, said.origin)
    return Spooled(spool_id, len(data), draft)


def removal(log_id: UUID, spool_ids: Sequence[str], size_bytes: int) -> tuple[object, ...]:
    """The command that takes these out; harmless where they are out already."""
    return ("EVAL", SPOOL_REMOVE.text, 2, *_keys(log_id), size_bytes, *spool_ids)


async def length(link: RedisLink, log_id: UUID) -> int:
    """How many are in the stream. Raises RedisAway."""
    return int(await link.call("XLEN", _keys(log_id)[0]))


async def take_turn(tx: Connection) -> bool:
    """Whether this transaction is the one that drains; it is until its end."""
    cursor = await tx.execute("select pg_try_advisory_xact_lock(7308604897285272430)")
    row = await cursor.fetchone()
    assert row is not None
    return bool(row[0])


