"""The newest entries of the log, in its order: who is a little behind goes live from here, without asking the database.

Rule: it has no holes, and what was deleted for everyone is blank here too; so it gives what the database would give, or nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from uuid import UUID

from uim.chat.memberships import Memberships
from uim.model.message import Entry


class Ring(deque[Entry]):
    """Bounded by `maxlen`; the oldest makes room."""

    def held(self, message_id: int) -> Entry | None:
        """That entry, while it is here."""
        at = bisect_left(self, message_id, key=lambda entry: entry.message_id)
        return self[at] if at < len(self) and self[at].message_id == message_id else None

    def since(self, position: int, user_id: UUID, memberships: Memberships) -> list[Entry] | None:
        """The entries above `position` that the user may see; None if it does not reach back that far. Does not await."""
        if not self or self[0].message_id > position + 1:
            return None
        seen: list[Entry] = []
        for entry in reversed(self):
            if entry.message_id <= position:
                break
            membership = memberships.get(entry.conversation_id)
            if membership is None:
                return None
            if membership.sees(user_id, entry.message_id):
                seen.append(entry)
        seen.reverse()
        return seen
