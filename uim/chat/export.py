"""One's own data, all of it, as lines of JSON.

In this order: the profile, logins (without their secrets), friends and requests, blocks, conversations, then every entry that
the user may read (their own, and others' within their stays; what was deleted or hidden is there without its content), and a
last line that counts them. Rule: memory does not grow with the length; few at once, for each holds a connection and a snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import trio

from uim.errors import UIMError, unavailable
from uim.log import get_logger
from uim.model.ids import rfc3339
from uim.model.message import Entry
from uim.store import export, people
from uim.store.postgres import Connection
from uim.wire.frames import hidden_object, message_object

AT_ONCE: Final = 2
AGAIN_AFTER_S: Final = 10.0
# A client that reads drop by drop, each within the stream's own deadline, would else hold its snapshot for days.
ALL_WITHIN_S: Final = 900.0

log = get_logger(__name__)


class Exports:
    """The exports under way in this process."""

    def __init__(self, database_url: str, *, at_once: int = AT_ONCE, all_within_s: float = ALL_WITHIN_S) -> None:
        self._url = database_url
        self._at_once = at_once
        self._all_within_s = all_within_s
        self._running: set[UUID] = set()

    def check(self, user_id: UUID) -> None:
        """Raises UIMError `rate_limited` while an export of this user's is under way, `unavailable` while too many are."""
        if user_id in self._running:
            raise UIMError("rate_limited", "an export of yours is under way", retry_after_s=AGAIN_AFTER_S)
        if len(self._running) >= self._at_once:
            raise unavailable("others' exports are under way", retry_after_s=AGAIN_AFTER_S)

    @asynccontextmanager
    async def reading(self, user_id: UUID) -> AsyncIterator[AsyncIterator[bytes]]:
        """While inside, the user's data as pieces of whole lines. Raises what `check` does.

        The pieces raise psycopg.OperationalError when the database goes away, trio.TooSlowError after `all_within_s`. However
        it is left, also cancelled, the connection is closed.
        """
        self.check(user_id)
        self._running.add(user_id)
        try:
            async with export.snapshot(self._url) as tx, aclosing(self._pieces(tx, user_id)) as pieces:
                yield pieces
        finally:
            self._running.discard(user_id)

    async def _pieces(self, tx: Connection, user_id: UUID) -> AsyncGenerator[bytes, None]:
        give_up_at = trio.current_time() + self._all_within_s
        profile = await people.profile_of(tx, user_id)
        if profile is None:
            raise UIMError("session_ended", "this account is no more")
        yield _line("profile", msgspec.structs.asdict(profile))
        async with aclosing(export.lists(tx, user_id)) as lists:
            async for kind, rows in lists:
                yield b"".join([_line(kind, row) for row in rows])
        told = 0
        for stay in await export.stays(tx, user_id):
            async with aclosing(export.entries(tx, user_id, stay)) as pages:
                async for page in pages:
                    if trio.current_time() > give_up_at:
                        log.warning("an export took too long", user_id=str(user_id), messages=told)
                        raise trio.TooSlowError
                    told += len(page)
                    yield b"".join([_message(entry, user_id, is_hidden) for entry, is_hidden in page])
        yield _line("end", {"messages": told})


def _line(kind: str, fields: Mapping[str, Any]) -> bytes:
    shown = {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in fields.items()}
    return msgspec.json.encode({"kind": kind, **shown}) + b"\n"


def _message(entry: Entry, user_id: UUID, is_hidden: bool) -> bytes:
    shown = hidden_object(entry) if is_hidden else message_object(entry, own=entry.sender_id == user_id)
    return b'{"kind":"message",' + shown[1:] + b"\n"
