"""The stand-ins keep the contract of what they stand for: the same calls give the same answers on both.

Random operations, the same on a real PostgreSQL and on the tables in memory (on a real Valkey and on the broker), each answer
compared. Rule: times are compared by whether there is one; ids, orders, verdicts and who is told are compared as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import datetime
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID

import msgspec
import psycopg
import pytest
import redis
import trio
import trio.testing

from tests.simulation.broker import Broker
from tests.simulation.database import Database
from tests.simulation.store import STAND_INS
from tests.simulation.tables import User
from uim.errors import UIMError
from uim.model.message import Draft, Entry
from uim.store import blocks, conversations, cursors, epochs, messages, offline, receipts, scripts, seats, words
from uim.store.cursors import Move
from uim.store.postgres import connect
from uim.store.receipts import Advance

STEPS = 150
USERS = [UUID(int=0xA0 + number) for number in range(4)]
GROUPS = [UUID(int=0xC0 + number) for number in range(2)]
PAIRS = [UUID(int=0xD0 + number) for number in range(3)]
ROOMS = [*GROUPS, *PAIRS]
TIMES = frozenset({"created_at", "updated_at", "joined_at"})


class Calm:
    """No trouble at all."""

    def at(self, process: str, point: str) -> str:
        return ""

    def is_dead(self, process: str) -> bool:
        return False

    def reach(self, process: str) -> str:
        return ""


class Player:
    """Makes calls that its seed alone decides, for ids are the same on both sides."""

    def __init__(self, tx: Any, seed: int, block: Callable[[UUID, UUID], Awaitable[None]]) -> None:
        self.tx = tx
        self.chance = Random(seed)
        self.block = block
        self.keys = 0
        self.said = 0
        self.numbers = 0
        self.waited: list[float | None] = []

    async def play(self) -> list[tuple[str, object]]:
        verbs = [name for name in dir(self) if name.startswith("do_")]
        answers: list[tuple[str, object]] = []
        for group_id in GROUPS:
            await self.found(group_id)
        for _ in range(STEPS):
            verb = self.chance.choice(verbs)
            try:
                answer = plain(await getattr(self, verb)())
            except UIMError as refused:
                answer = refused.code
            answers.append((verb, answer))
        return answers

    @property
    def user(self) -> UUID:
        return self.chance.choice(USERS)

    @property
    def room(self) -> UUID:
        return self.chance.choice(ROOMS)

    @property
    def at(self) -> int:
        return self.chance.randint(0, 40)

    def key(self) -> UUID:
        self.keys += 1
        return UUID(int=self.keys)

    async def own(self, conversation_id: UUID, kind: str = "renamed") -> Entry:
        return await messages.append_own(
            self.tx, conversation_id=conversation_id, sender_id=USERS[0], server_key=self.key(), message_type="system",
            metadata=f'{{"event":"{kind}"}}',
        )  # fmt: skip

    async def found(self, group_id: UUID) -> None:
        async with self.tx.transaction():
            await messages.lock_log(self.tx)
            await seats.insert_group(
                self.tx, conversation_id=group_id, user_id=USERS[0], name="group", client_conversation_id=UUID(int=group_id.int + 1000)
            )
            made = await self.own(group_id)
            await seats.seat(self.tx, group_id, {USERS[0]: ("owner", made.message_id), USERS[1]: ("member", made.message_id)})

    # -- the log --------------------------------------------------------------------------------------------------------------

    async def do_append(self) -> object:
        drafts = []
        for _ in range(self.chance.randint(1, 5)):
            if not self.said or self.chance.random() < 0.7:
                self.said += 1
            number = self.chance.randint(max(1, self.said - 6), self.said)
            text = f"text {number if self.chance.random() < 0.9 else -number}"
            drafts.append(Draft(self.room, self.user, f"m{number}", text, None))
        return await messages.append(self.tx, drafts)

    do_append_more = do_append

    async def do_read_pages(self) -> object:
        user_id, after, limit = self.user, self.at, self.chance.choice((1, 3, 100))
        return [
            await messages.page_after(self.tx, user_id=user_id, after=after, limit=limit),
            await messages.count_after(self.tx, [(user_id, after), (USERS[0], 0)], limit=limit),
            await messages.entries_after(self.tx, after, limit),
            await messages.head(self.tx),
        ]

    async def do_look_at_stays(self) -> object:
        found = await messages.stays_of(self.tx, ROOMS)
        return [found, await messages.has_server_key(self.tx, UUID(int=self.at))]

    # -- cursors and receipts -------------------------------------------------------------------------------------------------

    async def do_open_cursors(self) -> object:
        devices = self.chance.sample([(user_id, device_id) for user_id in USERS for device_id in "ab"], self.chance.randint(1, 3))
        async with self.tx.transaction():
            sessions = self.chance.sample(USERS, len(devices))  # a session is one connection's
            openings = [self._opening(*device, session_id) for device, session_id in zip(devices, sessions, strict=True)]
            outcomes = await cursors.open_cursors(self.tx, openings)
            spans = [
                (opening.user_id, outcome.was, outcome.at)
                for opening, outcome in zip(openings, outcomes, strict=True)
                if isinstance(outcome, cursors.Opened)
            ]
            said = [outcome if isinstance(outcome, cursors.Opened) else type(outcome).__name__ for outcome in outcomes]
            return [said, await receipts.newest_between(self.tx, spans)]

    def _opening(self, user_id: UUID, device_id: str, session_id: UUID) -> cursors.Opening:
        waited_s = self.chance.choice((None, 1_000.0, 2_000.0 - len(self.waited)))
        replaced = tuple(self.chance.sample(USERS, self.chance.randint(0, 2)))
        opener = cursors.Opener(session_id, waited_s, replaced) if self.chance.random() < 0.8 else None
        self.waited.append(waited_s)
        return cursors.Opening(user_id, device_id, self.chance.choice((None, 0, self.at, 10_000)), opener)

    async def do_move_cursors(self) -> object:
        moves = {
            (user_id, device): Move(user_id, device, self.chance.randint(1, 3), self.at)
            for user_id in USERS for device in "ab" if self.chance.random() < 0.5
        }  # fmt: skip
        return await cursors.move(self.tx, list(moves.values())) if moves else None

    async def do_look_who_connected(self) -> object:
        return sorted(await cursors.connected_since(self.tx, 1_000.0))

    async def do_advance(self) -> object:
        wanted = {}
        for _ in range(self.chance.randint(1, 4)):
            wanted[self.room, self.user] = (self.at, self.chance.choice((0, self.at)))
        return await receipts.advance(self.tx, wanted)

    do_advance_more = do_advance

    # -- conversations --------------------------------------------------------------------------------------------------------

    async def do_look_at_conversations(self) -> object:
        user_id = self.user
        return [
            await conversations.views(self.tx, user_id=user_id, conversation_ids=ROOMS),
            await conversations.views_of(self.tx, conversation_id=self.room, user_ids=USERS),
            await conversations.unread(self.tx, user_id=user_id, conversation_ids=ROOMS),
            await conversations.is_member(self.tx, user_id=user_id, conversation_id=self.room),
            await seats.of_pair(self.tx, USERS[0], USERS[1]),
            await seats.made_under(self.tx, user_id=USERS[0], client_conversation_id=UUID(int=GROUPS[0].int + 1000)),
            await seats.living(self.tx, [*USERS, UUID(int=1)]),
            await seats.blocks_between(self.tx, user_id, USERS),
            await blocks.around(self.tx, USERS),
        ]

    async def do_open_pair(self) -> object:
        one, other = self.chance.sample(USERS, 2)
        number = self.chance.randrange(len(PAIRS))
        async with self.tx.transaction():
            await messages.lock_log(self.tx)
            if await seats.of_pair(self.tx, one, other) is None and await messages.stays_of(self.tx, [PAIRS[number]]):
                return None  # that id is another pair's
            return await seats.open_pair(
                self.tx, conversation_id=PAIRS[number], user_id=one, other_id=other, client_conversation_id=None
            )

    async def do_come_or_go(self) -> object:
        group_id, user_id = self.chance.choice(GROUPS), self.user
        async with self.tx.transaction():
            await messages.lock_log(self.tx)
            room = await seats.locked(self.tx, group_id)
            assert room is not None
            entry = await self.own(group_id)
            if user_id in room.seats:
                await seats.unseat(self.tx, group_id, [user_id], at=entry.message_id)
            else:
                await seats.seat(self.tx, group_id, {user_id: ("member", entry.message_id)})
            await seats.touch(self.tx, group_id)
            return [room.type, room.name, {seat: room.seats[seat].role for seat in room.seats}, entry]

    do_come_or_go_again = do_come_or_go

    async def do_change_a_group(self) -> object:
        group_id, user_id = self.chance.choice(GROUPS), self.user
        async with self.tx.transaction():
            await messages.lock_log(self.tx)
            room = await seats.locked(self.tx, group_id)
            assert room is not None
            if user_id in room.seats:
                await seats.set_role(self.tx, group_id, user_id, self.chance.choice(("owner", "admin", "member")))
            await seats.set_name(self.tx, group_id, f"name {self.at}")
            return await self.own(group_id)

    async def do_roll_back(self) -> object:
        try:
            async with self.tx.transaction():
                await messages.lock_log(self.tx)
                await self.own(self.chance.choice(GROUPS))
                raise UIMError("conflict")
        except UIMError:
            return await messages.head(self.tx)

    async def do_block(self) -> object:
        if self.chance.random() < 0.3:
            await self.block(*self.chance.sample(USERS, 2))
        return None

    async def do_keep_words(self) -> object:
        process_id = self.user
        self.numbers += 1
        await words.keep(self.tx, process_id=process_id, number=self.numbers, word=b"w%d" % self.numbers)
        found = await words.above(self.tx, {self.user: self.at}, within_s=1_000.0)
        behind = await words.above(self.tx, {}, within_s=1_000.0, behind=found[0]) if found else []
        await words.forget(self.tx)
        return [await words.newest(self.tx), [(word.process_id, word.number, word.word) for word in [*found, *behind]]]


def plain(answer: Any) -> object:
    """An answer in what can be compared: sets and advances sorted, times as "a time", JSON read."""
    if isinstance(answer, datetime):
        return "a time"
    if isinstance(answer, Entry):
        read = msgspec.json.decode(answer.metadata) if answer.metadata else None
        return [answer.message_id, answer.conversation_id, answer.seq, answer.sender_id, answer.client_message_id, answer.content,
                answer.message_type, read, plain(answer.created_at), answer.deleted]  # fmt: skip
    if isinstance(answer, msgspec.Raw):
        return plain(msgspec.json.decode(answer))
    if isinstance(answer, msgspec.Struct):
        return plain({name: getattr(answer, name) for name in answer.__struct_fields__})
    if isinstance(answer, dict):
        return {str(key): "a time" if key in TIMES else plain(value) for key, value in answer.items()}
    if isinstance(answer, set | frozenset):
        return sorted(map(str, answer))
    if isinstance(answer, list) and answer and isinstance(answer[0], Advance):
        return sorted(str([each.conversation_id, each.user_id, each.kind, each.after, each.up_to, sorted(each.senders)]) for each in answer)
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return [plain(getattr(answer, each.name)) for each in dataclasses.fields(answer)]
    return [plain(each) for each in answer] if isinstance(answer, list | tuple) else answer


async def _on_postgresql(url: str, seed: int) -> list[tuple[str, object]]:
    async with await connect(url, name="contract") as tx:
        await epochs.settle(tx)
        for user_id in USERS:
            await tx.execute(
                "insert into users (user_id, username, password_hash) values (%s, %s, 'x')", (user_id, f"u{user_id.int}")
            )

        async def block(one: UUID, other: UUID) -> None:
            await tx.execute("insert into blocks (user_id, blocked_id) values (%s, %s) on conflict do nothing", (one, other))

        return await Player(tx, seed, block).play()


async def _on_the_stand_in(seed: int) -> list[tuple[str, object]]:
    database = Database(Random(seed), Calm(), lambda process, what, before, after: None)
    database.tables.users = {user_id: User(f"u{user_id.int}") for user_id in USERS}
    tx = await database.connect("process", "contract")

    async def block(one: UUID, other: UUID) -> None:
        database.tables.blocks[one, other] = None

    with ExitStack() as stack:
        for module, functions in STAND_INS.items():
            for name, function in functions.items():
                stack.enter_context(patch.object(module, name, function))
        return await Player(tx, seed, block).play()


@pytest.mark.parametrize("seed", range(8))
def test_the_tables_answer_as_postgresql_does(seed: int, database_url: str) -> None:
    real = trio.run(_on_postgresql, database_url, seed)
    stood_in = trio.run(_on_the_stand_in, seed, clock=trio.testing.MockClock(autojump_threshold=0))
    for step, (expected, got) in enumerate(zip(real, stood_in, strict=True)):
        assert got == expected, f"step {step}"
    assert len({verb for verb, _ in real}) >= 15


def test_what_one_transaction_has_written_nobody_sees_before_its_commit(database_url: str) -> None:
    """On both: what is being written is not read elsewhere, and a second writer of the log waits for the first."""

    async def on(connect_to: Callable[[], Awaitable[Any]]) -> list[object]:
        seen: list[object] = []
        one, other = await connect_to(), await connect_to()

        async def write_too() -> None:
            async with other.transaction():
                await messages.lock_log(other)
                seen.append("the second")

        async with trio.open_nursery() as nursery, one.transaction():
            await messages.lock_log(one)
            nursery.start_soon(write_too)
            await trio.sleep(0.2)
            seen.append("the first")
        return seen

    async def real() -> list[object]:
        async with await connect(database_url, name="a") as tx:
            await epochs.settle(tx)
        return await on(lambda: connect(database_url, name="b"))

    async def stood_in() -> list[object]:
        database = Database(Random(1), Calm(), lambda process, what, before, after: None)
        with ExitStack() as stack:
            for name, function in STAND_INS[messages].items():
                stack.enter_context(patch.object(messages, name, function))
            return await on(lambda: database.connect("process", "b"))

    assert trio.run(real) == trio.run(stood_in, clock=trio.testing.MockClock(autojump_threshold=0)) == ["the first", "the second"]


@pytest.mark.parametrize("seed", range(3))
def test_the_broker_answers_as_valkey_does(seed: int, redis_url: str) -> None:
    """What the spool and the offline queue ask of it."""
    chance, broker = Random(seed), Broker(Random(seed))
    ids: list[tuple[bytes, bytes]] = []
    with redis.Redis.from_url(redis_url) as client:
        for _ in range(60):
            verb = chance.choice(("add", "remove", "range", "push", "list", "forget"))
            spool, queue = ("spool", "spool:bytes"), offline.key(USERS[chance.randrange(2)])
            if verb == "add":
                drafts = [b"d" * chance.randint(1, 40) for _ in range(chance.randint(1, 4))]
                command: tuple[Any, ...] = ("EVAL", scripts.SPOOL_ADD.text, 2, *spool, 200, *drafts)
                real, stood_in = client.execute_command(*command), broker.carry_out(command)
                ids += zip(real, stood_in, strict=True)
                continue
            if verb == "remove":
                gone = [ids.pop(0) for _ in range(min(len(ids), chance.randint(0, 3)))]
                for mine, theirs in gone:
                    size = len(broker.kept["spool"].get(theirs, b""))
                    assert client.eval(scripts.SPOOL_REMOVE.text, 2, *spool, size, mine.decode()) == 1
                    assert broker.carry_out(("EVAL", scripts.SPOOL_REMOVE.text, 2, *spool, size, theirs.decode())) == 1
                continue
            if verb == "range":
                found = client.xrange("spool", "-", "+", count=5)
                command = ("XRANGE", "spool", "-", "+", "COUNT", 5)
                assert [fields[b"draft"] for _, fields in found] == [fields[1] for _, fields in broker.carry_out(command)]
                assert client.xlen("spool") == broker.carry_out(("XLEN", "spool"))
                continue
            command = {
                "push": ("EVAL", offline._PUSH, 1, queue, *[b"e%d" % chance.randrange(100) for _ in range(chance.choice((1, 3, 300)))]),
                "list": ("LRANGE", queue, 0, -1),
                "forget": ("DEL", queue),
            }[verb]
            real, stood_in = client.execute_command(*command), broker.carry_out(command)
            assert verb == "push" or real == stood_in


def test_an_answer_that_is_lost_is_an_error_of_the_kind_that_says_so() -> None:
    """The stand-in breaks as psycopg does: what the rooms catch is what they would get."""

    class Broken(Calm):
        def at(self, process: str, point: str) -> str:
            return "reset" if point.startswith("after") and "append" in point else ""

    async def run() -> tuple[str, int]:
        database = Database(Random(1), Broken(), lambda process, what, before, after: None)
        database.tables.users = {user_id: User("u") for user_id in USERS}
        database.tables.insert_group(
            conversation_id=GROUPS[0], user_id=USERS[0], name="g", client_conversation_id=None, now=datetime.now()
        )
        database.tables.seat(GROUPS[0], {USERS[0]: ("owner", 0)}, datetime.now())
        tx = await database.connect("process", "x")
        try:
            await STAND_INS[messages]["append"](tx, [Draft(GROUPS[0], USERS[0], "m", "text", None)])
        except psycopg.OperationalError:
            return "lost", database.tables.last_id
        return "answered", database.tables.last_id

    assert trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0)) == ("lost", 1)
