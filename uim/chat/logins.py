"""Who is calling: from an access token to a living login.

A valid signature is not enough, for a login can end at any moment. What is known of living logins is kept in this
process; what ends is told by `ended`, at once for what ends here, by the tailer's query for what ends elsewhere. Rule: what
has once ended is never let in again, not even by a query that was under way when it ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID

import trio

from uim.chat.tokens import AccessClaims, Tokens
from uim.errors import UIMError
from uim.model.person import Caller
from uim.store import logins
from uim.store.logins import LiveLogin
from uim.store.postgres import Pool

T = TypeVar("T")

# Twice the connections of a process; about 10 MB.
MAX_REMEMBERED: Final = 20_000
# After a question about so many there are many more who come: a moment more of them share the next.
CROWD: Final = 4
GATHER_S: Final = 0.01
MARK_WITHIN_S: Final = 1.0
MARK_AGAIN_AFTER_S: Final = 5.0


@dataclass(slots=True)
class _Living:
    caller: Caller
    used_generation: int
    mark_not_before: float = 0.0


@dataclass(slots=True)
class _Question:
    """Which of these logins live; `found` is None while that is not known."""

    login_ids: list[UUID]
    found: dict[UUID, LiveLogin] | None = None
    failure: UIMError | None = None
    is_over: trio.Event = field(default_factory=trio.Event)


class Logins:
    """The living logins that this process has seen. `on_ended(login_id)` hears, once, of each that ends."""

    def __init__(
        self,
        pool: Pool,
        tokens: Tokens,
        *,
        on_ended: Callable[[UUID], None] = lambda login_id: None,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        self._pool = pool
        self._tokens = tokens
        self._on_ended = on_ended
        self._max_remembered = max_remembered
        self._living: OrderedDict[UUID, _Living] = OrderedDict()
        self._ended: OrderedDict[UUID, None] = OrderedDict()
        self._one_asks = trio.Lock()
        self._next_question: _Question | None = None
        self._asked_before = 0

    async def authenticate(self, token: str) -> Caller:
        """The caller with this access token. Raises what `claims` and `caller` do."""
        return await self.caller(self.claims(token))

    def claims(self, token: str) -> AccessClaims:
        """What a token says that we have signed; its login may have ended since. Raises UIMError `unauthorized`, `token_expired`."""
        return self._tokens.read_access(token)

    async def caller(self, claims: AccessClaims) -> Caller:
        """Whose claims these are.

        Raises UIMError `session_ended` if their login or account is no more; `unavailable` for a login that this process has
        not seen while the database is away.
        """
        known = self._remembered(claims.sid) or await self._load(claims.sid)
        if claims.gen > known.used_generation:
            await self._mark_used(known, claims)
        # It may have ended during the waits above.
        if claims.sid in self._ended:
            raise _session_ended()
        return known.caller

    async def trust(self, claims: AccessClaims) -> Caller:
        """The same for a connection that will wait: with the database away, the caller as the token's signature says.

        Such a caller has no device_id, and is let do nothing before `confirm`.
        """
        try:
            return await self.caller(claims)
        except UIMError as refusal:
            if refusal.code != "unavailable":
                raise
        return Caller(claims.user_id, claims.sid, "", claims.username)

    async def confirm(self, login_id: UUID) -> None:
        """Returns where the login lives. Raises `session_ended`, `unavailable`."""
        if self._remembered(login_id) is None:
            await self._load(login_id)

    def ended(self, login_ids: Iterable[UUID]) -> None:
        """These have ended, here or elsewhere: let them in no more, and tell `on_ended` of those that are news."""
        for login_id in login_ids:
            is_news = login_id not in self._ended
            self._living.pop(login_id, None)
            _remember(self._ended, login_id, None, self._max_remembered)
            if is_news:
                self._on_ended(login_id)

    def clear(self) -> None:
        """Let in only whom the database knows now; what has ended stays ended here, whatever it says. Does not await."""
        self._living.clear()

    def has_ended(self, login_id: UUID) -> bool:
        """Whether this process has heard that the login has ended. Does not await."""
        return login_id in self._ended

    def _remembered(self, login_id: UUID) -> _Living | None:
        if login_id in self._ended:
            raise _session_ended()
        known = self._living.get(login_id)
        if known is not None:
            self._living.move_to_end(login_id)
        return known

    async def _load(self, login_id: UUID) -> _Living:
        found = (await self._looked_up(login_id)).get(login_id)
        # No await from here on. The query may be older than the news that this login has ended.
        if found is None or login_id in self._ended:
            raise _session_ended()
        caller = Caller(found.user_id, found.login_id, found.device_id, found.username)
        known = _Living(caller, found.used_generation)
        _remember(self._living, login_id, known, self._max_remembered)
        return known

    async def _looked_up(self, login_id: UUID) -> dict[UUID, LiveLogin]:
        """Who asks while one question is with the database is in the next one, which the first of them asks for all."""
        while (asked := self._next_question) is not None:
            asked.login_ids.append(login_id)
            await asked.is_over.wait()
            if asked.failure is not None:
                raise asked.failure
            if asked.found is not None:
                return asked.found
            # Whoever was to ask it has gone.
        asked = self._next_question = _Question([login_id])
        try:
            async with self._one_asks:
                if self._asked_before >= CROWD:
                    await trio.sleep(GATHER_S)
                self._next_question = None
                self._asked_before = len(asked.login_ids)
                async with self._pool.connection() as tx:
                    asked.found = await logins.living(tx, asked.login_ids)
            return asked.found
        except UIMError as refusal:
            asked.failure = refusal
            raise
        finally:
            if self._next_question is asked:
                self._next_question = None
            asked.is_over.set()

    async def _mark_used(self, known: _Living, claims: AccessClaims) -> None:
        """The client has the new pair, so the old refresh token's time runs out.

        Waits a second at most: with the database away callers are let in, and a later call marks it.
        """
        now = trio.current_time()
        if now < known.mark_not_before:
            return
        known.mark_not_before = now + MARK_AGAIN_AFTER_S
        with trio.move_on_after(MARK_WITHIN_S):
            try:
                async with self._pool.connection() as tx:
                    await logins.mark_used(tx, login_id=claims.sid, generation=claims.gen)
            except UIMError as refusal:
                if refusal.code != "unavailable":
                    raise
            else:
                known.used_generation = max(known.used_generation, claims.gen)
                known.mark_not_before = 0.0


def _remember(memory: OrderedDict[UUID, T], key: UUID, value: T, most: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)


def _session_ended() -> UIMError:
    return UIMError("session_ended", "this login has ended; sign in again")
