"""The verbs of groups: who comes, who goes, who is what, the name, the end.

Each is run by the writer in one transaction, the log lock held (see Writer.do), so that what it judges cannot change before
its entries stand. Rule: a verb that changes nothing appends nothing; every change of members, roles or name is exactly one
entry a user, and the conversation's updated_at moves with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from uim.chat.appending import Append
from uim.errors import UIMError, forbidden, not_found
from uim.model import conversation as rules
from uim.model.conversation import MAX_MEMBERS, Room, Seat
from uim.store import seats
from uim.store.postgres import Connection


async def found(
    tx: Connection, append: Append, *, conversation_id: UUID, founder_id: UUID, name: str, others: Sequence[UUID],
    client_conversation_id: UUID | None,
) -> None:  # fmt: skip
    """Make a group. All founding stays begin at its first entry, so that nobody's seq has a gap."""
    await judge_company(tx, founder_id, others)
    await seats.insert_group(
        tx, conversation_id=conversation_id, user_id=founder_id, name=name, client_conversation_id=client_conversation_id
    )
    created = await append(
        conversation_id=conversation_id,
        sender_id=founder_id,
        message_type="system",
        event={"event": "created", "name": name, "type": "group"},
    )
    stays = dict.fromkeys(others, ("member", created.message_id))
    await seats.seat(tx, conversation_id, {**stays, founder_id: ("owner", created.message_id)})
    for user_id in others:
        await _tell(append, conversation_id, founder_id, "participant_added", user_id=str(user_id), role="member")


async def add(tx: Connection, append: Append, *, conversation_id: UUID, actor_id: UUID, user_ids: Sequence[UUID]) -> None:
    """Seat users, each from an entry of their own on. Who sits there already is passed over."""
    room, actor = await group_of(tx, conversation_id, actor_id)
    if not rules.may_add(actor):
        raise forbidden("only the owner and admins may add people")
    new = [user_id for user_id in user_ids if user_id not in room.seats]
    await judge_company(tx, actor_id, new)
    if len(room.seats) + len(new) > MAX_MEMBERS:
        raise UIMError("group_full", f"a group has at most {MAX_MEMBERS} members")
    stays = {}
    for user_id in new:
        entry_id = await _tell(append, conversation_id, actor_id, "participant_added", user_id=str(user_id), role="member")
        stays[user_id] = ("member", entry_id)
    if stays:
        await seats.seat(tx, conversation_id, stays)
        await seats.touch(tx, conversation_id)


async def remove(tx: Connection, append: Append, *, conversation_id: UUID, actor_id: UUID, target_id: UUID) -> None:
    """End somebody's stay, or one's own; an owner who leaves hands over first. The entry itself is still in the stay."""
    room, actor = await group_of(tx, conversation_id, actor_id)
    target = seat_in(room, target_id)
    if not rules.may_remove(actor, target):
        raise forbidden("only the owner may remove admins, only admins may remove members")
    if target.role == "owner":
        await _hand_over(tx, append, room, leaver=target)
    event = "participant_left" if actor_id == target_id else "participant_removed"
    entry_id = await _tell(append, conversation_id, actor_id, event, user_id=str(target_id))
    await seats.unseat(tx, conversation_id, [target_id], at=entry_id)
    await seats.touch(tx, conversation_id)


async def change_role(
    tx: Connection, append: Append, *, conversation_id: UUID, actor_id: UUID, target_id: UUID, role: str
) -> None:
    """Give a member a role. Giving `owner` gives it away: the giver becomes an admin."""
    room, actor = await group_of(tx, conversation_id, actor_id)
    target = seat_in(room, target_id)
    if not rules.may_change_role(actor):
        raise forbidden("only the owner may change roles")
    if target.role == role:
        return
    if target_id == actor_id:
        raise UIMError("conflict", "a group needs an owner: make somebody else the owner instead")
    await _give(tx, append, room, actor_id, target_id, role)
    if role == "owner":
        await _give(tx, append, room, actor_id, actor_id, "admin")
    await seats.touch(tx, conversation_id)


async def rename(tx: Connection, append: Append, *, conversation_id: UUID, actor_id: UUID, name: str) -> None:
    room, actor = await group_of(tx, conversation_id, actor_id)
    if not rules.may_rename(actor):
        raise forbidden("only the owner and admins may rename the group")
    if room.name == name:
        return
    await _tell(append, conversation_id, actor_id, "renamed", name=name)
    await seats.set_name(tx, conversation_id, name)
    await seats.touch(tx, conversation_id)


async def delete(tx: Connection, append: Append, *, room: Room, actor: Seat) -> None:
    """End a group: its last entry is the last of every stay."""
    if not rules.may_delete(actor):
        raise forbidden("only the owner may delete the group")
    entry_id = await _tell(append, room.conversation_id, actor.user_id, "deleted")
    await seats.unseat(tx, room.conversation_id, sorted(room.seats), at=entry_id)
    await seats.end(tx, room.conversation_id)


async def room_of(tx: Connection, conversation_id: UUID, user_id: UUID) -> tuple[Room, Seat]:
    """The conversation, locked, and the seat of one who is in it; for everybody else it does not exist."""
    room = await seats.locked(tx, conversation_id)
    if room is None or user_id not in room.seats:
        raise not_found("no such conversation")
    return room, room.seats[user_id]


async def group_of(tx: Connection, conversation_id: UUID, user_id: UUID) -> tuple[Room, Seat]:
    """The same for a verb that only groups have."""
    room, seat = await room_of(tx, conversation_id, user_id)
    if not room.is_group:
        raise UIMError("not_a_group", "this is a conversation of two")
    return room, seat


def seat_in(room: Room, user_id: UUID) -> Seat:
    if user_id not in room.seats:
        raise not_found("no such participant")
    return room.seats[user_id]


async def judge_company(tx: Connection, user_id: UUID, other_ids: Collection[UUID]) -> None:
    """Whether this user may bring these others into a conversation: they exist, and no block stands between."""
    if len(await seats.living(tx, other_ids)) < len(set(other_ids)):
        raise not_found("no such user")
    blocked, blocking = await seats.blocks_between(tx, user_id, other_ids)
    if blocked:
        raise UIMError("blocked", "unblock first")
    if blocking:
        # In the words that an account which is gone would get: a block is told to the blocker alone.
        raise forbidden("you can't write to this user")


async def _hand_over(tx: Connection, append: Append, room: Room, *, leaver: Seat) -> None:
    heir = rules.heir_of(room.seats.values(), leaver.user_id)
    if heir is None:
        await seats.end(tx, room.conversation_id)
        return
    await _give(tx, append, room, leaver.user_id, heir.user_id, "owner")


async def _give(tx: Connection, append: Append, room: Room, actor_id: UUID, target_id: UUID, role: str) -> None:
    await _tell(append, room.conversation_id, actor_id, "role_changed", user_id=str(target_id), role=role)
    await seats.set_role(tx, room.conversation_id, target_id, role)


async def _tell(append: Append, conversation_id: UUID, actor_id: UUID, event: str, **facts: str) -> int:
    """Append one system entry; its message_id."""
    entry = await append(
        conversation_id=conversation_id, sender_id=actor_id, message_type="system", event={"event": event, **facts}
    )
    return entry.message_id
