"""The channel presence:updates as one process hears it: every word, or else everything afresh.

Redis numbers the words as it judges (store/scripts.py) and keeps the latest for a while. Rule: a number that does not come is
read there; where it cannot be, and after any time in which nobody here could hear or ask, all is to be told afresh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import trio

from uim.chat.gaps import Line
from uim.log import get_logger
from uim.store import presence as store
from uim.store.presence import Word
from uim.store.redis import UNREADABLE, RedisAway, RedisLink

LOOK_EVERY_S: Final = 1.0
# Redis tells how many there are on one line and what they are on another.
PATIENCE_S: Final = 0.5

log = get_logger(__name__)


class Updates:
    """One a process; `run` is its task. `on_word(word)` and `on_afresh()` do not await; a word may come more than once."""

    def __init__(
        self, link: RedisLink, channel: str, *, on_word: Callable[[Word], None], on_afresh: Callable[[], None]
    ) -> None:
        self._link = link
        self._channel = channel
        self._on_word = on_word
        self._on_afresh = on_afresh
        self._decoder = msgspec.json.Decoder(Word)
        # None: what has been told before we began to hear is not known.
        self._line: Line | None = None
        self._told_in_the_dark = False
        self._begun = trio.Event()
        link.subscribe(channel, self._heard, on_begun=self._begin)

    @property
    def hears(self) -> bool:
        """Whether every word is heard: none is known to be missing, and from when we began to hear all was told afresh."""
        line = self._line
        return self._link.hears and line is not None and line.missing_for_s(trio.current_time()) == 0.0

    def told_in_the_dark(self) -> None:
        """Something was told without Redis, and may be wrong: once it answers, all is to be told afresh."""
        self._told_in_the_dark = True

    def _begin(self) -> None:
        self._line = None
        self._begun.set()

    def _heard(self, data: bytes) -> None:
        word = self._decoded(data)
        if word is None:
            return
        if word.number and self._line is not None:
            self._line.take(word.number, trio.current_time())
        self._on_word(word)

    def _decoded(self, data: bytes) -> Word | None:
        try:
            return self._decoder.decode(data)
        except UNREADABLE as odd:
            log.warning("a word about presence that this release does not know", error=str(odd))
            return None

    async def run(self) -> None:
        """Look whether anything is missing, until cancelled."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._begun.wait()
            self._begun = trio.Event()
            try:
                if self._link.hears:
                    await self._look()
            except RedisAway:
                await trio.sleep(LOOK_EVERY_S / 2)
                self._begun.set()

    async def _look(self) -> None:
        line = self._line
        known = line.up_to if line is not None else 0
        told = await store.words_told(self._link, self._channel)
        now = trio.current_time()
        if self._line is not line:
            return  # the channel has begun anew meanwhile
        if line is None or told < known:
            self._line = Line(told)  # Redis may have lost its memory
            self._afresh()
            return
        line.told_of(told, now)
        if line.missing_for_s(now) > PATIENCE_S:
            await self._read(line, told)
        elif self._told_in_the_dark:
            self._afresh()

    async def _read(self, line: Line, told: int) -> None:
        for data in await store.latest_words(self._link, self._channel):
            word = self._decoded(data)
            if word is not None and line.take(word.number, trio.current_time()):
                self._on_word(word)
        if line.up_to < told and line is self._line:
            self._line = Line(told)
            self._afresh()

    def _afresh(self) -> None:
        self._told_in_the_dark = False
        self._on_afresh()
