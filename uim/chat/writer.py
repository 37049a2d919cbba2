"""The log's writer: one task that appends, in line, whatever this process has to say.

Group commit without a timer: it takes what waits (1 to 256 texts), appends it in one call, answers each sender, and by then
more waits. Verbs that change membership stand in the same line and are appended alone, in the transaction that changes their
rows. Rule: "sent" is answered only after the commit; an append is never cancelled in mid-call; when a commit's answer is lost
the same keys are tried again until the database has told what became of them (storage.md §1).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar
from uuid import UUID, uuid5

import msgspec
import trio

from uim.errors import STATUS_OF, UIMError, unavailable
from uim.log import get_logger
from uim.model.message import Draft, Entry, Posted
from uim.store import epochs, messages
from uim.store.postgres import (
    USUAL,
    Connection,
    ConnectionLost,
    DatabaseAway,
    DatabaseError,
    Deadlines,
    connect,
    says_away,
)

T = TypeVar("T")

MAX_BATCH: Final = 256
# 2,048 waiting entries are about 50 ms of work; beyond that a sender is told to come back.
MAX_WAITING: Final = 2_048
# As long as a sender waits for a database that is away, before `unavailable`.
GIVE_UP_AFTER_S: Final = 8.0
# Index reads always: the plans are made once, perhaps while the tables are still empty.
PLANS: Final = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "statement_timeout": "4000",
}

log = get_logger(__name__)

Answer = Callable[[Posted | UIMError], None]


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


class _Text:
    """A draft in line, and who waits for it."""

    __slots__ = ("answer", "draft", "give_up_at")

    def __init__(self, draft: Draft, answer: Answer, give_up_at: float) -> None:
        self.draft = draft
        self.answer = answer
        self.give_up_at = give_up_at


class _Verb(Generic[T]):
    """A verb in line. `result` and `entries` of the first try are kept: an ambiguous commit may have been that one."""

    def __init__(self, act: Callable[[Connection, Append], Awaitable[T]], key: UUID, give_up_at: float) -> None:
        self.act = act
        self.key = key
        self.give_up_at = give_up_at
        self.tried: list[T] = []
        self.done = trio.Event()
        self.result: T | None = None
        self.failure: Exception | None = None

    def succeed(self, result: T) -> None:
        self.result = result
        self.done.set()

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self.done.set()


class Writer:
    """One a process. `run` is its task; `submit`, `post` and `do` are for everybody else.

    `on_appended(entries)` is called, in log order and without awaiting, with what this process has committed.
    """

    def __init__(
        self,
        database_url: str,
        on_appended: Callable[[list[Entry]], None],
        *,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        deadlines: Deadlines = USUAL,
    ) -> None:
        self._url = database_url
        self._give_up_after_s = give_up_after_s
        self._deadlines = deadlines
        self._on_appended = on_appended
        self._line: deque[_Text | _Verb[Any]] = deque()
        self._wake = trio.Event()
        self._tx: Connection | None = None
        self._closing = False
        self.drained = trio.Event()
        # For metrics: plain numbers, read at a scrape.
        self.appended = self.appends = self.dead_letters = 0
        self.epoch = epochs.Epoch(0, 0, 0)
        # The session of each text whose commit is not yet answered: the tailer may read it from the database first.
        self._origins: dict[tuple[UUID, str], UUID] = {}
        # The same for commits whose answer was lost: what a repeat found in the log. Bounded; a miss costs one extra frame.
        self._found: OrderedDict[int, UUID] = OrderedDict()

    # -- for senders ------------------------------------------------------------------------------------------------------

    def submit(self, draft: Draft, answer: Answer) -> None:
        """Put a text in line; `answer` is called once, from the writer's task, with its place or its refusal.

        Raises UIMError `unavailable` when the line is full or the process is going down.
        """
        self._enter(_Text(draft, answer, trio.current_time() + self._give_up_after_s))
        if draft.origin is not None:
            self._origins[draft.sender_id, draft.client_message_id] = draft.origin

    async def post(self, draft: Draft) -> Posted:
        """Append a text and wait for the commit. Raises its refusal. Cancelled: the text may still be appended."""
        came = trio.Event()
        answers: list[Posted | UIMError] = []

        def answer(what: Posted | UIMError) -> None:
            answers.append(what)
            came.set()

        self.submit(draft, answer)
        await came.wait()
        if isinstance(answers[0], UIMError):
            raise answers[0]
        return answers[0]

    async def do(self, act: Callable[[Connection, Append], Awaitable[T]], *, key: UUID) -> T:
        """Run a verb in one transaction of its own, in line with the texts, the log lock already held.

        `key` is fixed before the first try; `act` may be run more than once, so it has no effect outside its transaction.
        Raises what act raises. Cancelled: it may still happen.
        """
        verb = _Verb(act, key, trio.current_time() + self._give_up_after_s)
        self._enter(verb)
        await verb.done.wait()
        if verb.failure is not None:
            raise verb.failure
        return verb.result  # type: ignore[return-value]  # set whenever failure is not

    def origin_of(self, entry: Entry) -> UUID | None:
        """The session that sent this entry, while its commit is being answered."""
        waiting = self._origins.get((entry.sender_id, entry.client_message_id or ""))
        return waiting or self._found.get(entry.message_id)

    def _enter(self, item: _Text | _Verb[Any]) -> None:
        if self._closing or len(self._line) >= MAX_WAITING:
            raise unavailable("the server is going down" if self._closing else "too many messages at once", retry_after_s=1.0)
        self._line.append(item)
        self._wake.set()

    # -- the task ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Append until cancelled or drained. Started once the database has been reached and the epoch is known."""
        while self._tx is None:
            await self._reconnect()
        task_status.started()
        while not (self._closing and not self._line):
            if not self._line:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            # A started append is finished whatever happens outside: its outcome must be known.
            with trio.CancelScope(shield=True):
                await self._step()
        self.drained.set()
        if self._tx is not None:
            self._tx.pgconn.finish()

    def close(self) -> None:
        """Take no more; `run` returns once what waits is answered."""
        self._closing = True
        self._wake.set()

    async def _step(self) -> None:
        item = self._line[0]
        if isinstance(item, _Verb):
            self._line.popleft()
            await self._run_verb(item)
            return
        batch: list[_Text] = []
        while self._line and len(batch) < MAX_BATCH and isinstance(text := self._line[0], _Text):
            batch.append(text)
            self._line.popleft()
        await self._append(batch)

    async def _append(self, batch: list[_Text]) -> None:
        """Append a batch; when one entry makes the whole call fail, halve until it stands alone."""
        if self._is_too_late(min(text.give_up_at for text in batch)):
            self._refuse(batch)
            return
        while True:
            try:
                outcomes = await messages.append(await self._connected(), [text.draft for text in batch])
            except DatabaseError as error:
                if not says_away(error):
                    await self._halve(batch, error)
                    return
                if not await self._may_repeat(min(text.give_up_at for text in batch), error):
                    self._refuse(batch)
                    return
            else:
                self._tell(batch, outcomes)
                return

    async def _halve(self, batch: list[_Text], poison: DatabaseError) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._append(batch[:middle])
            await self._append(batch[middle:])
            return
        draft = batch[0].draft
        self.dead_letters += 1
        log.error("dead letter", reason=str(poison), conversation_id=str(draft.conversation_id), user_id=str(draft.sender_id),
                  client_message_id=draft.client_message_id)  # fmt: skip
        self._answer(batch[0], UIMError("internal", "this message could not be stored"))

    def _tell(self, batch: list[_Text], outcomes: list[messages.Outcome]) -> None:
        """Hand on what was inserted, then answer everybody: no await, so nobody sees half of it."""
        entries = []
        for text, outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict == "inserted":
                draft = text.draft
                entry = Entry(outcome.message_id or 0, draft.conversation_id, outcome.seq or 0, draft.sender_id,
                              draft.client_message_id, draft.content, "text", draft.metadata, outcome.created_at)  # type: ignore[arg-type]  # inserted: it has a time  # fmt: skip
                entry.origin = draft.origin
                entries.append(entry)
        self.appends += 1
        self.appended += len(entries)
        # Only rows reported as inserted by this very call; a repeat's first copy reaches the tailer from the log.
        self._on_appended(sorted(entries, key=lambda entry: entry.message_id))
        for text, outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict == "duplicate" and text.draft.origin is not None and outcome.message_id is not None:
                self._found[outcome.message_id] = text.draft.origin
                if len(self._found) > MAX_BATCH:
                    self._found.popitem(last=False)
            self._answer(text, _judged(outcome))

    def _refuse(self, batch: list[_Text]) -> None:
        for text in batch:
            self._answer(text, unavailable())

    def _answer(self, text: _Text, what: Posted | UIMError) -> None:
        self._origins.pop((text.draft.sender_id, text.draft.client_message_id), None)
        text.answer(what)

    async def _run_verb(self, verb: _Verb[Any]) -> None:
        if self._is_too_late(verb.give_up_at):
            verb.fail(unavailable())
            return
        while True:
            try:
                tx = await self._connected()
                append = Append(tx, verb.key)
                async with tx.transaction():
                    await messages.lock_log(tx)
                    if verb.tried and await messages.has_server_key(tx, entry_key(verb.key, 0)):
                        verb.succeed(verb.tried[-1])
                        return
                    result = await verb.act(tx, append)
                    verb.tried.append(result)
            except UIMError as refusal:
                verb.fail(refusal)
                return
            except Exception as error:
                if not says_away(error):
                    # The verb is its caller's code: the caller's own boundary reports it; the line goes on.
                    verb.fail(error)
                    return
                if not await self._may_repeat(verb.give_up_at, error):
                    verb.fail(unavailable())
                    return
            else:
                self._on_appended(append.entries)
                verb.succeed(result)
                return

    # -- the connection ---------------------------------------------------------------------------------------------------

    async def _connected(self) -> Connection:
        if self._tx is None or self._tx.closed:
            await self._reconnect()
        if self._tx is None:
            raise DatabaseAway("the writer has no connection")
        return self._tx

    async def _reconnect(self) -> None:
        """One try. A new connection first asks whether this is still the same log, and begins an epoch if not."""
        self._tx = None
        try:
            tx = await connect(self._url, name="writer", settings=PLANS, deadlines=self._deadlines)
            self.epoch = await epochs.settle(tx)
            self._tx = tx
        except ConnectionLost as lost:
            log.warning("the writer cannot reach the database", error=str(lost).splitlines()[0])
            await trio.sleep(0.2)

    def _is_too_late(self, give_up_at: float) -> bool:
        """Whether it is not worth a first try: it has waited its time, and there is no connection to try it on.

        Without this each of those in line would cost a time-out of its own, one after the other.
        """
        return (self._tx is None or self._tx.closed) and trio.current_time() >= give_up_at

    async def _may_repeat(self, give_up_at: float, lost: Exception) -> bool:
        """After a lost connection: whether there is time for another try with the same keys."""
        log.warning("the writer lost its connection", error=str(lost).splitlines()[0])
        if self._tx is not None:
            self._tx.pgconn.finish()
        await trio.sleep(0.02)
        return trio.current_time() < give_up_at

    @property
    def waiting(self) -> int:
        return len(self._line)


def _judged(outcome: messages.Outcome) -> Posted | UIMError:
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
