"""Friends and blocks over HTTP.

Rule: nothing is judged here but the shape of a request; what a block hides, the rooms below hide.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from uim.api.answers import Answer, answer
from uim.api.routes import Routes
from uim.chat.blocks import BlockedUser, Blocks
from uim.chat.friends import Friend, Friends
from uim.model.person import Caller
from uim.wire.paging import DEFAULT_LIMIT, Cursor, Limit


class PeopleQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_LIMIT


class NewFriend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_id: UUID


class FriendList(msgspec.Struct, frozen=True):
    items: list[Friend]
    next: str | None


class BlockList(msgspec.Struct, frozen=True):
    items: list[BlockedUser]
    next: str | None


def add_friends(routes: Routes, *, friends: Friends, blocks: Blocks) -> None:
    """Add the routes under /api/friends and /api/blocks."""
    _add_friends(routes, friends)
    _add_blocks(routes, blocks)


def _add_friends(routes: Routes, friends: Friends) -> None:
    @routes.route("GET", "/api/friends", query=PeopleQuery, answers=FriendList, summary="Friends, and open requests")
    async def list_friends(caller: Caller, *, query: PeopleQuery) -> FriendList:
        page = await friends.page(user_id=caller.user_id, cursor=query.cursor, limit=query.limit)
        return FriendList(page.items, page.next)

    @routes.route(
        "POST", "/api/friends", body=NewFriend, answers=Friend, status=201, summary="Ask to be friends, or accept who asked"
    )
    async def ask_to_be_friends(caller: Caller, *, body: NewFriend) -> Answer:
        friend, made = await friends.request(user_id=caller.user_id, other_id=body.user_id)
        return answer(friend, 201 if made else 200)

    @routes.route("PUT", "/api/friends/{user_id}", answers=Friend, summary="Accept a request")
    async def accept_friend(caller: Caller, *, user_id: UUID) -> Friend:
        return await friends.accept(user_id=caller.user_id, other_id=user_id)

    @routes.route("DELETE", "/api/friends/{user_id}", summary="Unfriend a user, or reject or withdraw a request")
    async def end_friendship(caller: Caller, *, user_id: UUID) -> None:
        await friends.end(user_id=caller.user_id, other_id=user_id)


def _add_blocks(routes: Routes, blocks: Blocks) -> None:
    @routes.route("GET", "/api/blocks", query=PeopleQuery, answers=BlockList, summary="Whom the caller has blocked")
    async def list_blocks(caller: Caller, *, query: PeopleQuery) -> BlockList:
        page = await blocks.page(user_id=caller.user_id, cursor=query.cursor, limit=query.limit)
        return BlockList(page.items, page.next)

    @routes.route("PUT", "/api/blocks/{user_id}", summary="Block a user")
    async def block_user(caller: Caller, *, user_id: UUID) -> None:
        await blocks.block(user_id=caller.user_id, other_id=user_id)

    @routes.route("DELETE", "/api/blocks/{user_id}", summary="Unblock a user")
    async def unblock_user(caller: Caller, *, user_id: UUID) -> None:
        await blocks.unblock(user_id=caller.user_id, other_id=user_id)
