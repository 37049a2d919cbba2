"""GET /api/sync: the log after a cursor, for who has no socket.

Rule: it is the same page that a socket gets as SYNC_BATCH; with a device_id, giving last_sync_id confirms it for that device.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from uim.api.answers import Answer, json_answer
from uim.api.messages import Message
from uim.api.routes import Routes
from uim.chat.catchup import PAGE_ENTRIES
from uim.chat.connects import Connect
from uim.chat.house import House
from uim.model.conversation import ConversationView
from uim.model.person import Caller
from uim.wire.frames import ClientId, MessageId


class SyncQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: ClientId | None = None
    last_sync_id: MessageId | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ENTRIES)] = PAGE_ENTRIES


class SyncBatch(msgspec.Struct, frozen=True):
    """Confirm next_sync_id by giving it as last_sync_id the next time. `truncated`: entries before the horizon are gone."""

    messages: list[Message]
    conversations: list[ConversationView]
    next_sync_id: int
    has_more: bool
    truncated: bool | UnsetType = UNSET


def add_sync(routes: Routes, house: House) -> None:
    @routes.route("GET", "/api/sync", query=SyncQuery, answers=SyncBatch, summary="The log after a cursor, as SYNC_BATCH")
    async def sync(caller: Caller, query: SyncQuery) -> Answer:
        after = query.last_sync_id or 0
        if query.device_id is not None:
            after = await _confirm(house, caller, query.device_id, query.last_sync_id)
        batch = await house.catchup.read(user_id=caller.user_id, after=after, limit=query.limit)
        return json_answer(batch.payload(has_more=batch.full))


async def _confirm(house: House, caller: Caller, device_id: str, last_sync_id: int | None) -> int:
    """Open that device's cursor here, as a connect would: it confirms last_sync_id, or tells where the device is."""
    opened = (await house.connects.begin(Connect(caller.user_id, device_id, last_sync_id))).opened
    house.switchboard.cut_older(caller.user_id, device_id, opened.connection_no)
    house.bus.replaced(caller.user_id, device_id, opened.connection_no)
    return opened.at
