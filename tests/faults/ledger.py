"""What the devices of a run have said, heard and stored; and, held against what the server shows, whether a promise was broken.

Pure: it asks nobody. The clients write into it as things happen (`wrote`, `sent`, `queued`, `put_off`, `refused`, `came`); `judge`
is given every member's history of every conversation and says, in plain words, what is wrong. Rule: the ledger decides, not
the server: what was acknowledged counts, however the server came to say it. It is for a moment at which nothing is under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

MOST_FAULTS = 30


class Entry(NamedTuple):
    """An entry of the log, as a client sees it."""

    message_id: int
    conversation_id: str
    seq: int
    sender_id: str
    client_id: str | None
    content: str


@dataclass(eq=False)
class Text:
    """One text that a device has written. `number` counts those of its device.

    `state`: open, queued, sent, or refused. `forgotten`: its device took `queued` for the end and repeats it no more.
    `put_off`: it was answered `unavailable` once, so later ones of its device may have overtaken it.
    """

    client_id: str
    conversation_id: str
    user_id: str
    device: str
    number: int
    content: str
    state: str = "open"
    message_id: int = 0
    seq: int = 0
    was_queued: bool = False
    forgotten: bool = False
    put_off: bool = False

    @property
    def is_acknowledged(self) -> bool:
        return self.state in ("sent", "queued")


Histories = Mapping[tuple[str, str], Sequence[Entry]]


@dataclass
class Ledger:
    """`members`: the users of each conversation, all of them there from its beginning; `devices`: whose each device is."""

    members: Mapping[str, Sequence[str]]
    devices: Mapping[str, str]
    texts: dict[str, Text] = field(default_factory=dict)
    # Of each device, every entry that came to it, repeats too, in the order in which they came.
    arrivals: dict[str, list[Entry]] = field(default_factory=dict)
    # What was seen to be wrong at once.
    noted: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    newest_sent: int = 0

    def __post_init__(self) -> None:
        self._stored: dict[str, dict[int, Entry]] = {device: {} for device in self.devices}
        self.arrivals = {device: [] for device in self.devices}
        # By content, which is unique: others do not see a text's client id.
        self._by_content: dict[str, Text] = {}
        self._seen: set[str] = set()

    # -- what the clients write -------------------------------------------------------------------------------------------

    def wrote(self, text: Text) -> None:
        assert text.client_id not in self.texts and text.content not in self._by_content
        self.texts[text.client_id] = text
        self._by_content[text.content] = text
        self.counts["written"] += 1

    def sent(self, client_id: str, message_id: int, seq: int, *, duplicate: bool = False) -> None:
        """The server's final word for a text. A second one must say the same."""
        text = self.texts[client_id]
        self.counts["sent"] += text.state != "sent"
        self.counts["duplicate acks"] += duplicate
        if text.state == "sent" and (text.message_id, text.seq) != (message_id, seq):
            self.note(f"{client_id} was acknowledged as message {text.message_id} and again as {message_id}")
        text.state, text.message_id, text.seq = "sent", message_id, seq
        self.newest_sent = max(self.newest_sent, message_id)

    def queued(self, client_id: str) -> None:
        text = self.texts[client_id]
        self.counts["queued"] += not text.was_queued
        text.was_queued = True
        if text.state == "open":
            text.state = "queued"

    def put_off(self, client_id: str) -> None:
        """The server could not take it just now; its device will repeat it."""
        self.texts[client_id].put_off = True
        self.counts["put off"] += 1

    def refused(self, client_id: str, code: str) -> None:
        """Nothing that these devices say may be refused for good."""
        text = self.texts[client_id]
        self.note(f"{client_id} was refused with {code}" + (f" after it was {text.state}" if text.is_acknowledged else ""))
        text.state = "refused"

    def came(self, device: str, entry: Entry) -> None:
        """An entry reached a device, by whatever way."""
        if entry.conversation_id not in self.members:
            return  # of the account itself
        self.arrivals[device].append(entry)
        self._seen.add(entry.content)
        first = self._stored[device].setdefault(entry.message_id, entry)
        self.counts["arrived"] += first is entry
        if first is not entry:
            self.counts["repeated"] += 1
            if first != entry:
                self.note(f"{device}: message {entry.message_id} came twice and differs: {_short(first)}, {_short(entry)}")

    def note(self, fault: str) -> None:
        if len(self.noted) < MOST_FAULTS:
            self.noted.append(fault)

    # -- what is still under way ------------------------------------------------------------------------------------------

    def unseen(self) -> list[Text]:
        """Forgotten texts that are owed and have come to nobody yet."""
        return [text for text in self.texts.values() if text.forgotten and text.state == "queued" and text.content not in self._seen]

    # -- the judgement ----------------------------------------------------------------------------------------------------

    def judge(self, histories: Histories) -> list[str]:
        """What is wrong, at most 30 sentences; empty if every promise was kept."""
        faults = list(self.noted)
        for fault in self._faults(histories):
            if len(faults) >= MOST_FAULTS:
                break
            faults.append(fault)
        return faults

    def _faults(self, histories: Histories) -> Iterator[str]:
        yield from (f"{text.client_id} was never answered" for text in self.texts.values() if text.state == "open")
        for conversation_id, members in self.members.items():
            shown = {user_id: histories[user_id, conversation_id] for user_id in members}
            for user_id, history in shown.items():
                yield from self._check_history(user_id, conversation_id, history)
            yield from _check_alike(conversation_id, shown)
        for device, user_id in self.devices.items():
            yield from self._check_order(device)
            owed = [entry for (whose, _), history in histories.items() if whose == user_id for entry in history]
            yield from self._check_device(device, owed)
        yield from self._check_senders()

    def _check_history(self, user_id: str, conversation_id: str, history: Sequence[Entry]) -> Iterator[str]:
        """One member's view of one conversation: no hole, nothing twice, everything acknowledged, as it was sent."""
        where = f"history of {conversation_id} for {user_id}"
        for before, after in pairwise(history):
            if after.message_id <= before.message_id:
                yield f"{where}: message {after.message_id} stands after {before.message_id}"
        for expected, entry in enumerate(history, 1):
            if entry.seq != expected:
                yield f"{where}: a hole: seq {entry.seq} stands where {expected} should (message {entry.message_id})"
                break
        yield from self._check_texts(where, user_id, conversation_id, history)

    def _check_texts(self, where: str, user_id: str, conversation_id: str, history: Sequence[Entry]) -> Iterator[str]:
        places: dict[str, list[Entry]] = {}
        for entry in history:
            if (text := self._text_of(entry)) is not None:
                places.setdefault(text.client_id, []).append(entry)
            elif entry.content:
                yield f"{where}: message {entry.message_id} was written by nobody: {_short(entry)}"
        for text in self.texts.values():
            if text.conversation_id != conversation_id:
                continue
            found = places.get(text.client_id, [])
            if text.is_acknowledged and not found:
                yield f"{where}: LOST: {text.client_id}, {text.state}" + (f" as {text.message_id}" if text.message_id else "")
            if len(found) > 1:
                yield f"{where}: {text.client_id} stands {len(found)} times: {[entry.message_id for entry in found]}"
            for entry in found:
                if text.state == "sent" and (entry.message_id, entry.seq) != (text.message_id, text.seq):
                    yield f"{where}: {text.client_id} was told {text.message_id}/{text.seq}, and stands as {_short(entry)}"
                if entry.content != text.content:
                    yield f"{where}: {text.client_id} has another text: {_short(entry)}"
                if entry.sender_id != text.user_id:
                    yield f"{where}: {text.client_id} is shown as sent by {entry.sender_id}"

    def _check_order(self, device: str) -> Iterator[str]:
        """Of what came to a device the first copies ascend, but for its own texts: it has these by their acks, and their first
        copies with a resend, of which a device that was stopped for a second is sent one."""
        newest, seen = 0, set()
        for entry in self.arrivals[device]:
            if entry.message_id in seen:
                continue
            text = self._text_of(entry)
            is_own = text is not None and text.device == device and text.state == "sent"
            if entry.message_id < newest and not is_own:
                yield f"{device}: message {entry.message_id} came for the first time after {newest}"
            seen.add(entry.message_id)
            newest = max(newest, entry.message_id)

    def _check_device(self, device: str, owed: Sequence[Entry]) -> Iterator[str]:
        """It has all that its user is owed, one's own by their acks, and nothing else."""
        stored = self._stored[device]
        for entry in owed:
            held = stored.get(entry.message_id)
            if held is None:
                text = self._text_of(entry)
                if text is None or text.device != device or not (text.state == "sent" or text.forgotten):
                    yield f"{device}: message {entry.message_id} is missing: {_short(entry)}"
            elif held[:4] != entry[:4] or held.content != entry.content:
                yield f"{device}: message {entry.message_id} came as {_short(held)} and stands as {_short(entry)}"
        for message_id in sorted(stored.keys() - {entry.message_id for entry in owed}):
            yield f"{device}: message {message_id} came and is no longer there: {_short(stored[message_id])}"

    def _check_senders(self) -> Iterator[str]:
        """What one device said in one conversation stands in the order in which it said it."""
        newest: dict[tuple[str, str], Text] = {}
        for text in sorted(self.texts.values(), key=lambda text: (text.device, text.number)):
            if text.state != "sent" or text.put_off or text.forgotten:
                continue
            before = newest.get((text.device, text.conversation_id))
            if before is not None and text.message_id < before.message_id:
                yield f"{text.device}: {text.client_id} ({text.message_id}) was said after {before.client_id} ({before.message_id})"
            newest[text.device, text.conversation_id] = text

    def _text_of(self, entry: Entry) -> Text | None:
        if entry.client_id is not None:
            return self.texts.get(entry.client_id)
        return self._by_content.get(entry.content)


def _check_alike(conversation_id: str, shown: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    (first_user, first), *others = shown.items()
    for user_id, history in others:
        if [entry[:4] + entry[5:] for entry in history] != [entry[:4] + entry[5:] for entry in first]:
            yield f"{conversation_id} is not the same for {first_user} and {user_id}"


def _short(entry: Entry) -> str:
    return f"{entry.message_id}/{entry.seq} {entry.content[:40]!r}"
