"""Our code, broken on purpose, one rule at a time: what the simulation has to notice.

Each mutation has the name of what it does wrong, the laws of which one must break, and how it is put in. Rule: a mutation that no
longer fits the source fails loudly; one that the simulation no longer notices is a hole in the simulation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch
from uuid import UUID

from tests.simulation import store
from tests.simulation.broker import Link
from tests.simulation.database import Connection, now
from uim.chat import memberships
from uim.chat.catchup import CatchUp
from uim.chat.connects import Connects
from uim.chat.outbox import Outbox
from uim.chat.receipts import Receipts
from uim.chat.ring import Ring
from uim.chat.spool import Spool
from uim.chat.switchboard import Switchboard
from uim.chat.tailer import Tailer
from uim.chat.writer import Writer
from uim.live.session import Session
from uim.store import cursors, messages, offline
from uim.store.cursors import Move, Opening
from uim.store.messages import Outcome, Page


@dataclass(frozen=True)
class Mutation:
    """`first_seed`: of one that few worlds notice, so that those which do not are not run each time."""

    name: str
    laws: frozenset[str]
    put_in: Callable[[], AbstractContextManager[Any]]
    first_seed: int = 0


def edited(owner: Any, method: str, *changes: tuple[str, str]) -> AbstractContextManager[Any]:
    """The method of a class, or the function of a module, with some of its text replaced; each stands in it exactly once."""
    function = getattr(owner, method)
    is_method = inspect.isclass(owner)
    source = "class Mutated:\n" * is_method + inspect.getsource(function)
    for old, new in changes:
        assert source.count(old) == 1, f"{owner.__name__}.{method} no longer has {old!r}: let the mutation follow"
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(source, f"<{owner.__name__}.{method}, mutated>", "exec"), function.__globals__, made)
    return patch.object(owner, method, vars(made["Mutated"])[method] if is_method else made[method])


def keeping(owner: type, method: str, attribute: str) -> AbstractContextManager[Any]:
    """The method, but for one attribute, which stays as it was."""
    function = getattr(owner, method)

    def mutated(self: Any, *args: Any) -> None:
        was = getattr(self, attribute)
        function(self, *args)
        setattr(self, attribute, was)

    return patch.object(owner, method, mutated)


def stood_in(module: Any, **functions: Any) -> AbstractContextManager[Any]:
    """Other stand-ins for functions of the store."""
    return patch.dict(store.STAND_INS[module], functions)


# -- the writer -------------------------------------------------------------------------------------------------------------


@contextmanager
def _acks_before_the_commit() -> Iterator[None]:
    async def append(tx: Connection, drafts: Sequence[Any], meanwhile: Callable[[], None]) -> list[Outcome]:
        """As with synchronous_commit off: the answer is there before the commit, which may fail."""
        outcomes = tx.database.tables.copy().append(drafts, now())
        try:
            await store.append(tx, drafts, meanwhile)
        except Exception:
            if tx.database.chance.random() < 0.5:
                raise
        return outcomes

    with stood_in(messages, append=append):
        yield


@contextmanager
def _repeats_under_another_id() -> Iterator[None]:
    tried: set[str] = set()

    async def append(tx: Connection, drafts: Sequence[Any], meanwhile: Callable[[], None]) -> list[Outcome]:
        keyed = [
            replace(draft, client_message_id=f"{draft.client_message_id}/2") if draft.client_message_id in tried else draft
            for draft in drafts
        ]
        tried.update(draft.client_message_id for draft in drafts)
        return await store.append(tx, keyed, meanwhile)

    with stood_in(messages, append=append):
        yield


# -- reading ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _takes_the_head_from_another_snapshot() -> Iterator[None]:
    async def page_after(tx: Connection, *, user_id: UUID, after: int, limit: int) -> Page:
        page = await store.page_after(tx, user_id=user_id, after=after, limit=limit)
        return page if page.full else Page(page.entries, max(after, await store.head(tx)), False)

    with stood_in(messages, page_after=page_after):
        yield


@contextmanager
def _queues_without_a_disk() -> Iterator[None]:
    async def call_durably(self: Link, *command: Any) -> Any:
        return await self.call(*command)

    with patch.object(Link, "call_durably", call_durably):
        yield


@contextmanager
def _forgets_what_it_keeps() -> Iterator[None]:
    keep = Spool.keep

    async def mutated(self: Spool, drafts: list[Any]) -> list[str | None] | None:
        ids = await keep(self, drafts)
        kept = [(spool_id, draft) for spool_id, draft in zip(ids or [], drafts, strict=False) if spool_id is not None]
        self.forget([spool_id for spool_id, _ in kept], [draft for _, draft in kept])
        return ids

    with patch.object(Spool, "keep", mutated):
        yield


@contextmanager
def _moves_a_replaced_cursor() -> Iterator[None]:
    async def move(tx: Connection, moves: Sequence[Move]) -> set[tuple[UUID, str]]:
        def unfenced(tables: Any) -> set[tuple[UUID, str]]:
            known = [each for each in moves if (each.user_id, each.device_id) in tables.cursors]
            numbers = [tables.cursors[each.user_id, each.device_id].connection_no for each in known]
            return tables.move([replace(each, connection_no=number) for each, number in zip(known, numbers, strict=True)])

        return await tx.change("move", unfenced)

    with stood_in(cursors, move=move):
        yield


@contextmanager
def _lets_the_later_open_win() -> Iterator[None]:
    async def open_cursors(tx: Connection, openings: Sequence[Opening]) -> Any:
        return await store.open_cursors(tx, [replace(opening, opener=None) for opening in openings])

    with stood_in(cursors, open_cursors=open_cursors):
        yield


@contextmanager
def _opens_at_the_head() -> Iterator[None]:
    async def open_cursors(tx: Connection, openings: Sequence[Opening]) -> Any:
        # What least() does with null.
        return await store.open_cursors(tx, openings, lambda tables, asked: tables.last_id if asked is None else asked)

    with stood_in(cursors, open_cursors=open_cursors):
        yield


MUTATIONS = [
    Mutation("the writer acknowledges before the commit", frozenset({"ACK", "LOSS", "LEAK"}), _acks_before_the_commit),
    Mutation("the writer repeats under another client_message_id", frozenset({"ONCE", "ACK"}), _repeats_under_another_id),
    Mutation(
        "the writer takes a lost answer for a commit",
        frozenset({"ACK", "LOSS", "ONCE", "LEAK"}),
        lambda: edited(
            Writer, "_append",
            ("        except ConnectionLost as lost:\n",
             "        except ConnectionLost as lost:\n"
             "            tables = self._tx.database.tables\n"
             "            self._tell(batch, drafts, tables.copy().append(drafts, tables.last_at))\n"
             "            self._lose(lost)\n"
             "            return\n"),
        ),
    ),
    Mutation(
        "the tailer skips a hole",
        frozenset({"GAP", "LOSS"}),
        lambda: edited(
            Tailer, "_step",
            ("            if self._pending and self.position + 1 not in self._pending:\n                await self._read_on()",
             "            if self._pending and self.position + 1 not in self._pending:\n"
             "                self.position = min(self._pending) - 1"),
        ),
    ),
    Mutation(
        "memberships are loaded after the entry is handed on",
        frozenset({"GAP", "LOSS"}),
        lambda: edited(
            Tailer, "_hand_on",
            ("        if unknown and not await self._learn(unknown, batch):\n"
             "            return\n"
             "        self._pass_all(batch)\n",
             "        for entry in batch:\n"
             "            if entry.conversation_id in unknown:\n"
             "                self.position = entry.message_id\n"
             "            else:\n"
             "                self._pass_all([entry])\n"
             "        if unknown:\n"
             "            await self._learn(unknown, batch)\n"),
        ),
    ),
    Mutation(
        "the ring is taken for long enough",
        frozenset({"GAP", "LOSS", "CURSOR"}),
        lambda: edited(Ring, "since", ("if not self or self[0].message_id > position + 1:", "if not self:")),
    ),
    Mutation(
        "going live without a look at the position",
        frozenset({"GAP", "LOSS"}),
        lambda: edited(
            CatchUp, "_push", ("None if batch.full else self._tailer.since(batch.position, outbox.user_id)", "None if batch.full else []")
        ),
    ),
    Mutation(
        "the ring is read without its stays",
        frozenset({"LEAK"}),
        lambda: edited(Ring, "since", ("if membership.sees(user_id, entry.message_id):", "if True:")),
    ),
    Mutation(
        "what the bus does not bring is not looked for",
        frozenset({"LOSS", "STUCK", "GAP"}),
        lambda: edited(Tailer, "_poll", ("if head > self.position and self.position + 1 not in self._pending:", "if False:")),
    ),
    Mutation(
        "a PONG tells where the log is, not where the connection is",
        frozenset({"GAP", "CURSOR"}),
        lambda: edited(Session, "position", (" if self.outbox.live else self.outbox.sent", "")),
    ),
    Mutation(
        "the head comes from another snapshot than the page",
        frozenset({"GAP", "CURSOR", "ORDER"}),
        _takes_the_head_from_another_snapshot,
    ),
    Mutation(
        "a live connection takes ids that it was sent already",
        frozenset({"ORDER"}),
        lambda: edited(Outbox, "offer", (" or entry.message_id <= self.sent:", ":")),
    ),
    Mutation(
        "what a user's other device has said is taken for this one's own",
        frozenset({"GAP", "CURSOR", "LOSS"}),
        lambda: edited(Outbox, "offer", ("if entry.origin == self.session_id:", "if entry.sender_id == self.user_id:")),
    ),
    Mutation(
        "a full outbox drops an entry",
        frozenset({"GAP", "LOSS", "CURSOR"}),
        lambda: edited(Outbox, "offer", ("            self.fall_back()\n", "            self.sent = entry.message_id\n")),
    ),
    Mutation(
        "an outbox without a bound",
        frozenset({"BOUND"}),
        lambda: edited(Outbox, "offer", ("if self.size > MAX_BYTES or len(self.unconfirmed) >= MAX_UNCONFIRMED:", "if False:")),
    ),
    Mutation(
        "a resend goes on from what was sent",
        frozenset({"AGAIN", "STUCK", "MARK"}),
        lambda: keeping(Outbox, "send_again", "sent"),
    ),
    Mutation(
        "SYNC_REQUEST keeps what was confirmed before",
        frozenset({"GAP", "ORDER", "LOSS"}),
        lambda: keeping(Outbox, "start_at", "confirmed"),
    ),
    Mutation(
        "a batch whose answer was lost goes to the end of the line",
        frozenset({"ORDER"}),
        lambda: edited(Writer, "_append", ("line.extendleft(reversed(batch))", "line.extend(batch)")),
    ),
    Mutation("queued is answered before it is on disk", frozenset({"LOSS"}), _queues_without_a_disk),
    Mutation("the spool forgets what is not yet committed", frozenset({"LOSS", "ORDER"}), _forgets_what_it_keeps, first_seed=180),
    Mutation(
        "after an outage what came later is appended first",
        frozenset({"ORDER"}),
        lambda: edited(Writer, "_turn", ("line = self._kept or self._line", "line = self._line or self._kept")),
    ),
    Mutation(
        "a page of the offline queue with a hole in it",
        frozenset({"GAP", "CURSOR", "MARK"}),
        lambda: edited(offline, "chain", ("if elements[at].after > position or len(page) >= limit:", "if len(page) >= limit:")),
    ),
    Mutation(
        "who leaves is still told",
        frozenset({"LEAK"}),
        lambda: patch.object(memberships, "LEAVES", frozenset()),
    ),
    Mutation(
        "who joins is not told",
        frozenset({"GAP", "CURSOR"}),
        lambda: patch.object(memberships, "JOINS", frozenset()),
    ),
    Mutation(
        "what a connect or a skip passes is not delivered",
        frozenset({"MARK"}),
        lambda: edited(Connects, "_deliver_passed", ("if not spans:", "if True:")),
    ),
    Mutation(
        "what could not be stored in an outage is forgotten",
        frozenset({"MARK", "STUCK"}),
        lambda: edited(Receipts, "flush", ("            self._keep(marks, moves)\n", "            self._keep({}, moves)\n")),
    ),
    Mutation(
        "a cursor is stored before its receipts",
        frozenset({"MARK", "STUCK"}),
        lambda: edited(
            Receipts, "flush",
            ("            await self._store(marks)\n", "            await self._move(moves)\n            await self._store(marks)\n"),
        ),
    ),
    Mutation(
        "a cursor is stored past what is confirmed",
        frozenset({"CURSOR", "MARK"}),
        lambda: edited(Receipts, "confirmed", ("self.keep_cursor(outbox, message_id)", "self.keep_cursor(outbox, outbox.sent)")),
    ),
    Mutation("a replaced connection still moves the cursor", frozenset({"CURSOR"}), _moves_a_replaced_cursor),
    Mutation(
        "a connection that was replaced in another process lives on",
        frozenset({"NEWEST"}),
        lambda: edited(Switchboard, "cut_older", ("0 < outbox.connection_no < connection_no", "False")),
        first_seed=180,
    ),
    Mutation("a connect that comes too late opens all the same", frozenset({"NEWEST", "CURSOR"}), _lets_the_later_open_win),
    Mutation("a device without a position starts at the head", frozenset({"CURSOR", "MARK", "LOSS"}), _opens_at_the_head),
]  # fmt: skip
