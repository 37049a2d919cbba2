"""People over the HTTP API of servers that come and go: a call is made again, elsewhere, until one of them answers.

Rule: an answer of the server's own is an answer; only "nobody there" and 503 are tried again, and only for a while.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from tests.faults.ledger import Entry

ANSWER_WITHIN_S = 10.0
TRIED_FOR_S = 40.0
REST_S = 0.1
PAGE = 100


class Unanswered(Exception):
    """What no server answered as it should."""


@dataclass(eq=False)
class Door:
    """The servers' addresses, and one HTTP client for all of them."""

    urls: Sequence[str]
    http: httpx.AsyncClient
    _turns: itertools.cycle[str] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.urls)

    async def call(self, method: str, path: str, body: object = None, token: str | None = None) -> httpx.Response:
        """One request; repeated while nobody answers, or with 503. Raises Unanswered after 40 s."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        last = "nobody"
        with trio.move_on_after(TRIED_FOR_S):
            while True:
                try:
                    answer = await self.http.request(method, next(self._turns) + path, json=body, headers=headers)
                except httpx.TransportError as lost:
                    last = repr(lost)
                else:
                    if answer.status_code != 503:
                        return answer
                    last = answer.text
                await trio.sleep(REST_S)
        raise Unanswered(f"{method} {path}: {last}")


@dataclass(eq=False)
class SignedIn:
    """A user on one device, with its tokens."""

    door: Door
    username: str
    user_id: str
    device_id: str
    tokens: dict[str, Any]

    @property
    def token(self) -> str:
        return str(self.tokens["access_token"])

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of a request that has to succeed. Raises Unanswered."""
        answer = await self.door.call(method, path, body, self.token)
        if answer.status_code == 401 and answer.json().get("code") == "token_expired":
            await self.refresh()
            answer = await self.door.call(method, path, body, self.token)
        if answer.status_code >= 300:
            raise Unanswered(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    async def refresh(self) -> None:
        answer = await self.door.call("POST", "/api/auth/refresh", {"refresh_token": self.tokens["refresh_token"]})
        if answer.status_code != 200:
            raise Unanswered(f"refresh: {answer.status_code} {answer.text}")
        self.tokens = answer.json()

    async def history(self, conversation_id: str, after: int = 0) -> list[Entry]:
        """Every entry of a conversation above an id, as this user sees it, page by page."""
        found: list[Entry] = []
        place = f"after={after}"
        while True:
            page = await self.call("GET", f"/api/conversations/{conversation_id}/messages?{place}&limit={PAGE}")
            found += map(entry_of, page["items"])
            if page["next"] is None:
                return found
            place = f"cursor={page['next']}"


def entry_of(message: dict[str, Any]) -> Entry:
    """A message object of the API or of a frame."""
    return Entry(
        message["message_id"],
        message["conversation_id"],
        message["seq"],
        message.get("sender_id", ""),
        message.get("client_message_id"),
        message.get("content", ""),
    )


async def register(door: Door, name: str, device_id: str, password: str) -> SignedIn:
    body = {"username": name, "email": f"{name}@example.com", "password": password, "device_id": device_id}
    return await _signed_in(door, "register", 201, name, device_id, body)


async def login(door: Door, name: str, device_id: str, password: str) -> SignedIn:
    return await _signed_in(door, "login", 200, name, device_id, {"username": name, "password": password, "device_id": device_id})


async def _signed_in(door: Door, way: str, expected: int, name: str, device_id: str, body: object) -> SignedIn:
    answer = await door.call("POST", f"/api/auth/{way}", body)
    if answer.status_code != expected:
        raise Unanswered(f"{way} {name}: {answer.status_code} {answer.text}")
    tokens = answer.json()
    return SignedIn(door, name, str(tokens["user"]["user_id"]), device_id, tokens)
