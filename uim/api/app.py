"""The HTTP application's frame: what is true of every request, whatever its path.

Each answer carries X-Request-ID and Cache-Control; each failure becomes one RFC 9457 problem. Rule: this is the HTTP
front's one error boundary; a handler raises refusals and lets bugs through, and a bug is told as `internal` with
its traceback in the log under the request's id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from uim.api.answers import plain_problem, problem
from uim.api.direct import Direct, Frame
from uim.api.exchange import App, response_of
from uim.errors import UIMError
from uim.metrics import Metrics

MAX_BODY_BYTES: Final = 128 * 1024
BODY_S: Final = 20.0
_CODES: Final = {
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "unavailable",
}


def new_app(
    *,
    metrics: Metrics | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_s: float = BODY_S,
    new_request_id: Callable[[], str] | None = None,
) -> App:
    """An application without routes: unknown paths are 404, bodies over the limit 413, slower than `body_s` 408."""
    app = App(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["BODY_TIMEOUT"] = body_s
    # The stream under an answer has a deadline for progress; a long export that is being read is no fault.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.merge_slashes = False
    frame = Frame(metrics, new_request_id)
    app.direct = Direct(frame, max_body_bytes=max_body_bytes)
    _add_frame(app, frame)
    _add_problem_handlers(app, frame)
    return app


def _add_frame(app: QuartTrio, frame: Frame) -> None:
    @app.before_request
    async def name_request() -> None:
        g.began_at = trio.current_time()
        g.request_id = frame.name(request.headers.get("X-Request-ID"))

    @app.after_request
    async def name_answer(response: Response) -> Response:
        for name, value in frame.headers(g.request_id):
            response.headers.setdefault(name.decode(), value.decode())
        rule = request.url_rule.rule if request.url_rule is not None else "none"
        frame.count(request.method, rule, response.status_code, g.began_at)
        return response


def _add_problem_handlers(app: QuartTrio, frame: Frame) -> None:
    """Every failure as a problem: refusals by their code, HTTP's own by their status, bugs as `internal`."""

    @app.errorhandler(UIMError)
    async def tell_refusal(refusal: UIMError) -> Response:
        return response_of(problem(refusal))

    @app.errorhandler(HTTPException)
    async def tell_http_failure(failure: HTTPException) -> Response:
        status = failure.code or 500
        code = _CODES.get(status, "internal" if status >= 500 else "bad_request")
        headers = []
        if isinstance(failure, MethodNotAllowed) and failure.valid_methods:
            headers.append((b"allow", ", ".join(sorted(failure.valid_methods)).encode()))
        return response_of(plain_problem(code, status, code.replace("_", " "), *headers))

    @app.errorhandler(Exception)
    async def tell_bug(bug: Exception) -> Response:
        return response_of(frame.bug(bug, method=request.method, path=request.path, request_id=g.request_id))
