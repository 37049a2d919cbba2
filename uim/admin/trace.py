"""What this process alone knows of one entry: when it was accepted and handed on, and how far each device here is with it.

Times are kept for the newest entries (those of the tailer's ring) and for the last writes and confirmations of each connection;
beyond that only the order is known: before, or after. Rule: it only looks, and never at a content.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import trio

from uim.admin.door import Question
from uim.chat.outbox import KEPT_TIMES, Outbox
from uim.chat.switchboard import Switchboard
from uim.chat.tailer import Tailer
from uim.model.ids import rfc3339
from uim.model.message import Entry


class DeviceTrace(msgspec.Struct, omit_defaults=True):
    """One connected device. `state`: sender, had, confirmed, unconfirmed, queued, catching_up, coming, connecting, ending.

    `written`: when the entry's bytes left, again for each resend, as far as kept; `written_before`: they left before that.
    """

    user_id: UUID
    device_id: str
    session_id: UUID
    connection_no: int
    state: str
    sent: int
    confirmed: int
    waiting_bytes: int
    began: int
    written: list[str] = []
    written_before: str | None = None
    confirmed_at: str | None = None
    confirmed_before: str | None = None
    resends: int = 0
    waits_s: float | None = None
    full_at: str | None = None


class ProcessTrace(msgspec.Struct, omit_defaults=True):
    """What one process knows. `kept_from`: the oldest entry of which it still knows times (0: none).

    `accepted_at` is absent for what came in elsewhere; `accepted_over`: websocket, http, or server (its own doing).
    """

    process: int
    at: str
    position: int
    kept_from: int
    devices: list[DeviceTrace]
    accepted_at: str | None = None
    accepted_over: str | None = None
    accepted_session: UUID | None = None
    accepted_device: str | None = None
    handed_on_at: str | None = None


async def trace(tailer: Tailer, switchboard: Switchboard, question: Question) -> ProcessTrace:
    """Everything about that entry, for those users."""
    told = _told_by(trio.current_time(), time.time())
    entry = tailer.ring.held(question.message_id)
    outboxes = [outbox for user_id in dict.fromkeys(question.users) for outbox in switchboard.of_user(user_id)]
    found = ProcessTrace(
        process=os.getpid(),
        at=rfc3339(datetime.now(UTC)),
        position=tailer.position,
        kept_from=tailer.ring[0].message_id if tailer.ring else 0,
        devices=[_device(outbox, question.message_id, entry, told) for outbox in outboxes],
    )
    if entry is not None and entry.handed_on_at is not None:
        found.handed_on_at = told(entry.handed_on_at)
    if entry is not None and entry.accepted_at is not None:
        found.accepted_at = told(entry.accepted_at)
        found.accepted_over = "server" if entry.message_type != "text" else "http" if entry.origin is None else "websocket"
        found.accepted_session = entry.origin
        devices = [outbox.device_id for outbox in outboxes if outbox.session_id == entry.origin]
        found.accepted_device = devices[0] if devices else None
    return found


def _told_by(now: float, wall_now: float) -> Callable[[float], str]:
    """From the loop's clock, which has no date, to UTC."""

    def told(at: float) -> str:
        return rfc3339(datetime.fromtimestamp(wall_now - (now - at), UTC))

    return told


def _device(outbox: Outbox, message_id: int, entry: Entry | None, told: Callable[[float], str]) -> DeviceTrace:
    state = _state(outbox, message_id, entry)
    found = DeviceTrace(
        user_id=outbox.user_id,
        device_id=outbox.device_id,
        session_id=outbox.session_id,
        connection_no=outbox.connection_no,
        state=state,
        sent=outbox.sent,
        confirmed=outbox.confirmed,
        waiting_bytes=outbox.size,
        began=outbox.began,
        resends=outbox.resends if state in ("unconfirmed", "queued", "catching_up") else 0,
        full_at=told(outbox.full_at) if outbox.full_at is not None and state == "catching_up" else None,
    )
    if state in ("confirmed", "unconfirmed", "catching_up", "queued"):
        found.written = [told(at) for after, up_to, at in outbox.writes if after < message_id <= up_to]
    if state in ("confirmed", "unconfirmed") and not found.written and outbox.writes:
        found.written_before = told(outbox.writes[0][2])
    if state == "unconfirmed":
        found.waits_s = round(trio.current_time() - outbox.progress_at, 3)
    if state == "confirmed":
        _note_confirmation(outbox, message_id, found, told)
    return found


def _note_confirmation(outbox: Outbox, message_id: int, found: DeviceTrace, told: Callable[[float], str]) -> None:
    for number, (up_to, at) in enumerate(outbox.confirmations):
        if up_to >= message_id:
            # The oldest that is kept may not have been the first to cover it.
            if number == 0 and len(outbox.confirmations) == KEPT_TIMES:
                found.confirmed_before = told(at)
            else:
                found.confirmed_at = told(at)
            return


def _state(outbox: Outbox, message_id: int, entry: Entry | None) -> str:
    if outbox.closed:
        return "ending"
    if not outbox.is_ready or outbox.connection_no == 0:
        return "connecting"
    if entry is not None and entry.origin == outbox.session_id:
        return "sender"
    if message_id <= outbox.began:
        return "had"
    if message_id <= outbox.confirmed:
        return "confirmed"
    if message_id <= outbox.sent:
        return "unconfirmed" if message_id <= outbox.written_up_to else "queued"
    return "coming" if outbox.live else "catching_up"
