"""What is not confirmed comes again after 1, 2, 4, 8 and 16 s; then the device is given up. On a clock that the test moves."""

from __future__ import annotations

from uuid import uuid4

import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock

from tests.test_outbox import Session, drain_quietly, entry, outbox_of
from uim.chat import redelivery
from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.errors import Cut


@pytest.fixture
def session() -> Session:
    return Session()


def look(outbox: Outbox) -> None:
    redelivery.look(outbox, trio.current_time())


def page_again(outbox: Outbox) -> None:
    """What catching up does: the page from the cursor, written."""
    outbox.push_page(b"page", [entry(1)], 1)
    drain_quietly(outbox)
    outbox.live = True


def unconfirmed(session: Session) -> Outbox:
    outbox = outbox_of(session)
    outbox.offer(entry(1))
    drain_quietly(outbox)
    return outbox


async def test_the_ladder_of_resends_and_the_end(session: Session, mock_clock: MockClock) -> None:
    outbox = unconfirmed(session)
    for number, wait_s in enumerate((1, 2, 4, 8, 16), start=1):
        mock_clock.jump(wait_s - 0.125)
        look(outbox)
        assert session.catch_ups == number - 1, f"too early: before {wait_s} s"
        mock_clock.jump(0.125)
        look(outbox)
        assert session.catch_ups == number, f"too late: after {wait_s} s"
        assert outbox.sent == 0
        page_again(outbox)
    mock_clock.jump(29.875)
    look(outbox)
    assert session.cuts == []
    mock_clock.jump(0.125)
    with structlog.testing.capture_logs() as lines:
        look(outbox)
    assert session.cuts == [Cut.UNCONFIRMED]
    assert session.catch_ups == 5
    (line,) = lines
    assert (line["event"], line["log_level"], line["alert"]) == ("dead letter", "error", True)
    assert (line["message_id"], line["device_id"], line["user_id"]) == (1, "phone", str(outbox.user_id))
    assert Cut.UNCONFIRMED.close_code == 4408


async def test_a_confirmation_starts_the_ladder_again(session: Session, mock_clock: MockClock) -> None:
    outbox = unconfirmed(session)
    for wait_s in (1, 2, 4):
        mock_clock.jump(wait_s)
        look(outbox)
        page_again(outbox)
    outbox.offer(entry(2))
    drain_quietly(outbox)
    outbox.confirm(1)
    mock_clock.jump(0.875)
    look(outbox)
    assert session.catch_ups == 3
    mock_clock.jump(0.125)
    look(outbox)
    assert session.catch_ups == 4
    assert (outbox.resends, outbox.sent) == (1, 1)


async def test_pings_and_other_writes_start_no_clock_again(session: Session, mock_clock: MockClock) -> None:
    """A device that confirms nothing and pings every second: resent and given up at the same times as a silent one."""
    outbox = unconfirmed(session)
    began = trio.current_time()
    resent_at: list[float] = []
    for second in range(1, 62):
        mock_clock.jump(1)
        outbox.push(b"pong")
        outbox.hint("somewhere", b"an update")
        drain_quietly(outbox)
        look(outbox)
        if session.catch_ups > len(resent_at):
            resent_at.append(trio.current_time() - began)
            page_again(outbox)
        assert bool(session.cuts) is (second == 61), second
    assert resent_at == [1, 3, 7, 15, 31]
    assert session.cuts == [Cut.UNCONFIRMED]


async def test_further_entries_start_no_clock_again(session: Session, mock_clock: MockClock) -> None:
    outbox = unconfirmed(session)
    mock_clock.jump(0.75)
    outbox.offer(entry(2))
    drain_quietly(outbox)
    outbox.confirm(0)
    mock_clock.jump(0.25)
    look(outbox)
    assert session.catch_ups == 1


async def test_the_clock_starts_only_when_the_oldest_entry_itself_has_left(session: Session, mock_clock: MockClock) -> None:
    outbox = outbox_of(session)
    outbox.push(b"a pong")
    earlier = outbox.take()
    outbox.offer(entry(1))
    outbox.written(len(earlier))
    mock_clock.jump(10)  # a slow line: the entry itself leaves only now
    drain_quietly(outbox)
    look(outbox)
    assert session.catch_ups == 0
    outbox.offer(entry(2))
    slow = outbox.take()
    outbox.confirm(1)  # makes the second the oldest, which is still on its way
    mock_clock.jump(10)
    outbox.written(len(slow))
    look(outbox)
    assert session.catch_ups == 0
    mock_clock.jump(1)
    look(outbox)
    assert session.catch_ups == 1


async def test_an_empty_page_starts_the_clock_too(session: Session, mock_clock: MockClock) -> None:
    outbox = unconfirmed(session)
    outbox.confirm(1)
    mock_clock.jump(10)
    outbox.push_page(b"page", [], 1)
    drain_quietly(outbox)
    look(outbox)
    assert session.catch_ups == 0
    mock_clock.jump(1)
    look(outbox)
    assert session.catch_ups == 1


async def test_the_clock_starts_when_the_bytes_have_left(session: Session, mock_clock: MockClock) -> None:
    outbox = outbox_of(session)
    outbox.offer(entry(1))
    data = outbox.take()
    mock_clock.jump(100)
    outbox.written(len(data))
    look(outbox)
    assert session.catch_ups == 0
    mock_clock.jump(1)
    look(outbox)
    assert session.catch_ups == 1


async def test_a_second_copy_is_never_queued_behind_a_first_that_has_not_left(session: Session, mock_clock: MockClock) -> None:
    switchboard = Switchboard(devices_per_user=2)
    slow, silent = outbox_of(session), outbox_of(Session())
    slow.device_id = "slow"
    async with trio.open_nursery() as nursery:
        with switchboard.attached(slow), switchboard.attached(silent):
            await nursery.start(redelivery.run, switchboard)
            for outbox in (slow, silent):
                outbox.offer(entry(1))
            drain_quietly(silent)
            slow.take()  # on its way, not yet written
            mock_clock.jump(60)
            await trio.testing.wait_all_tasks_blocked()
            assert silent.resends == 1
            assert slow.resends == 0
        nursery.cancel_scope.cancel()


async def test_who_has_confirmed_everything_is_left_alone(mock_clock: MockClock) -> None:
    switchboard, session = Switchboard(devices_per_user=2), Session()
    outbox = outbox_of(session)
    async with trio.open_nursery() as nursery:
        with switchboard.attached(outbox):
            await nursery.start(redelivery.run, switchboard)
            outbox.offer(entry(1))
            drain_quietly(outbox)
            outbox.confirm(1)
            mock_clock.jump(3_600)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert session.catch_ups == 0
    assert session.cuts == []


async def test_a_dead_letter_names_the_oldest_entry_that_was_not_confirmed(session: Session, mock_clock: MockClock) -> None:
    outbox = outbox_of(session)
    for at in (4, 7):
        outbox.offer(entry(at, room=uuid4()))
    drain_quietly(outbox)
    outbox.confirm(4)
    outbox.resends = len(redelivery.AGAIN_AFTER_S)
    mock_clock.jump(redelivery.GIVE_UP_AFTER_S)
    with structlog.testing.capture_logs() as lines:
        look(outbox)
    assert [(line["message_id"], line["unconfirmed"]) for line in lines] == [(7, 1)]
