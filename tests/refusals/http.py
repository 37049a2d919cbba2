"""An HTTP client that says whatever it is told to, and what is true of every answer.

httpx would mend a target, a header or a body before it is sent; this one sends them as they are, over one connection that it
opens again where the server has ended it. Rule: `fault_of` gives None or a sentence, so that a run of a thousand requests can
tell of all that went wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import trio

from tests.house import WAIT_S

Headers = list[tuple[str, str]]
JSON: Headers = [("Content-Type", "application/json")]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of a problem; None for an answer that is none."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        return str(self.json()["code"])

    def fault_of_any(self) -> str | None:
        """What breaks the rules of every answer, whatever was asked."""
        if self.status >= 500:
            return f"{self.status} {self.body[:200]!r}"
        if not self.headers.get("x-request-id"):
            return "no X-Request-ID"
        if "no-store" not in self.headers.get("cache-control", ""):
            return "no Cache-Control: no-store"
        if self.status >= 400:
            return self._fault_of_problem()
        return None

    def _fault_of_problem(self) -> str | None:
        if self.headers.get("content-type") != "application/problem+json":
            return f"{self.status} that is no problem+json: {self.body[:200]!r}"
        told = self.json()
        if not {"type", "title", "status", "detail", "code"} <= told.keys() or told["status"] != self.status:
            return f"{self.status} with the problem {told}"
        return None

    def fault(self, status: int, code: str, field: str | None = None) -> str | None:
        """Whether this is that refusal; with `field`, `errors` must name it, or a part of it."""
        if (wrong := self.fault_of_any()) is not None:
            return wrong
        if (self.status, self.code) != (status, code):
            return f"{self.status} {self.code}, not {status} {code}: {self.body[:200]!r}"
        named = self.json().get("errors", {}) if field is not None else {}
        if field is not None and not any(is_part(name, field) for name in named):
            return f"{code} names {list(named)}, not {field}"
        return None


def is_part(name: str, field: str) -> bool:
    """Whether the path `name` is the field itself or lies in it."""
    return name == field or name.startswith((f"{field}.", f"{field}["))


class Talk:
    """One connection, opened anew after the server has ended it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._place = (parts.hostname, parts.port)
        self._stream: trio.SocketStream | None = None

    async def ask(
        self,
        method: str,
        target: str | bytes,
        headers: Headers | None = None,
        body: bytes | None = None,
        *,
        bearer: str | None = None,
    ) -> Answer:
        """One request, every byte of it as given but for Host, Content-Length and the Bearer token."""
        lines = [("Host", "x"), *(headers or [])]
        if bearer is not None:
            lines.append(("Authorization", f"Bearer {bearer}"))
        if body is not None:
            lines.append(("Content-Length", str(len(body))))
        raw_target = target if isinstance(target, bytes) else target.encode()
        head = method.encode() + b" " + raw_target + b" HTTP/1.1\r\n"
        head += b"".join(name.encode("latin-1") + b": " + value.encode("latin-1") + b"\r\n" for name, value in lines)
        return await self.say(head + b"\r\n" + (body or b""), has_body=method != "HEAD")

    async def send_json(
        self, method: str, target: str, text: str | bytes | None, *, bearer: str | None = None, headers: Headers | None = None
    ) -> Answer:
        """One request with that text as its JSON body; None: without a body."""
        body = text.encode() if isinstance(text, str) else text
        return await self.ask(method, target, [*(headers or []), *(JSON if body is not None else [])], body, bearer=bearer)

    async def say(self, request: bytes, *, has_body: bool = True) -> Answer:
        """These bytes, and the answer to them."""
        with trio.fail_after(WAIT_S):
            if self._stream is None:
                self._stream = await trio.open_tcp_stream(*self._place)
            await self._stream.send_all(request)
            answer = await read_answer(self._stream, has_body=has_body)
            if answer.headers.get("connection", "").lower() == "close":
                await self.hang_up()
        return answer

    async def hang_up(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None


async def read_answer(stream: trio.abc.ReceiveStream, *, has_body: bool = True) -> Answer:
    """The next answer of a stream; one without a length goes on to the end of the stream."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _more(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    length = int(headers.get("content-length", "0")) if has_body and status not in (101, 204) else 0
    if has_body and headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, await _chunks(stream, body))
    while len(body) < length:
        body += await _more(stream)
    return Answer(status, headers, body)


async def _chunks(stream: trio.abc.ReceiveStream, data: bytes) -> bytes:
    """A body that comes in pieces, each behind its size, up to the empty one."""
    body = b""
    while True:
        while b"\r\n" not in data:
            data += await _more(stream)
        size, _, data = data.partition(b"\r\n")
        while len(data) < int(size, 16) + 2:
            data += await _more(stream)
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
        if int(size, 16) == 0:
            return body


async def _more(stream: trio.abc.ReceiveStream) -> bytes:
    received = bytes(await stream.receive_some())
    assert received, "the server hung up in the middle of an answer"
    return received
