"""Typing indicators: passed on to the members who are connected, stored nowhere.

A `true` is passed on once in 3 s for a user in a conversation, however many devices repeat it; the indicator ends 6 s after
the last one, at a `false`, or at that user's message. Each process keeps what its own connections are shown; the typist's
says when an indicator ends, and the others end it by themselves if that word is lost. Rule: nothing is passed on across a
block, to a former member, or to one's own devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Final, NamedTuple
from uuid import UUID

import trio

from uim.chat.blocks import Blocks
from uim.chat.memberships import Memberships
from uim.chat.switchboard import Switchboard
from uim.model.message import Entry
from uim.wire.frames import frame

PASSED_EVERY_S: Final = 3.0
LASTS_S: Final = 6.0
# Two that were passed on 3 s apart may arrive from another process a little closer.
JITTER_S: Final = 0.25
# The typist's process may have heard repeats for 3 s that it did not pass on; then it says so itself when it ends.
LASTS_ELSEWHERE_S: Final = LASTS_S + PASSED_EVERY_S
# A few hundred bytes each. More typists at once than this and the newest are not shown.
MAX_TYPISTS: Final = 10_000


class _Typist(NamedTuple):
    conversation_id: UUID
    user_id: UUID


class _Indicator:
    """One user who types, or has just typed, in one conversation."""

    __slots__ = ("ends_at", "is_on", "is_ours", "passed_at", "shown_to")

    def __init__(self) -> None:
        self.is_on = False
        self.is_ours = False
        self.passed_at = float("-inf")
        self.ends_at = 0.0
        self.shown_to: set[UUID] = set()

    @property
    def due_at(self) -> float:
        """When it ends, or, where it has ended, may be forgotten: until then it keeps the next `true` back."""
        return self.ends_at if self.is_on else self.passed_at + PASSED_EVERY_S


class Typing:
    """One a process; `run` is its task. Nothing else here awaits.

    `on_said(conversation_id, user_id, is_typing, members)` hears what other processes should.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        memberships: Memberships,
        blocks: Blocks,
        on_said: Callable[[UUID, UUID, bool, Sequence[UUID]], None],
        *,
        max_typists: int = MAX_TYPISTS,
    ) -> None:
        self._switchboard = switchboard
        self._memberships = memberships
        self._blocks = blocks
        self._on_said = on_said
        self._max_typists = max_typists
        self._indicators: dict[_Typist, _Indicator] = {}
        # One place for each indicator, perhaps earlier than it is due by now.
        self._due: list[tuple[float, _Typist]] = []
        self._wake = trio.Event()

    def said(self, *, user_id: UUID, conversation_id: UUID, is_typing: bool, members: Sequence[UUID]) -> None:
        """A connection of this process says that its user types, or no longer does; `members` as they are now."""
        who = _Typist(conversation_id, user_id)
        if is_typing:
            if self._begin(who, members, is_ours=True):
                self._on_said(conversation_id, user_id, True, members)
        elif self._end(who):
            self._on_said(conversation_id, user_id, False, ())

    def heard(self, conversation_id: UUID, user_id: UUID, is_typing: bool, members: Sequence[UUID]) -> None:
        """The same from another process; `members` as it knows them, for this one may never have heard of the conversation."""
        who = _Typist(conversation_id, user_id)
        if is_typing:
            self._begin(who, members, is_ours=False)
        else:
            self._end(who)

    def posted(self, entry: Entry) -> None:
        """A text has been passed on: with it its sender's indicator ends, in every process by its own tailer."""
        self._end(_Typist(entry.conversation_id, entry.sender_id))

    def part(self, one: UUID, other: UUID) -> None:
        """A block stands between these two from now on: what they are shown of each other ends."""
        for who, indicator in self._indicators.items():
            for typist_id, watcher_id in ((one, other), (other, one)):
                if who.user_id == typist_id and watcher_id in indicator.shown_to:
                    indicator.shown_to.discard(watcher_id)
                    self._show(who, [watcher_id], is_typing=False)

    # -- beginning and ending -------------------------------------------------------------------------------------------------

    def _begin(self, who: _Typist, members: Sequence[UUID], *, is_ours: bool) -> bool:
        """Show it, unless that was done less than 3 s ago; whether it was."""
        now = trio.current_time()
        ends_at = now + (LASTS_S if is_ours else LASTS_ELSEWHERE_S)
        indicator = self._indicators.get(who)
        if indicator is None:
            if len(self._indicators) >= self._max_typists:
                return False
            indicator = self._indicators[who] = _Indicator()
        if now < indicator.passed_at + PASSED_EVERY_S - (0 if is_ours else JITTER_S):
            if indicator.is_on:
                indicator.ends_at = max(indicator.ends_at, ends_at)
            return False
        is_new = indicator.passed_at == float("-inf")
        indicator.is_on, indicator.is_ours, indicator.passed_at, indicator.ends_at = True, is_ours, now, ends_at
        indicator.shown_to = self._watchers(who, members)
        self._show(who, indicator.shown_to, is_typing=True)
        if is_new:
            self._enter(who, ends_at)
        return True

    def _end(self, who: _Typist) -> bool:
        """Show that it has ended, to whom it was shown and who is a member still; False if it was not on."""
        indicator = self._indicators.get(who)
        if indicator is None or not indicator.is_on:
            return False
        indicator.is_on = False
        membership = self._memberships.get(who.conversation_id)
        shown_to, indicator.shown_to = indicator.shown_to, set()
        self._show(who, [one for one in shown_to if membership is None or membership.is_member(one)], is_typing=False)
        return True

    def _watchers(self, who: _Typist, members: Sequence[UUID]) -> set[UUID]:
        membership = self._memberships.get(who.conversation_id)
        current = membership.open if membership is not None else members
        here = [one for one in current if one != who.user_id and self._switchboard.is_here(one)]
        return {one for one in here if not self._blocks.apart(one, who.user_id)}

    def _show(self, who: _Typist, user_ids: Sequence[UUID] | set[UUID], *, is_typing: bool) -> None:
        if not user_ids:
            return
        data = frame(
            "TYPING_INDICATOR", {"conversation_id": who.conversation_id, "user_id": who.user_id, "typing": is_typing}
        )
        for user_id in user_ids:
            for outbox in self._switchboard.of_user(user_id):
                # One that has fallen back to catching up since may still be showing it.
                if outbox.live or (outbox.is_ready and not is_typing):
                    outbox.hint((who, "typing"), data)

    # -- the task -------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End what nobody repeats, until cancelled."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else float("inf")):
                await self._wake.wait()
            self._settle(trio.current_time())

    def _enter(self, who: _Typist, due_at: float) -> None:
        heappush(self._due, (due_at, who))
        if self._due[0][1] == who:
            self._wake.set()

    def _settle(self, now: float) -> None:
        """End and forget what is due; what was repeated meanwhile comes later."""
        while self._due and self._due[0][0] <= now:
            _, who = heappop(self._due)
            indicator = self._indicators[who]
            if indicator.due_at <= now and self._end(who) and indicator.is_ours:
                self._on_said(who.conversation_id, who.user_id, False, ())
            if indicator.due_at <= now:
                del self._indicators[who]
            else:
                heappush(self._due, (indicator.due_at, who))
