"""Conversations that changed, told live to their members as each of them sees it.

The log says that a conversation changed; its object is a reading of several tables, made here, behind the tailer. Rule: what is
told here is a hint: a device that was not live yet finds the same in its next SYNC_BATCH or with changed_since.
"""

from __future__ import annotations

from uuid import UUID

from uim.chat.memberships import Memberships
from uim.chat.switchboard import Switchboard
from uim.chat.telling import Telling
from uim.store import conversations, messages
from uim.store.postgres import Pool
from uim.wire.frames import frame


class Announcements:
    """One a process; `changed` is called from anywhere, `run` is its task."""

    def __init__(self, pool: Pool, switchboard: Switchboard, memberships: Memberships) -> None:
        self._pool = pool
        self._switchboard = switchboard
        self._memberships = memberships
        telling = Telling(self._announce)
        self.changed, self.run = telling.changed, telling.run

    async def _announce(self, conversation_id: UUID) -> None:
        async with self._pool.connection() as tx:
            membership = self._memberships.get(conversation_id)
            if membership is None:
                stays = (await messages.stays_of(tx, [conversation_id])).get(conversation_id, {})
                members = [user_id for user_id, spans in stays.items() if any(left is None for _, left in spans)]
            else:
                members = list(membership.open)
            here = [user_id for user_id in members if self._switchboard.is_here(user_id)]
            if not here:
                return
            views = await conversations.views_of(tx, conversation_id=conversation_id, user_ids=here)
        for user_id, view in views.items():
            now = self._memberships.get(conversation_id)
            if now is not None and not now.is_member(user_id):
                continue  # out since the reading, and told so: this would bring the conversation back
            data = frame("CONVERSATION_UPDATE", {"conversation": view})
            for outbox in self._switchboard.of_user(user_id):
                outbox.update(conversation_id, data)
