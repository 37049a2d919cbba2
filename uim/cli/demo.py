"""A few people and what they said, for `uim dev --demo`; told to the server over its own HTTP API, as any client would.

Rule: repeating it changes nothing: every id is derived from a name, and the server knows a repeat by its id.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
import uuid
from threading import Event, Thread
from typing import Any, Final

import click

PASSWORD: Final = "Demo-pass-1842"
PEOPLE: Final = (("ada", "Ada Lovelace"), ("bob", "Bob Noyce"), ("cyd", "Cyd Garoon"))
TALK: Final = (
    ("pair", "ada", "Hello Bob, does the engine run?"),
    ("pair", "bob", "It weaves algebraical patterns as we speak."),
    ("pair", "ada", "Then let us tell Cyd."),
    ("group", "ada", "Welcome to the engine room."),
    ("group", "cyd", "Thank you! What does it do?"),
    ("group", "bob", "Whatever we know how to order it to perform."),
)
ANSWER_WITHIN_S: Final = 10.0
MOST_TRIES: Final = 6
_NAMES: Final = uuid.UUID("6c1f7e0a-5d0b-4b0e-9d5c-3a6f2f1f8e11")


class Refused(Exception):
    """The server's answer to a request of ours that it did not take."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class Demo:
    """Fills the server at `url` in a thread of its own; `join` after the server has stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="demo")
        self._tls = _any_certificate() if url.startswith("https") else None

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of what is still being told; bounded by the deadlines of one request."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._tell()
        except (Refused, OSError, ValueError, KeyError) as error:
            if not self._stopping.is_set():
                click.echo(f"the demo could not be added: {error}", err=True)
            return
        names = ", ".join(username for username, _ in PEOPLE)
        click.echo(f"Demo: sign in as {names}, password {PASSWORD}")

    def _tell(self) -> None:
        users: dict[str, str] = {}
        tokens: dict[str, str] = {}
        for username, display_name in PEOPLE:
            signed_in = self._sign_in(username, display_name)
            users[username], tokens[username] = signed_in["user"]["user_id"], signed_in["access_token"]
        pair = {"type": "one_on_one", "participant_ids": [users["bob"]]}
        group = {"type": "group", "name": "Engine room", "participant_ids": [users["bob"], users["cyd"]]}
        conversations = {}
        for name, wanted in (("pair", pair), ("group", group)):
            made = self._call("/api/conversations", wanted | {"client_conversation_id": _id(name)}, tokens["ada"])
            conversations[name] = made["conversation_id"]
        for place, speaker, content in TALK:
            message = {"client_message_id": _id(f"{place} {content}"), "content": content}
            self._call(f"/api/conversations/{conversations[place]}/messages", message, tokens[speaker])
        self._befriend(users, tokens)

    def _sign_in(self, username: str, display_name: str) -> Any:
        profile = {"email": f"{username}@example.com", "display_name": display_name}
        credentials = {"username": username, "password": PASSWORD}
        try:
            return self._call("/api/auth/register", credentials | profile)
        except Refused as refused:
            if refused.code not in ("username_taken", "email_taken"):
                raise
        return self._call("/api/auth/login", credentials)

    def _befriend(self, users: dict[str, str], tokens: dict[str, str]) -> None:
        # Both ask: the second request accepts the first.
        for one, other in (("ada", "bob"), ("ada", "cyd"), ("bob", "cyd")):
            self._call("/api/friends", {"user_id": users[other]}, tokens[one])
            self._call("/api/friends", {"user_id": users[one]}, tokens[other])

    def _call(self, path: str, body: dict[str, Any], token: str | None = None) -> Any:
        for _ in range(MOST_TRIES):
            try:
                return self._try(path, body, token)
            except urllib.error.HTTPError as error:
                problem = json.loads(error.read() or b"{}")
                if error.code not in (429, 503) or self._stopping.is_set():
                    raise Refused(problem.get("code", str(error.code)), f"{path}: {problem.get('detail', '')}") from error
                self._stopping.wait(float(problem.get("retry_after", 1.0)))
        raise Refused("rate_limited", f"{path} was refused {MOST_TRIES} times")

    def _try(self, path: str, body: dict[str, Any], token: str | None) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S, context=self._tls) as answer:
            return json.load(answer)


def _any_certificate() -> ssl.SSLContext:
    # For our own server, on this machine: its certificate names a host, not 127.0.0.1.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _id(name: str) -> str:
    return str(uuid.uuid5(_NAMES, name))
