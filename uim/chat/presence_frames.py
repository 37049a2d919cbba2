"""States of presence as frames, into a connection's outbox.

Rule: messages go first: a connection with little room is given no presence, and a long list is cut into frames of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from uim.chat.outbox import Outbox
from uim.wire.frames import raw_frame

MAX_FRAME_BYTES: Final = 192 * 1024
# A connection with more than this in its outbox has its messages first.
ROOM_BYTES: Final = 64 * 1024


def has_room(outbox: Outbox) -> bool:
    return outbox.live and outbox.size <= ROOM_BYTES


def push_states(outbox: Outbox, states: Iterable[bytes], *, is_snapshot: bool = False) -> None:
    """Encoded states as one frame; what does not fit follows in others, which add to it."""
    group: list[bytes] = []
    size = 0
    for state in states:
        if group and size + len(state) > MAX_FRAME_BYTES:
            outbox.push(_frame(group, is_snapshot=is_snapshot))
            group, size, is_snapshot = [], 0, False
        group.append(state)
        size += len(state) + 1
    if group or is_snapshot:
        outbox.push(_frame(group, is_snapshot=is_snapshot))


def _frame(states: Sequence[bytes], *, is_snapshot: bool) -> bytes:
    end = b'],"snapshot":true}' if is_snapshot else b"]}"
    return raw_frame("PRESENCE_UPDATE", b'{"users":[' + b",".join(states) + end)
