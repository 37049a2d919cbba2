"""The law of the offline queue: a page from it is exactly what the log has there, or it is none.

Random logs over three people and three conversations with stays, deletions and a new epoch; two processes that start at
different places, push, lose pushes and are forgetful; lists trimmed, emptied and read in any state by either process. The rule
of the chain is broken by hand here too, and then the law does not hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from uim.chat.memberships import Memberships
from uim.chat.offline import Newest, Offline
from uim.model.message import Entry
from uim.store import offline as store
from uim.store.redis import RedisLink

LIVES = 2_000
EPOCH_STEP = 10**9

USERS = [UUID(int=number) for number in range(1, 4)]
ROOMS = [UUID(int=number) for number in range(11, 14)]
OWN = {user_id: UUID(int=20 + user_id.int) for user_id in USERS}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

Stay = list[int | None]
Read = Callable[..., list[Entry]]


@dataclass
class Log:
    """What PostgreSQL holds: entries, stays, what is hidden from whom."""

    entries: list[Entry] = field(default_factory=list)
    stays: dict[UUID, dict[UUID, list[Stay]]] = field(default_factory=dict)
    hidden: set[tuple[UUID, int]] = field(default_factory=set)
    base: int = 1
    next_id: int = 1

    def append(self, conversation_id: UUID, sender_id: UUID, kind: str, event: dict[str, object] | None = None) -> Entry:
        metadata = msgspec.json.encode(event).decode() if event else None
        content = f"text {self.next_id}" if kind == "text" else ""
        entry = Entry(self.next_id, conversation_id, self.next_id + 1, sender_id, None, content, kind, metadata, NOON)
        self.next_id += 1
        self.entries.append(entry)
        return entry

    def page(self, user_id: UUID, after: int, up_to: int) -> list[tuple[int, str, bool]]:
        """What lies in that user's stays in (after, up_to], as it is now."""
        return [seen(entry) for entry in self.entries if after < entry.message_id <= up_to and self.shows(user_id, entry)]

    def shows(self, user_id: UUID, entry: Entry) -> bool:
        stays = self.stays[entry.conversation_id].get(user_id, [])
        return any(came <= entry.message_id and (left is None or entry.message_id <= left) for came, left in stays)  # type: ignore[operator]  # the first is never None


def seen(entry: Entry) -> tuple[int, str, bool]:
    return entry.message_id, entry.content, entry.deleted


class Process:
    """A process's half of the queue: memberships moved by the log, and the room itself; `position` as its tailer has it."""

    def __init__(self, log: Log, start: int, dice: random.Random) -> None:
        self.log = log
        self.dice = dice
        self.position = start
        self.memberships = Memberships()
        self.here: set[UUID] = set()
        self.held: set[UUID] = set()
        self.elsewhere: set[UUID] = set()
        self.offline = Offline(
            RedisLink("unix:///nowhere"),
            self.memberships,
            is_here=self.here.__contains__,
            holds=self.held.__contains__,
            seems_online=lambda user_id: user_id in self.held or user_id in self.elsewhere,
            epoch_base=lambda: self.log.base,
            most_users=dice.choice([1, 50, 50]),
        )

    def pass_on(self, most: int) -> None:
        batch = [copy_of(entry) for entry in self.log.entries if entry.message_id > self.position][:most]
        if not batch:
            return
        loaded = {
            conversation_id: {user_id: [tuple(stay) for stay in stays] for user_id, stays in self.log.stays[conversation_id].items()}
            for conversation_id in self.memberships.unknown(batch)
        }
        self.memberships.learn(list(loaded), loaded)  # type: ignore[arg-type]  # tuples of two, the second perhaps None
        for entry in batch:
            self.memberships.follow(entry)
        self.offline.handed_on(batch)
        self.position = batch[-1].message_id


def copy_of(entry: Entry) -> Entry:
    return Entry(entry.message_id, entry.conversation_id, entry.seq, entry.sender_id, None, entry.content, entry.message_type,
                 entry.metadata, entry.created_at, entry.deleted)  # fmt: skip


@dataclass
class Life:
    """One random life; `queues` is Redis."""

    dice: random.Random
    log: Log = field(default_factory=Log)
    queues: dict[str, list[bytes]] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    read: Read = store.chain
    pages: int = 0
    entries_read: int = 0

    def begin(self) -> None:
        for room in ROOMS:
            self.log.stays[room] = {user_id: [[0, None]] for user_id in USERS if self.dice.random() < 0.7}
        for user_id, own in OWN.items():
            self.log.stays[own] = {user_id: [[0, None]]}
        for _ in range(self.dice.randrange(4)):
            self.say()
        self.processes = [self.new_process() for _ in range(2)]

    def new_process(self) -> Process:
        head = self.log.entries[-1].message_id if self.log.entries else 0
        return Process(self.log, max(head, self.log.base - 1), self.dice)

    def live(self, steps: int) -> None:
        acts = [self.say] * 12 + [self.pass_on] * 12 + [self.flush] * 8 + [self.come_and_go] * 3 + [self.look] * 24
        acts += [self.move, self.move, self.delete, self.hide, self.lose, self.restart, self.new_epoch]
        for _ in range(steps):
            self.dice.choice(acts)()
        for process in self.processes:
            self.flush()
            process.pass_on(100)
            self.look()

    def say(self) -> None:
        room = self.dice.choice(ROOMS)
        members = [user_id for user_id, stays in self.log.stays[room].items() if stays[-1][1] is None]
        if members:
            self.appended(self.log.append(room, self.dice.choice(members), "text"))

    def appended(self, entry: Entry) -> None:
        """By one of the processes; where its answer was lost, by nobody who knows."""
        if self.processes and self.dice.random() < 0.95:
            self.dice.choice(self.processes).offline.appended([entry])

    def pass_on(self) -> None:
        self.dice.choice(self.processes).pass_on(self.dice.randint(1, 5))

    def flush(self) -> None:
        """What a process has gathered goes to Redis, or is lost; deletions come through, or are late."""
        process = self.dice.choice(self.processes)
        if self.dice.random() < 0.7:
            for user_id in process.offline._to_forget:
                self.queues.pop(store.key(user_id), None)
            process.offline._to_forget.clear()
        for _, _, _, key, *elements in process.offline.take():
            kept = [one for one in elements if self.dice.random() < 0.9]
            self.queues.setdefault(key, []).extend(kept)

    def come_and_go(self) -> None:
        process, user_id = self.dice.choice(self.processes), self.dice.choice(USERS)
        for marked in (process.here, process.held, process.elsewhere):
            marked.discard(user_id)
        if self.dice.random() < 0.6:
            self.dice.choice([process.here, process.held, process.elsewhere]).add(user_id)
            if user_id in process.here:
                process.held.add(user_id)

    def move(self) -> None:
        """Somebody leaves a conversation, or comes into it, again perhaps."""
        room, user_id = self.dice.choice(ROOMS), self.dice.choice(USERS)
        stays = self.log.stays[room].setdefault(user_id, [])
        at = self.log.next_id
        if stays and stays[-1][1] is None:
            stays[-1][1] = at
            self.log.append(room, user_id, "system", {"event": "participant_left", "user_id": str(user_id)})
        else:
            stays.append([at, None])
            self.log.append(room, user_id, "system", {"event": "participant_added", "user_id": str(user_id)})
        self.appended(self.log.entries[-1])

    def delete(self) -> None:
        texts = [entry for entry in self.log.entries if entry.message_type == "text" and not entry.deleted]
        if texts:
            target = self.dice.choice(texts)
            target.blank()
            event: dict[str, object] = {"target_message_id": target.message_id}
            self.appended(self.log.append(target.conversation_id, target.sender_id, "deletion", event))

    def hide(self) -> None:
        user_id = self.dice.choice(USERS)
        texts = [entry for entry in self.log.entries if entry.message_type == "text" and self.log.shows(user_id, entry)]
        if texts:
            target = self.dice.choice(texts)
            self.log.hidden.add((user_id, target.message_id))
            event: dict[str, object] = {"event": "hidden", "message_id": target.message_id}
            self.appended(self.log.append(OWN[user_id], user_id, "account", event))

    def lose(self) -> None:
        """Redis loses, trims, repeats, shuffles."""
        for key, held in list(self.queues.items()):
            fate = self.dice.randrange(5)
            if fate == 0:
                del self.queues[key]
            elif fate == 1:
                del held[: self.dice.randint(0, len(held))]
            elif fate == 2:
                held.extend(held[: self.dice.randint(0, len(held))])
            elif fate == 3:
                self.dice.shuffle(held)

    def restart(self) -> None:
        self.processes[self.dice.randrange(2)] = self.new_process()

    def new_epoch(self) -> None:
        """The newest entries are gone, with what they changed, and numbering goes on far above. Every process begins anew."""
        lost = self.dice.randint(0, min(3, len(self.log.entries)))
        kept = self.log.entries[: len(self.log.entries) - lost]
        if any(entry.message_type != "text" for entry in self.log.entries[len(kept) :]):
            return
        self.log.entries[:] = kept
        self.log.base = self.log.next_id = self.log.next_id + EPOCH_STEP
        self.processes = [self.new_process() for _ in range(2)]

    def look(self) -> None:
        """A device with any cursor reads, from either process: what it gets is what the log has up to there."""
        process, user_id = self.dice.choice(self.processes), self.dice.choice(USERS)
        after = self.dice.choice([0, *(entry.message_id for entry in self.log.entries), self.log.next_id + 7])
        limit = self.dice.choice([1, 2, 100])
        offline = process.offline
        held = self.queues.get(store.key(user_id), [])
        above, up_to = offline._believed_above(user_id), offline._position
        got = self.read(held, epoch=self.log.base, after=after, above=above, up_to=up_to, limit=limit)
        if self.read is store.chain:
            assert list(map(seen, offline.believed(held, user_id=user_id, after=after, limit=limit))) == list(map(seen, got))
            assert not got or offline._newest.bound(user_id) > max(after, above), "it would not have been asked"
        self.pages += bool(got)
        self.entries_read += len(got)
        if got:
            there = self.log.page(user_id, after, got[-1].message_id)
            assert [entry.message_id for entry in got] == [one[0] for one in there]
            as_it_was = self.as_of(process.position)
            assert all(seen(entry) in (now, as_it_was(now)) for entry, now in zip(got, there, strict=True)), "TAKEN BACK"
            assert not any((user_id, entry.message_id) in self.hidden_by(process.position) for entry in got), "HIDDEN"
            assert len(got) <= limit

    def as_of(self, position: int) -> Callable[[tuple[int, str, bool]], tuple[int, str, bool]]:
        """What was taken back after that position was not yet, then."""
        later = {
            entry.event["target_message_id"]
            for entry in self.log.entries
            if entry.message_type == "deletion" and entry.message_id > position
        }
        return lambda one: (one[0], f"text {one[0]}", False) if one[0] in later else one

    def hidden_by(self, position: int) -> set[tuple[UUID, int]]:
        return {
            (entry.sender_id, entry.event["message_id"])
            for entry in self.log.entries
            if entry.message_type == "account" and entry.message_id <= position
        }


def lived(seed: int, read: Read = store.chain) -> Life:
    life = Life(random.Random(seed), read=read)
    life.begin()
    life.live(80)
    return life


def test_a_page_from_the_queue_is_what_the_log_has() -> None:
    lives = [lived(seed) for seed in range(LIVES)]
    # The law would be easily kept by giving nothing.
    assert sum(life.pages for life in lives) > LIVES
    assert sum(life.entries_read for life in lives) > 1.5 * LIVES


def without_chain(
    held: Iterable[bytes], *, epoch: int, after: int, above: int, up_to: int, limit: int
) -> list[Entry]:
    """The rule that looks sufficient: the queue reaches back to the cursor, so everything above it is in there."""
    found = {one.id: one for one in map(store._decode, held) if one.epoch == epoch and above < one.id <= up_to}
    if not found or min(found) > after + 1:
        return []
    return [store._entry(found[at]) for at in sorted(found) if at > after][:limit]


def unfenced(held: Iterable[bytes], *, epoch: int, after: int, above: int, up_to: int, limit: int) -> list[Entry]:
    return store.chain(held, epoch=epoch, after=after, above=0, up_to=up_to, limit=limit)


def ahead(held: Iterable[bytes], *, epoch: int, after: int, above: int, up_to: int, limit: int) -> list[Entry]:
    return store.chain(held, epoch=epoch, after=after, above=above, up_to=2**53, limit=limit)


@pytest.mark.parametrize("wrong", [without_chain, unfenced, ahead])
def test_without_any_part_of_the_rule_the_law_is_broken(wrong: Read) -> None:
    def breaks(seed: int) -> bool:
        try:
            lived(seed, wrong)
        except AssertionError:
            return True
        return False

    assert any(breaks(seed) for seed in range(LIVES))


def test_whoever_is_forgotten_has_seen_nothing_above_the_bound() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        newest, truth = Newest(7, most=dice.randint(1, 4)), dict[UUID, int]()
        for position in range(8, 60):
            for user_id in dice.sample(USERS, dice.randint(0, 3)):
                newest.note(user_id, position)
                truth[user_id] = position
            newest.turn(position)
            assert all(newest.bound(user_id) >= at for user_id, at in truth.items())
            assert len(newest._young) + len(newest._old) <= 12
