"""What each frame from a client does: {frame type: handler}.

Rule: a handler returns once its frame has been taken (a send is in the writer's line, not yet committed), so that frames of
one connection take effect in the order read; what it refuses becomes one ERROR, and the connection lives on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from msgspec import UNSET

from uim.chat.memberships import Membership
from uim.errors import UIMError, invalid, not_found
from uim.live.pacing import ACK, REFUSED
from uim.live.session import Session
from uim.model.ids import rfc3339
from uim.model.message import Draft, Posted, Queued
from uim.model.presence import State
from uim.store import conversations, messages
from uim.wire.frames import (
    ClientFrame,
    HeartbeatPing,
    MessageAck,
    MessageSend,
    PresenceUpdate,
    SyncRequest,
    TypingIndicator,
    check_metadata,
    check_text,
    error_frame,
    frame,
)


async def handle(session: Session, received: ClientFrame) -> None:
    """Take one frame; a refusal is answered with ERROR."""
    try:
        await HANDLERS[type(received)](session, received)
    except UIMError as refusal:
        session.outbox.push(error_frame(refusal, request_id=received.request_id))
        await session.pace.spend(REFUSED)


async def ping(session: Session, received: HeartbeatPing) -> None:
    """PONG tells how far this connection has been written to; a quiet device's stored cursor moves along."""
    position = session.position()
    if not session.outbox.unconfirmed:
        session.keep_position()
    session.house.sessions.beat(session.outbox)
    now = rfc3339(datetime.fromtimestamp(time.time(), UTC))
    session.outbox.tell(position)
    session.outbox.push(frame("HEARTBEAT_PONG", {"server_time": now, "last_sync_id": position}, received.request_id))


async def send(session: Session, received: MessageSend) -> None:
    """Into the writer's line; the answer follows the commit. At most 64 of a user are open: then reading waits."""
    said = received.payload
    outbox = session.outbox
    client_message_id = said.client_message_id if said.client_message_id is not UNSET else said.message_id
    refer: dict[str, Any] = {"request_id": received.request_id, "conversation_id": said.conversation_id}
    if client_message_id is not UNSET and "\0" not in client_message_id:
        refer["client_message_id"] = client_message_id
    try:
        draft = _draft(session, received)
        await session.open_send()
        try:
            session.house.writer.submit(draft, _OpenSend(session, received.request_id, draft))
        except UIMError:
            session.close_send()
            raise
    except UIMError as refusal:
        outbox.push(error_frame(refusal, **refer))
        await session.pace.spend(REFUSED)


def _draft(session: Session, received: MessageSend) -> Draft:
    said = received.payload
    if said.client_message_id is not UNSET:
        client_message_id = check_text(said.client_message_id, "client_message_id")
        if said.message_id is not UNSET and said.message_id != client_message_id:
            raise invalid("message_id", "is another name for client_message_id: give one of them")
    elif said.message_id is not UNSET:
        client_message_id = check_text(said.message_id, "message_id")
    else:
        raise invalid("client_message_id", "is required")
    if said.sender_id is not UNSET and said.sender_id != session.caller.user_id:
        raise invalid("sender_id", "must be your own user_id")
    return Draft(
        said.conversation_id,
        session.caller.user_id,
        client_message_id,
        check_text(said.content, "content"),
        check_metadata(said.metadata, "metadata"),
        session.outbox.session_id,
    )


class _OpenSend:
    """A send in the writer's line. Its first answer, be it "queued", makes room for the next; its last is final."""

    __slots__ = ("draft", "is_open", "request_id", "session")

    def __init__(self, session: Session, request_id: str | None, draft: Draft) -> None:
        self.session = session
        self.request_id = request_id
        self.draft = draft
        self.is_open = True

    def __call__(self, what: Posted | Queued | UIMError) -> None:
        if self.is_open:
            self.is_open = False
            self.session.close_send()
        self.session.outbox.push(_answered(self.draft, what, self.request_id))


def _answered(draft: Draft, what: Posted | Queued | UIMError, request_id: str | None) -> bytes:
    if isinstance(what, UIMError):
        return error_frame(
            what, request_id=request_id, client_message_id=draft.client_message_id, conversation_id=draft.conversation_id
        )
    if isinstance(what, Queued):
        return frame("MESSAGE_ACK", {"status": "queued", "client_message_id": draft.client_message_id}, request_id)
    return frame(
        "MESSAGE_ACK",
        {
            "status": "sent",
            "client_message_id": draft.client_message_id,
            "message_id": what.message_id,
            "conversation_id": draft.conversation_id,
            "seq": what.seq,
            "created_at": rfc3339(what.created_at),
            "duplicate": what.duplicate,
        },
        request_id,
    )


async def acknowledge(session: Session, received: MessageAck) -> None:
    """Delivered: the cursor and the watermarks move. Read: that conversation's."""
    said = received.payload
    if said.status == "delivered":
        if _confirmed(session, said.message_id):
            return  # it costs nothing: there are no more of these than entries and pages were sent
        await session.pace.spend(ACK)
        return
    await session.pace.spend(ACK)
    if said.conversation_id is UNSET:
        raise invalid("conversation_id", "is required with status read")
    await _membership(session, said.conversation_id)
    session.house.receipts.read(session.caller.user_id, said.conversation_id, said.message_id)


def _confirmed(session: Session, message_id: int) -> bool:
    """Whether that confirms something that was waiting for it. Raises `validation_failed` for what was never sent."""
    outbox = session.outbox
    if message_id > outbox.told_ever:
        raise invalid("message_id", "is above everything that this connection was sent")
    if message_id > outbox.told:
        return False  # of what was sent before a SYNC_REQUEST: it says nothing of what is sent since
    waiting = len(outbox.unconfirmed)
    # A lower one than before moves no cursor, but may confirm what has been sent again meanwhile.
    session.house.receipts.confirmed(outbox, message_id)
    return len(outbox.unconfirmed) < waiting


async def say_typing(session: Session, received: TypingIndicator) -> None:
    """To the members who are connected. Without the database it goes on wherever the members are known."""
    said = received.payload
    membership = await _membership(session, said.conversation_id)
    session.house.typing.said(
        user_id=session.caller.user_id,
        conversation_id=said.conversation_id,
        is_typing=said.typing,
        members=membership.open,
    )


async def choose_presence(session: Session, received: PresenceUpdate) -> None:
    """What others see of this user. A change of one's profile like any other, and answered once it is committed."""
    said = received.payload
    caller = session.caller
    columns: dict[str, str | bool | None] = {"availability": said.availability}
    if said.status_text is not UNSET:
        columns["status_text"] = said.status_text if said.status_text is None else check_text(said.status_text, "status_text")
    async with session.house.turns.turn(caller.user_id):
        with session.house.presence.answering(session.outbox) as answered:
            profile = await session.house.profiles.change(caller, columns, current_password=None, address="")
            state = State(caller.user_id, "online", profile.availability, None, profile.status_text)
            session.outbox.push(frame("PRESENCE_UPDATE", {"users": [state]}, received.request_id))
            answered(state)


async def _membership(session: Session, conversation_id: UUID) -> Membership:
    """Who is in a conversation of the caller's, from memory or the database. Raises not_found, `unavailable`."""
    memberships = session.house.memberships
    membership = memberships.get(conversation_id)
    if membership is None:
        clearings = memberships.clearings
        async with session.house.pool.connection() as tx:
            found = await messages.stays_of(tx, [conversation_id])
        if clearings == memberships.clearings:
            memberships.learn(list(found), found)
        membership = memberships.get(conversation_id)
    if membership is None or not membership.is_member(session.caller.user_id):
        raise not_found("no such conversation")
    if len(membership.stays) == 1:
        await _check_not_self(session, conversation_id)
    return membership


async def _check_not_self(session: Session, conversation_id: UUID) -> None:
    # Where nobody else has ever been it may be the one of the account, which does not exist for its owner.
    async with session.house.pool.connection() as tx:
        if not await conversations.is_member(tx, user_id=session.caller.user_id, conversation_id=conversation_id):
            raise not_found("no such conversation")


async def sync(session: Session, received: SyncRequest) -> None:
    """Rewind, or skip: raises connection_no, then pages with this request_id."""
    if received.request_id is None:
        raise invalid("request_id", "is required")
    async with session.house.turns.turn(session.caller.user_id):
        await session.sync_from(received.payload.last_sync_id, received.request_id)


Handler = Callable[[Session, Any], Awaitable[None]]
HANDLERS: Final[dict[type, Handler]] = {
    HeartbeatPing: ping,
    MessageSend: send,
    MessageAck: acknowledge,
    TypingIndicator: say_typing,
    PresenceUpdate: choose_presence,
    SyncRequest: sync,
}
