"""Appending to the log over one connection: what the writer and the spool's drain have in common.

Rule: every entry has its key before its first try (a text the client's own, an entry of the server's one derived from its verb's),
so whatever is tried again finds its first copy; and what no database would take stands alone before it is given up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final
from uuid import UUID, uuid5

import msgspec

from uim.errors import STATUS_OF, UIMError
from uim.model.message import Draft, Entry, Posted
from uim.store import messages
from uim.store.messages import Outcome
from uim.store.postgres import BY_INDEX, Connection, DatabaseError, says_away

MAX_BATCH: Final = 256
# The plans are made once, perhaps while the tables are still empty. A statement that takes longer is given up by the server before
# we give up the server.
PLANS: Final = {
    **BY_INDEX,
    "plan_cache_mode": "force_generic_plan",
    "statement_timeout": "3000",
}


class Append:
    """Appends the server's own entries inside one verb's transaction; each gets a key derived from the verb's."""

    def __init__(self, tx: Connection, key: UUID) -> None:
        self._tx = tx
        self._key = key
        self.entries: list[Entry] = []

    def next_key(self) -> UUID:
        """The key of the verb's next entry, for one that a function in schema/ appends; put that into `entries`."""
        return entry_key(self._key, len(self.entries))

    async def __call__(self, *, conversation_id: UUID, sender_id: UUID, message_type: str, event: Mapping[str, object]) -> Entry:
        entry = await messages.append_own(
            self._tx,
            conversation_id=conversation_id,
            sender_id=sender_id,
            server_key=self.next_key(),
            message_type=message_type,
            metadata=msgspec.json.encode(event).decode(),
        )
        self.entries.append(entry)
        return entry


def entry_key(key: UUID, number: int) -> UUID:
    """The key of a verb's entry, the same at every try."""
    return uuid5(key, str(number))


async def append_apart(
    append: Callable[[Sequence[Draft]], Awaitable[list[Outcome]]], drafts: Sequence[Draft]
) -> list[Outcome | DatabaseError]:
    """Append a batch; when one entry makes the whole call fail, halve until it stands alone, with its error as its outcome.

    Raises ConnectionLost where another try may succeed: then it is not known what has been appended, and the same drafts
    are tried again.
    """
    try:
        return list(await append(drafts))
    except DatabaseError as error:
        if says_away(error):
            raise
        if len(drafts) == 1:
            return [error]
    middle = len(drafts) // 2
    return [*await append_apart(append, drafts[:middle]), *await append_apart(append, drafts[middle:])]


def inserted(
    drafts: Sequence[Draft], outcomes: Sequence[Outcome | DatabaseError], accepted_at: Iterable[float | None] = repeat(None)
) -> list[Entry]:
    """The entries that this very call has appended, in log order; a repeat's first copy reaches the tailer from the log."""
    entries = []
    for draft, outcome, at in zip(drafts, outcomes, accepted_at, strict=False):
        if isinstance(outcome, Outcome) and outcome.verdict == "inserted":
            entry = Entry(outcome.message_id or 0, draft.conversation_id, outcome.seq or 0, draft.sender_id,
                          draft.client_message_id, draft.content, "text", draft.metadata, outcome.created_at)  # type: ignore[arg-type]  # inserted: it has a time  # fmt: skip
            entry.origin = draft.origin
            entry.accepted_at = at
            entries.append(entry)
    entries.sort(key=lambda entry: entry.message_id)
    return entries


def judged(outcome: Outcome) -> Posted | UIMError:
    """What a sender is told: the place of the text, or why it has none."""
    if outcome.verdict in ("inserted", "duplicate"):
        assert outcome.message_id is not None and outcome.seq is not None and outcome.created_at is not None
        return Posted(outcome.message_id, outcome.seq, outcome.created_at, outcome.verdict == "duplicate")
    why = {
        "conflict": "another message was sent under this client_message_id",
        "forbidden": "you can't write to this user",
        "blocked": "unblock first",
        "not_found": "no such conversation",
    }
    code = outcome.verdict if outcome.verdict in STATUS_OF else "internal"
    return UIMError(code, why.get(code, ""))
