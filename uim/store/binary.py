"""PostgreSQL's binary format, for the statements that run most often: their parameters out; for each message, its values in.

As array_recv, timestamptz_send and their like have it (src/backend/utils/adt); elsewhere psycopg does this. Rule: whoever writes a
statement with these names the type of each parameter in its SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final
from uuid import UUID

# Object ids of types (pg_type.dat), which never change.
BIGINT_OID: Final = 20
UUID_OID: Final = 2950
TEXT_OID: Final = 25
BYTEA_OID: Final = 17

_NULL: Final = b"\xff\xff\xff\xff"
_pack_head: Final = Struct("!iiIii").pack
_pack_size: Final = Struct("!i").pack
_pack_bigint: Final = Struct("!q").pack
_unpack_bigint: Final = Struct("!q").unpack
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def array(oid: int, items: Iterable[bytes | None]) -> bytes:
    """An array of one dimension of that type; None is null."""
    parts: list[bytes] = []
    count = 0
    for item in items:
        count += 1
        if item is None:
            parts.append(_NULL)
        else:
            parts += (_pack_size(len(item)), item)
    return _pack_head(1, 1, oid, count, 1) + b"".join(parts)


def uuids(items: Iterable[UUID]) -> bytes:
    return array(UUID_OID, [item.bytes for item in items])


def bigints(items: Iterable[int]) -> bytes:
    return array(BIGINT_OID, [_pack_bigint(item) for item in items])


def of_bigint(number: int) -> bytes:
    """Of 8 bytes with a sign; a greater one raises struct.error."""
    return _pack_bigint(number)


def bigint(value: bytes | None) -> int | None:
    return None if value is None else int(_unpack_bigint(value)[0])


def moment(value: bytes | None) -> datetime | None:
    """A timestamptz; infinity, which no entry has, raises OverflowError."""
    return None if value is None else _EPOCH + timedelta(microseconds=_unpack_bigint(value)[0])


def of_moment(at: datetime) -> bytes:
    """A timestamptz; one that knows no zone raises TypeError."""
    return _pack_bigint((at - _EPOCH) // _MICROSECOND)
