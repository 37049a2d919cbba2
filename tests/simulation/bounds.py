"""What waits in memory, looked at whenever something is put there; and the bounds made small, so that small worlds meet them.

Rule: a bound that holds only because a run is short is not tested: in most worlds a page has 8 entries and an outbox 6 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from tests.simulation.laws import Observer
from uim.chat import catchup, line, memberships, outbox, spool, tailer, writer
from uim.chat.outbox import Outbox
from uim.chat.receipts import Receipts
from uim.chat.spool import Spool
from uim.chat.tailer import Tailer
from uim.chat.writer import Writer

SMALL: list[tuple[Any, str, int]] = [
    (outbox, "MAX_BYTES", 6 * 1024),
    (outbox, "MAX_UNCONFIRMED", 24),
    (outbox, "MAX_UNCONFIRMED_IN_PAGES", 16),
    (catchup, "PAGE_BYTES", 4 * 1024),
    (tailer, "RING_ENTRIES", 5),
    (tailer, "READ_ENTRIES", 12),
    (tailer, "HAND_ON_AT_ONCE", 5),
    (writer, "MAX_BATCH", 6),
    (line, "MAX_BATCH", 6),
    (spool, "MAX_BATCH", 3),
    (writer, "MAX_WAITING", 24),
    (memberships, "MAX_CONVERSATIONS", 3),
]
SMALL_PAGE = 8
SMALL_SPOOL_BYTES = 8 * 1024
LEAST_SPOOLED_BYTES = 80
# Answers to what a connection may have open, and one entry more than fits.
ANSWERS_BYTES = 64 * 512
ENTRY_BYTES = 4 * 1024


@contextmanager
def watched(observer: Observer, *, is_small: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if is_small:
            for module, name, value in SMALL:
                stack.enter_context(patch.object(module, name, value))
            given = {**(catchup.CatchUp.read.__kwdefaults__ or {}), "limit": SMALL_PAGE}
            stack.enter_context(patch.object(catchup.CatchUp.read, "__kwdefaults__", given))
            given = {**(Spool.__init__.__kwdefaults__ or {}), "max_bytes": SMALL_SPOOL_BYTES}
            stack.enter_context(patch.object(Spool.__init__, "__kwdefaults__", given))
        for owner, method, look in (
            (Outbox, "push", _outbox),
            (Outbox, "receipts", _outbox),
            (Tailer, "offer", _tailer),
            (Writer, "submit", _writer),
            (Receipts, "keep_cursor", _receipts),
        ):
            stack.enter_context(patch.object(owner, method, _looking(getattr(owner, method), look, observer)))
        yield


def _looking(method: Callable[..., Any], look: Callable[[Any], list[tuple[str, int, int]]], observer: Observer) -> Any:
    def looked_at(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            for what, is_now, at_most in look(self):
                if is_now > at_most:
                    observer.breaks("BOUND", f"{what}: {is_now}, at most {at_most}")

    return looked_at


def _outbox(box: Outbox) -> list[tuple[str, int, int]]:
    page = (catchup.CatchUp.read.__kwdefaults__ or {})["limit"]
    most = max(outbox.MAX_UNCONFIRMED, outbox.MAX_UNCONFIRMED_IN_PAGES + page + 1)
    bytes_most = outbox.MAX_BYTES + catchup.PAGE_BYTES + ENTRY_BYTES + ANSWERS_BYTES
    return [
        ("bytes in an outbox", box.size, bytes_most),
        ("unconfirmed entries", len(box.unconfirmed), most),
        ("unconfirmed entries of before a resend", len(box._earlier or ()), 2 * most),
        ("late receipts", box._late.intervals if box._late else 0, outbox.MAX_LATE + 1),
    ]


def _tailer(room: Tailer) -> list[tuple[str, int, int]]:
    return [
        ("entries pending", len(room._pending), tailer.RING_ENTRIES + tailer.HAND_ON_AT_ONCE),
        ("entries in the ring", len(room.ring), tailer.RING_ENTRIES),
        ("conversations known", len(room._memberships._known), memberships.MAX_CONVERSATIONS + tailer.HAND_ON_AT_ONCE + 8),
    ]


def _writer(room: Writer) -> list[tuple[str, int, int]]:
    # What was taken to be queued, and could not be, goes back before what has come meanwhile.
    line_most = 2 * writer.MAX_WAITING + writer.MAX_BATCH
    spooled_most = (Spool.__init__.__kwdefaults__ or {})["max_bytes"] // LEAST_SPOOLED_BYTES
    return [
        ("waiting for the writer", room.waiting, line_most),
        ("waiting for the database", len(room._kept), spooled_most + line_most),
        ("queued", room.queued, spooled_most),
        ("origins of texts", len(room.origins.unanswered), spooled_most + line_most + writer.MAX_BATCH),
        ("origins found", len(room.origins.found), writer.MAX_BATCH + 1),
    ]


def _receipts(room: Receipts) -> list[tuple[str, int, int]]:
    return [("cursors waiting", len(room._moves), 64), ("receipts waiting", len(room._marks), 256)]
