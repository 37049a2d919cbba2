"""The rooms of chat, built in order and given to both fronts.

A frozen list of collaborators and the wiring between them: who hears of what. Rule: nothing is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import trio

from uim.chat.accounts import Accounts
from uim.chat.announcements import Announcements
from uim.chat.blocks import Blocks
from uim.chat.bus import Bus
from uim.chat.callers import Origins
from uim.chat.catchup import CatchUp
from uim.chat.connects import Connects
from uim.chat.conversations import Conversations
from uim.chat.deletion import Deletion
from uim.chat.epochs import Epochs
from uim.chat.export import Exports
from uim.chat.farewell import Farewell
from uim.chat.friends import Friends
from uim.chat.history import History
from uim.chat.indexer import Indexer
from uim.chat.logins import Logins
from uim.chat.memberships import Memberships
from uim.chat.offline import Offline
from uim.chat.passwords import Passwords, Throttle
from uim.chat.people import People
from uim.chat.presence import Presence
from uim.chat.profiles import Profiles
from uim.chat.receipts import Receipts
from uim.chat.search import Search
from uim.chat.sessions import Sessions
from uim.chat.spool import Spool
from uim.chat.switchboard import Switchboard
from uim.chat.tailer import Tailer
from uim.chat.tokens import Tokens
from uim.chat.turns import Allowance, Turns
from uim.chat.typing import Typing
from uim.chat.words import Unread
from uim.chat.writer import Writer
from uim.config import Settings
from uim.errors import Cut
from uim.model.message import Draft, Entry
from uim.store.epochs import Epoch
from uim.store.postgres import Pool
from uim.store.receipts import Advance
from uim.store.redis import RedisLink
from uim.wire.codec import Codec

OPEN_SENDS: Final = 64
TURNS: Final = 2
# Every device twice, then one a second.
OPENINGS_SAVED: Final = 40.0
OPENINGS_PER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class House:
    """Everything that a front may call."""

    settings: Settings
    origins: Origins
    codec: Codec
    pool: Pool
    link: RedisLink
    bus: Bus
    switchboard: Switchboard
    memberships: Memberships
    sessions: Sessions
    writer: Writer
    spool: Spool
    tailer: Tailer
    epochs: Epochs
    offline: Offline
    catchup: CatchUp
    receipts: Receipts
    connects: Connects
    announcements: Announcements
    logins: Logins
    accounts: Accounts
    people: People
    conversations: Conversations
    history: History
    search: Search
    indexer: Indexer
    deletion: Deletion
    friends: Friends
    blocks: Blocks
    typing: Typing
    profiles: Profiles
    farewell: Farewell
    exports: Exports
    presence: Presence
    # What one user may have under way: sends that wait for their commit, and what else waits for the database; and how often
    # a user may connect.
    open_sends: Turns
    turns: Turns
    openings: Allowance


def build_house(settings: Settings, *, log_id: UUID, passwords: Passwords) -> House:
    """The rooms, not yet running. `log_id` is the log's identity, read from the database."""
    pool = Pool(settings.database_url, settings.database_pool)
    link = RedisLink(settings.redis_url)
    switchboard = Switchboard(devices_per_user=settings.devices_per_user)
    memberships = Memberships()
    turns = Turns(TURNS)
    process_id = uuid4()

    def on_appended(entries: list[Entry]) -> None:
        offline.appended(entries)
        tailer.offer(entries)
        bus.appended(entries)

    def on_login_ended(login_id: UUID) -> None:
        switchboard.cut_login(login_id)
        bus.ended(login_id)

    def on_logins_ended(login_ids: Iterable[UUID]) -> None:
        logins.ended(login_ids)

    def on_made(conversation_id: UUID) -> None:
        announcements.changed(conversation_id)
        bus.changed(conversation_id)

    def on_profile_changed(user_id: UUID) -> None:
        bus.profile_changed(user_id)

    def on_log(entries: list[Entry]) -> None:
        tailer.offer(entries)

    def on_receipts(advances: list[Advance], unread: Unread) -> None:
        receipts.tell(advances, unread)

    def on_typing_elsewhere(conversation_id: UUID, user_id: UUID, is_typing: bool, members: list[UUID]) -> None:
        typing.heard(conversation_id, user_id, is_typing, members)

    def on_profile_changed_elsewhere(user_id: UUID) -> None:
        profiles.changed(user_id)

    def on_parted(one: UUID, other: UUID) -> None:
        typing.part(one, other)

    def on_typing(conversation_id: UUID, user_id: UUID, is_typing: bool, members: Sequence[UUID]) -> None:
        bus.typing(conversation_id, user_id, is_typing, members)

    def on_passed(entry: Entry) -> None:
        if entry.message_type == "text":
            typing.posted(entry)
        elif entry.message_type == "account":
            blocks.follow(entry)
            presence.follow(entry)

    def on_begun(epoch: Epoch) -> None:
        # Clients first: whoever is live would count all up to the new epoch as sent. They come back and hear of it.
        for outbox in switchboard.all():
            outbox.live = False
            outbox.cut(Cut.RESTART)
        for cache in (memberships, blocks, logins):
            cache.clear()
        pool.close_idle()
        writer.begin_again()
        tailer.begin_again(epoch)

    def may_be_queued(draft: Draft) -> bool:
        membership = memberships.get(draft.conversation_id)
        return membership is not None and membership.is_member(draft.sender_id)

    epochs = Epochs(link, log_id=log_id, position=lambda: tailer.position, on_begun=on_begun)
    announcements = Announcements(pool, switchboard, memberships)
    bus = Bus(
        link,
        pool,
        log_id=log_id,
        process_id=process_id,
        on_log=on_log,
        on_receipts=on_receipts,
        on_changed=announcements.changed,
        on_ended=on_logins_ended,
        on_replaced=switchboard.cut_older,
        on_typing=on_typing_elsewhere,
        on_profile=on_profile_changed_elsewhere,
    )
    receipts = Receipts(pool, switchboard, bus)
    spool = Spool(
        link,
        log_id=log_id,
        database_url=settings.database_url,
        may_keep=may_be_queued,
        is_settled=lambda: not writer.queued,
        on_appended=on_appended,
        settle=epochs.settle,
    )
    writer = Writer(settings.database_url, on_appended, spool=spool, settle=epochs.settle)
    blocks = Blocks(pool, writer, switchboard, on_parted=on_parted)
    typing = Typing(switchboard, memberships, blocks, on_typing)
    presence = Presence(
        pool=pool,
        link=link,
        switchboard=switchboard,
        log_id=log_id,
        process_id=process_id,
        grace_s=settings.presence_grace_s,
    )
    offline = Offline(
        link,
        memberships,
        is_here=switchboard.is_here,
        holds=presence.holds,
        seems_online=presence.seems_online,
        epoch_base=lambda: epochs.present.base,
    )
    tokens = Tokens(settings.jwt_keys, time.time)
    throttle = Throttle(time.monotonic)
    logins = Logins(pool, tokens, on_ended=on_login_ended)
    tailer = Tailer(
        settings.database_url,
        epochs=epochs,
        switchboard=switchboard,
        memberships=memberships,
        origin_of=writer.origins.of,
        on_changed=announcements.changed,
        on_logins_ended=on_logins_ended,
        bus_is_up=lambda: link.hears,
        on_passed=on_passed,
        on_handed_on=offline.handed_on,
    )
    accounts = Accounts(pool=pool, writer=writer, passwords=passwords, tokens=tokens, logins=logins, throttle=throttle)
    profiles = Profiles(
        pool=pool,
        writer=writer,
        accounts=accounts,
        switchboard=switchboard,
        on_changed=on_profile_changed,
        on_choosing=presence.choosing,
        on_chosen=presence.chosen,
        online_among=presence.online_soon,
        settle_reads=receipts.settled,
    )
    return House(
        settings=settings,
        origins=Origins(settings.public_url, settings.allowed_origins),
        codec=Codec(),
        pool=pool,
        link=link,
        bus=bus,
        switchboard=switchboard,
        memberships=memberships,
        sessions=Sessions(link, process_id),
        writer=writer,
        spool=spool,
        tailer=tailer,
        epochs=epochs,
        offline=offline,
        catchup=CatchUp(pool, tailer, offline, turns),
        receipts=receipts,
        connects=Connects(pool, bus, receipts, blocks),
        announcements=announcements,
        logins=logins,
        accounts=accounts,
        people=People(pool),
        conversations=Conversations(pool, writer, on_made),
        history=History(pool),
        search=Search(pool),
        indexer=Indexer(settings.database_url),
        deletion=Deletion(writer),
        friends=Friends(pool, writer, presence.of),
        blocks=blocks,
        typing=typing,
        profiles=profiles,
        exports=Exports(settings.database_url),
        presence=presence,
        open_sends=Turns(OPEN_SENDS),
        turns=turns,
        openings=Allowance(most=OPENINGS_SAVED, per_s=OPENINGS_PER_S, clock=trio.current_time),
        farewell=Farewell(
            pool=pool, writer=writer, accounts=accounts, logins=logins, on_pair_changed=on_made, on_forgotten=offline.forget
        ),
    )
