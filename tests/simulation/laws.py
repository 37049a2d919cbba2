"""The laws, and the observer who holds the world to them: by what was committed and by what the clients hold, never by the server.

ACK     what was acknowledged stands in the log, where and as it was said
ONCE    one entry for one client_message_id
LOG     ids and each conversation's seq without a gap, in commit order, nothing changed afterwards
ORDER   what a connection says stands in the order said; what comes comes in the log's, live only once it has caught up
GAP     a position that a device is told is complete
LEAK    nothing is seen from outside a stay
LOSS    in the end every device has all that it is owed, as it was said; and what was queued is in the log
CURSOR  a stored cursor moves only forward, but for a rewind, and never past what its device has
NEWEST  of a device's connections only an older one is replaced, and in the end each of them is
MARK    a watermark moves only forward, never past what the user has, and is told only once it is stored
AGAIN   what a device does not confirm comes again
STUCK   when the faults have stopped everything settles
BOUND   whatever waits in memory is bounded
TASKS   no task outlives its parent
BUG     no connection and no room ends by an error of our own

Rule: a broken law is noted, with the history up to there; nothing is raised into the code that is watched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import trio

from tests.simulation.tables import Row, Tables

if TYPE_CHECKING:
    from tests.simulation.clients import Device

SKIP_TO = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Broken:
    law: str
    why: str

    def __str__(self) -> str:
        return f"{self.law}: {self.why}"


class History:
    """What happened, line by line, in names that a reader can tell apart."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[UUID, str] = {}

    def name(self, of: UUID | str) -> str:
        return self.names.get(of, str(of)[:8]) if isinstance(of, UUID) else self.names.get(UUID(of), of[:8])

    def note(self, who: str, what: str) -> None:
        self.lines.append(f"{trio.current_time():9.4f}  {who:<12} {what}")


@dataclass
class Text:
    """A message on its way, from its sender's side."""

    client_id: str
    device: Device
    conversation_id: UUID
    content: str
    tries: int = 0
    queued_at: int = 0
    is_trusted: bool = False
    on: list[str] = field(default_factory=list)
    verdict: str = "open"
    message_id: int = 0
    sent_at: float = 0.0


@dataclass
class Observer:
    """`committed(…)` is the database's; the other calls are the clients'."""

    history: History
    devices: dict[tuple[UUID, str], Device] = field(default_factory=dict)
    texts: dict[str, Text] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    failed: trio.Event = field(default_factory=trio.Event)
    tables: Tables = field(default_factory=Tables)
    skipped_to: dict[UUID, int] = field(default_factory=dict)
    contents: dict[str, int] = field(default_factory=dict)

    def breaks(self, law: str, why: str) -> None:
        if not self.broken:
            self.history.note("LAW", f"{law}: {why}")
        self.broken.append(Broken(law, why))
        self.failed.set()

    # -- the database -------------------------------------------------------------------------------------------------------

    def committed(self, process: str, what: str, before: Tables, after: Tables) -> None:
        self.tables = after
        for at in range(before.last_id + 1, after.last_id + 1):
            self._new_row(process, before, after, at)
        if "move" in what or "open_cursors" in what:
            self._cursors(what, before, after)
        if "advance" in what:
            self._watermarks(before, after)

    def _new_row(self, process: str, before: Tables, after: Tables, at: int) -> None:
        row = after.log.get(at)
        if row is None:
            self.breaks("LOG", f"no entry {at}, but {after.last_id}")
            return
        self.history.note(process, f"commits {self.row(row)}")
        ids = [known for known in after.by_conversation[row.conversation_id] if known <= at]
        if row.seq != len(ids):
            self.breaks("LOG", f"entry {at} has seq {row.seq}, but it is number {len(ids)}")
        if row.message_type == "text" and row.content:
            if row.content in self.contents:
                self.breaks("ONCE", f"{row.content[:24]!r} is entry {self.contents[row.content]} and entry {at}")
            self.contents[row.content] = at

    def _cursors(self, what: str, before: Tables, after: Tables) -> None:
        for key, cursor in after.cursors.items():
            was = before.cursors.get(key)
            if cursor == was:
                continue
            device = self.devices[key]
            if was is None or cursor.connection_no != was.connection_no:
                self._opened(device, _asked(what, *key), cursor.at)
            elif cursor.at < was.at:
                self.breaks("CURSOR", f"{device} was at {was.at} and was moved back to {cursor.at}")
            self._has_all(device, cursor.at)
            self._is_marked(device, cursor.at)

    def _opened(self, device: Device, asked: int | None, at: int) -> None:
        self.history.note(str(device), f"opened at {at}")
        if not device.is_known:
            device.is_known = True
            if asked is None:
                device.start = at
        if asked == 0:
            device.bound_life = device.life
        if asked == SKIP_TO:
            device.skipped_at = at
            device.excused = max(device.excused, at)
            self.skipped_to[device.user_id] = max(self.skipped_to.get(device.user_id, 0), at)

    def _has_all(self, device: Device, up_to: int) -> None:
        if device.bound_life != device.life:
            return  # it has lost its store and nobody here knows yet
        if missing := self.missing(device, up_to):
            self.breaks("CURSOR", f"{device} is stored at {up_to}, but it has not {missing}")

    def _is_marked(self, device: Device, up_to: int) -> None:
        """A cursor past an entry says that nobody will deliver it again: so its delivery is stored by then."""
        newest: dict[UUID, int] = {}
        for at in self.tables.visible(device.user_id, 0, up_to):
            if self.tables.log[at].sender_id != device.user_id:
                newest[self.tables.log[at].conversation_id] = at
        for conversation_id, at in newest.items():
            if self.tables.places[conversation_id, device.user_id].delivered < at:
                self.breaks("MARK", f"{device} is stored at {up_to}, but the delivery of {at} is not")

    def missing(self, device: Device, up_to: int) -> list[int]:
        """What the device is owed up to there and has not."""
        after = max(device.start, device.excused)
        return [at for at in self.tables.visible(device.user_id, after, up_to) if at not in device.had and not self._said(device, at)]

    def _said(self, device: Device, at: int) -> bool:
        row = self.tables.log[at]
        return row.sender_id == device.user_id and row.client_message_id in device.said

    def _watermarks(self, before: Tables, after: Tables) -> None:
        for key, place in after.places.items():
            was = before.places.get(key)
            if was is None or (place.delivered, place.read) == (was.delivered, was.read):
                continue
            conversation_id, user_id = key
            who = f"{self.history.name(user_id)} in {self.history.name(conversation_id)}"
            if place.delivered < was.delivered or place.read < was.read or place.read > place.delivered:
                self.breaks("MARK", f"{who}: {was} became {place}")
            had = [device for device in self.devices.values() if device.user_id == user_id]
            for at in after.visible(user_id, max(was.delivered, self.skipped_to.get(user_id, 0)), place.delivered):
                row = after.log[at]
                if row.conversation_id != conversation_id or row.sender_id == user_id:
                    continue
                if not any(at in device.ever for device in had):
                    self.breaks("MARK", f"{who}: delivered up to {place.delivered}, but no device has {at}")

    # -- what clients are told ------------------------------------------------------------------------------------------------

    def told_sent(self, text: Text, payload: dict[str, object]) -> None:
        at = payload["message_id"]
        assert isinstance(at, int)
        row = self.tables.log.get(at)
        if text.message_id not in (0, at):
            self.breaks("ONCE", f"{text.client_id} was acknowledged as {text.message_id}, and now as {at}")
        if row is None:
            self.breaks("ACK", f"{text.client_id} was acknowledged as {at}, which nobody has committed")
        elif (row.client_message_id, row.conversation_id, row.content or text.content, row.seq) != (
            text.client_id, text.conversation_id, text.content, payload["seq"],
        ):  # fmt: skip
            self.breaks("ACK", f"{text.client_id} was acknowledged as {at}, but that is {self.row(row)}")
        text.verdict, text.message_id = "sent", at

    def told_receipts(self, conversation_id: UUID, status: str, receipts: Iterable[dict[str, object]]) -> None:
        for receipt in receipts:
            place = self.tables.places.get((conversation_id, UUID(str(receipt["user_id"]))))
            mark = 0 if place is None else place.delivered if status == "delivered" else place.read
            if int(str(receipt["message_id"])) > mark:
                who = self.history.name(str(receipt["user_id"]))
                self.breaks("MARK", f"{status} {receipt['message_id']} by {who} was told, stored is {mark}")

    def visible(self, user_id: UUID, after: int, up_to: int) -> list[int]:
        return self.tables.visible(user_id, after, up_to)

    def row(self, row: Row) -> str:
        said = row.client_message_id or row.metadata or ""
        return f"{row.message_id} ({self.history.name(row.conversation_id)} {row.seq}) {self.history.name(row.sender_id)}: {said}"

    # -- in the end -----------------------------------------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """What is still to come before the world is at rest; each as a sentence."""
        still = [f"{text.device} waits for the answer to {text.client_id}" for text in self.texts.values() if text.verdict == "open"
                 and text.client_id in text.device.outbox]  # fmt: skip
        still += [f"{text.client_id} was queued and is not in the log" for text in self.texts.values()
                  if text.is_trusted and text.verdict == "open" and not self._is_settled(text)]  # fmt: skip
        for device in self.devices.values():
            if missing := self.missing(device, self.tables.last_id):
                still.append(f"{device} has not {missing}")
            still += self._behind(device)
        return still

    def _is_settled(self, text: Text) -> bool:
        """In the log; or refused at the drain, which is told to nobody: then its sender was out then or has been since."""
        if (text.device.user_id, text.client_id) in self.tables.by_client_id:
            return True
        stays = self.tables.stays.get((text.conversation_id, text.device.user_id), ())
        return not any(left is None and joined <= text.queued_at for joined, left in stays)

    def _behind(self, device: Device) -> list[str]:
        seen = self.visible(device.user_id, 0, self.tables.last_id)
        cursor = self.tables.cursors.get((device.user_id, device.name))
        still = []
        if seen and (cursor is None or cursor.at < seen[-1]):
            still.append(f"{device} is stored at {cursor.at if cursor else None}, {seen[-1]} is its newest")
        newest: dict[UUID, int] = {}
        for at in seen:
            if self.tables.log[at].sender_id != device.user_id:
                newest[self.tables.log[at].conversation_id] = at
        for conversation_id, at in newest.items():
            place = self.tables.places[conversation_id, device.user_id]
            if place.delivered < at:
                still.append(f"{device}: {self.history.name(conversation_id)} is delivered up to {place.delivered}, not {at}")
        return still

    def check_the_end(self) -> None:
        """Once at rest, or given up: whose fault is which law's."""
        for text in self.texts.values():
            row_id = self.tables.by_client_id.get((text.device.user_id, text.client_id))
            if text.verdict == "sent" and row_id != text.message_id:
                self.breaks("LOSS", f"{text.client_id} was acknowledged as {text.message_id}; in the log it is {row_id}")
            if text.verdict == "refused" and text.tries == 1 and row_id is not None:
                self.breaks("ACK", f"{text.client_id} was refused, yet it is entry {row_id}")
            if text.is_trusted and text.verdict == "open" and not self._is_settled(text):
                self.breaks("LOSS", f"{text.client_id} was queued, and it is not in the log")
        self._check_turns()
        for device in self.devices.values():
            if missing := self.missing(device, self.tables.last_id):
                self.breaks("LOSS", f"{device} has not {missing}")
        for why in self.unsettled():
            self.breaks("STUCK", why)

    def _check_turns(self) -> None:
        """What one connection said, and nobody had to repeat, stands in the log in the order in which it was said."""
        said: dict[str, int] = {}
        for text in self.texts.values():
            at = self.tables.by_client_id.get((text.device.user_id, text.client_id))
            if at is None or text.tries != 1:
                continue
            if at < said.get(text.on[0], 0):
                self.breaks("ORDER", f"{text.client_id} is entry {at}, what {text.on[0]} had said before is {said[text.on[0]]}")
            said[text.on[0]] = at


def _asked(what: str, user_id: UUID, device_id: str) -> int | None:
    """The last_sync_id of that device's opening, of those that a commit tells of."""
    said = re.split(r"[,\s]", what.partition(f"{user_id}/{device_id}=")[2], maxsplit=1)[0]
    return None if said == "None" else int(said)
