"""What stands in the writer's line: texts and verbs, each with those who wait for it.

Rule: an item is answered to the end exactly once, whatever becomes of it; a text that was queued has been told so before.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import trio

from uim.chat.appending import MAX_BATCH, Append
from uim.errors import UIMError
from uim.model.message import Draft, Entry, Posted, Queued
from uim.store.postgres import Connection

T = TypeVar("T")

Answer = Callable[[Posted | Queued | UIMError], None]
# Whose text under which id of their own.
Key = tuple[UUID, str]


class Keeper(Protocol):
    """The spool, as the writer knows it."""

    async def keep(self, drafts: list[Draft]) -> list[str | None] | None:
        """Copy drafts where a kill of this process does not reach them.

        An id for each that is safe now, None for one that may not be kept; None for all while there is no such place.
        """

    def forget(self, spool_ids: list[str], drafts: list[Draft]) -> None:
        """These copies have done their service."""


class Text:
    """A draft in line, and who waits for it. `spool_id`: its copy in the spool."""

    __slots__ = ("answers", "draft", "give_up_at", "spool_id")

    def __init__(self, draft: Draft, answer: Answer, give_up_at: float) -> None:
        self.draft = draft
        self.answers = [answer]
        self.give_up_at = give_up_at
        self.spool_id: str | None = None

    @property
    def key(self) -> Key:
        return self.draft.sender_id, self.draft.client_message_id

    def answer(self, what: Posted | Queued | UIMError) -> None:
        for answer in self.answers:
            answer(what)

    def is_repeated_by(self, draft: Draft) -> bool:
        """Of two with one key."""
        return self.draft.conversation_id == draft.conversation_id and self.draft.content_hash == draft.content_hash


class Origins:
    """The session that has sent a text, until its commit is answered: the tailer may read it from the database first."""

    def __init__(self) -> None:
        self.unanswered: dict[Key, UUID] = {}
        # The same for commits whose answer was lost: what a repeat found in the log. Bounded; a miss costs one extra frame.
        self.found: OrderedDict[int, UUID] = OrderedDict()

    def of(self, entry: Entry) -> UUID | None:
        waiting = self.unanswered.get((entry.sender_id, entry.client_message_id or ""))
        return waiting or self.found.get(entry.message_id)

    def enter(self, draft: Draft) -> None:
        if draft.origin is not None:
            self.unanswered[draft.sender_id, draft.client_message_id] = draft.origin

    def find(self, draft: Draft, message_id: int) -> None:
        """A repeat of it stands there in the log."""
        if draft.origin is not None:
            self.found[message_id] = draft.origin
            if len(self.found) > MAX_BATCH:
                self.found.popitem(last=False)


class Verb(Generic[T]):
    """A verb in line. `result` and `entries` of the first try are kept: an ambiguous commit may have been that one."""

    def __init__(self, act: Callable[[Connection, Append], Awaitable[T]], key: UUID, give_up_at: float) -> None:
        self.act = act
        self.key = key
        self.give_up_at = give_up_at
        self.tried: list[T] = []
        self.done = trio.Event()
        self.is_running = False
        self.result: T | None = None
        self.failure: Exception | None = None

    def succeed(self, result: T) -> None:
        self.result = result
        self.done.set()

    def fail(self, failure: Exception) -> None:
        if not self.done.is_set():
            self.failure = failure
            self.done.set()


Line = deque[Text | Verb[Any]]
