"""What holds in every snapshot of the database, however busy its servers are: the shape of such a rule.

A walk is one table read in steps, by ranges of a key; its `step` makes the rows `e` of one range, and each rule is a condition
on them with a sentence about one. Rule: nothing here depends on what is written behind being there already, and every rule
names the ids that its finding is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uim.model.ids import MAX_MESSAGE_ID

WATERMARKS: Final = "watermarks"
CURSORS: Final = "cursors"
SEARCH: Final = "search"


@dataclass(frozen=True, slots=True)
class Invariant:
    """`name`: what must hold. `broken`: the SQL condition of a row `e` that breaks it; `what`: a sentence about that row.

    `mend`: which mending makes it hold again; None where the row is no derived value, and is left to a person.
    """

    name: str
    broken: str
    what: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Walk:
    """A table in steps of some `rows` by ranges of `key`; `step`: SQL of the CTE `e`, by %(after)s < key <= %(end)s."""

    what: str
    table: str
    key: str
    rows: int
    step: str
    rules: tuple[Invariant, ...]


HEAD: Final = "coalesce((select head.message_id from messages head order by head.message_id desc limit 1), 0)"
HORIZON: Final = "(select log_identity.horizon from log_identity)"
POSITION: Final = "(select search_position.message_id from search_position)"


def in_range(column: str) -> str:
    """Whether a row is in the range of a step."""
    return f"{column} > %(after)s and {column} <= %(end)s"


def in_stay(conversation: str, user: str, entry: str) -> str:
    """Whether an entry lies in a stay."""
    return f"""exists (select from participations s where s.conversation_id = {conversation} and s.user_id = {user}
        and s.joined_message_id <= {entry} and coalesce(s.left_message_id, {MAX_MESSAGE_ID}) >= {entry})"""
