"""What the database holds, as plain dicts, and what each of our statements does to it: schema/*.sql said once more in Python.

A `Tables` is one committed state; a transaction works on a copy. Rule: nothing here waits, fails or knows of Trio, and each
method means what the statement of the same name in uim/store means. test_contract.py holds both to that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from uim.model.conversation import UNREAD_LIMIT, ConversationView, Participant, Room, Seat
from uim.model.ids import rfc3339
from uim.model.message import Draft, Entry
from uim.store.cursors import Move, Opened, Opener, Overtaken
from uim.store.messages import Outcome, Page, Stays
from uim.store.receipts import Advance
from uim.store.words import Read
from uim.wire.frames import message_object

END = 9007199254740991


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of the log."""

    message_id: int
    conversation_id: UUID
    seq: int
    sender_id: UUID
    client_message_id: str | None
    server_key: UUID | None
    content_hash: bytes | None
    content: str
    message_type: str
    metadata: str | None
    created_at: datetime
    deleted: bool = False

    def entry(self) -> Entry:
        return Entry(self.message_id, self.conversation_id, self.seq, self.sender_id, self.client_message_id, self.content,
                     self.message_type, self.metadata, self.created_at, self.deleted)  # fmt: skip


@dataclass(frozen=True, slots=True)
class User:
    username: str
    deleted: bool = False
    read_receipts: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    type: str
    name: str | None
    created_by: UUID
    client_conversation_id: UUID | None
    pair: tuple[UUID, ...] | None
    created_at: datetime
    updated_at: datetime
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A row of conversation_participants."""

    role: str
    joined_at: datetime
    is_out: bool = False
    delivered: int = 0
    read: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    connection_no: int
    at: int
    connected_at: datetime
    session_id: UUID | None = None
    came_at: datetime | None = None


@dataclass
class Tables:
    """One state. `now` is given by whoever makes a statement."""

    log: dict[int, Row] = field(default_factory=dict)
    by_conversation: dict[UUID, tuple[int, ...]] = field(default_factory=dict)
    by_client_id: dict[tuple[UUID, str], int] = field(default_factory=dict)
    by_server_key: dict[UUID, int] = field(default_factory=dict)
    users: dict[UUID, User] = field(default_factory=dict)
    conversations: dict[UUID, Conversation] = field(default_factory=dict)
    places: dict[tuple[UUID, UUID], Place] = field(default_factory=dict)
    stays: dict[tuple[UUID, UUID], tuple[tuple[int, int | None], ...]] = field(default_factory=dict)
    cursors: dict[tuple[UUID, str], Cursor] = field(default_factory=dict)
    receipts: dict[tuple[UUID, UUID, str], tuple[tuple[int, int], ...]] = field(default_factory=dict)
    blocks: dict[tuple[UUID, UUID], None] = field(default_factory=dict)
    logins: dict[UUID, tuple[UUID, str]] = field(default_factory=dict)
    words: dict[tuple[UUID, int], tuple[datetime, bytes]] = field(default_factory=dict)
    last_id: int = 0
    last_at: datetime | None = None

    def copy(self) -> Tables:
        return Tables(
            dict(self.log), dict(self.by_conversation), dict(self.by_client_id), dict(self.by_server_key), dict(self.users),
            dict(self.conversations), dict(self.places), dict(self.stays), dict(self.cursors), dict(self.receipts),
            dict(self.blocks), dict(self.logins), dict(self.words), self.last_id, self.last_at,
        )  # fmt: skip

    # -- the log ----------------------------------------------------------------------------------------------------------

    def append(self, drafts: Sequence[Draft], now: datetime) -> list[Outcome]:
        at = max(self.last_at or now, now)
        judged = [self._judge(draft) for draft in drafts]
        firsts: dict[tuple[UUID, str], Row] = {}
        outcomes = []
        for draft, known in zip(drafts, judged, strict=True):
            if known is not None:
                outcomes.append(known)
                continue
            key = (draft.sender_id, draft.client_message_id)
            if key in firsts:
                first = firsts[key]
                same = first.conversation_id == draft.conversation_id and first.content_hash == draft.content_hash
                outcomes.append(Outcome("duplicate" if same else "conflict", first.message_id, first.seq, at))
                continue
            firsts[key] = row = self._insert(
                draft.conversation_id, draft.sender_id, at, client_message_id=draft.client_message_id,
                content_hash=draft.content_hash, content=draft.content, message_type="text", metadata=draft.metadata,
            )  # fmt: skip
            outcomes.append(Outcome("inserted", row.message_id, row.seq, at))
        return outcomes

    def _judge(self, draft: Draft) -> Outcome | None:
        """The verdict on a draft that is not to be inserted."""
        known_id = self.by_client_id.get((draft.sender_id, draft.client_message_id))
        if known_id is not None:
            known = self.log[known_id]
            same = known.conversation_id == draft.conversation_id and known.content_hash == draft.content_hash
            return Outcome("duplicate" if same else "conflict", known_id, known.seq, known.created_at)
        why = self._refusal(draft)
        return None if why is None else Outcome(why, None, None, None)

    def _refusal(self, draft: Draft) -> str | None:
        conversation = self.conversations.get(draft.conversation_id)
        place = self.places.get((draft.conversation_id, draft.sender_id))
        if conversation is None or place is None or place.is_out or conversation.deleted or conversation.type == "self":
            return "not_found"
        if self.users[draft.sender_id].deleted:
            return "forbidden"
        if conversation.type == "group":
            return None
        assert conversation.pair is not None
        other = next(user for user in conversation.pair if user != draft.sender_id)
        if (draft.sender_id, other) in self.blocks:
            return "blocked"
        if (other, draft.sender_id) in self.blocks or self.users[other].deleted:
            return "forbidden"
        return None

    def append_own(
        self, *, conversation_id: UUID, sender_id: UUID, server_key: UUID, message_type: str, metadata: str, now: datetime
    ) -> Entry:
        at = max(self.last_at or now, now)
        row = self._insert(conversation_id, sender_id, at, server_key=server_key, message_type=message_type, metadata=metadata)
        return row.entry()

    def _insert(self, conversation_id: UUID, sender_id: UUID, at: datetime, **columns: Any) -> Row:
        ids = self.by_conversation.get(conversation_id, ())
        seq = self.log[ids[-1]].seq + 1 if ids else 1
        given: dict[str, Any] = {"client_message_id": None, "server_key": None, "content_hash": None, "content": "", **columns}
        row = Row(message_id=self.last_id + 1, conversation_id=conversation_id, seq=seq, sender_id=sender_id, created_at=at, **given)
        self.log[row.message_id] = row
        self.by_conversation[conversation_id] = (*ids, row.message_id)
        if row.client_message_id is not None:
            self.by_client_id[sender_id, row.client_message_id] = row.message_id
        if row.server_key is not None:
            assert row.server_key not in self.by_server_key, "unique violation: server_key"
            self.by_server_key[row.server_key] = row.message_id
        self.last_id, self.last_at = row.message_id, at
        return row

    def entries_after(self, after: int, limit: int) -> list[Entry]:
        return [self.log[at].entry() for at in range(after + 1, min(self.last_id, after + limit) + 1) if at in self.log]

    def visible(self, user_id: UUID, after: int, up_to: int = END) -> list[int]:
        """The ids in (after, up_to] that lie in a stay of that user, in order."""
        found = [
            at
            for conversation_id, stays in self._stays_of_user(user_id)
            for joined, left in stays
            if left is None or left > after
            for at in _between(self.by_conversation.get(conversation_id, ()), max(after + 1, joined), min(up_to, left or END))
        ]
        return sorted(found)

    def _stays_of_user(self, user_id: UUID) -> list[tuple[UUID, tuple[tuple[int, int | None], ...]]]:
        return [(conversation_id, stays) for (conversation_id, member), stays in self.stays.items() if member == user_id]

    def page_after(self, *, user_id: UUID, after: int, limit: int) -> Page:
        entries = [self.log[at].entry() for at in self.visible(user_id, after)[:limit]]
        full = len(entries) >= limit
        return Page(entries, entries[-1].message_id if full else max(self.last_id, after), full)

    def count_after(self, *, user_id: UUID, after: int, limit: int) -> int:
        return min(limit, len(self.visible(user_id, after)))

    def stays_of(self, conversation_ids: Iterable[UUID]) -> dict[UUID, Stays]:
        asked = set(conversation_ids)
        found: dict[UUID, Stays] = {}
        for (conversation_id, user_id), stays in self.stays.items():
            if conversation_id in asked:
                found.setdefault(conversation_id, {})[user_id] = list(stays)
        return found

    # -- cursors and receipts -----------------------------------------------------------------------------------------------

    def furthest(self, user_id: UUID) -> int:
        return max((cursor.at for (owner, _), cursor in self.cursors.items() if owner == user_id), default=0)

    def open_cursor(
        self, *, user_id: UUID, device_id: str, asked: int | None, opener: Opener | None, others: int, now: datetime
    ) -> Opened | Overtaken | None:
        """`others`: how far the user's devices had come before this statement."""
        if user_id not in self.users or self.users[user_id].deleted:
            return None
        wish = None if asked is None else min(asked, self.last_id)
        known = self.cursors.get((user_id, device_id))
        session_id, waited_s = (opener.session_id, opener.waited_s) if opener is not None else (None, None)
        came_at = now - timedelta(seconds=waited_s or 0)
        if known is None:
            cursor = Cursor(1, others if wish is None else wish, now, session_id, came_at)
        else:
            replaced = opener.replaced if opener is not None else ()
            is_own = session_id is None or known.session_id == session_id or known.session_id in replaced
            if not is_own and (waited_s is None or (known.came_at is not None and known.came_at > came_at)):
                return Overtaken()
            came_at = known.came_at if known.session_id == session_id is not None and known.came_at else came_at
            cursor = Cursor(known.connection_no + 1, known.at if wish is None else wish, now, session_id, came_at)
        self.cursors[user_id, device_id] = cursor
        return Opened(cursor.connection_no, cursor.at, known.at if known is not None else others, self.last_id)

    def move(self, moves: Sequence[Move]) -> set[tuple[UUID, str]]:
        missed = set()
        for move in moves:
            device = (move.user_id, move.device_id)
            cursor = self.cursors.get(device)
            if cursor is not None and cursor.connection_no == move.connection_no:
                self.cursors[device] = replace(cursor, at=max(cursor.at, move.message_id))
            elif cursor is not None and cursor.connection_no > move.connection_no:
                missed.add(device)
        return missed

    def connected_since(self, since: datetime) -> list[tuple[UUID, str, int]]:
        return [
            (*device, cursor.connection_no)
            for device, cursor in self.cursors.items()
            if cursor.connected_at > since and cursor.connection_no > 1
        ]

    def newest_in_stays(self, conversation_id: UUID, user_id: UUID, up_to: int) -> int | None:
        ids = self.by_conversation.get(conversation_id, ())
        stays = self.stays.get((conversation_id, user_id), ())
        return max((at for joined, left in stays for at in _between(ids, joined, min(up_to, left or up_to))), default=None)

    def newest_between(self, *, user_id: UUID, after: int, up_to: int) -> dict[UUID, int]:
        found: dict[UUID, int] = {}
        for at in self.visible(user_id, after, up_to):
            found[self.log[at].conversation_id] = at
        return found

    def advance(self, wanted: Mapping[tuple[UUID, UUID], tuple[int, int]], now: datetime) -> list[Advance]:
        advances = []
        for (conversation_id, user_id), (delivered_to, read_to) in wanted.items():
            place = self.places.get((conversation_id, user_id))
            delivered = self.newest_in_stays(conversation_id, user_id, max(delivered_to, read_to)) or 0
            read = self.newest_in_stays(conversation_id, user_id, read_to) or 0
            if place is None or not (delivered > place.delivered or read > place.read):
                continue
            moved = replace(place, delivered=max(place.delivered, delivered), read=max(place.read, read))
            self.places[conversation_id, user_id] = moved
            advances += self._intervals(conversation_id, user_id, "delivered", place.delivered, delivered, True, now)
            shows_reads = self.users[user_id].read_receipts
            advances += self._intervals(conversation_id, user_id, "read", place.read, read, shows_reads, now)
        return advances

    def _intervals(
        self, conversation_id: UUID, user_id: UUID, kind: str, was: int, reached: int, is_told: bool, now: datetime
    ) -> list[Advance]:
        pair = self.conversations[conversation_id].pair
        told = is_told and not (pair is not None and (pair in self.blocks or pair[::-1] in self.blocks))
        found = []
        for joined, left in self.stays.get((conversation_id, user_id), ()):
            if reached <= was or joined > reached or (left or reached) <= was:
                continue
            after, up_to = max(was, joined - 1), min(reached, left or reached)
            senders = self._senders_told(conversation_id, user_id, kind, after, up_to) if told else []
            if told:
                key = (conversation_id, user_id, kind)
                if all(known[1] != up_to for known in self.receipts.get(key, ())):
                    self.receipts[key] = (*self.receipts.get(key, ()), (after, up_to))
            found.append(Advance(conversation_id, user_id, kind, after, up_to, now, senders))
        return found

    def _senders_told(self, conversation_id: UUID, user_id: UUID, kind: str, after: int, up_to: int) -> list[UUID]:
        senders: dict[UUID, None] = {}
        for at in _between(self.by_conversation.get(conversation_id, ()), after + 1, up_to):
            row = self.log[at]
            place = self.places.get((conversation_id, row.sender_id))
            may_know = kind == "delivered" or self.users[row.sender_id].read_receipts
            if row.message_type == "text" and row.sender_id != user_id and place is not None and not place.is_out and may_know:
                senders[row.sender_id] = None
        return list(senders)

    # -- words of the bus -----------------------------------------------------------------------------------------------------

    def keep_word(self, process_id: UUID, number: int, word: bytes, now: datetime) -> None:
        assert (process_id, number) not in self.words, "unique violation: bus_words"
        self.words[process_id, number] = (now, word)

    def newest_words(self) -> dict[UUID, int]:
        found: dict[UUID, int] = {}
        for process_id, number in self.words:
            found[process_id] = max(number, found.get(process_id, 0))
        return found

    def words_above(self, up_to: Mapping[UUID, int], *, since: datetime, behind: Read | None, limit: int) -> list[Read]:
        after = (behind.said_at, behind.process_id, behind.number) if behind is not None else None
        found = [
            (said_at, process_id, number, word)
            for (process_id, number), (said_at, word) in self.words.items()
            if said_at > since and number > up_to.get(process_id, 0) and (after is None or (said_at, process_id, number) > after)
        ]
        return [Read(*each) for each in sorted(found)[:limit]]

    def forget_words(self, before: datetime) -> None:
        for key in [key for key, (said_at, _) in self.words.items() if said_at < before]:
            del self.words[key]

    # -- conversations ------------------------------------------------------------------------------------------------------

    def unread(self, *, user_id: UUID, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        found = {}
        for conversation_id in conversation_ids:
            place = self.places.get((conversation_id, user_id))
            if place is not None and not place.is_out:
                waiting = [
                    at
                    for joined, left in self.stays.get((conversation_id, user_id), ())
                    for at in _between(self.by_conversation.get(conversation_id, ()), max(joined, place.read + 1), left or END)
                    if self.log[at].message_type == "text" and self.log[at].sender_id != user_id and not self.log[at].deleted
                ]
                found[conversation_id] = min(UNREAD_LIMIT, len(waiting))
        return found

    def is_member(self, *, user_id: UUID, conversation_id: UUID) -> bool:
        conversation = self.conversations.get(conversation_id)
        place = self.places.get((conversation_id, user_id))
        return (
            conversation is not None and place is not None
            and not (conversation.deleted or conversation.type == "self" or place.is_out)
        )  # fmt: skip

    def views(self, pairs: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], ConversationView]:
        return {
            (conversation_id, user_id): self._view(conversation_id, user_id)
            for conversation_id, user_id in pairs
            if self.is_member(user_id=user_id, conversation_id=conversation_id)
        }

    def _view(self, conversation_id: UUID, user_id: UUID) -> ConversationView:
        conversation = self.conversations[conversation_id]
        own = self.places[conversation_id, user_id]
        joined = self.stays[conversation_id, user_id][-1][0]
        ids = _between(self.by_conversation.get(conversation_id, ()), joined, END)
        last = next((self.log[at].entry() for at in reversed(ids) if self.log[at].message_type != "deletion"), None)
        return ConversationView(
            conversation_id=conversation_id,
            type=conversation.type,
            name=conversation.name,
            created_by=conversation.created_by,
            created_at=rfc3339(conversation.created_at),
            updated_at=rfc3339(conversation.updated_at),
            role=own.role,
            participants=self._participants(conversation_id, user_id),
            last_message=None if last is None else _raw(message_object(last, own=last.sender_id == user_id)),
            unread_count=self.unread(user_id=user_id, conversation_ids=[conversation_id])[conversation_id],
            last_read_message_id=own.read,
        )

    def _participants(self, conversation_id: UUID, viewer_id: UUID) -> list[Participant]:
        seated = [(m, p) for (c, m), p in self.places.items() if c == conversation_id and not p.is_out]
        seated.sort(key=lambda each: (each[1].joined_at, each[0]))
        found = []
        for user_id, place in seated:
            told = max((up_to for _, up_to in self.receipts.get((conversation_id, user_id, "read"), ())), default=0)
            shows = self.users[user_id].read_receipts and self.users[viewer_id].read_receipts
            read = place.read if user_id == viewer_id else told if shows else None
            name = self.users[user_id].username
            found.append(Participant(user_id, name, None, None, place.role, rfc3339(place.joined_at), place.delivered, read))
        return found

    def room(self, conversation_id: UUID) -> Room | None:
        conversation = self.conversations.get(conversation_id)
        if conversation is None or conversation.deleted or conversation.type == "self":
            return None
        seats = {m: Seat(m, p.role, p.joined_at) for (c, m), p in self.places.items() if c == conversation_id and not p.is_out}
        return Room(conversation_id, conversation.type, conversation.name, dict(sorted(seats.items())))

    def of_pair(self, one: UUID, other: UUID) -> UUID | None:
        pair = tuple(sorted((one, other)))
        return next((c for c, conversation in self.conversations.items() if conversation.pair == pair), None)

    def made_under(self, *, user_id: UUID, client_conversation_id: UUID) -> UUID | None:
        return next(
            (c for c, made in self.conversations.items()
             if made.created_by == user_id and made.client_conversation_id == client_conversation_id),
            None,
        )  # fmt: skip

    def open_pair(
        self, *, conversation_id: UUID, user_id: UUID, other_id: UUID, client_conversation_id: UUID | None, now: datetime
    ) -> UUID:
        there = self.of_pair(user_id, other_id)
        if there is not None:
            return there
        pair = tuple(sorted((user_id, other_id)))
        self.conversations[conversation_id] = Conversation("one_on_one", None, user_id, client_conversation_id, pair, now, now)
        self.seat(conversation_id, {user_id: ("member", 0), other_id: ("member", 0)}, now)
        return conversation_id

    def insert_group(
        self, *, conversation_id: UUID, user_id: UUID, name: str, client_conversation_id: UUID | None, now: datetime
    ) -> None:
        self.conversations[conversation_id] = Conversation("group", name, user_id, client_conversation_id, None, now, now)

    def seat(self, conversation_id: UUID, stays: Mapping[UUID, tuple[str, int]], now: datetime) -> None:
        for user_id, (role, joined) in sorted(stays.items()):
            place = self.places.get((conversation_id, user_id)) or Place(role, now)
            self.places[conversation_id, user_id] = replace(place, role=role, joined_at=now, is_out=False)
            self.stays[conversation_id, user_id] = (*self.stays.get((conversation_id, user_id), ()), (joined, None))

    def unseat(self, conversation_id: UUID, user_ids: Iterable[UUID], at: int) -> None:
        for user_id in user_ids:
            key = (conversation_id, user_id)
            if key in self.places:
                self.places[key] = replace(self.places[key], is_out=True)
                self.stays[key] = tuple((joined, at if left is None else left) for joined, left in self.stays.get(key, ()))

    def change_conversation(self, conversation_id: UUID, **changed: Any) -> None:
        self.conversations[conversation_id] = replace(self.conversations[conversation_id], **changed)

    def set_role(self, conversation_id: UUID, user_id: UUID, role: str) -> None:
        key = (conversation_id, user_id)
        self.places[key] = replace(self.places[key], role=role)


def _between(ids: Sequence[int], first: int, last: int) -> Sequence[int]:
    return ids[bisect_left(ids, first) : bisect_right(ids, last)]


def _raw(data: bytes) -> Any:
    return msgspec.Raw(data)
