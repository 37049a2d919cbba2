"""Presence: what others are told of a person's sessions, and how much of it at once.

`seen_by_friend` and `seen_by_oneself` say what a state looks like from where; `Waiting` holds what connections have yet to be
told. Rule: presence is shed first: a connection gets a frame at most every 50 ms, all together a bounded number, and of what
waits only the newest state of each person is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, takewhile
from typing import Final, Generic, Literal, TypeVar
from uuid import UUID

import msgspec

from uim.model.ids import rfc3339

# 1,000 frames/s for all, in small portions, for a message that comes meanwhile waits for one; 20/s for one connection.
TICK_S: Final = 0.01
FRAMES_PER_TICK: Final = 10
REST_S: Final = 0.05
# While more wait than a tick takes each rests longer: fewer and fuller frames, for a frame costs more than the states in it.
RESTS_UNDER_LOAD: Final = 6
# A connection that waits for more persons than this is told all of it afresh instead.
STATES_PER_RECEIVER: Final = 1_000
# Connections that cannot take a frame now are passed over; no more of them than this are looked at in one tick.
LOOK_AT_PER_TICK: Final = 200

Status = Literal["online", "offline"]


class ShownPresence(msgspec.Struct, frozen=True):
    """What a caller is shown of somebody's presence; of strangers nothing. `last_seen` is RFC 3339."""

    status: str = "offline"
    availability: str | None = None
    last_seen: str | None = None


class State(msgspec.Struct, frozen=True):
    """One person in a PRESENCE_UPDATE."""

    user_id: UUID
    status: str
    availability: str | None
    last_seen: str | None
    status_text: str | None

    def shown(self) -> ShownPresence:
        return ShownPresence(self.status, self.availability, self.last_seen)


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person has chosen to show, and when they were last seen."""

    availability: str
    status_text: str | None
    show_last_seen: bool
    last_seen: datetime | None


NOT_SHOWN: Final = ShownPresence()


def stranger(user_id: UUID) -> State:
    """What is told of one who is no friend, or no friend any more."""
    return State(user_id, "offline", None, None, None)


def seen_by_friend(user_id: UUID, choices: Choices, *, is_online: bool) -> State:
    """`invisible` looks like offline in every field."""
    if is_online and choices.availability != "invisible":
        return State(user_id, "online", choices.availability, None, choices.status_text)
    last_seen = rfc3339(choices.last_seen) if choices.last_seen is not None and choices.show_last_seen else None
    return State(user_id, "offline", None, last_seen, choices.status_text)


def seen_by_oneself(user_id: UUID, choices: Choices, *, is_online: bool) -> State:
    """The true state."""
    if is_online:
        return State(user_id, "online", choices.availability, None, choices.status_text)
    last_seen = rfc3339(choices.last_seen) if choices.last_seen is not None else None
    return State(user_id, "offline", choices.availability, last_seen, choices.status_text)


# -- what waits to be told --------------------------------------------------------------------------------------------------

Receiver = TypeVar("Receiver")
Told = TypeVar("Told")


@dataclass(slots=True)
class Due(Generic[Told]):
    """What one connection has yet to be told: everything afresh, or the newest state of some persons."""

    afresh: bool = False
    states: dict[UUID, Told] = field(default_factory=dict)


class Waiting(Generic[Receiver, Told]):
    """Whom to tell what, the longest waiting first. Bounded by its receivers; nothing here awaits.

    At most `frames_per_tick` in `tick_s`, and to each receiver one in `rest_s`, or less often while many wait.
    """

    def __init__(
        self,
        *,
        tick_s: float = TICK_S,
        frames_per_tick: int = FRAMES_PER_TICK,
        rest_s: float = REST_S,
        states_per_receiver: int = STATES_PER_RECEIVER,
    ) -> None:
        self._tick_s = tick_s
        self._frames_per_tick = frames_per_tick
        self._rest_s = rest_s
        self._states_per_receiver = states_per_receiver
        self._due: dict[Receiver, Due[Told]] = {}
        # Who has just been told something, and until when that is enough; in the order of telling.
        self._resting: dict[Receiver, float] = {}
        self._next_at = float("-inf")

    def __len__(self) -> int:
        return len(self._due)

    @property
    def next_at(self) -> float:
        """When the next tick may be taken."""
        return self._next_at

    def put(self, receiver: Receiver, user_id: UUID, state: Told) -> None:
        """That person's newest state, in place of an older one that still waits."""
        due = self._due.setdefault(receiver, Due())
        due.states[user_id] = state
        if len(due.states) > self._states_per_receiver:
            self.put_afresh(receiver)

    def put_afresh(self, receiver: Receiver) -> None:
        """All that this receiver may know, read when it is told: whatever else waits for it is older than that."""
        due = self._due.setdefault(receiver, Due())
        due.afresh = True
        due.states.clear()

    def withdraw(self, receiver: Receiver, user_id: UUID) -> None:
        """The receiver knows of that person by another way."""
        due = self._due.get(receiver)
        if due is not None:
            due.states.pop(user_id, None)
            if not due.states and not due.afresh:
                del self._due[receiver]

    def forget(self, receiver: Receiver) -> None:
        self._due.pop(receiver, None)
        self._resting.pop(receiver, None)

    def take(self, now: float, is_ready: Callable[[Receiver], bool]) -> list[tuple[Receiver, Due[Told]]]:
        """What to tell in this tick, one frame a receiver; nothing before its time. Who is not ready keeps what waits."""
        if now < self._next_at or not self._due:
            return []
        self._wake_rested(now)
        rest_s = self._rest_s if len(self._due) <= self._frames_per_tick else self._rest_s * RESTS_UNDER_LOAD
        taken: list[tuple[Receiver, Due[Told]]] = []
        for receiver in list(islice(self._due, LOOK_AT_PER_TICK)):
            if len(taken) >= self._frames_per_tick:
                break
            due = self._due.pop(receiver)
            if receiver not in self._resting and is_ready(receiver):
                taken.append((receiver, due))
                self._resting[receiver] = now + rest_s
            else:
                self._due[receiver] = due  # behind all others, so that one that sleeps keeps nobody waiting
        self._next_at = now + (self._tick_s if taken else self._rest_s)
        return taken

    def _wake_rested(self, now: float) -> None:
        # Not quite in the order of their ends; one that stands behind a longer rest has it too.
        rested = list(takewhile(lambda receiver: self._resting[receiver] <= now, self._resting))
        for receiver in rested:
            del self._resting[receiver]
