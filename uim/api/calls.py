"""Requests on their way from Hypercorn's protocol to the application.

Hypercorn answers each in a task of its own, which hears it through a channel. Most have come whole when their head is read: these
are answered by the task that read them. Rule: what has not come whole is read no faster than it is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup, _handle

from uim.api.exchange import WHOLE

# Pieces of a body that wait for the application.
MOST_WAITING: Final = 10


class Call:
    """One request on its way to the application, which gets it from `receive`."""

    def __init__(self, scope: Any, calls: Calls, answer: Callable[[Call], Awaitable[None]]) -> None:
        self._scope = scope
        self._calls = calls
        self._answer = answer
        self._waiting: deque[Any] = deque()
        self._came, self._taken = trio.Event(), trio.Event()
        self.has_begun = self._is_over = False

    async def put(self, message: Any) -> None:
        """The next of the request. Where it is not being answered yet when its last is there, it is before this returns."""
        self._waiting.append(message)
        self._came.set()
        if not self.has_begun and not message.get("more_body", False):
            self._scope["extensions"][WHOLE] = {}
            await self.answer()
        # One that sends faster than it is read is read no further.
        while len(self._waiting) >= MOST_WAITING and message["type"] == "http.request" and not self._is_over:
            self._calls.begin()
            self._taken = trio.Event()
            await self._taken.wait()

    async def receive(self) -> Any:
        while not self._waiting:
            self._came = trio.Event()
            await self._came.wait()
        self._taken.set()
        return self._waiting.popleft()

    async def answer(self) -> None:
        self.has_begun = True
        try:
            await self._answer(self)
        finally:
            self._is_over = True
            self._taken.set()


class Calls(TaskGroup):
    """In place of Hypercorn's: a request that has come whole is answered by the task that read it, any other by a task of its own."""

    _call: Call | None = None

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Any:
        async def answer(call: Call) -> None:
            await _handle(app, config, scope, call.receive, send, trio.to_thread.run_sync, trio.from_thread.run)

        self._call = Call(scope, self, answer)
        return self._call.put

    def begin(self) -> None:
        """Answer what has not come whole, while the rest of it comes."""
        call = self._call
        if call is not None and not call.has_begun:
            call.has_begun = True
            self.spawn(call.answer)

    def end(self) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
