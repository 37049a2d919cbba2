"""What a device does not confirm is sent again: after 1, 2, 4, 8 and 16 s, then 30 s later the connection is closed.

Sending again is catching up from the confirmed cursor: there is no second way for an entry to reach a device. Rule: the clock
starts when the oldest entry has left the outbox and starts again with what is confirmed, with nothing else: a slow line is no
silent device, and a silent device that pings is silent (storage.md §2).
"""

from __future__ import annotations

from typing import Final

import trio

from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.errors import Cut
from uim.log import get_logger

AGAIN_AFTER_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
GIVE_UP_AFTER_S: Final = 30.0
# One look over all connections instead of a timer for each message.
LOOK_EVERY_S: Final = 0.25

log = get_logger(__name__)


async def run(switchboard: Switchboard, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Look over the connections until cancelled."""
    task_status.started()
    while True:
        await trio.sleep(LOOK_EVERY_S)
        _look_over(switchboard, trio.current_time())


def _look_over(switchboard: Switchboard, now: float) -> None:
    for outbox in switchboard.all():
        if outbox.unconfirmed and outbox.size == 0 and not outbox.closed:
            look(outbox, now)


def look(outbox: Outbox, now: float) -> None:
    """Send one connection's unconfirmed entries again if it is time, or give the device up."""
    waited_s = now - outbox.progress_at
    if outbox.resends < len(AGAIN_AFTER_S):
        if waited_s >= AGAIN_AFTER_S[outbox.resends]:
            outbox.send_again()
    elif waited_s >= GIVE_UP_AFTER_S:
        log.error(
            "dead letter",
            alert=True,
            reason="not confirmed after five resends",
            user_id=str(outbox.user_id),
            device_id=outbox.device_id,
            message_id=outbox.oldest_unconfirmed,
            unconfirmed=len(outbox.unconfirmed),
        )
        outbox.cut(Cut.UNCONFIRMED)
