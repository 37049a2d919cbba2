"""Passwords: their slow hashes, and the brake on guessing.

bcrypt sees at most 72 bytes and stops at NUL, so it is given base64(SHA-384(NFC(password))). Rule: whether a user exists
is never told by the time an answer takes; and guessing costs the guesser, not the server: hashes are made in two threads
with a bounded line before them.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import bcrypt
import trio

from uim.errors import UIMError, unavailable
from uim.model.person import normal_password

T = TypeVar("T")

COST: Final = 10
THREADS: Final = 2
# At 60 ms a hash and two threads, whoever is last in line waits six seconds.
MAX_WAITING: Final = 200
FAILURES: Final = 10
FAILURES_WITHIN_S: Final = 60.0
# About 2 MB of names and addresses.
MAX_REMEMBERED: Final = 10_000


class Passwords:
    """Hashes and verifies. `cost` is bcrypt's: each step doubles the work."""

    def __init__(self, *, cost: int = COST, threads: int = THREADS, max_waiting: int = MAX_WAITING) -> None:
        self._cost = cost
        self._limiter = trio.CapacityLimiter(threads)
        self._max_waiting = max_waiting
        # What a password is compared with where there is no user; nothing hashes to it but these very bytes.
        self._nobodys = bcrypt.hashpw(b"nobody", bcrypt.gensalt(cost))

    async def hash(self, password: str) -> str:
        """The hash to store, in bcrypt's own text form. Raises `unavailable` when the line is full.

        Cancelled, it still waits for a hash that has begun (some 60 ms).
        """
        digest = _digest(password)
        return (await self._in_thread(lambda: bcrypt.hashpw(digest, bcrypt.gensalt(self._cost)))).decode()

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether this is the password; where there is no user (`stored` is None) False after the same time.

        Raises `unavailable` when the line is full. Cancelled, it still waits for a hash that has begun.
        """
        digest = _digest(password)
        against = self._nobodys if stored is None else stored.encode()
        return await self._in_thread(lambda: bcrypt.checkpw(digest, against)) and stored is not None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._limiter.statistics().tasks_waiting >= self._max_waiting:
            raise unavailable("too many are signing in at once")
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _digest(password: str) -> bytes:
    return base64.b64encode(hashlib.sha384(normal_password(password).encode()).digest())


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Throttle:
    """Failures by (name, address): ten at once, then one each six seconds. `clock` gives seconds.

    Nothing here awaits. Only who fails is remembered, the newest `max_remembered`.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        failures: int = FAILURES,
        within_s: float = FAILURES_WITHIN_S,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._per_s = failures / within_s
        self._max_remembered = max_remembered
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()

    def check(self, name: str, address: str) -> None:
        """Raises `too_many_attempts`, with the time until the next try, if this name has failed too often from here."""
        bucket = self._filled((name.lower(), address))
        if bucket is not None and bucket.tokens < 1:
            wait_s = (1 - bucket.tokens) / self._per_s
            raise UIMError("too_many_attempts", "too many failed attempts", retry_after_s=wait_s)

    def failed(self, name: str, address: str) -> None:
        key = (name.lower(), address)
        bucket = self._filled(key) or _Bucket(float(self._failures), self._clock())
        bucket.tokens = max(0.0, bucket.tokens - 1)
        self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_remembered:
            self._buckets.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """Who knows the password has guessed nothing."""
        self._buckets.pop((name.lower(), address), None)

    def _filled(self, key: tuple[str, str]) -> _Bucket | None:
        bucket = self._buckets.get(key)
        if bucket is None:
            return None
        now = self._clock()
        bucket.tokens = min(float(self._failures), bucket.tokens + (now - bucket.filled_at) * self._per_s)
        bucket.filled_at = now
        return bucket
