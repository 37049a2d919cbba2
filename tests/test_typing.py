"""Laws of typing indicators on a virtual clock: one in 3 s, gone after 6 s, whoever says it and in whichever process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast
from uuid import UUID, uuid4

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.test_outbox import drain
from uim.chat.blocks import KEEP_AT_LEAST, Blocks
from uim.chat.memberships import Memberships
from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.chat.typing import LASTS_S, PASSED_EVERY_S, Typing
from uim.model.message import Entry
from uim.store.postgres import Connection

ROOM = UUID(int=1)
ALICE, BOB, CYD = UUID(int=10), UUID(int=11), UUID(int=12)
ALL = [ALICE, BOB, CYD]


class NoRows:
    """The database, for a question that it answers with nothing."""

    async def execute(self, *_: object, **__: object) -> NoRows:
        await trio.lowlevel.checkpoint()
        return self

    async def fetchall(self) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return []


Said = tuple[UUID, UUID, bool, Sequence[UUID]]


@dataclass
class Process:
    """One process's typing, with a connection of each user, and the others that its bus reaches."""

    max_typists: int = 100
    others: list[Process] = field(default_factory=list)
    said: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.switchboard = Switchboard(devices_per_user=20)
        self.memberships = Memberships()
        # Neither is asked for anything here: verbs are not tried.
        self.blocks = Blocks(cast(Any, None), cast(Any, None), self.switchboard)
        self.typing = Typing(self.switchboard, self.memberships, self.blocks, self._tell_others, max_typists=self.max_typists)
        self.outboxes: dict[UUID, Outbox] = {}
        self._attached = ExitStack()

    def _tell_others(self, *said: Any) -> None:
        self.said.append(said[2])
        for other in self.others:
            other.typing.heard(*said)

    async def connect(self, *user_ids: UUID) -> None:
        for user_id in user_ids:
            ids = {"login_id": uuid4(), "session_id": uuid4()}
            outbox = Outbox(user_id=user_id, device_id="phone", **ids, cut=lambda cut: None, catch_up=lambda: None)
            outbox.is_ready = outbox.live = True
            self._attached.enter_context(self.switchboard.attached(outbox))
            self.outboxes[user_id] = outbox
            await self.blocks.learn(cast(Connection, NoRows()), [user_id])

    def say(self, is_typing: bool, *, user_id: UUID = ALICE, room: UUID = ROOM, members: Sequence[UUID] = ALL) -> None:
        self.typing.said(user_id=user_id, conversation_id=room, is_typing=is_typing, members=members)

    def shown(self, user_id: UUID) -> list[bool]:
        """What that user's connection was told since the last time."""
        return [frame["payload"]["typing"] for frame in drain(self.outboxes[user_id])]


async def here(**more: Any) -> Process:
    process = Process(**more)
    await process.connect(*ALL)
    return process


async def test_it_ends_six_seconds_after_the_last_one(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    process = await here()
    await nursery.start(process.typing.run)
    process.say(True)
    await trio.sleep(2.5)
    process.say(True)
    assert (process.shown(BOB), process.shown(CYD), process.shown(ALICE)) == ([True], [True], [])
    await trio.sleep(5.9)
    assert process.shown(BOB) == []
    await trio.sleep(0.2)
    assert (process.shown(BOB), process.shown(CYD), process.shown(ALICE)) == ([False], [False], [])
    assert process.said == [True, False]


async def test_repeats_every_three_seconds_keep_it_on_without_a_flicker(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    process = await here()
    await nursery.start(process.typing.run)
    for _ in range(10):
        process.say(True)
        await trio.sleep(2.95)
    assert False not in process.shown(BOB)


async def test_a_stop_is_shown_once_and_only_where_it_was_on(autojump_clock: MockClock) -> None:
    process = await here()
    process.say(False)
    process.say(True)
    process.say(False)
    process.say(False)
    assert process.shown(BOB) == [True, False]
    assert process.said == [True, False]


async def test_a_message_ends_it(autojump_clock: MockClock) -> None:
    process = await here()
    process.say(True)
    process.typing.posted(Entry(1, ROOM, 1, BOB, "b", "hello", "text", None, cast(Any, None)))
    assert process.shown(CYD) == [True]
    process.typing.posted(Entry(2, ROOM, 2, ALICE, "a", "hello", "text", None, cast(Any, None)))
    assert process.shown(CYD) == [False]


async def test_another_process_ends_it_by_itself_if_the_word_is_lost(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    process, other = Process(), await here()
    process.others = [other]
    await nursery.start(other.typing.run)
    await process.connect(ALICE)
    # This process's task never runs: it has died after the first word.
    process.say(True)
    assert other.shown(BOB) == [True]
    await trio.sleep(LASTS_S + PASSED_EVERY_S + 0.1)
    assert other.shown(BOB) == [False]
    assert other.said == []


async def test_repeats_reach_another_process_although_they_come_a_little_closer(autojump_clock: MockClock) -> None:
    other = await here()
    for pause in (0.0, 2.9, 3.1):
        await trio.sleep(pause)
        other.typing.heard(ROOM, ALICE, True, ALL)
    assert other.shown(BOB) == [True, True, True]


async def test_memory_is_bounded_and_given_back(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    process = await here(max_typists=10)
    await nursery.start(process.typing.run)
    for number in range(50):
        process.say(True, room=UUID(int=number))
    assert len(process.shown(BOB)) == 10
    await trio.sleep(LASTS_S + 0.1)
    assert process.shown(BOB) == [False] * 10
    process.say(True, room=UUID(int=99))
    assert process.shown(BOB) == [True]


async def test_a_block_ends_what_is_on_and_lets_nothing_more_through(autojump_clock: MockClock) -> None:
    process = await here()
    process.say(True)
    process.say(True, user_id=BOB)
    for who in ALL:
        process.shown(who)
    metadata = f'{{"event":"blocked","user_id":"{ALICE}"}}'
    process.blocks.follow(Entry(1, uuid4(), 1, BOB, None, "", "account", metadata, cast(Any, None)))
    process.typing.part(BOB, ALICE)
    assert (process.shown(ALICE), process.shown(BOB), process.shown(CYD)) == ([False], [False], [])
    await trio.sleep(PASSED_EVERY_S)
    process.say(True)
    assert (process.shown(BOB), process.shown(CYD)) == ([], [True])


@dataclass
class OldRows(NoRows):
    """A reading that is older than what the log says while it is under way."""

    blocks: Blocks

    async def execute(self, *_: object, **__: object) -> NoRows:
        metadata = f'{{"event":"blocked","user_id":"{ALICE}"}}'
        self.blocks.follow(Entry(1, uuid4(), 1, BOB, None, "", "account", metadata, cast(Any, None)))
        return await super().execute()


async def test_a_block_that_the_log_tells_while_blocks_are_loaded_is_kept() -> None:
    process = Process()
    await process.blocks.learn(cast(Connection, OldRows(process.blocks)), [ALICE])
    assert process.blocks.apart(ALICE, BOB) and process.blocks.apart(BOB, ALICE)


async def test_who_is_not_connected_any_more_is_forgotten() -> None:
    process = Process()
    await process.connect(BOB)
    for _ in range(KEEP_AT_LEAST):
        await process.blocks.learn(cast(Connection, NoRows()), [uuid4()])
    assert len(process.blocks._known) < KEEP_AT_LEAST and not process.blocks.apart(ALICE, BOB)


async def test_users_of_whom_nothing_is_known_count_as_apart() -> None:
    process = Process()
    assert process.blocks.apart(ALICE, BOB)
    await process.connect(BOB)
    assert not process.blocks.apart(ALICE, BOB) and not process.blocks.apart(BOB, ALICE)


@given(st.lists(st.tuples(st.sampled_from(["on", "off", "post", "heard", "heard off"]), st.floats(0.0, 4.0)), max_size=40))
def test_whatever_is_said_it_is_shown_once_in_three_seconds_and_ends(steps: list[tuple[str, float]]) -> None:
    shown: list[tuple[float, bool]] = []

    def take(process: Process) -> None:
        shown.extend((trio.current_time(), is_on) for is_on in process.shown(BOB))

    async def main() -> None:
        process = await here()
        async with trio.open_nursery() as nursery:
            await nursery.start(process.typing.run)
            for what, pause in steps:
                if what in ("on", "off"):
                    process.say(what == "on")
                elif what == "post":
                    process.typing.posted(Entry(1, ROOM, 1, ALICE, "a", "x", "text", None, cast(Any, None)))
                else:
                    process.typing.heard(ROOM, ALICE, what == "heard", ALL)
                take(process)
                await trio.sleep(pause)
                await wait_all_tasks_blocked()
                take(process)
            await trio.sleep(LASTS_S + PASSED_EVERY_S + 0.1)
            take(process)
            assert not process.typing._indicators and not process.typing._due
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    began = [at for at, is_on in shown if is_on]
    assert all(later - earlier >= PASSED_EVERY_S - 0.26 for earlier, later in pairwise(began))
    states = [is_on for _, is_on in shown]
    assert not states or states[-1] is False
    # A stop never comes twice.
    assert all(one or other for one, other in pairwise(states))
