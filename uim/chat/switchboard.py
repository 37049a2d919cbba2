"""Who is connected to this process, and their outboxes.

On the floor of chat, for a message posted over HTTP must reach sockets; it holds outboxes, never a socket. Rule: one
connection a device, the newest; nothing here awaits, so that what it says is true when it says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from uim.chat.outbox import Outbox
from uim.errors import Cut

# Of connections that came at the same moment only the newest few may still be opening.
MOST_REPLACED: Final = 20
_NOBODY: tuple[Outbox, ...] = ()


class Switchboard:
    """All connections of this process, by user and device."""

    def __init__(self, *, devices_per_user: int) -> None:
        self._by_user: dict[UUID, dict[str, Outbox]] = {}
        self._devices_per_user = devices_per_user
        self.connections = 0

    @contextmanager
    def attached(self, outbox: Outbox) -> Iterator[bool]:
        """While inside, the outbox is its device's connection here; an older one of the device is cut.

        Gives False, and attaches nothing, if the user has too many devices connected, or if one that came later is here already:
        then this one is cut.
        """
        devices = self._by_user.setdefault(outbox.user_id, {})
        older = devices.get(outbox.device_id)
        if older is None and len(devices) >= self._devices_per_user:
            yield False
            return
        if older is not None and older.came_at > outbox.came_at:
            outbox.cut(Cut.REPLACED)
            yield False
            return
        if older is not None:
            older.cut(Cut.REPLACED)
            outbox.older = older
            outbox.replaced = (*older.replaced[-MOST_REPLACED:], older.session_id)
        devices[outbox.device_id] = outbox
        self.connections += 1
        try:
            yield True
        finally:
            self.connections -= 1
            if devices.get(outbox.device_id) is outbox:
                del devices[outbox.device_id]
            if not devices and self._by_user.get(outbox.user_id) is devices:
                del self._by_user[outbox.user_id]

    def of_user(self, user_id: UUID) -> Iterable[Outbox]:
        """That user's connections here; do not await while walking it."""
        devices = self._by_user.get(user_id)
        return devices.values() if devices else _NOBODY

    def is_here(self, user_id: UUID) -> bool:
        return user_id in self._by_user

    def is_connected(self, user_id: UUID, device_id: str) -> bool:
        return device_id in self._by_user.get(user_id, {})

    def all(self) -> list[Outbox]:
        return [outbox for devices in self._by_user.values() for outbox in devices.values()]

    def users(self) -> list[UUID]:
        return list(self._by_user)

    def cut_login(self, login_id: UUID) -> None:
        """End every connection of a login that has ended."""
        for outbox in self.all():
            if outbox.login_id == login_id:
                outbox.cut(Cut.LOGIN_ENDED)

    def cut_older(self, user_id: UUID, device_id: str, connection_no: int) -> None:
        """End this device's connection here if a newer one has been opened, here or in another process."""
        outbox = self._by_user.get(user_id, {}).get(device_id)
        if outbox is not None and 0 < outbox.connection_no < connection_no:
            outbox.cut(Cut.REPLACED)
