"""The people of a run and their conversations, made over the HTTP API, as any client would.

Rule: registering costs the server a slow password hash each, so it is done by several at once, and never inside a measurement.
"""

from __future__ import annotations

import http.client
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from loadtest.progress import bar

PASSWORD: Final = "Load-test-1815"
# The server hashes on two threads; more would only wait there.
AT_ONCE: Final = 4
ANSWER_WITHIN_S: Final = 30.0


class Refused(Exception):
    """The server's answer to a request that should have succeeded."""


@dataclass(frozen=True, slots=True)
class Member:
    """A registered user, signed in on one device."""

    user_id: str
    token: str


class Api:
    """One connection to the HTTP API, kept alive. Not for threads."""

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(parts.hostname or "127.0.0.1", parts.port, timeout=ANSWER_WITHIN_S)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request; its JSON. Raises Refused unless it succeeded."""
        self._http.request(method, path, json.dumps(body) if body is not None else None, self._headers)
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise Refused(f"{method} {path}: {answer.status}, and no JSON: {text[:100]!r}") from None


def register(url: str, count: int) -> list[Member]:
    """That many new users, each signed in."""
    run = secrets.token_hex(4)

    def one(number: int) -> Member:
        name = f"load_{run}_{number}"
        with closing(Api(url)) as api:
            wanted = {"username": name, "email": f"{name}@example.com", "password": PASSWORD, "device_id": "load"}
            made = api.call("POST", "/api/auth/register", wanted)
        return Member(made["user"]["user_id"], made["access_token"])

    members = []
    with ThreadPoolExecutor(AT_ONCE) as threads, bar("register", count, "users") as shown:
        for member in threads.map(one, range(count)):
            members.append(member)
            shown.update(1)
    return members


def make_pair(url: str, one: Member, other: Member) -> str:
    """A one-on-one; its conversation_id."""
    return _make(url, one, {"type": "one_on_one", "participant_ids": [other.user_id]})


def make_group(url: str, members: list[Member]) -> str:
    """A group of all of them, owned by the first; its conversation_id."""
    others = [member.user_id for member in members[1:]]
    return _make(url, members[0], {"type": "group", "name": "load", "participant_ids": others})


def _make(url: str, owner: Member, wanted: dict[str, Any]) -> str:
    with closing(Api(url, owner.token)) as api:
        return str(api.call("POST", "/api/conversations", wanted)["conversation_id"])


def stored_message_ids(url: str, member: Member) -> list[int]:
    """Every text that this member is owed by sync from the very beginning, in the order in which it comes."""
    found: list[int] = []
    position = 0
    with closing(Api(url, member.token)) as api:
        while True:
            page = api.call("GET", f"/api/sync?last_sync_id={position}")
            found += [entry["message_id"] for entry in page["messages"] if entry["message_type"] == "text"]
            position = page["next_sync_id"]
            if not page["has_more"]:
                return found
