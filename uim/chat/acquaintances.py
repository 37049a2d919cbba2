"""What was last read of friendships and of people's choices, for a time in which the database cannot be asked.

Of each viewer connected here the ids of the friends, 16 bytes each, and of people the choices that their friends were shown. Rule:
it forgets at once what is known to have changed, and a reading that was under way then does not bring it back; what is not
known here is told to nobody.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final
from uuid import UUID

import trio

from uim.model.presence import Choices

ID_BYTES: Final = 16
# 16 MB: 20,000 connected users with 50 friends each. Beyond it the viewer who was read first is forgotten.
MAX_FRIENDS: Final = 1_000_000
MAX_PEOPLE: Final = 20_000
# What a reading must not bring back; beyond it the reading brings nothing.
MAX_UNLEARNT: Final = 10_000
# A few ms of this thread, and others have their turn.
STEPS_AT_ONCE: Final = 50_000


class Acquaintances:
    """One a process, for one reader: between `begin` and what it remembers of that reading, no other reading begins."""

    def __init__(self, *, max_friends: int = MAX_FRIENDS, max_people: int = MAX_PEOPLE) -> None:
        self._max_friends = max_friends
        self._max_people = max_people
        # By viewer, packed; a set of UUIDs would take ten times as much.
        self._friends: dict[UUID, bytes] = {}
        self._count = 0
        self._choices: OrderedDict[UUID, Choices] = OrderedDict()
        self._unlearnt: set[UUID | tuple[UUID, UUID]] = set()
        self._brings_nothing = False

    # -- what a reading brings --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A reading of the database begins: what is forgotten from here on is newer than that."""
        self._unlearnt.clear()
        self._brings_nothing = False

    def remember_friends(self, viewer_id: UUID, friend_ids: Iterable[UUID]) -> None:
        """All friends of a viewer who is connected here."""
        if self._brings_nothing:
            return
        self._keep(viewer_id, b"".join(one.bytes for one in friend_ids if (viewer_id, one) not in self._unlearnt))
        while self._count > self._max_friends:
            self.forget_viewer(next(iter(self._friends)))

    def remember_friend(self, viewer_id: UUID, friend_id: UUID) -> None:
        """One of them; of a viewer whose friends are not known nothing is remembered."""
        packed = self._friends.get(viewer_id)
        if packed is None or self._brings_nothing or (viewer_id, friend_id) in self._unlearnt:
            return
        if _place(packed, friend_id) < 0:
            self._keep(viewer_id, packed + friend_id.bytes)

    def remember_choices(self, asked: Collection[UUID], found: Mapping[UUID, Choices]) -> None:
        """What these users have chosen; who was asked for and not found is no more."""
        if self._brings_nothing:
            return
        for user_id in asked:
            self._choices.pop(user_id, None)
            if (choices := found.get(user_id)) is not None and user_id not in self._unlearnt:
                self._choices[user_id] = replace(choices, availability=sys.intern(choices.availability))
        while len(self._choices) > self._max_people:
            self._choices.popitem(last=False)

    def _keep(self, viewer_id: UUID, packed: bytes) -> None:
        self._count += (len(packed) - len(self._friends.get(viewer_id, b""))) // ID_BYTES
        self._friends[viewer_id] = packed

    # -- what is known to be so no more -----------------------------------------------------------------------------------------

    def part(self, viewer_id: UUID, other_id: UUID) -> None:
        """Something between the two has changed: to that viewer the other is no friend until a later reading says so."""
        self._unlearn((viewer_id, other_id))
        packed = self._friends.get(viewer_id, b"")
        if (at := _place(packed, other_id)) >= 0:
            self._keep(viewer_id, packed[:at] + packed[at + ID_BYTES :])

    def forget_choices(self, user_id: UUID) -> None:
        """This user has chosen anew."""
        self._unlearn(user_id)
        self._choices.pop(user_id, None)

    def forget_all_choices(self) -> None:
        """Somebody may have chosen anew, and it was not heard."""
        self._brings_nothing = True
        self._choices.clear()

    def forget_viewer(self, viewer_id: UUID) -> None:
        """That viewer is not connected here any more."""
        self._count -= len(self._friends.pop(viewer_id, b"")) // ID_BYTES

    def _unlearn(self, what: UUID | tuple[UUID, UUID]) -> None:
        if len(self._unlearnt) < MAX_UNLEARNT:
            self._unlearnt.add(what)
        else:
            self._brings_nothing = True

    # -- asking -----------------------------------------------------------------------------------------------------------------

    def choices_of(self, user_id: UUID) -> Choices | None:
        return self._choices.get(user_id)

    async def for_each_friend_of(self, user_ids: Collection[UUID], tell: Callable[[UUID, UUID], None]) -> None:
        """Call `tell(viewer_id, user_id)` for each viewer and each of these users who is that viewer's friend.

        One walk over all viewers, 4 ms per 1,000 with 50 friends, with a checkpoint every STEPS_AT_ONCE friends. Cancelled,
        the rest is not called.
        """
        by_key = {(user_id.bytes,): user_id for user_id in user_ids}
        wanted = frozenset(by_key)
        steps = 0
        for viewer_id in list(self._friends):
            packed = self._friends.get(viewer_id, b"")
            for key in wanted.intersection(struct.iter_unpack("16s", packed)):
                tell(viewer_id, by_key[key])
            steps += 1 + len(packed) // ID_BYTES
            if steps >= STEPS_AT_ONCE:
                steps = 0
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()


def _place(packed: bytes, user_id: UUID) -> int:
    """Where that id stands; -1: nowhere. The same bytes may also lie across two others."""
    at = packed.find(user_id.bytes)
    while at > 0 and at % ID_BYTES:
        at = packed.find(user_id.bytes, at + 1)
    return at
