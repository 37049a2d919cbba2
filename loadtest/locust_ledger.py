"""What the users of one Locust process have said and heard; and whether a promise was broken.

Pure: devices write into it as things happen (`made`, `sent`, `came`), and `faults` says in plain words what is wrong. By seq, which
has no gaps within a stay, so that it stays small however long a run is. Rule: what was acknowledged decides, not what the server
shows afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MOST_FAULTS = 30


@dataclass
class Stretch:
    """The places in one conversation that one user holds: all of first to last, and those `apart`, beyond a hole."""

    first: int
    last: int
    apart: set[int] = field(default_factory=set)

    def holds(self, seq: int) -> bool:
        return self.first <= seq <= self.last or seq in self.apart

    def add(self, seq: int) -> None:
        self.apart.add(seq)
        while self.last + 1 in self.apart:
            self.last += 1
        while self.first - 1 in self.apart:
            self.first -= 1
        if self.first <= seq <= self.last:
            self.apart = {other for other in self.apart if not self.first <= other <= self.last}


@dataclass
class Ledger:
    """Of all users of this process. `newest` is the highest message_id that anybody was told of."""

    newest: int = 0
    acknowledged: int = 0
    arrived: int = 0
    # False once the server could not take a text just now: those said after it may then stand before it.
    judges_order: bool = True
    _members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Of each conversation the least and the greatest seq that was acknowledged.
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    _held: dict[tuple[str, str], Stretch] = field(default_factory=dict)
    _newest_of: dict[str, int] = field(default_factory=dict)
    # (who hears it, conversation, who says it) → the number of their newest text; whose numbers ascend as they are said.
    _numbers: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _noted: list[str] = field(default_factory=list)

    def note(self, fault: str) -> None:
        if len(self._noted) < MOST_FAULTS:
            self._noted.append(fault)

    def made(self, conversation_id: str, members: Iterable[str]) -> None:
        """A conversation whose members, but for those of other processes, are owed all of it."""
        self._members[conversation_id] = tuple(members)

    def sent(self, user_id: str, conversation_id: str, seq: int, message_id: int, number: int) -> None:
        """A text of this user was acknowledged as stored there. The same one is said here once."""
        self.acknowledged += 1
        self.newest = max(self.newest, message_id)
        least, greatest = self._sent.get(conversation_id, (seq, seq))
        self._sent[conversation_id] = min(seq, least), max(seq, greatest)
        self._check_number(user_id, conversation_id, user_id, number)
        self._hold(user_id, conversation_id, seq)

    def came(self, user_id: str, conversation_id: str, seq: int, message_id: int) -> bool:
        """An entry reached this user's device; whether it is the first copy. First copies come in the log's order."""
        stretch = self._held.get((user_id, conversation_id))
        newest = self._newest_of.get(user_id, 0)
        if message_id > newest:
            self._newest_of[user_id] = message_id
            self.newest = max(self.newest, message_id)
        elif stretch is None or not stretch.holds(seq):
            self.note(f"{user_id}: message {message_id} came for the first time after {newest}")
        is_first = stretch is None or not stretch.holds(seq)
        if is_first:
            self.arrived += 1
            self._hold(user_id, conversation_id, seq)
        return is_first

    def heard(self, user_id: str, conversation_id: str, sender_id: str, number: int) -> None:
        """The first copy of a text: that sender's texts come in the order in which they were said, each once."""
        self._check_number(user_id, conversation_id, sender_id, number)

    def _check_number(self, user_id: str, conversation_id: str, sender_id: str, number: int) -> None:
        key = (user_id, conversation_id, sender_id)
        before = self._numbers.get(key, 0)
        if number <= before and self.judges_order:
            self.note(f"{user_id}: text {number} of {sender_id} came after text {before} in {conversation_id}")
        self._numbers[key] = max(number, before)

    def _hold(self, user_id: str, conversation_id: str, seq: int) -> None:
        stretch = self._held.get((user_id, conversation_id))
        if stretch is None:
            self._held[user_id, conversation_id] = Stretch(seq, seq)
        else:
            stretch.add(seq)

    # -- the judgement ----------------------------------------------------------------------------------------------------

    def faults(self, user_ids: Iterable[str]) -> list[str]:
        """What is wrong once nothing is under way any more for these users; empty if every promise was kept."""
        found = list(self._noted)
        here = set(user_ids)
        for fault in self._missing(here):
            if len(found) >= MOST_FAULTS:
                break
            found.append(fault)
        return found

    def _missing(self, here: set[str]) -> Iterator[str]:
        for (user_id, conversation_id), stretch in self._held.items():
            if stretch.apart:
                yield f"{user_id}: LOST: seq {stretch.last + 1} of {conversation_id} never came, {min(stretch.apart)} did"
        for conversation_id, (least, greatest) in self._sent.items():
            for user_id in here.intersection(self._members.get(conversation_id, ())):
                held = self._held.get((user_id, conversation_id))
                if held is None or held.first > least or (held.last < greatest and not held.apart):
                    has = "none" if held is None else f"{held.first} to {held.last}"
                    yield f"{user_id}: LOST: {conversation_id} has acknowledged texts {least} to {greatest}, of which came {has}"
