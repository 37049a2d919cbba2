"""Who sees which entry: every stay of the conversations that this process has to do with.

A bounded cache, moved forward by the log's own membership entries, in log order. Rule: a conversation that is not here is
loaded from the primary before its entry is handed on; the tailer waits, it never skips (storage.md §2, models/stays.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from uim.model.message import Entry
from uim.store.messages import Stays

MAX_CONVERSATIONS: Final = 20_000
JOINS: Final = frozenset({"participant_added"})
LEAVES: Final = frozenset({"participant_removed", "participant_left"})


class Membership:
    """The stays of one conversation. `settled`: above this id the audience is simply the users whose stay is open."""

    __slots__ = ("open", "settled", "stays")

    def __init__(self, stays: Stays) -> None:
        self.stays = stays
        self.open: list[UUID] = []
        self.settled = 0
        self._settle()

    def _settle(self) -> None:
        self.open = [user_id for user_id, stays in self.stays.items() if any(left is None for _, left in stays)]
        self.settled = max((max(joined, left or 0) for stays in self.stays.values() for joined, left in stays), default=0)

    def sees(self, user_id: UUID, message_id: int) -> bool:
        """Whether the entry lies in a stay of that user, both ends included."""
        return any(joined <= message_id and (left is None or message_id <= left) for joined, left in self.stays.get(user_id, ()))

    def is_member(self, user_id: UUID) -> bool:
        return user_id in self.open

    def audience(self, message_id: int) -> Sequence[UUID]:
        if message_id > self.settled:
            return self.open
        return [user_id for user_id in self.stays if self.sees(user_id, message_id)]

    def join(self, user_id: UUID, at: int) -> None:
        """A stay begins; nothing if one covers the entry already (the cache may be ahead of the tailer)."""
        if not self.sees(user_id, at):
            self.stays.setdefault(user_id, []).append((at, None))
            self._settle()

    def leave(self, user_ids: Iterable[UUID], at: int) -> None:
        """The stays that were open before the entry end with it; a later one is not touched."""
        for user_id in user_ids:
            stays = self.stays.get(user_id, [])
            self.stays[user_id] = [(joined, at if left is None and joined < at else left) for joined, left in stays]
        self._settle()


class Memberships:
    """The cache. Used by the tailer in log order, and by whoever asks who is a member now."""

    def __init__(self) -> None:
        self._known: OrderedDict[UUID, Membership] = OrderedDict()
        self.clearings = 0

    def get(self, conversation_id: UUID) -> Membership | None:
        known = self._known.get(conversation_id)
        if known is not None:
            self._known.move_to_end(conversation_id)
        return known

    def clear(self) -> None:
        """Forget all of it: the log that it followed is not the one that goes on."""
        self._known.clear()
        self.clearings += 1

    def unknown(self, entries: Iterable[Entry]) -> list[UUID]:
        """The conversations of these entries that have to be loaded first."""
        return list({entry.conversation_id for entry in entries} - self._known.keys())

    def learn(self, asked: Sequence[UUID], found: dict[UUID, Stays]) -> None:
        """Keep what was loaded. What is known already is newer in log order and stays as it is."""
        for conversation_id in asked:
            if conversation_id not in self._known:
                self._known[conversation_id] = Membership(found.get(conversation_id, {}))

    def shrink(self) -> None:
        """Forget the least used; between batches only, so that a batch finds all that it loaded."""
        while len(self._known) > MAX_CONVERSATIONS:
            self._known.popitem(last=False)

    def follow(self, entry: Entry) -> None:
        """Move a conversation's stays over one entry."""
        membership = self._known.get(entry.conversation_id)
        if membership is None or entry.message_type != "system":
            return
        event = entry.event
        kind = event.get("event")
        if kind in JOINS:
            membership.join(UUID(event["user_id"]), entry.message_id)
        elif kind in LEAVES:
            membership.leave([UUID(event["user_id"])], entry.message_id)
        elif kind == "deleted":
            membership.leave(list(membership.stays), entry.message_id)
