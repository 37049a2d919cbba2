"""PostgreSQL's binary format, for the one statement that runs for every message: its parameters out, its values in.

As array_recv, timestamptz_send and their like have it (src/backend/utils/adt); elsewhere psycopg does this. Rule: whoever writes a
statement with these names the type of each parameter in its SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final

# Object ids of types (pg_type.dat), which never change.
UUID_OID: Final = 2950
TEXT_OID: Final = 25
BYTEA_OID: Final = 17

_NULL: Final = b"\xff\xff\xff\xff"
_pack_head: Final = Struct("!iiIii").pack
_pack_size: Final = Struct("!i").pack
_unpack_bigint: Final = Struct("!q").unpack
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


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


def bigint(value: bytes | None) -> int | None:
    return None if value is None else int(_unpack_bigint(value)[0])


def moment(value: bytes | None) -> datetime | None:
    """A timestamptz; infinity, which no entry has, raises OverflowError."""
    return None if value is None else _EPOCH + timedelta(microseconds=_unpack_bigint(value)[0])
