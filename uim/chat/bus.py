"""What processes tell each other: log batches, receipts, changed conversations, ended logins, replaced connections.

One Redis channel, its name beginning with the log's id. Rule: the bus is a hint: it may lose, delay, repeat and reorder. The
log comes from the database anyway, ended logins and replaced connections by the tailer's query; receipts and what has changed
are kept there for a while under numbers, and whoever misses a number (gaps.py) reads it; an indicator ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import trio

from uim.chat.gaps import GIVE_UP_AFTER_S, Gaps
from uim.chat.words import DECODER, Unread, Word, packed_log, packed_receipts, unpacked_log, unpacked_receipts
from uim.errors import UIMError
from uim.log import get_logger
from uim.model.message import Entry
from uim.store import words
from uim.store.postgres import Connection, Pool
from uim.store.receipts import Advance
from uim.store.redis import UNREADABLE, RedisAway, RedisLink

BE_HEARD_EVERY_S: Final = 1.0
LOOK_EVERY_S: Final = 0.25
# Before the moment from which something may be missing: a word is dated in mid-transaction.
LOOK_BACK_S: Final = 5.0
FORGET_EVERY_S: Final = 15.0
REST_S: Final = 0.5
# In place of our own number, where nothing of ours is in doubt.
_NONE_OF_OURS: Final = 2**62

log = get_logger(__name__)


class Kept(NamedTuple):
    """A word that a transaction has kept, to be said once that is committed."""

    number: int
    data: bytes


class Bus:
    """One a process. The `on_…` callbacks take what others say; they do not await."""

    def __init__(
        self,
        link: RedisLink,
        pool: Pool,
        *,
        log_id: UUID,
        process_id: UUID,
        on_log: Callable[[list[Entry]], None],
        on_receipts: Callable[[list[Advance], dict[tuple[UUID, UUID], int]], None],
        on_changed: Callable[[UUID], None],
        on_ended: Callable[[Iterable[UUID]], None],
        on_replaced: Callable[[UUID, str, int], None],
        on_typing: Callable[[UUID, UUID, bool, list[UUID]], None] = lambda conversation_id, user_id, is_typing, members: None,
        on_profile: Callable[[UUID], None],
    ) -> None:
        self._link = link
        self._pool = pool
        self._process_id = process_id
        self._channel = f"{log_id}:bus"
        self._on_log = on_log
        self._on_receipts = on_receipts
        self._on_changed = on_changed
        self._on_ended = on_ended
        self._on_replaced = on_replaced
        self._on_typing = on_typing
        self._on_profile = on_profile
        # How many processes hear the channel besides this one; None: nobody knows.
        self._others: int | None = None
        self._gaps = Gaps()
        self._looked_at = 0.0
        self._last_number = self._newest = 0
        # Our own words of which nobody knows whether they were committed, and since when.
        self._in_doubt: dict[int, float] = {}
        self._changed: dict[UUID, None] = {}
        self._profiles: dict[UUID, None] = {}
        self._wake = trio.Event()
        link.subscribe(self._channel, self._heard)

    @property
    def _others_hear(self) -> bool:
        return self._others != 0

    # -- saying -----------------------------------------------------------------------------------------------------------

    def appended(self, entries: list[Entry]) -> None:
        if entries and self._others_hear:
            self._say(log=packed_log(entries))

    async def keep_receipts(self, tx: Connection, advances: Sequence[Advance], unread: Unread) -> Kept | None:
        """Keep what `tx` stores, in the same transaction; None if that is nothing.

        After the commit `say` it. If nobody knows whether there was one, `doubt` it: then it is told here if it turns up.
        """
        return await self._keep(tx, receipts=packed_receipts(advances, unread)) if advances else None

    def say(self, kept: Kept | None) -> None:
        """Tell the others what is kept, and committed."""
        if kept is not None:
            self._newest = max(self._newest, kept.number)
            if self._others_hear:
                self._link.send("PUBLISH", self._channel, kept.data)

    def doubt(self, kept: Kept | None) -> None:
        if kept is not None:
            self._newest = max(self._newest, kept.number)
            self._in_doubt[kept.number] = trio.current_time()

    def changed(self, conversation_id: UUID) -> None:
        self._changed[conversation_id] = None
        self._wake.set()

    def profile_changed(self, user_id: UUID) -> None:
        self._profiles[user_id] = None
        self._wake.set()

    def ended(self, login_id: UUID) -> None:
        self._say(ended=[login_id])

    def replaced(self, user_id: UUID, device_id: str, connection_no: int) -> None:
        if connection_no > 1:
            self._say(replaced=[(user_id, device_id, connection_no)])

    def typing(self, conversation_id: UUID, user_id: UUID, is_typing: bool, members: Sequence[UUID]) -> None:
        if self._others_hear:
            self._say(typing=[(conversation_id, user_id, is_typing, members)])

    def _say(self, **said: Any) -> None:
        word = Word(self._process_id, newest=self._newest, **said)
        self._link.send("PUBLISH", self._channel, msgspec.msgpack.encode(word))

    async def _keep(self, tx: Connection, **said: Any) -> Kept:
        self._last_number += 1
        number = self._last_number
        data = msgspec.msgpack.encode(Word(self._process_id, number=number, newest=number, **said))
        await words.keep(tx, process_id=self._process_id, number=number, word=data)
        return Kept(number, data)

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def _heard(self, data: bytes) -> None:
        word = _decoded(data)
        if word is None or word.process == self._process_id:
            return
        now = trio.current_time()
        if word.newest is not None:
            self._gaps.heard(word.process, word.newest, now)
        if word.number == 0 or self._gaps.take(word.process, word.number, now):
            self._take(word)

    def _take(self, word: Word) -> None:
        if word.log:
            self._on_log(unpacked_log(word.log))
        if word.receipts:
            self._on_receipts(*unpacked_receipts(word.receipts))
        for conversation_id in word.changed:
            self._on_changed(conversation_id)
        if word.ended:
            self._on_ended(word.ended)
        for replaced in word.replaced:
            self._on_replaced(*replaced)
        for typing in word.typing:
            self._on_typing(*typing)
        for user_id in word.profiles:
            self._on_profile(user_id)

    # -- the tasks --------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say and look until cancelled. Started once it is known what has been said before."""
        await self._begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._be_heard)
            nursery.start_soon(self._say_changes)
            nursery.start_soon(self._look)
            nursery.start_soon(self._forget)
            task_status.started()

    async def _begin(self) -> None:
        while True:
            try:
                async with self._pool.connection() as tx:
                    self._gaps.begin(await words.newest(tx))
            except UIMError as refused:
                await _rest(refused)
            else:
                self._looked_at = trio.current_time()
                return

    async def _be_heard(self) -> None:
        """Tell the others that we are here and how much we have said, and learn how many they are.

        A lone process does not publish its log batches.
        """
        while True:
            try:
                reply = await self._link.call("PUBSUB", "NUMSUB", self._channel)
                self._others = max(int(reply[1]) - 1, 0)
            except RedisAway:
                self._others = None
            if self._others_hear:
                self._say()
            await trio.sleep(BE_HEARD_EVERY_S)

    async def _say_changes(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            changed, self._changed = self._changed, {}
            profiles, self._profiles = self._profiles, {}
            try:
                async with self._pool.connection() as tx:
                    kept = await self._keep(tx, changed=list(changed), profiles=list(profiles))
            except UIMError as refused:
                # Whoever hears of it would ask the database: it can wait until that is back.
                self._changed, self._profiles = changed | self._changed, profiles | self._profiles
                self._wake.set()
                await _rest(refused)
            else:
                self.say(kept)

    async def _look(self) -> None:
        """Read what the bus has lost, as long as it may have lost something."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now = trio.current_time()
            if self._link.hears and not self._in_doubt and not self._gaps.are_there(now, others=self._others or 0):
                self._looked_at = now
                continue
            try:
                await self._read()
            except UIMError as refused:
                await _rest(refused)
            else:
                self._looked_at = now
                self._gaps.give_up(now)
                self._in_doubt = {number: at for number, at in self._in_doubt.items() if now - at < GIVE_UP_AFTER_S}

    async def _read(self) -> None:
        within_s = min(trio.current_time() - self._looked_at + LOOK_BACK_S, words.KEPT_S)
        behind = None
        while True:
            ours = min(self._in_doubt, default=_NONE_OF_OURS) - 1
            up_to = {**self._gaps.up_to(), self._process_id: ours}
            async with self._pool.connection() as tx:
                found = await words.above(tx, up_to, within_s=within_s, behind=behind)
            for read in found:
                self._take_up(read)
            if len(found) < words.READ_AT_ONCE:
                return
            behind = found[-1]

    def _take_up(self, read: words.Read) -> None:
        """Take a word from the database, unless it has come meanwhile."""
        if read.process_id == self._process_id:
            is_new = self._in_doubt.pop(read.number, None) is not None
        else:
            is_new = self._gaps.take(read.process_id, read.number, trio.current_time())
        if is_new and (word := _decoded(read.word)) is not None:
            self._take(word)

    async def _forget(self) -> None:
        while True:
            await trio.sleep(FORGET_EVERY_S)
            try:
                async with self._pool.connection() as tx:
                    await words.forget(tx)
            except UIMError as refused:
                await _rest(refused)


def _decoded(data: bytes) -> Word | None:
    try:
        return DECODER.decode(data)
    except UNREADABLE as odd:
        log.warning("a word on the bus that this release does not know", error=str(odd))
        return None


async def _rest(refused: UIMError) -> None:
    if refused.code != "unavailable":
        raise refused
    await trio.sleep(REST_S)
