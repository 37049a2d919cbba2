"""Messages over HTTP: history, one message, the fallback of a send, read marks.

Rule: a message is encoded once, in wire/; here it is only joined into pages. `Message` and its kin tell the contract's
readers what those bytes are.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from uim.api.answers import Answer, answer, json_answer
from uim.api.routes import Routes
from uim.chat.history import History
from uim.chat.receipts import Receipts
from uim.chat.writer import Writer
from uim.model.message import DeliveryCounts, DeliveryStatus, Draft, Entry, Posted, Queued
from uim.model.person import Caller
from uim.wire.frames import ClientId, Content, MessageId, Metadata, check_metadata, message_object
from uim.wire.paging import DEFAULT_LIMIT, Cursor, Limit

MESSAGES = "/api/conversations/{conversation_id}/messages"


class Message(msgspec.Struct, frozen=True):
    """One entry of the log as the caller sees it. Entries of type `account` are one's own, and come by sync alone.

    `deleted`: taken back for everyone, the content is "". `hidden`: deleted by the caller for themselves; then there are only
    the ids and the seq.
    """

    message_id: int
    conversation_id: UUID
    seq: int
    sender_id: UUID | UnsetType = UNSET
    content: str | UnsetType = UNSET
    message_type: Literal["text", "system", "deletion", "account"] | UnsetType = UNSET
    created_at: str | UnsetType = UNSET
    metadata: dict[str, str | int] | UnsetType = UNSET
    client_message_id: str | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET
    hidden: bool | UnsetType = UNSET


class ListedMessage(Message, frozen=True):
    """A message in a list; one's own tell how many have received and read them."""

    delivery_status: DeliveryCounts | UnsetType = UNSET


class TrackedMessage(Message, frozen=True):
    """One message; one's own tells who has received and read it, and when."""

    delivery_status: DeliveryStatus | UnsetType = UNSET


class PostedMessage(Message, frozen=True, kw_only=True):
    """A message as it was sent. `duplicate`: it had been sent before, under the same client_message_id."""

    duplicate: bool


class QueuedMessage(msgspec.Struct, frozen=True):
    """The database is away and the message is safe, but not in the log: send it again, under the same id, until it is."""

    status: Literal["queued"]
    client_message_id: str


class MessagePage(msgspec.Struct, frozen=True):
    items: list[ListedMessage]
    next: str | None


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most one of the four places; none is the newest page."""

    before: MessageId | None = None
    after: MessageId | None = None
    around: MessageId | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_LIMIT


class NewMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    client_message_id: ClientId
    content: Content
    metadata: Metadata | None = None


class ReadMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything up to the newest entry at or below this id has been read."""

    message_id: MessageId


def add_message_routes(routes: Routes, *, history: History, writer: Writer, receipts: Receipts) -> None:
    @routes.route("GET", MESSAGES, query=HistoryQuery, answers=MessagePage, summary="A page of a conversation's messages")
    async def list_messages(caller: Caller, *, conversation_id: UUID, query: HistoryQuery) -> Answer:
        page = await history.page(
            user_id=caller.user_id,
            conversation_id=conversation_id,
            before=query.before,
            after=query.after,
            around=query.around,
            cursor=query.cursor,
            limit=query.limit,
        )
        return json_answer(msgspec.json.encode(page))

    @routes.route("POST", MESSAGES, body=NewMessage, answers=PostedMessage, status=201, also={200: PostedMessage, 202: QueuedMessage},
                  summary="Send a message")  # fmt: skip
    async def post_message(caller: Caller, *, conversation_id: UUID, body: NewMessage) -> Answer:
        draft = Draft(
            conversation_id=conversation_id,
            sender_id=caller.user_id,
            client_message_id=body.client_message_id,
            content=body.content,
            metadata=check_metadata(body.metadata, "metadata"),
        )
        posted = await writer.post(draft)
        if isinstance(posted, Queued):
            return answer(QueuedMessage("queued", draft.client_message_id), 202)
        return json_answer(_posted(draft, posted), 200 if posted.duplicate else 201)

    @routes.route("GET", MESSAGES + "/{message_id}", answers=TrackedMessage, summary="One message, with its delivery status")
    async def read_message(caller: Caller, *, conversation_id: UUID, message_id: int) -> Answer:
        return json_answer(await history.message(user_id=caller.user_id, conversation_id=conversation_id, message_id=message_id))

    @routes.route("POST", "/api/conversations/{conversation_id}/read", body=ReadMark, summary="Mark as read up to a message")
    async def mark_read(caller: Caller, *, conversation_id: UUID, body: ReadMark) -> None:
        await receipts.read_now(user_id=caller.user_id, conversation_id=conversation_id, up_to=body.message_id)


def _posted(draft: Draft, posted: Posted) -> bytes:
    entry = Entry(
        posted.message_id,
        draft.conversation_id,
        posted.seq,
        draft.sender_id,
        draft.client_message_id,
        draft.content,
        "text",
        draft.metadata,
        posted.created_at,
    )
    return message_object(entry, own=True)[:-1] + (b',"duplicate":true}' if posted.duplicate else b',"duplicate":false}')
