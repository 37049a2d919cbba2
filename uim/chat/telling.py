"""The line of what has changed and is to be told: each thing once, however often it changes, and in its turn.

Rule: to tell, the database is read; while that is away things wait here and none is dropped. As long as there are things, for
a thing stands here once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import trio

from uim.errors import UIMError

REST_S: Final = 0.5


class Telling:
    """`changed` is called from anywhere and does not await; `run` is the owner's task and calls `tell(id)` for each."""

    def __init__(self, tell: Callable[[UUID], Awaitable[None]]) -> None:
        self._tell = tell
        self._waiting: dict[UUID, None] = {}
        self._wake = trio.Event()

    def changed(self, about: UUID) -> None:
        self._waiting[about] = None
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell until cancelled. Raises what `tell` raises but `unavailable`: then it is tried again."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting:
                about = next(iter(self._waiting))
                del self._waiting[about]
                try:
                    await self._tell(about)
                except UIMError as refused:
                    if refused.code != "unavailable":
                        raise
                    self._waiting[about] = None
                    await trio.sleep(REST_S)
