"""The log's writer: one task that appends, in line, whatever this process has to say.

Group commit without a timer: it takes what waits (1 to 256 texts), appends it in one call, answers each sender, and by then
more waits. Verbs that change membership stand in the same line and are appended alone, in the transaction that changes their
rows. Rule: "sent" is answered only after the commit; an append is never cancelled in mid-call; when a commit's answer is lost
the same keys are tried again until the database has told what became of them (storage.md §1). While the database is away the
line stays in its order: texts are copied into the spool and answered "queued", and appended when it is back (chat/spool.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any, Final, TypeVar
from uuid import UUID

import trio

from uim.chat.appending import MAX_BATCH, PLANS, Append, append_apart, entry_key, inserted, judged
from uim.chat.line import Answer, Keeper, Key, Line, Origins, Text, Verb
from uim.chat.outage import REST_S, Outage
from uim.errors import UIMError, unavailable
from uim.log import get_logger
from uim.model.message import QUEUED, Draft, Entry, Posted, Queued
from uim.store import epochs, messages
from uim.store.epochs import Epoch
from uim.store.postgres import Connection, ConnectionLost, DatabaseAway, DatabaseError, Deadlines, connect, in_short, says_away

T = TypeVar("T")

# 2,048 waiting entries are about 50 ms of work; beyond that a sender is told to come back.
MAX_WAITING: Final = 2_048
# As long as a sender waits for a database that is away, before `unavailable`, where there is no spool either.
GIVE_UP_AFTER_S: Final = 8.0
# A connection that is lost and made again sooner than this is no outage. With the deadline for an answer, a hung database is
# one after 4.5 s.
PATIENCE_S: Final = 1.0
WRITERS: Final = Deadlines(connect_s=2.0, answer_s=3.5)
LOOK_EVERY_S: Final = 0.1
# A batch is told of while the database works at the next. Where more than this wait, before: its senders make that one larger.
FEW: Final = 8
# Of a drain's time, what a database that may be hung has. Asking it to cancel takes another second, the spool up to two.
APPENDS_SHARE: Final = 0.25

log = get_logger(__name__)


class Writer:
    """One a process. `run` is its task; `submit`, `post` and `do` are for everybody else.

    `on_appended(entries)` is called, in log order and without awaiting, with what this process has committed.
    """

    def __init__(
        self,
        database_url: str,
        on_appended: Callable[[list[Entry]], None],
        *,
        spool: Keeper | None = None,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        patience_s: float = PATIENCE_S,
        deadlines: Deadlines = WRITERS,
        settle: Callable[[Connection], Awaitable[Epoch]] = epochs.settle,
    ) -> None:
        self._url = database_url
        self._spool = spool
        self._give_up_after_s = give_up_after_s
        self._deadlines = deadlines
        self._on_appended = on_appended
        self._line: Line = deque()
        # What stood in line in an outage and is in the spool as well, before everything that came later.
        self._kept: Line = deque()
        self._queued: dict[Key, Text] = {}
        self._wake = trio.Event()
        self._settle = settle
        self._tx: Connection | None = None
        self._is_outdated = False
        self._down = trio.Event()
        self._outage = Outage(patience_s)
        self._closing = False
        self._append_by = self._end_at = inf
        self._under_way = trio.CancelScope()
        self._in_hand: list[Text | Verb[Any]] = []
        self._last: Callable[[], None] | None = None
        self.drained = trio.Event()
        # For metrics: plain numbers, read at a scrape.
        self.appended = self.appends = self.dead_letters = 0
        self.epoch = Epoch(0, 0, 0)
        self.origins = Origins()

    # -- for senders ------------------------------------------------------------------------------------------------------

    def submit(self, draft: Draft, answer: Answer) -> None:
        """Put a text in line; `answer` is called from the writer's task with its place or its refusal, which is final.

        While the database is away it may be called with QUEUED before that, and at once for a repeat of what is queued. Raises
        UIMError `unavailable` when the line is full or the process is going down.
        """
        queued = self._queued.get((draft.sender_id, draft.client_message_id)) if self._queued else None
        if queued is not None and queued.is_repeated_by(draft):
            queued.answers.append(answer)
            answer(QUEUED)
            return
        self._enter(Text(draft, answer, trio.current_time() + self._give_up_after_s))
        self.origins.enter(draft)

    async def post(self, draft: Draft) -> Posted | Queued:
        """Append a text and wait for the commit, or until it is queued. Raises its refusal. Cancelled: it may still be appended."""
        came = trio.Event()
        answers: list[Posted | Queued | UIMError] = []

        def answer(what: Posted | Queued | UIMError) -> None:
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
        Raises what act raises, `unavailable` where its turn does not come in time. Cancelled: it may still happen.
        """
        verb = Verb(act, key, trio.current_time() + self._give_up_after_s)
        self._enter(verb)
        with trio.move_on_at(verb.give_up_at):
            await verb.done.wait()
        if not verb.is_running:
            verb.fail(unavailable())
        await verb.done.wait()
        if verb.failure is not None:
            raise verb.failure
        return verb.result  # type: ignore[return-value]  # set whenever failure is not

    def _enter(self, item: Text | Verb[Any]) -> None:
        if self._closing or len(self._line) >= MAX_WAITING:
            raise unavailable("the server is going down" if self._closing else "too many messages at once", retry_after_s=1.0)
        self._line.append(item)
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many entries stand in line and are not in the spool."""
        return len(self._line)

    @property
    def trouble(self) -> str:
        """Why what stands in line cannot be appended, for some time now, though a database may answer; else empty."""
        return self._outage.trouble

    @property
    def queued(self) -> int:
        """How many have been answered "queued" and not yet more than that."""
        return len(self._queued)

    # -- the task ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Append until cancelled or drained. Started once the database has been reached and the epoch is known."""
        while self._tx is None:
            await self._reconnect()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._come_back)
            while not self._is_done():
                await self._turn()
            nursery.cancel_scope.cancel()
        self._tell_last()
        for item in (*self._kept, *self._line):
            if isinstance(item, Verb):
                item.fail(unavailable())
            elif item.spool_id is None:
                self._answer(item, unavailable())
        self.drained.set()
        if self._tx is not None:
            self._tx.pgconn.finish()

    def close(self, *, within_s: float) -> None:
        """Take no more; `run` returns once what waits is answered, and within that time: what cannot be by then is refused."""
        self._closing = True
        now = trio.current_time()
        self._append_by, self._end_at = now + APPENDS_SHARE * within_s, now + within_s
        self._under_way.deadline = min(self._under_way.deadline, self._append_by)
        self._wake.set()

    def _is_done(self) -> bool:
        # What is in the spool is appended by whoever drains it.
        is_answered = not self._line and (self._tx is None or not self._kept)
        return self._closing and (is_answered or trio.current_time() >= self._end_at)

    def begin_again(self) -> None:
        """Another epoch has been found to hold: append only on a connection that is made from now on."""
        self._is_outdated = True
        self._wake.set()

    async def _turn(self) -> None:
        if self._is_outdated and self._tx is not None:
            self._lose(DatabaseAway("the log has gone on elsewhere"))
        if self._tx is None or self._tx.closed:
            await self._stand_by()
        elif self._kept or self._line:
            # A started append is finished whatever happens outside: its outcome must be known. In a drain, not for ever: its
            # senders are told nothing that it might have been, and it finds its own copy when it is tried again.
            line = self._kept or self._line
            with trio.CancelScope(shield=True, deadline=self._append_by) as self._under_way:
                await self._step(line)
            if self._under_way.cancelled_caught:
                line.extendleft(reversed(self._in_hand))
                self._lose(DatabaseAway("no answer in the time of a drain"))
        else:
            self._outage.ended()
            self._wake = trio.Event()
            await self._wake.wait()

    async def _step(self, line: Line) -> None:
        item = line.popleft()
        self._in_hand = [item]
        if isinstance(item, Verb):
            await self._run_verb(item, line)
            return
        batch = [item]
        # One that was too much for the database is tried in smaller ones.
        at_most = max(1, MAX_BATCH >> self._outage.losses)
        while line and len(batch) < at_most and isinstance(text := line[0], Text):
            batch.append(text)
            line.popleft()
        self._in_hand = [*batch]
        await self._append(batch, line)

    async def _append(self, batch: list[Text], line: Line) -> None:
        """Append a batch; when the connection is lost it goes back to where it stood."""
        drafts = [text.draft for text in batch]
        assert self._tx is not None
        try:
            outcomes = await append_apart(partial(messages.append, self._tx, meanwhile=self._tell_last), drafts)
        except ConnectionLost as lost:
            line.extendleft(reversed(batch))
            self._lose(lost)
            return
        self._tell_last()
        self._outage.ended()
        self._last = partial(self._tell, batch, drafts, outcomes)
        following = self._kept or self._line
        if not (0 < len(following) <= FEW and isinstance(following[0], Text)):
            self._tell_last()

    def _tell_last(self) -> None:
        """Of the batch before; where another follows, as soon as the database has that one to work on."""
        last, self._last = self._last, None
        if last is not None:
            last()

    def _tell(self, batch: list[Text], drafts: list[Draft], outcomes: list[messages.Outcome | DatabaseError]) -> None:
        """Hand on what was inserted, then answer everybody: no await, so nobody sees half of it."""
        entries = inserted(drafts, outcomes, [text.give_up_at - self._give_up_after_s for text in batch])
        self.appends += 1
        self.appended += len(entries)
        self._on_appended(entries)
        for text, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, DatabaseError):
                self._bury(text.draft, outcome)
                self._answer(text, UIMError("internal", "this message could not be stored"))
                continue
            if outcome.verdict == "duplicate" and outcome.message_id is not None:
                self.origins.find(text.draft, outcome.message_id)
            self._answer(text, judged(outcome))
        if self._spool is not None and (spooled := [text for text in batch if text.spool_id is not None]):
            self._spool.forget([text.spool_id or "" for text in spooled], [text.draft for text in spooled])

    def _bury(self, draft: Draft, why: DatabaseError) -> None:
        self.dead_letters += 1
        log.error("dead letter", reason=in_short(why), conversation_id=str(draft.conversation_id), user_id=str(draft.sender_id),
                  client_message_id=draft.client_message_id)  # fmt: skip

    def _answer(self, text: Text, what: Posted | UIMError) -> None:
        self.origins.unanswered.pop(text.key, None)
        if self._queued:
            self._queued.pop(text.key, None)
        text.answer(what)

    async def _run_verb(self, verb: Verb[Any], line: Line) -> None:
        if verb.done.is_set():
            return  # its caller has given it up
        tx = self._tx
        assert tx is not None
        append = Append(tx, verb.key)
        verb.is_running = True
        try:
            async with tx.transaction():
                await messages.lock_log(tx)
                if verb.tried and await messages.has_server_key(tx, entry_key(verb.key, 0)):
                    verb.succeed(verb.tried[-1])
                    return
                result = await verb.act(tx, append)
                verb.tried.append(result)
        except UIMError as refusal:
            verb.fail(refusal)
        except Exception as error:
            if not says_away(error):
                # The verb is its caller's code: the caller's own boundary reports it; the line goes on.
                verb.fail(error)
                return
            verb.is_running = False
            if trio.current_time() >= verb.give_up_at:
                verb.fail(unavailable())
            else:
                line.appendleft(verb)
            self._lose(error)
        else:
            self._outage.ended()
            for entry in append.entries:
                entry.accepted_at = verb.give_up_at - self._give_up_after_s
            self._on_appended(append.entries)
            verb.succeed(result)

    # -- an outage --------------------------------------------------------------------------------------------------------

    def _lose(self, lost: Exception) -> None:
        self._tell_last()
        if self._tx is not None:
            self._tx.pgconn.finish()
            self._tx = None
        self._outage.lost(lost)
        self._down.set()

    async def _come_back(self) -> None:
        """Beside the line: a new connection whenever there is none."""
        while True:
            await self._down.wait()
            if trio.current_time() >= self._append_by:
                return  # there is no time left for it
            await trio.sleep(self._outage.rest_s)
            while self._tx is None:
                await self._reconnect()
            self._down = trio.Event()
            self._wake.set()

    async def _reconnect(self) -> None:
        """One try. A new connection first asks whether this is still the same log, and begins an epoch if not."""
        try:
            tx = await connect(self._url, name="writer", settings=PLANS, deadlines=self._deadlines)
            self.epoch = await self._settle(tx)
            self._is_outdated = False
            self._tx = tx
        except ConnectionLost as lost:
            self._outage.note(lost)
            await trio.sleep(REST_S)

    async def _stand_by(self) -> None:
        """Without a connection: after a moment's patience what is in line is queued; what cannot be waits its time."""
        if not self._down.is_set():  # closed under us, between two turns
            self._lose(DatabaseAway("the connection is closed"))
        self._refuse_late()
        is_outage = self._closing or self._outage.is_long
        if is_outage and self._line and self._spool is not None:
            with trio.CancelScope(shield=True, deadline=self._end_at) as self._under_way:
                if await self._queue_up(self._spool):
                    return
            if self._under_way.cancelled_caught:
                self._line.extendleft(reversed(self._in_hand))
        self._wake = trio.Event()
        with trio.move_on_after(LOOK_EVERY_S):
            await self._wake.wait()

    def _refuse_late(self) -> None:
        now = trio.current_time()
        while self._line and self._line[0].give_up_at <= now:
            late = self._line.popleft()
            if isinstance(late, Verb):
                late.fail(unavailable())
            else:
                self._answer(late, unavailable())

    async def _queue_up(self, spool: Keeper) -> bool:
        """Copy the head of the line into the spool, and answer "queued"; False, and all is as before, if there is no spool now."""
        # All of it, for the disk is written once a second.
        batch = self._in_hand = [self._line.popleft() for _ in range(len(self._line))]
        texts = [item for item in batch if isinstance(item, Text)]
        spool_ids = await spool.keep([text.draft for text in texts])
        if spool_ids is None:
            self._line.extendleft(reversed(batch))
            return False
        for text, spool_id in zip(texts, spool_ids, strict=True):
            text.spool_id = spool_id
        for item in batch:
            if isinstance(item, Text) and item.spool_id is None:
                self._answer(item, unavailable())
            else:
                self._kept.append(item)
        for text in texts:
            if text.spool_id is not None:
                self._queued[text.key] = text
                text.answer(QUEUED)
        return True
