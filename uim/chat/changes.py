"""Whose presence has changed and has yet to be told: the newest change of each person, the longest waiting first.

A change is news until it is told; told from memory, while the database is away, it is owed: it will be told in full. Rule: a
person stands in one of the two lines only, and an older change never comes after a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from uim.model.presence import Choices, State, seen_by_friend, stranger

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Change:
    """A person's newest status. `seen_at`: when they were last here, if they have just left; `chosen`: by a choice of theirs."""

    is_online: bool
    seen_at: datetime | None = None
    chosen: bool = False

    def after(self, older: Change | None) -> Change:
        """This change, in place of an older one that was not told in full."""
        return replace(self, chosen=True) if older is not None and older.chosen else self


@dataclass(frozen=True, slots=True)
class Batch:
    """What was taken out of the two lines to be told in full."""

    news: dict[UUID, Change]
    owed: dict[UUID, Change]

    def all(self) -> dict[UUID, Change]:
        return self.news | self.owed


class Changes:
    """The two lines. Nothing here awaits; whoever fills them looks at `len`, and drops."""

    def __init__(self) -> None:
        self._news: dict[UUID, Change] = {}
        self._owed: dict[UUID, Change] = {}

    def __len__(self) -> int:
        return len(self._news) + len(self._owed)

    def put(self, user_id: UUID, change: Change) -> None:
        self._news[user_id] = change.after(self._owed.pop(user_id, None) or self._news.get(user_id))

    def take(self, at_most: int) -> Batch:
        """Take out what is to be told in full next."""
        news = take_first(self._news, at_most)
        return Batch(news, take_first(self._owed, at_most - len(news)))

    def put_back(self, batch: Batch) -> None:
        """It could not be told; where something newer waits, that stays."""
        for line, taken in ((self._news, batch.news), (self._owed, batch.owed)):
            for user_id, change in taken.items():
                newer = self._news.get(user_id)
                if newer is None:
                    line[user_id] = change
                else:
                    self._news[user_id] = newer.after(change)

    def owe(self, at_most: int) -> dict[UUID, Change]:
        """The longest waiting news, from now on owed."""
        news = take_first(self._news, at_most)
        self._owed.update(news)
        return news

    def drop(self) -> None:
        """Forget what was told from memory or, if there is nothing of that, the news."""
        (self._owed or self._news).clear()


def take_first(waiting: dict[Key, Value], at_most: int) -> dict[Key, Value]:
    """Take out the longest waiting."""
    taken = {key: waiting[key] for key, _ in zip(waiting, range(at_most), strict=False)}
    for key in taken:
        del waiting[key]
    return taken


def hides(choices: Choices | None) -> bool:
    """Whether nobody is told that this person came or went: even the same state once more would tell it."""
    return choices is not None and choices.availability == "invisible"


def state_after(user_id: UUID, choices: Choices | None, change: Change) -> State:
    """What a friend is told of it. When somebody was last seen may not be stored yet, but is known from their leaving."""
    if choices is None:
        return stranger(user_id)
    if change.seen_at is not None and not hides(choices):
        last_seen = change.seen_at if choices.last_seen is None else max(choices.last_seen, change.seen_at)
        choices = replace(choices, last_seen=last_seen)
    return seen_by_friend(user_id, choices, is_online=change.is_online)
