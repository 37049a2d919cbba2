"""Who answers what over the admin socket, while the server runs.

Rule: started before the rooms, so that a start that hangs can be looked at too.
"""

from __future__ import annotations

import socket
from functools import partial

import trio

from uim.admin import door, tasks, trace
from uim.chat.house import House


async def run(house: House, listening: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer until cancelled."""
    births = tasks.Births()
    answers: door.Answers = {
        "tasks": partial(tasks.tree, births),
        "trace": partial(trace.trace, house.tailer, house.switchboard),
    }
    trio.lowlevel.add_instrument(births)
    try:
        await door.serve(listening, answers, task_status=task_status)
    finally:
        trio.lowlevel.remove_instrument(births)
