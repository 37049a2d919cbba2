"""How fast a connection is read: what each frame costs, and what a connection earns.

100 a second, at most 200 saved up. A frame that asks for more than there is, is taken all the same, and the next one is read
once the debt has been earned: nothing is lost or refused, TCP tells the sender to wait. Rule: whatever a client may send without
end has a price here, or a bound of its own (MESSAGE_SEND: the sends that a user may have open; MESSAGE_ACK that confirms something
new: what was sent to be confirmed).
"""

from __future__ import annotations

from typing import Final

import trio

from uim.wire.frames import HeartbeatPing, PresenceUpdate, SyncRequest, TypingIndicator

EARNED_PER_S: Final = 100.0
MOST_SAVED: Final = 200.0
PRICES: Final[dict[type, float]] = {
    HeartbeatPing: 1,
    TypingIndicator: 10,
    # A transaction of the database each.
    PresenceUpdate: 100,
    SyncRequest: 100,
}
# A MESSAGE_ACK that says nothing new, or that something was read.
ACK: Final = 1.0
# A frame that is answered with ERROR, besides its own price: it may have cost a look into the database.
REFUSED: Final = 10.0
# A control frame, or a piece of a message so small that the message might never end.
SCRAP: Final = 1.0
SMALL_PIECE_CHARS: Final = 512


class Pace:
    """What one connection has saved up; below zero it owes."""

    __slots__ = ("_at", "_saved")

    def __init__(self) -> None:
        self._saved = MOST_SAVED
        self._at = trio.current_time()

    async def spend(self, price: float) -> None:
        """Pay, and wait until nothing is owed. Cancelled, it is paid all the same. Without debt there is no checkpoint."""
        now = trio.current_time()
        self._saved = min(MOST_SAVED, self._saved + (now - self._at) * EARNED_PER_S) - price
        self._at = now
        if self._saved < 0:
            await trio.sleep(-self._saved / EARNED_PER_S)
