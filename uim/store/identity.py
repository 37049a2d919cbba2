"""Which log this is: its id, by which channels, streams and queues in Redis are named.

Rule: the id is made with the schema and goes with the data, into dumps and standbys.
"""

from __future__ import annotations

from uuid import UUID

from uim.store.postgres import Connection


async def log_id(tx: Connection) -> UUID:
    cursor = await tx.execute("select log_id from log_identity", binary=True)
    row = await cursor.fetchone()
    assert row is not None
    found = row[0]
    assert isinstance(found, UUID)
    return found
