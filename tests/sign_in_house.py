"""The rooms that sign-in needs, over a real database and a real log writer; and their HTTP front.

What the tests of accounts share; it has no tests of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
import trio
from quart_trio import QuartTrio

from uim.api.accounts import SignInDoor, add_accounts
from uim.api.app import new_app
from uim.api.people import add_people
from uim.api.routes import Routes, register
from uim.chat.accounts import Accounts, SignedIn
from uim.chat.callers import Origins
from uim.chat.logins import Logins
from uim.chat.passwords import Passwords, Throttle
from uim.chat.people import People
from uim.chat.tokens import Tokens
from uim.chat.writer import Writer
from uim.config import JwtKey
from uim.errors import UIMError
from uim.model.message import Entry
from uim.model.person import Caller, Device
from uim.store import logins as login_rows
from uim.store.postgres import Pool

PASSWORD = "Correct horse 1"
KEY = JwtKey("one", b"1" * 32)


class Clock:
    """Seconds of the epoch, which stand still."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SignInHouse:
    """The rooms; `entries` is what the writer has appended, `cut` the logins that were told to have ended."""

    pool: Pool
    clock: Clock
    tokens: Tokens
    passwords: Passwords
    logins: Logins
    accounts: Accounts
    people: People
    entries: list[Entry]
    cut: list[UUID] = field(default_factory=list)

    async def registered(self, name: str = "alice", device_id: str = "phone") -> SignedIn:
        return await self.accounts.register(
            username=name, email=f"{name}@example.com", password=PASSWORD, display_name=None, device=Device(device_id)
        )

    async def entered(self, name: str = "alice", device_id: str = "laptop", password: str = PASSWORD) -> SignedIn:
        return await self.accounts.login(name=name, password=password, device=Device(device_id), address="10.0.0.1")

    async def caller(self, signed_in: SignedIn) -> Caller:
        return await self.logins.authenticate(signed_in.access_token)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [entry.event for entry in self.entries]

    async def execute(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as tx:
            cursor = await tx.execute(query.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    async def hear_of_ended_logins(self) -> None:
        """What the tailer does every 500 ms."""
        async with self.pool.connection() as tx:
            ended = await login_rows.ended_since(tx, 10)
        self.logins.ended(ended)

    def app(self, origins: Origins = Origins(None)) -> QuartTrio:  # noqa: B008  # frozen
        app, routes, door = new_app(), Routes(), SignInDoor(self.logins, origins)
        add_accounts(routes, self.accounts, door)
        add_people(routes, self.people)
        register(app, routes, authenticate=door.authenticate)
        return app


@asynccontextmanager
async def sign_in_house(
    database_url: str,
    *,
    keys: tuple[JwtKey, ...] = (KEY,),
    passwords: Passwords | None = None,
    login_pool: Pool | None = None,
) -> AsyncIterator[SignInHouse]:
    clock, cut, entries = Clock(), list[UUID](), list[Entry]()
    pool, tokens = Pool(database_url, 4), Tokens(keys, clock)
    logins = Logins(login_pool or pool, tokens, on_ended=cut.append)
    writer = Writer(database_url, entries.extend)
    hashing = passwords or Passwords(cost=4)
    throttle = Throttle(trio.current_time)
    accounts = Accounts(
        pool=pool, writer=writer, passwords=hashing, tokens=tokens, logins=logins, throttle=throttle
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        yield SignInHouse(pool, clock, tokens, hashing, logins, accounts, People(pool), entries, cut)
        writer.close(within_s=10)
    pool.close_idle()


async def refusal_of(asking: Awaitable[object]) -> UIMError:
    with pytest.raises(UIMError) as refusal:
        await asking
    return refusal.value
