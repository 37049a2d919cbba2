"""`append`: what PostgreSQL alone takes of texts through log_append, one connection, one batch after the other.

It is the ceiling of every durable workload: the server's writer makes exactly these calls, with the batches that load makes.
Rule: durable as in production; each batch is new texts of pairs, as in W1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

import trio

from uim.chat.appending import PLANS
from uim.model.message import Draft
from uim.store import epochs, messages
from uim.store.postgres import Connection, connect

BATCHES: Final = (1, 16, 64, 256)
PAIRS: Final = 50


def measure(
    database_url: str, *, seconds: float, text_bytes: int, batches: Sequence[int] = BATCHES
) -> dict[str, float]:
    """Appends a second, by the size of the batch; that many seconds for each size."""
    return trio.run(_measure, database_url, seconds, text_bytes, batches)


async def _measure(database_url: str, seconds: float, text_bytes: int, batches: Sequence[int]) -> dict[str, float]:
    async with await connect(database_url, name="load", settings=PLANS) as tx:
        await epochs.settle(tx)
        pairs = [await _make_pair(tx) for _ in range(PAIRS)]
        text = "x" * text_bytes
        return {f"batches of {size}": await _appends_per_s(tx, pairs, size, seconds, text) for size in batches}


async def _appends_per_s(
    tx: Connection, pairs: list[tuple[UUID, UUID]], size: int, seconds: float, text: str
) -> float:
    appended = 0
    began_at = time.perf_counter()
    while time.perf_counter() - began_at < seconds:
        drafts = [Draft(*pairs[(appended + at) % PAIRS], uuid4().hex, text, None) for at in range(size)]
        outcomes = await messages.append(tx, drafts)
        refused = {outcome.verdict for outcome in outcomes} - {"inserted"}
        if refused:
            raise RuntimeError(f"log_append refused: {', '.join(refused)}")
        appended += size
    return appended / (time.perf_counter() - began_at)


async def _make_pair(tx: Connection) -> tuple[UUID, UUID]:
    """A one-on-one by rows alone: (conversation_id, sender_id)."""
    conversation_id, one, other = uuid4(), *sorted((uuid4(), uuid4()))
    async with tx.transaction():
        for user_id in (one, other):
            await tx.execute(
                "insert into users (user_id, username, password_hash) values (%s, %s, '')", (user_id, f"load_{user_id.hex}")
            )
        await tx.execute(
            "insert into conversations (conversation_id, type, created_by, pair) values (%s, 'one_on_one', %s, %s)",
            (conversation_id, one, [one, other]),
        )
        for user_id in (one, other):
            await tx.execute(
                "insert into conversation_participants (conversation_id, user_id) values (%s, %s)", (conversation_id, user_id)
            )
            await tx.execute("insert into participations values (%s, %s, 1, null)", (conversation_id, user_id))
    return conversation_id, one
