"""Any frame is a sign of life; a connection without one for 90 s is ended.

Rule: one look over all connections instead of a task and a timer for each, which would be a tenth of what a quiet one costs.
"""

from __future__ import annotations

from typing import Final

import trio

from uim.chat.switchboard import Switchboard
from uim.errors import Cut

SILENCE_S: Final = 90.0
LOOK_EVERY_S: Final = 1.0


async def run(switchboard: Switchboard, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Look over the connections until cancelled."""
    task_status.started()
    while True:
        await trio.sleep(LOOK_EVERY_S)
        silent_since = trio.current_time() - SILENCE_S
        for outbox in switchboard.all():
            if outbox.heard_at <= silent_since:
                outbox.cut(Cut.SILENT)
