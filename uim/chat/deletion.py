"""Deleting a message: for everyone, or for oneself.

For everyone, its row is blanked and a `deletion` entry tells every device, live or later; for oneself, a row remembers it and
an account entry tells one's own devices. Rule: repeating it changes nothing, and what the caller may not see is `not_found`.
"""

from __future__ import annotations

from uuid import UUID, uuid4

from uim.chat import groups
from uim.chat.appending import Append
from uim.chat.writer import Writer
from uim.errors import forbidden, not_found
from uim.model import conversation as rules
from uim.model.conversation import Room, Seat
from uim.store import deletion, people
from uim.store.deletion import Target
from uim.store.postgres import Connection


class Deletion:
    """The two verbs. Both raise `not_found`, for whatever is no text in a stay of the caller's; cancelled, they may happen."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def for_everyone(self, *, user_id: UUID, conversation_id: UUID, message_id: int) -> None:
        """Take a text back. Raises `forbidden` unless it is the caller's own, or the caller its group's owner or admin."""

        async def act(tx: Connection, append: Append) -> None:
            room, actor, target = await _found(tx, user_id, conversation_id, message_id)
            if not _may_take_back(room, actor, target):
                raise forbidden("only its sender, or the group's owner or admins, may delete a message for everyone")
            entry = await deletion.blank(
                tx, conversation_id=conversation_id, target_id=message_id, actor_id=user_id, server_key=append.next_key()
            )
            if entry is not None:
                append.entries.append(entry)

        await self._writer.do(act, key=uuid4())

    async def for_me(self, *, user_id: UUID, conversation_id: UUID, message_id: int) -> None:
        """Hide a text from the caller alone."""

        async def act(tx: Connection, append: Append) -> None:
            await _found(tx, user_id, conversation_id, message_id)
            if await deletion.hide(tx, user_id=user_id, message_id=message_id):
                await append(
                    conversation_id=await people.self_conversation_of(tx, user_id),
                    sender_id=user_id,
                    message_type="account",
                    event={"event": "hidden", "conversation_id": str(conversation_id), "message_id": message_id},
                )

        await self._writer.do(act, key=uuid4())


async def _found(tx: Connection, user_id: UUID, conversation_id: UUID, message_id: int) -> tuple[Room, Seat, Target]:
    room, seat = await groups.room_of(tx, conversation_id, user_id)
    target = await deletion.text_in_stays(tx, user_id=user_id, conversation_id=conversation_id, message_id=message_id)
    if target is None:
        raise not_found("no such message")
    return room, seat, target


def _may_take_back(room: Room, actor: Seat, target: Target) -> bool:
    return target.sender_id == actor.user_id or (room.is_group and rules.may_delete_any_message(actor))
