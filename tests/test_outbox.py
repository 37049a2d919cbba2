"""The outbox alone: bounds, what may be confirmed, and what a full one does. Nothing here touches a socket or a database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import trio
import trio.testing

from uim.chat.outbox import MAX_BYTES, MAX_LATE, MAX_UNCONFIRMED, MAX_UNCONFIRMED_PAGES, Outbox
from uim.errors import Cut
from uim.model.message import Entry

ME, OTHER, ROOM = uuid4(), uuid4(), uuid4()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Session:
    """What a session gives its outbox: notes of what was asked of it."""

    def __init__(self) -> None:
        self.cuts: list[Cut] = []
        self.catch_ups = 0

    def catch_up(self) -> None:
        self.catch_ups += 1


def outbox_of(session: Session, *, at: int = 0, live: bool = True) -> Outbox:
    outbox = Outbox(
        user_id=ME, device_id="phone", login_id=uuid4(), session_id=uuid4(), cut=session.cuts.append, catch_up=session.catch_up
    )
    outbox.is_ready = True
    outbox.start_at(at)
    outbox.live = live
    return outbox


def entry(message_id: int, *, sender: UUID = OTHER, room: UUID = ROOM, content: str = "hello") -> Entry:
    return Entry(message_id, room, message_id, sender, f"c{message_id}", content, "text", None, NOW)


def texts(data: bytes) -> list[dict[str, Any]]:
    """The frames in a write: unmasked server frames, one after the other."""
    found = []
    while data:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        found.append(msgspec.json.decode(data[start : start + size]))
        data = data[start + size :]
    return found


def drain(outbox: Outbox) -> list[dict[str, Any]]:
    data = outbox.take()
    outbox.written(len(data))
    return texts(data)


async def test_a_live_connection_takes_only_ids_above_what_it_was_sent() -> None:
    outbox = outbox_of(Session(), at=5)
    for message_id in (4, 5, 6, 6, 3, 8, 7):
        outbox.offer(entry(message_id))
    assert [frame["payload"]["message_id"] for frame in drain(outbox)] == [6, 8]
    assert (outbox.sent, outbox.told) == (8, 8)


async def test_the_session_that_sent_an_entry_has_the_ack_instead() -> None:
    outbox = outbox_of(Session())
    own = entry(1, sender=ME)
    own.origin = outbox.session_id
    outbox.offer(own)
    assert drain(outbox) == []
    assert (outbox.sent, outbox.told) == (1, 0)
    assert not outbox.unconfirmed


async def test_nothing_is_taken_before_it_is_live_or_after_it_has_closed() -> None:
    session = Session()
    waiting, closed = outbox_of(session, live=False), outbox_of(session)
    closed.closed = True
    for outbox in (waiting, closed):
        outbox.offer(entry(1))
        assert drain(outbox) == []
        assert outbox.sent == 0


async def test_a_full_outbox_goes_back_to_catching_up_and_keeps_what_is_queued() -> None:
    session = Session()
    outbox = outbox_of(session)
    at = 0
    while outbox.live:
        at += 1
        outbox.offer(entry(at, content="x" * 10_000))
    assert session.catch_ups == 1
    assert outbox.size <= MAX_BYTES + 11_000
    assert outbox.sent == at - 1
    outbox.offer(entry(at + 1))
    came = [frame["payload"]["message_id"] for frame in drain(outbox)]
    assert came == list(range(1, at))


async def test_what_is_being_written_still_counts_as_queued() -> None:
    session = Session()
    outbox = outbox_of(session)
    at = 0
    while outbox.size <= MAX_BYTES:
        at += 1
        outbox.offer(entry(at, content="x" * 10_000))
    data = outbox.take()
    assert outbox.size == len(data)
    outbox.offer(entry(at + 1))
    assert not outbox.live and session.catch_ups == 1
    outbox.written(len(data))
    assert outbox.size == 0


async def test_too_much_unconfirmed_goes_back_to_catching_up_though_the_socket_takes_all() -> None:
    session = Session()
    outbox = outbox_of(session)
    for at in range(1, MAX_UNCONFIRMED + 2):
        outbox.offer(entry(at))
        drain(outbox)
    assert not outbox.live
    assert outbox.sent == MAX_UNCONFIRMED
    assert len(outbox.unconfirmed) == MAX_UNCONFIRMED
    assert not outbox.may_read_page()
    outbox.confirm(MAX_UNCONFIRMED)
    assert outbox.may_read_page()


async def test_four_pages_may_be_unconfirmed() -> None:
    outbox = outbox_of(Session(), live=False)
    for number in range(1, MAX_UNCONFIRMED_PAGES + 1):
        assert outbox.may_read_page()
        outbox.push_page(b"page", [entry(number * 10)], number * 10 + 5)
        drain_quietly(outbox)
    assert not outbox.may_read_page()
    outbox.confirm(10)
    assert not outbox.may_read_page()
    outbox.confirm(15)
    assert outbox.may_read_page()


async def test_no_page_is_read_into_an_outbox_that_is_half_full() -> None:
    outbox = outbox_of(Session(), live=False)
    outbox.push_page(b"x" * (MAX_BYTES // 2 + 1), [], 7)
    assert not outbox.may_read_page()
    drain_quietly(outbox)
    assert outbox.may_read_page()


async def test_confirming_tells_the_newest_entry_by_others_of_each_conversation() -> None:
    one, two = uuid4(), uuid4()
    outbox = outbox_of(Session(), live=False)
    outbox.push_page(b"page", [entry(1, room=one), entry(2, room=two), entry(3, sender=ME, room=two), entry(4, room=one)], 9)
    assert outbox.confirm(3) == {one: 1, two: 2}
    assert outbox.confirm(9) == {one: 4}
    assert outbox.confirm(9) == {}
    assert outbox.confirmed == 9
    assert not outbox.unconfirmed and outbox.pages == 0


async def test_a_lower_confirmation_moves_nothing_back() -> None:
    outbox = outbox_of(Session())
    for at in (1, 2, 3):
        outbox.offer(entry(at))
    outbox.confirm(3)
    assert outbox.confirm(1) == {}
    assert outbox.confirmed == 3


async def test_sent_again_is_catching_up_from_what_is_confirmed_and_a_late_confirmation_still_counts() -> None:
    session = Session()
    outbox = outbox_of(session)
    for at in (1, 2, 3):
        outbox.offer(entry(at))
    drain(outbox)
    outbox.confirm(1)
    outbox.send_again()
    assert (outbox.sent, outbox.resends, session.catch_ups, outbox.live) == (1, 1, 1, False)
    assert outbox.told == 3
    assert outbox.confirm(3) == {ROOM: 3}
    assert (outbox.confirmed, outbox.resends) == (3, 0)


async def test_pages_sent_again_are_confirmed_though_a_late_confirmation_was_higher() -> None:
    outbox = outbox_of(Session())
    for at in range(1, 501):
        outbox.offer(entry(at))
    drain(outbox)
    outbox.send_again()
    outbox.confirm(500)  # the first copies, after all
    for last in (100, 200, 300, 400):
        outbox.push_page(b"page", [entry(at) for at in range(last - 99, last + 1)], last)
        drain_quietly(outbox)
    assert not outbox.may_read_page()
    for last in (100, 200, 300, 400):
        outbox.confirm(last)
    assert outbox.may_read_page()
    assert outbox.confirmed == 500


async def test_after_a_rewind_nothing_that_was_told_before_counts() -> None:
    outbox = outbox_of(Session())
    for at in (1, 2, 3):
        outbox.offer(entry(at))
    outbox.start_at(1)
    assert (outbox.sent, outbox.told, outbox.confirmed, outbox.live) == (1, 1, 1, False)
    assert outbox.confirm(1) == {}


async def test_receipts_wait_for_session_ready() -> None:
    outbox = outbox_of(Session())
    outbox.is_ready = False
    outbox.receipts(ROOM, "delivered", [receipt(OTHER, 0, 5)])
    assert drain(outbox) == []
    outbox.is_ready = True
    outbox.receipts(ROOM, "delivered", [receipt(OTHER, 0, 5)])
    assert len(drain(outbox)) == 1


async def test_receipts_without_room_are_merged_and_come_when_there_is_room() -> None:
    outbox = outbox_of(Session())
    outbox.push(b"x" * (MAX_BYTES + 1))
    outbox.receipts(ROOM, "delivered", [receipt(OTHER, 0, 5)])
    outbox.receipts(ROOM, "delivered", [receipt(OTHER, 5, 9)])
    outbox.receipts(ROOM, "read", [receipt(OTHER, 0, 7)])
    drain_quietly(outbox)
    told = {frame["payload"]["status"]: frame["payload"]["receipts"] for frame in drain(outbox)}
    assert [(r["after"], r["message_id"]) for r in told["delivered"]] == [(0, 9)]
    assert [(r["after"], r["message_id"]) for r in told["read"]] == [(0, 7)]


async def test_late_intervals_that_do_not_touch_are_kept_apart() -> None:
    outbox = outbox_of(Session())
    outbox.push(b"x" * (MAX_BYTES + 1))
    for after, up_to in ((0, 5), (5, 9), (12, 20), (18, 30), (40, 41)):
        outbox.receipts(ROOM, "delivered", [receipt(OTHER, after, up_to)])
    drain_quietly(outbox)
    (told,) = drain(outbox)
    assert [(r["after"], r["message_id"]) for r in told["payload"]["receipts"]] == [(0, 9), (12, 30), (40, 41)]


async def test_a_late_receipt_of_ones_own_reading_keeps_the_newest_unread_count() -> None:
    outbox = outbox_of(Session())
    outbox.push(b"x" * (MAX_BYTES + 1))
    for up_to, left in ((5, 7), (9, 3)):
        outbox.receipts(ROOM, "read", [receipt(ME, up_to - 4, up_to)], unread_count=left)
    outbox.receipts(ROOM, "read", [receipt(OTHER, 0, 9)])
    drain_quietly(outbox)
    told = {frame["payload"]["receipts"][0]["user_id"]: frame["payload"].get("unread_count") for frame in drain(outbox)}
    assert told == {str(ME): 3, str(OTHER): None}


async def test_hints_without_room_keep_the_newest_about_each_thing() -> None:
    outbox = outbox_of(Session())
    outbox.push(b"x" * (MAX_BYTES + 1))
    outbox.hint("one", _framed(1))
    outbox.hint("two", _framed(2))
    outbox.hint("one", _framed(3))
    drain_quietly(outbox)
    came: list[Any] = [*drain(outbox)]
    assert came == [3, 2]


async def test_a_hint_that_finds_room_is_not_followed_by_an_older_one_that_found_none() -> None:
    outbox = outbox_of(Session())
    outbox.push(b"x" * (MAX_BYTES + 1))
    data = outbox.take()
    outbox.push(_framed(1))
    outbox.hint("one", _framed(2))
    outbox.written(len(data))
    outbox.hint("one", _framed(3))
    came: list[Any] = [*drain(outbox), *drain(outbox)]
    assert came == [1, 3]


async def test_updates_wait_for_one_who_catches_up_once_more_and_not_for_one_who_begins() -> None:
    outbox = outbox_of(Session(), live=False)
    outbox.update("name", _framed(1))
    outbox.go_live()
    outbox.update("name", _framed(2))
    outbox.fall_back()
    outbox.update("name", _framed(3))
    outbox.update("name", _framed(4))
    outbox.update("other name", _framed(5))
    came: list[Any] = [*drain(outbox), *drain(outbox)]
    assert came == [2]
    outbox.push(_framed(6))
    outbox.go_live()
    came = [*drain(outbox), *drain(outbox)]
    assert came == [6, 4, 5]


async def test_too_many_late_receipts_cut_the_reader() -> None:
    session = Session()
    outbox = outbox_of(session)
    outbox.push(b"x" * (MAX_BYTES + 1))
    for _ in range(MAX_LATE + 1):
        outbox.receipts(uuid4(), "delivered", [receipt(OTHER, 0, 1)])
    assert session.cuts == [Cut.SLOW]


async def test_too_many_late_intervals_of_one_user_cut_the_reader_too() -> None:
    session = Session()
    outbox = outbox_of(session)
    outbox.push(b"x" * (MAX_BYTES + 1))
    for at in range(MAX_LATE):
        outbox.receipts(ROOM, "delivered", [receipt(OTHER, at * 10, at * 10 + 1)])
    assert session.cuts == []
    outbox.receipts(ROOM, "delivered", [receipt(OTHER, MAX_LATE * 10, MAX_LATE * 10 + 1)])
    assert session.cuts == [Cut.SLOW]


async def test_a_client_is_read_on_only_while_little_waits_for_it() -> None:
    outbox = outbox_of(Session())
    passed = 0

    async def read() -> None:
        nonlocal passed
        while True:
            await outbox.room()
            passed += 1
            outbox.push(b"x" * 10_000)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert MAX_BYTES < outbox.size <= MAX_BYTES + 10_000
        before = passed
        taken = outbox.take()
        await trio.testing.wait_all_tasks_blocked()
        assert passed == before, "what is being written still counts"
        outbox.written(len(taken))
        await trio.testing.wait_all_tasks_blocked()
        assert passed == 2 * before
        nursery.cancel_scope.cancel()


async def test_the_clock_of_what_is_unconfirmed_starts_when_it_has_left(mock_clock: trio.testing.MockClock) -> None:
    outbox = outbox_of(Session())
    outbox.offer(entry(1))
    mock_clock.jump(5)
    data = outbox.take()
    mock_clock.jump(5)
    outbox.written(len(data))
    assert outbox.progress_at == trio.current_time()


def receipt(user_id: UUID, after: int, message_id: int) -> dict[str, Any]:
    return {"user_id": user_id, "after": after, "message_id": message_id, "at": "2026-01-01T00:00:00.000Z"}


def drain_quietly(outbox: Outbox) -> None:
    outbox.written(len(outbox.take()))


def _framed(number: int) -> bytes:
    return b"\x81\x01" + str(number).encode()
