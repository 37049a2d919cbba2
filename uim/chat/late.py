"""What found no room in an outbox, or came while it could not be told: merged by what it is about.

Rule: of each thing the newest is kept, and of receipts every interval, so that a slow reader misses nothing; it is counted, for who
bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

Receipt = dict[str, Any]


@dataclass(slots=True)
class Merged:
    """Receipts of one user in one conversation: intervals that touch are one. `more`: what else the newest said."""

    receipts: list[Receipt]
    more: dict[str, Any]

    def add(self, receipt: Receipt, more: dict[str, Any]) -> int:
        """Keep it. Returns by how many intervals this has grown."""
        self.more = more
        last = self.receipts[-1] if self.receipts else None
        if last is not None and last["after"] <= receipt["after"] <= last["message_id"]:
            last.update(message_id=max(last["message_id"], receipt["message_id"]), at=receipt["at"])
            return 0
        self.receipts.append(dict(receipt))
        return 1


class Late:
    """`intervals`: of all receipts. The count is of these and of the frames."""

    __slots__ = ("_frames", "_receipts", "intervals")

    def __init__(self) -> None:
        self._frames: dict[object, bytes] = {}
        self._receipts: dict[tuple[UUID, str, UUID], Merged] = {}
        self.intervals = 0

    def __len__(self) -> int:
        return self.intervals + len(self._frames)

    def keep(self, about: object, data: bytes) -> None:
        """In place of an older frame about the same."""
        self._frames[about] = data

    def forget(self, about: object) -> None:
        """What is newer has been told."""
        self._frames.pop(about, None)

    def keep_receipts(self, conversation_id: UUID, status: str, receipts: list[Receipt], more: dict[str, Any]) -> None:
        for receipt in receipts:
            merged = self._receipts.setdefault((conversation_id, status, receipt["user_id"]), Merged([], {}))
            self.intervals += merged.add(receipt, more)

    def take(self) -> list[bytes]:
        """The frames."""
        frames, self._frames = self._frames, {}
        return list(frames.values())

    def take_receipts(self) -> Iterator[tuple[UUID, str, Merged]]:
        """By conversation, status and user; what is not told after all is to be kept anew."""
        receipts, self._receipts, self.intervals = self._receipts, {}, 0
        for (conversation_id, status, _), merged in receipts.items():
            yield conversation_id, status, merged
