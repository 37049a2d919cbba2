"""Quart for an API: one request and its answer, with as little between them as Quart allows.

Quart makes a nursery and two tasks for each request, one to hear its body and whether its client leaves, and gives it a session. A
request that has come whole has its body, its connection watches the client (connection.py), and there are no sessions. Rule: what is
left away is never seen: routes, hooks, errors and contexts are Quart's own.
"""

from __future__ import annotations

from typing import Any, Final, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, Response
from quart.sessions import NullSession, SessionInterface
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.datastructures import Headers as WerkzeugHeaders

from uim.api.answers import Answer
from uim.api.direct import Direct

# Set in the scope's extensions by the connection: `receive` gives all of the body without waiting.
WHOLE: Final = "uim.whole"


class _Exchange(TrioASGIHTTPConnection):
    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if WHOLE not in (self.scope.get("extensions") or {}):
            await super().__call__(receive, send)
            return
        request = self._create_request_from_scope(send)
        while True:
            message = cast(dict[str, Any], await receive())
            request.body.append(message["body"])
            if not message["more_body"]:
                break
        request.body.set_complete()
        # Its time is the stream's (RESPONSE_TIMEOUT is None, see app.py).
        await self._send_response(send, await self.app.handle_request(request))

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        """As Quart's, but what is at hand goes out as one piece, which is also the last."""
        if not isinstance(response, Response) or not isinstance(response.response, DataBody):
            await super()._send_response(send, response)
            return
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers, "trailers": False})
        body = response.response
        await send({"type": "http.response.body", "body": body.data[body.begin : body.end], "more_body": False})


def response_of(answer: Answer) -> Response:
    """Ours as Quart's."""
    response = Response(answer.body, answer.status)
    # Its own guess, before the length.
    del response.headers["Content-Type"]
    given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
    response.headers = WerkzeugHeaders([*given, *response.headers])
    return response


class _NoSessions(SessionInterface):
    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> NullSession:
        return NullSession()


class App(QuartTrio):
    """QuartTrio without sessions, for requests that mostly have come whole. `direct`: what is answered without it."""

    direct: Direct
    asgi_http_class = _Exchange
    session_interface = _NoSessions()  # type: ignore[assignment]  # Quart names the type of its own default
