"""A request as the rooms of this floor see it: what was asked, by whom, with which headers.

A handler does not know whether it is called by Quart or by the short way before it (direct.py). Rule: no room of this floor looks
at a request in another form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import quart


class Asking(msgspec.Struct, frozen=True):
    """One request. `client`: the connection's own address and port, None for a Unix socket; `headers`: names in lower case.

    `read` gives all of the body's bytes; it raises what the application says of bodies that are too long or too slow.
    """

    method: str
    scheme: str
    path: str
    query: bytes
    client: tuple[str, int] | None
    headers: list[tuple[bytes, bytes]]
    read: Callable[[], Awaitable[bytes]]

    @property
    def address(self) -> str:
        """The address of the connection itself; "" for a Unix socket."""
        return self.client[0] if self.client else ""

    def header(self, name: bytes) -> str | None:
        """A header that comes once at most, by its name in lower case; given twice it is neither of the two.

        For a proxy before us may have judged the other.
        """
        found = [value for key, value in self.headers if key == name]
        return b", ".join(found).decode("latin-1") if found else None

    def first(self, name: bytes) -> str | None:
        """The first of the headers of that name in lower case."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None

    @property
    def media_type(self) -> str:
        """Of the body, in lower case, without its parameters; "" if none is given."""
        return (self.first(b"content-type") or "").partition(";")[0].strip().lower()


def asking_of(request: quart.Request) -> Asking:
    """What Quart was asked."""

    async def read() -> bytes:
        return bytes(await request.get_data(cache=True, as_text=False, parse_form_data=False))

    client = request.scope.get("client")
    headers = [(bytes(name).lower(), bytes(value)) for name, value in request.scope["headers"]]
    return Asking(request.method, request.scheme, request.path, request.query_string, client, headers, read)
