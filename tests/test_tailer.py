"""The tailer and the hand-over from catching up to live, on a real database: the bus is a hint, the log is the truth."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
import trio

from tests.faults.proxy import postgres_proxy
from tests.rooms import Rooms, rooms_on
from tests.test_outbox import Session, drain, outbox_of
from uim.chat.catchup import CatchUp
from uim.chat.epochs import Epochs
from uim.chat.memberships import Memberships
from uim.chat.offline import Offline
from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.chat.tailer import RING_ENTRIES, Tailer
from uim.chat.turns import Turns
from uim.errors import Cut
from uim.model.message import Entry
from uim.store.epochs import Epoch
from uim.store.redis import RedisLink


@dataclass
class Place:
    """A process's half of the log without its fronts. What the writer appends reaches the tailer only if the test says so."""

    rooms: Rooms
    tailer: Tailer
    switchboard: Switchboard
    memberships: Memberships
    catchup: CatchUp
    alice: UUID
    bob: UUID
    changed: list[UUID] = field(default_factory=list)
    ended: list[UUID] = field(default_factory=list)

    async def passed(self, message_id: int) -> None:
        with trio.fail_after(5):
            while self.tailer.position < message_id:
                await trio.sleep(0.002)

    async def say(self, conversation_id: UUID, number: int, *, by: UUID | None = None) -> list[Entry]:
        """Texts of alice's: committed, and told to nobody."""
        before = len(self.rooms.appended)
        for text in range(number):
            await self.rooms.say(by or self.alice, conversation_id, f"text {text}")
        return self.rooms.appended[before:]

    @asynccontextmanager
    async def live(self, user_id: UUID, device_id: str = "phone") -> AsyncIterator[Outbox]:
        """A connection that is live from the tailer's position on."""
        outbox = outbox_of(Session(), at=self.tailer.position)
        outbox.user_id, outbox.device_id = user_id, device_id
        with self.switchboard.attached(outbox):
            yield outbox


def no_queue(memberships: Memberships) -> Offline:
    """An offline queue whose Redis is away."""
    return Offline(
        RedisLink("unix:///nowhere"),
        memberships,
        is_here=lambda user_id: False,
        holds=lambda user_id: False,
        seems_online=lambda user_id: False,
        epoch_base=lambda: 1,
    )


@asynccontextmanager
async def place_on(database_url: str, *, bus_is_up: bool, through: str | None = None) -> AsyncIterator[Place]:
    """`through`: where the tailer finds the database, if not at `database_url`."""
    async with rooms_on(database_url) as rooms:
        changed: list[UUID] = []
        ended: list[UUID] = []
        switchboard, memberships = Switchboard(devices_per_user=20), Memberships()

        tailer: Tailer
        link = RedisLink("unix:///nowhere")
        epochs = Epochs(
            link, log_id=uuid4(), position=lambda: tailer.position, on_begun=lambda epoch: tailer.begin_again(epoch)
        )
        tailer = Tailer(
            through or database_url,
            epochs=epochs,
            switchboard=switchboard,
            memberships=memberships,
            origin_of=rooms.writer.origins.of,
            on_changed=changed.append,
            on_logins_ended=ended.extend,
            bus_is_up=lambda: bus_is_up,
        )
        alice, bob = await rooms.people("alice", "bob")
        catchup = CatchUp(rooms.pool, tailer, no_queue(memberships), Turns(4))
        async with trio.open_nursery() as nursery:
            await nursery.start(tailer.run)
            yield Place(rooms, tailer, switchboard, memberships, catchup, alice, bob, changed, ended)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def place(database_url: str) -> AsyncIterator[Place]:
    """With a bus: the database is asked only every 500 ms."""
    async with place_on(database_url, bus_is_up=True) as made:
        yield made


def ids(outbox: Outbox) -> list[int]:
    return [frame["payload"]["message_id"] for frame in drain(outbox) if frame["type"] == "MESSAGE_RECEIVE"]


# -- the bus is a hint ----------------------------------------------------------------------------------------------------


async def test_entries_offered_in_any_order_and_again_are_handed_on_once_in_line(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    async with place.live(place.bob) as outbox:
        said = await place.say(conversation_id, 20)
        offered = [*said, *said[:7], *said[-3:]]
        random.Random(7).shuffle(offered)
        for entry in offered:
            place.tailer.offer([entry])
        await place.passed(said[-1].message_id)
        place.tailer.offer(said)
        assert ids(outbox) == [entry.message_id for entry in said]


async def test_what_is_next_in_line_and_of_a_known_conversation_is_handed_on_by_whoever_offers_it(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    first, *others = await place.say(conversation_id, 5)
    async with place.live(place.bob) as outbox:
        place.tailer.offer([first])
        assert not ids(outbox), "who is in this conversation is not known yet"
        await place.passed(first.message_id)
        ids(outbox)
        place.tailer.offer(others[:2])
        assert ids(outbox) == [entry.message_id for entry in others[:2]]
        place.tailer.offer(others[3:])
        assert not ids(outbox), "one is missing before it"
        place.tailer.offer(others[2:3])
        assert ids(outbox) == [entry.message_id for entry in others[2:]]


async def test_a_hole_is_read_from_the_database_and_long_before_the_next_poll(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    async with place.live(place.bob) as outbox:
        for _ in range(5):
            said = await place.say(conversation_id, 9)
            began = trio.current_time()
            place.tailer.offer(said[1::2])
            await place.passed(said[-2].message_id)
            assert trio.current_time() - began < 0.4
            await place.passed(said[-1].message_id)
        assert len(ids(outbox)) == 45


async def test_what_the_bus_never_tells_is_found_by_asking_for_the_head(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    async with place.live(place.bob) as outbox:
        said = await place.say(conversation_id, 3)
        began = trio.current_time()
        await place.passed(said[-1].message_id)
        assert trio.current_time() - began < 1.0
        assert ids(outbox) == [entry.message_id for entry in said]


async def test_without_a_bus_the_head_is_asked_for_every_100_ms(database_url: str) -> None:
    async with place_on(database_url, bus_is_up=False) as place:
        conversation_id = await place.rooms.pair(place.alice, place.bob)
        began = trio.current_time()
        for _ in range(6):
            (said,) = await place.say(conversation_id, 1)
            await place.passed(said.message_id)
        assert (trio.current_time() - began) / 6 < 0.3


async def test_more_than_the_ring_holds_is_kept_out_of_memory_and_read_from_the_database(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    (first,) = await place.say(conversation_id, 1)
    place.tailer.offer(_copy(first, first.message_id + 1 + number) for number in range(RING_ENTRIES * 2))
    assert len(place.tailer._pending) <= RING_ENTRIES


async def test_the_tailer_outlives_its_connection(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    async with place.live(place.bob) as outbox:
        for _ in range(3):
            await place.rooms.run(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'uim tailer' and datname = current_database()"
            )
            said = await place.say(conversation_id, 4)
            place.tailer.offer(said[2:])
            await place.passed(said[-1].message_id)
        assert len(ids(outbox)) == 12


async def test_ids_that_an_epoch_skips_are_not_waited_for(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    async with place.live(place.bob) as outbox:
        before = await place.say(conversation_id, 2)
        await place.rooms.run(
            "insert into log_epochs (epoch, base, after, system_identifier, timeline)"
            " select epoch + 1, 1000000000, %s, system_identifier, timeline + 1 from log_epochs order by epoch desc limit 1",
            before[-1].message_id,
        )
        after = await place.say(conversation_id, 2)
        assert after[0].message_id == 1_000_000_000
        place.tailer.offer([*before, *after])
        await place.passed(after[-1].message_id)
        assert ids(outbox) == [entry.message_id for entry in [*before, *after]]


# -- who gets it ----------------------------------------------------------------------------------------------------------


async def test_a_conversation_that_is_not_known_is_loaded_before_its_first_entry_is_handed_on(place: Place) -> None:
    async with place.live(place.bob) as outbox:
        conversation_id = await place.rooms.pair(place.alice, place.bob)
        said = await place.say(conversation_id, 1)
        assert place.memberships.get(conversation_id) is None
        place.tailer.offer(said)
        await place.passed(said[-1].message_id)
        assert place.memberships.get(conversation_id) is not None
        assert ids(outbox) == [said[0].message_id]


async def test_the_added_and_the_removed_get_that_entry_and_others_do_not(place: Place) -> None:
    cyd, dan = await place.rooms.people("cyd", "dan")
    group_id = await place.rooms.group(place.alice, place.bob, cyd)
    start = len(place.rooms.appended)
    place.tailer.offer(place.rooms.appended)
    await place.passed(place.rooms.appended[-1].message_id)
    async with place.live(place.bob) as bobs, place.live(dan) as dans, place.live(cyd) as cyds:
        await place.say(group_id, 1)
        await place.rooms.conversations.remove(user_id=place.alice, conversation_id=group_id, target_id=place.bob)
        await place.say(group_id, 1)
        await place.rooms.conversations.add(user_id=place.alice, conversation_id=group_id, user_ids=[dan])
        await place.say(group_id, 1)
        text, removed, between, added, last = [entry.message_id for entry in place.rooms.appended[start:]]
        place.tailer.offer(place.rooms.appended)
        await place.passed(last)
        frames = drain(bobs)
        assert [f["payload"].get("message_id") for f in frames if f["type"] == "MESSAGE_RECEIVE"] == [text, removed]
        gone = [f["payload"] for f in frames if f["type"] == "CONVERSATION_UPDATE"]
        assert gone == [{"conversation_id": str(group_id), "removed": True}]
        assert ids(dans) == [added, last]
        assert ids(cyds) == [text, removed, between, added, last]
    assert place.changed.count(group_id) >= 2


async def test_a_conversation_loaded_after_a_return_shows_both_stays_and_nothing_between(place: Place) -> None:
    (cyd,) = await place.rooms.people("cyd")
    async with place.live(place.bob) as outbox:
        group_id = await place.rooms.group(place.alice, place.bob, cyd)
        place.tailer.offer(place.rooms.appended)
        await place.passed(place.rooms.appended[-1].message_id)
        place.memberships._known.clear()  # as after a restart: the first stay began before what this process will see
        await place.say(group_id, 1)
        await place.rooms.conversations.remove(user_id=place.alice, conversation_id=group_id, target_id=place.bob)
        await place.say(group_id, 1)
        await place.rooms.conversations.add(user_id=place.alice, conversation_id=group_id, user_ids=[place.bob])
        await place.say(group_id, 1)
        *_, first, removed, _, added, last = [entry.message_id for entry in place.rooms.appended]
        place.tailer.offer(place.rooms.appended)
        await place.passed(last)
        assert ids(outbox)[-4:] == [first, removed, added, last]


async def test_an_entry_that_the_tailer_finds_first_is_still_not_sent_to_the_session_that_sent_it(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    async with place.live(place.alice, "mouth") as mouth, place.live(place.alice, "other") as other:
        (said,) = await place.say(conversation_id, 1)
        said.origin = mouth.session_id
        place.tailer.offer([said])
        await place.passed(said.message_id)
        assert ids(mouth) == []
        assert mouth.sent == said.message_id
        assert ids(other) == [said.message_id]


# -- what else the poll finds ---------------------------------------------------------------------------------------------


async def test_ended_logins_and_replaced_devices_are_found_without_a_bus(place: Place) -> None:
    login_id = uuid4()
    async with place.live(place.bob) as outbox:
        cuts: list[Cut] = []
        outbox.cut = cuts.append
        outbox.connection_no = 3
        await place.rooms.run("insert into device_cursors (user_id, device_id, connection_no) values (%s, 'phone', 4)", place.bob)
        await place.rooms.run(
            "insert into logins (login_id, user_id, device_id, refresh_key, refresh_hash, expires_at, ended_at)"
            " values (%s, %s, 'phone', '', '', now(), now())",
            login_id,
            place.bob,
        )
        with trio.fail_after(1.5):
            while not (cuts and login_id in place.ended):
                await trio.sleep(0.01)
    assert cuts[0] is Cut.REPLACED


async def test_what_ended_while_the_database_was_away_is_found_however_long_that_took(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uim.chat.tailer.LOOK_BACK_S", 0.2)
    login_id, cuts = uuid4(), list[Cut]()
    async with (
        postgres_proxy(database_url) as proxy,
        place_on(database_url, bus_is_up=True, through=proxy.url) as place,
        place.live(place.bob) as outbox,
    ):
        outbox.cut, outbox.connection_no = cuts.append, 3
        proxy.refuse()
        await place.rooms.run("insert into device_cursors (user_id, device_id, connection_no) values (%s, 'phone', 4)", place.bob)
        await place.rooms.run(
            "insert into logins (login_id, user_id, device_id, refresh_key, refresh_hash, expires_at, ended_at)"
            " values (%s, %s, 'phone', '', '', now() + interval '1 day', now())",
            login_id,
            place.bob,
        )
        await trio.sleep(1)  # longer than a poll looks back
        proxy.accept()
        with trio.fail_after(5):
            while not (cuts and login_id in place.ended):
                await trio.sleep(0.01)


async def test_entries_without_an_end_do_not_starve_revocations(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    (first,) = await place.say(conversation_id, 1)
    stop, login_id = False, uuid4()
    # Its entries are invented: the database would look as if it had lost them.
    place.tailer._epochs.present = Epoch(1, 2**52, 0)

    def offer_the_next(passed: Entry) -> None:
        if not stop:
            place.tailer.offer([_copy(passed, passed.message_id + 1)])

    place.tailer._on_passed = offer_the_next
    place.tailer.offer([first])
    await place.passed(first.message_id + 100)
    await place.rooms.run(
        "insert into logins (login_id, user_id, device_id, refresh_key, refresh_hash, expires_at, ended_at)"
        " values (%s, %s, 'phone', '', '', now(), now())",
        login_id,
        place.bob,
    )
    with trio.fail_after(2):
        while login_id not in place.ended:
            await trio.sleep(0.01)
    before = place.tailer.position
    await place.passed(before + 100)
    stop = True


# -- from catching up to live ---------------------------------------------------------------------------------------------


async def test_a_page_that_reaches_the_tailers_position_goes_live(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    said = await place.say(conversation_id, 3)
    place.tailer.offer(said)
    await place.passed(said[-1].message_id)
    outbox = catching_up(place)
    batch = await place.catchup.read(user_id=place.bob, after=0)
    assert place.catchup._push(outbox, batch, None) is True
    assert outbox.live
    (page,) = drain(outbox)
    assert page["payload"]["has_more"] is False
    assert [entry["message_id"] for entry in page["payload"]["messages"]] == [entry.message_id for entry in said]


async def test_what_was_handed_on_since_the_page_was_read_comes_from_the_ring(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    cyd = await place.rooms.person("cyd")
    elsewhere_id = await place.rooms.pair(place.alice, cyd)
    place.tailer.offer(await place.say(conversation_id, 3))
    outbox = catching_up(place)
    batch = await place.catchup.read(user_id=place.bob, after=0)
    meanwhile = await place.say(conversation_id, 2)
    not_his = await place.say(elsewhere_id, 2)
    last = await place.say(conversation_id, 1)
    place.tailer.offer([*meanwhile, *not_his, *last])
    await place.passed(last[-1].message_id)
    assert place.catchup._push(outbox, batch, None) is True
    page, *live = drain(outbox)
    assert page["payload"]["has_more"] is False
    assert [frame["payload"]["message_id"] for frame in live] == [entry.message_id for entry in [*meanwhile, *last]]


async def test_a_ring_that_does_not_reach_back_means_another_page(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    place.tailer.offer(await place.say(conversation_id, 3))
    outbox = catching_up(place)
    batch = await place.catchup.read(user_id=place.bob, after=0)
    meanwhile = await place.say(conversation_id, 4)
    place.tailer.offer(meanwhile)
    await place.passed(meanwhile[-1].message_id)
    while place.tailer.ring[0].message_id <= batch.position + 1:
        place.tailer.ring.popleft()
    assert place.catchup._push(outbox, batch, None) is False
    assert not outbox.live
    (page,) = drain(outbox)
    assert page["payload"]["has_more"] is True
    await place.catchup.run(outbox)
    (rest,) = drain(outbox)
    assert rest["payload"]["has_more"] is False
    assert [entry["message_id"] for entry in rest["payload"]["messages"]] == [entry.message_id for entry in meanwhile]
    assert outbox.live


async def test_a_ring_whose_conversations_were_forgotten_means_another_page(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    place.tailer.offer(await place.say(conversation_id, 1))
    outbox = catching_up(place)
    batch = await place.catchup.read(user_id=place.bob, after=0)
    meanwhile = await place.say(conversation_id, 1)
    place.tailer.offer(meanwhile)
    await place.passed(meanwhile[-1].message_id)
    place.memberships._known.clear()
    assert place.catchup._push(outbox, batch, None) is False
    assert drain(outbox)[0]["payload"]["has_more"] is True


async def test_a_full_page_never_goes_live(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    said = await place.say(conversation_id, 4)
    place.tailer.offer(said)
    await place.passed(said[-1].message_id)
    outbox = catching_up(place)
    batch = await place.catchup.read(user_id=place.bob, after=0, limit=2)
    assert (batch.full, batch.position) == (True, said[1].message_id)
    assert place.catchup._push(outbox, batch, None) is False
    assert drain(outbox)[0]["payload"]["has_more"] is True


async def test_a_page_that_is_ahead_of_the_tailer_is_not_sent_again_when_the_tailer_comes_by(place: Place) -> None:
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    said = await place.say(conversation_id, 3)
    outbox = catching_up(place)
    with place.switchboard.attached(outbox):
        batch = await place.catchup.read(user_id=place.bob, after=0)
        assert batch.position >= said[-1].message_id
        assert place.catchup._push(outbox, batch, None) is True
        later = await place.say(conversation_id, 1)
        place.tailer.offer([*said, *later])
        await place.passed(later[-1].message_id)
        page, *live = drain(outbox)
    assert [entry["message_id"] for entry in page["payload"]["messages"]] == [entry.message_id for entry in said]
    assert [frame["payload"]["message_id"] for frame in live] == [later[0].message_id]


async def test_a_page_and_its_position_come_from_one_snapshot(place: Place) -> None:
    """While somebody appends without a pause, no page is complete to a position above an entry that it lacks."""
    conversation_id = await place.rooms.pair(place.alice, place.bob)
    stop = trio.Event()
    said: list[Entry] = []

    async def talk() -> None:
        while not stop.is_set():
            said.extend(await place.say(conversation_id, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        at, came = 0, list[int]()
        for _ in range(150):
            batch = await place.catchup.read(user_id=place.bob, after=at)
            came += [entry.message_id for entry in batch.entries]
            at = batch.position
        stop.set()
    assert came == [entry.message_id for entry in said if entry.message_id <= at]
    assert len(came) > 20


def catching_up(place: Place) -> Outbox:
    outbox = outbox_of(Session(), live=False)
    outbox.user_id = place.bob
    return outbox


def _copy(entry: Entry, message_id: int) -> Entry:
    return Entry(
        message_id, entry.conversation_id, entry.seq, entry.sender_id, None, entry.content, "text", None, entry.created_at
    )
