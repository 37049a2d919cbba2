"""What a generator process is told to do, and what it tells afterwards: plain data, for it goes from one process to another.

A party is a conversation and its members; a seat is one member's device. Rule: whatever is counted over several processes is
told raw (ids, counts by microsecond), and added by the director.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from loadtest.latencies import Counts
from loadtest.people import Member


@dataclass(frozen=True, slots=True)
class Party:
    """A conversation, its members, and how many of them (the first ones) talk. Everyone hears every text but their own."""

    conversation_id: str
    members: list[Member]
    talkers: int


@dataclass(frozen=True, slots=True)
class Seat:
    """One device, and the server process that it connects to. `party` is its conversation's number in the run."""

    party: int
    conversation_id: str
    members: int
    token: str
    is_talker: bool
    websocket_url: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Texts of all talkers. Either `window` open sends of each, or `texts_per_s` in all of this plan, on a fixed schedule.

    `is_last_timed`: also when a text has come to the last of its party; then a party may not be divided among processes.
    """

    name: str
    seconds: float
    text_bytes: int
    window: int = 0
    texts_per_s: float = 0.0
    is_last_timed: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """What one process saw in the time that was measured; `own_s`: its processor time."""

    took_s: float
    own_s: float
    acknowledged: int
    arrived: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What a device was told in the whole run: ids of its own texts that were acked, and of the texts that came, in order."""

    party: int
    acknowledged: array[int]
    arrived: array[int]
    repeats: int


@dataclass(frozen=True, slots=True)
class Told:
    """The end of a process's run. `times`: by what was timed, then by second, counts by microsecond."""

    heard: list[Heard]
    times: dict[str, dict[int, Counts]]
