"""The functions of uim/store, by their names and signatures, over the tables in memory.

`STAND_INS` says which module gets which. Rule: a function here only translates; what a statement means stands in tables.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any
from uuid import UUID

from tests.simulation.database import Connection, now
from uim.errors import UIMError
from uim.model.conversation import ConversationView, Room
from uim.model.message import Draft, Entry
from uim.store import blocks, conversations, cursors, deletion, epochs, logins, messages, receipts, seats, spool, words
from uim.store.cursors import Move, Opened, Opening, Overtaken
from uim.store.logins import LiveLogin
from uim.store.messages import Outcome, Page, Stays
from uim.store.receipts import Advance

# -- messages ---------------------------------------------------------------------------------------------------------------


async def append(tx: Connection, drafts: Sequence[Draft], meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
    meanwhile()
    return await tx.change("append", lambda tables: tables.append(drafts, now()))


async def append_own(
    tx: Connection, *, conversation_id: UUID, sender_id: UUID, server_key: UUID, message_type: str, metadata: str
) -> Entry:
    return await tx.change(
        "append_own",
        lambda tables: tables.append_own(
            conversation_id=conversation_id, sender_id=sender_id, server_key=server_key, message_type=message_type,
            metadata=metadata, now=now(),
        ),
    )  # fmt: skip


async def lock_log(tx: Connection) -> None:
    await tx.change("lock_log", lambda tables: None)


async def has_server_key(tx: Connection, server_key: UUID) -> bool:
    return await tx.ask("has_server_key", lambda tables: server_key in tables.by_server_key)


async def head(tx: Connection) -> int:
    return await tx.ask("head", lambda tables: tables.last_id)


async def entries_after(tx: Connection, after: int, limit: int) -> list[Entry]:
    return await tx.ask("entries_after", lambda tables: tables.entries_after(after, limit))


async def page_after(tx: Connection, *, user_id: UUID, after: int, limit: int) -> Page:
    return await tx.ask("page_after", lambda tables: tables.page_after(user_id=user_id, after=after, limit=limit))


async def count_after(tx: Connection, positions: Sequence[tuple[UUID, int]], *, limit: int) -> list[int]:
    return await tx.ask(
        "count_after",
        lambda tables: [tables.count_after(user_id=user_id, after=after, limit=limit) for user_id, after in positions],
    )


async def stays_of(tx: Connection, conversation_ids: Sequence[UUID]) -> dict[UUID, Stays]:
    return await tx.ask("stays_of", lambda tables: tables.stays_of(conversation_ids))


async def settle(tx: Connection, seen: epochs.Seen = epochs.UNSEEN) -> epochs.Epoch:
    return await tx.ask("settle", lambda tables: epochs.Epoch(1, 1, 0))


# -- cursors and receipts ---------------------------------------------------------------------------------------------------


async def open_cursors(
    tx: Connection, openings: Sequence[Opening], wish: Callable[[Any, int | None], int | None] = lambda tables, asked: asked
) -> list[Opened | Overtaken | UIMError]:
    """`wish`: what is made of the asked position, for whoever breaks that on purpose."""
    in_order = sorted(openings, key=lambda one: (one.user_id, one.device_id))

    def act(tables: Any) -> list[Any]:
        # As now() does in a transaction: the time of its beginning.
        at = tx.began_at or now()
        others = {one.user_id: tables.furthest(one.user_id) for one in in_order}
        return [
            tables.open_cursor(
                user_id=one.user_id, device_id=one.device_id, asked=wish(tables, one.asked), opener=one.opener,
                others=others[one.user_id], now=at,
            )
            for one in in_order
        ]  # fmt: skip

    asked = ",".join(f"{one.user_id}/{one.device_id}={one.asked}" for one in in_order)
    outcomes = dict(zip(map(id, in_order), await tx.change(f"open_cursors:{asked}", act), strict=True))
    return [outcomes[id(one)] or UIMError("session_ended", "this account is no more") for one in openings]


async def move(tx: Connection, moves: Sequence[Move]) -> set[tuple[UUID, str]]:
    return await tx.change("move", lambda tables: tables.move(moves))


async def connected_since(tx: Connection, seconds: float) -> list[tuple[UUID, str, int]]:
    return await tx.ask("connected_since", lambda tables: tables.connected_since(now() - timedelta(seconds=seconds)))


async def advance(tx: Connection, wanted: Mapping[tuple[UUID, UUID], tuple[int, int]]) -> list[Advance]:
    if not wanted:
        return []
    return await tx.change("advance", lambda tables: tables.advance(wanted, now()))


async def newest_between(tx: Connection, spans: Sequence[tuple[UUID, int, int]]) -> dict[tuple[UUID, UUID], int]:
    def act(tables: Any) -> dict[tuple[UUID, UUID], int]:
        found: dict[tuple[UUID, UUID], int] = {}
        for user_id, after, up_to in spans:
            for conversation_id, at in tables.newest_between(user_id=user_id, after=after, up_to=up_to).items():
                found[conversation_id, user_id] = max(at, found.get((conversation_id, user_id), 0))
        return found

    return await tx.ask("newest_between", act)


# -- the bus's words, and the spool -----------------------------------------------------------------------------------------


async def keep_word(tx: Connection, *, process_id: UUID, number: int, word: bytes) -> None:
    await tx.change("keep_word", lambda tables: tables.keep_word(process_id, number, word, now()))


async def newest_words(tx: Connection) -> dict[UUID, int]:
    return await tx.ask("newest_words", lambda tables: tables.newest_words())


async def words_above(
    tx: Connection, up_to: Mapping[UUID, int], *, within_s: float, behind: words.Read | None = None
) -> list[words.Read]:
    since = now() - timedelta(seconds=within_s)
    return await tx.ask(
        "words_above", lambda tables: tables.words_above(up_to, since=since, behind=behind, limit=words.READ_AT_ONCE)
    )


async def forget_words(tx: Connection) -> None:
    await tx.change("forget_words", lambda tables: tables.forget_words(now() - timedelta(seconds=words.KEPT_S)))


async def take_turn(tx: Connection) -> bool:
    return await tx.ask("take_turn", lambda tables: tx.database.take_turn(tx))


# -- conversations ------------------------------------------------------------------------------------------------------------


async def views(tx: Connection, *, user_id: UUID, conversation_ids: Sequence[UUID]) -> dict[UUID, ConversationView]:
    pairs = [(conversation_id, user_id) for conversation_id in conversation_ids]
    found = await tx.ask("views", lambda tables: tables.views(pairs))
    return {conversation_id: view for (conversation_id, _), view in found.items()}


async def views_of(tx: Connection, *, conversation_id: UUID, user_ids: Sequence[UUID]) -> dict[UUID, ConversationView]:
    pairs = [(conversation_id, user_id) for user_id in user_ids]
    found = await tx.ask("views", lambda tables: tables.views(pairs))
    return {user_id: view for (_, user_id), view in found.items()}


async def unread(tx: Connection, *, user_id: UUID, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
    return await tx.ask("unread", lambda tables: tables.unread(user_id=user_id, conversation_ids=conversation_ids))


async def is_member(tx: Connection, *, user_id: UUID, conversation_id: UUID) -> bool:
    return await tx.ask("is_member", lambda tables: tables.is_member(user_id=user_id, conversation_id=conversation_id))


async def hidden_of(tx: Connection, *, user_id: UUID, message_ids: Sequence[int]) -> frozenset[int]:
    return await tx.ask("hidden_of", lambda tables: frozenset())  # nothing is hidden in these worlds


async def around(tx: Connection, user_ids: Collection[UUID]) -> dict[UUID, tuple[set[UUID], set[UUID]]]:
    return await tx.ask(
        "around",
        lambda tables: {
            user_id: (
                {other for one, other in tables.blocks if one == user_id},
                {one for one, other in tables.blocks if other == user_id},
            )
            for user_id in user_ids
        },
    )


async def living_logins(tx: Connection, login_ids: Sequence[UUID]) -> dict[UUID, LiveLogin]:
    def act(tables: Any) -> dict[UUID, LiveLogin]:
        found = {}
        for login_id in login_ids:
            if login_id in tables.logins:
                user_id, device_id = tables.logins[login_id]
                found[login_id] = LiveLogin(login_id, user_id, tables.users[user_id].username, device_id, 1)
        return found

    return await tx.ask("living", act)


async def ended_since(tx: Connection, seconds: float) -> list[UUID]:
    return await tx.ask("ended_since", lambda tables: [])


# -- seats ------------------------------------------------------------------------------------------------------------------


async def locked(tx: Connection, conversation_id: UUID) -> Room | None:
    return await tx.change("locked", lambda tables: tables.room(conversation_id))


async def made_under(tx: Connection, *, user_id: UUID, client_conversation_id: UUID) -> UUID | None:
    return await tx.ask(
        "made_under", lambda tables: tables.made_under(user_id=user_id, client_conversation_id=client_conversation_id)
    )


async def of_pair(tx: Connection, one: UUID, other: UUID) -> UUID | None:
    return await tx.ask("of_pair", lambda tables: tables.of_pair(one, other))


async def open_pair(
    tx: Connection, *, conversation_id: UUID, user_id: UUID, other_id: UUID, client_conversation_id: UUID | None
) -> UUID:
    return await tx.change(
        "open_pair",
        lambda tables: tables.open_pair(
            conversation_id=conversation_id, user_id=user_id, other_id=other_id,
            client_conversation_id=client_conversation_id, now=now(),
        ),
    )  # fmt: skip


async def insert_group(
    tx: Connection, *, conversation_id: UUID, user_id: UUID, name: str, client_conversation_id: UUID | None
) -> None:
    await tx.change(
        "insert_group",
        lambda tables: tables.insert_group(
            conversation_id=conversation_id, user_id=user_id, name=name, client_conversation_id=client_conversation_id, now=now()
        ),
    )


async def seat(tx: Connection, conversation_id: UUID, stays: dict[UUID, tuple[str, int]]) -> None:
    await tx.change("seat", lambda tables: tables.seat(conversation_id, stays, now()))


async def unseat(tx: Connection, conversation_id: UUID, user_ids: Sequence[UUID], *, at: int) -> None:
    await tx.change("unseat", lambda tables: tables.unseat(conversation_id, user_ids, at))


async def set_role(tx: Connection, conversation_id: UUID, user_id: UUID, role: str) -> None:
    await tx.change("set_role", lambda tables: tables.set_role(conversation_id, user_id, role))


async def set_name(tx: Connection, conversation_id: UUID, name: str) -> None:
    await tx.change("set_name", lambda tables: tables.change_conversation(conversation_id, name=name))


async def touch(tx: Connection, conversation_id: UUID) -> None:
    await tx.change("touch", lambda tables: tables.change_conversation(conversation_id, updated_at=now()))


async def end(tx: Connection, conversation_id: UUID) -> None:
    await tx.change("end", lambda tables: tables.change_conversation(conversation_id, deleted=True, updated_at=now()))


async def living(tx: Connection, user_ids: Collection[UUID]) -> set[UUID]:
    return await tx.ask(
        "living", lambda tables: {user_id for user_id in user_ids if user_id in tables.users and not tables.users[user_id].deleted}
    )


async def blocks_between(tx: Connection, user_id: UUID, other_ids: Collection[UUID]) -> tuple[set[UUID], set[UUID]]:
    return await tx.ask(
        "blocks_between",
        lambda tables: (
            {other for one, other in tables.blocks if one == user_id and other in other_ids},
            {one for one, other in tables.blocks if other == user_id and one in other_ids},
        ),
    )


Function = Callable[..., Awaitable[Any]]

STAND_INS: dict[ModuleType, dict[str, Function]] = {
    messages: {
        "append": append, "append_own": append_own, "lock_log": lock_log, "has_server_key": has_server_key, "head": head,
        "entries_after": entries_after, "page_after": page_after, "count_after": count_after, "stays_of": stays_of,
    },
    epochs: {"settle": settle},
    cursors: {"open_cursors": open_cursors, "move": move, "connected_since": connected_since},
    receipts: {"advance": advance, "newest_between": newest_between},
    conversations: {"views": views, "views_of": views_of, "unread": unread, "is_member": is_member},
    deletion: {"hidden_of": hidden_of},
    blocks: {"around": around},
    logins: {"living": living_logins, "ended_since": ended_since},
    words: {"keep": keep_word, "newest": newest_words, "above": words_above, "forget": forget_words},
    spool: {"take_turn": take_turn},
    seats: {
        "locked": locked, "made_under": made_under, "of_pair": of_pair, "open_pair": open_pair, "insert_group": insert_group,
        "seat": seat, "unseat": unseat, "set_role": set_role, "set_name": set_name, "touch": touch, "end": end,
        "living": living, "blocks_between": blocks_between,
    },
}  # fmt: skip
