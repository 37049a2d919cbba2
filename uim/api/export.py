"""One's own data over HTTP, streamed as lines of JSON.

Rule: what is refused is refused before the first byte; what fails later tears the answer, so that nobody takes a part for
the whole: its last line is of kind `end`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from quart import Response
from quart.wrappers.response import ResponseBody

from uim.api.routes import Routes
from uim.chat.export import Exports
from uim.model.person import Caller


class _Body(ResponseBody):
    """Begun and ended by the task that writes the answer, so that a client who goes away ends it there."""

    def __init__(self, reading: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        self._reading = reading

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return await self._reading.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._reading.__aexit__(exc_type, exc_value, traceback)


def add_export(routes: Routes, exports: Exports) -> None:
    @routes.route("GET", "/api/users/me/export", status=200, streams=True, summary="All of one's own data, as lines of JSON")
    async def export_own_data(caller: Caller) -> Response:
        exports.check(caller.user_id)
        return Response(
            _Body(exports.reading(caller.user_id)),
            200,
            headers={"Content-Disposition": 'attachment; filename="uim-export.jsonl"'},
            content_type="application/x-ndjson",
        )
