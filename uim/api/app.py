"""The HTTP application's frame: what is true of every request, whatever its path.

Each answer carries X-Request-ID and Cache-Control; each failure becomes one RFC 9457 problem. Rule: this is the HTTP
front's one error boundary; a handler raises refusals and lets bugs through, and a bug is told as `internal` with
its traceback in the log under the request's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from uuid import uuid4

import structlog
import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from uim.api.answers import plain_problem, problem
from uim.api.exchange import App
from uim.errors import UIMError
from uim.metrics import Metrics

MAX_BODY_BYTES: Final = 128 * 1024
BODY_S: Final = 20.0
_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CODES: Final = {
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "unavailable",
}

log = structlog.get_logger("uim.api")


def new_app(
    *,
    metrics: Metrics | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_s: float = BODY_S,
    new_request_id: Callable[[], str] = lambda: str(uuid4()),
) -> QuartTrio:
    """An application without routes: unknown paths are 404, bodies over the limit 413, slower than `body_s` 408."""
    app = App(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["BODY_TIMEOUT"] = body_s
    # The stream under an answer has a deadline for progress; a long export that is being read is no fault.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.merge_slashes = False
    add_request_ids(app, new_request_id)
    add_problem_handlers(app)
    if metrics is not None:
        add_request_metrics(app, metrics)
    return app


def add_request_ids(app: QuartTrio, new_request_id: Callable[[], str]) -> None:
    """Give each request an id (its own, if it brings a sane one) in `g.request_id`, in the log and in the answer."""

    @app.before_request
    async def name_request() -> None:
        brought = request.headers.get("X-Request-ID", "")
        g.request_id = brought if _SANE_REQUEST_ID.fullmatch(brought) else new_request_id()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    async def name_answer(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response


def add_problem_handlers(app: QuartTrio) -> None:
    """Every failure as a problem: refusals by their code, HTTP's own by their status, bugs as `internal`."""

    @app.errorhandler(UIMError)
    async def tell_refusal(refusal: UIMError) -> Response:
        return problem(refusal)

    @app.errorhandler(HTTPException)
    async def tell_http_failure(failure: HTTPException) -> Response:
        status = failure.code or 500
        code = _CODES.get(status, "internal" if status >= 500 else "bad_request")
        headers = {}
        if isinstance(failure, MethodNotAllowed) and failure.valid_methods:
            headers["Allow"] = ", ".join(sorted(failure.valid_methods))
        return plain_problem(code, status, code.replace("_", " "), headers)

    @app.errorhandler(Exception)
    async def tell_bug(bug: Exception) -> Response:
        # The path only: a query may carry a token.
        log.error("a request failed", method=request.method, path=request.path, request_id=g.request_id, exc_info=bug)
        return plain_problem("internal", 500, "the server has a bug; its operator finds it by the request id")


def add_request_metrics(app: QuartTrio, metrics: Metrics) -> None:
    """Count and time every request, by its route and never by its path, or a scanner would grow the memory."""

    # To look a series up by its labels takes three times as long as to count. As many as there are routes and statuses.
    requests_of = lru_cache(maxsize=None)(metrics.http_requests.labels)
    seconds_of = lru_cache(maxsize=None)(metrics.http_seconds.labels)

    @app.before_request
    async def start_clock() -> None:
        g.began_at = trio.current_time()

    @app.after_request
    async def count(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule is not None else "none"
        method = request.method if request.method in _METHODS else "other"
        requests_of(method, route, str(response.status_code)).inc()
        seconds_of(method, route).observe(trio.current_time() - g.began_at)
        return response
