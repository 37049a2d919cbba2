"""`uim trace MESSAGE_ID`: what became of one message: accepted, committed, handed on, written, confirmed, for every device.

What is stored comes from the database, what only a running server knows from its admin socket. Rule: one line a fact, in words,
times in UTC; never the content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from uim.admin.door import Question
from uim.admin.trace import DeviceTrace, ProcessTrace
from uim.cli.asking import NoAnswer, ask, socket_option, sockets_to_ask
from uim.cli.failing import operator_settings_or_exit, told
from uim.config import process_environ
from uim.model.ids import MAX_MESSAGE_ID, rfc3339
from uim.store import postgres
from uim.store import trace as stored
from uim.store.trace import Absence, Block, Device, Member, TracedEntry

MOST_USERS_ASKED = 200
EXAMPLE = """\b
Example:
  uim trace 1234 --socket /run/uim/admin.sock
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database knows; without an `entry` only why there is none."""

    entry: TracedEntry | None
    absence: Absence
    members: list[Member]
    devices: list[Device]
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Asked:
    """One server's answer, or why there was none."""

    socket: str
    answer: ProcessTrace | None
    error: str | None = None


@click.command(
    help="Tell what became of a message, for every member and device. Exit code 1 if it is not there, or a server did not answer. "
    f"Needs UIM_DATABASE_URL, and for what is not stored the servers' admin sockets.\n\n{EXAMPLE}"
)
@click.argument("message_id", type=click.IntRange(1, MAX_MESSAGE_ID))
@socket_option
@click.option("--json", "as_json", is_flag=True, help="For machines: one line of JSON.")
def trace(message_id: int, sockets: tuple[Path, ...], as_json: bool) -> None:
    settings = operator_settings_or_exit(process_environ(), needs_database=True)
    found = told(lambda: trio.run(_look_up, settings.database_url, message_id))
    paths = sockets_to_ask(sockets, settings.admin_socket) if found.entry is not None else []
    asked = [_ask(path, message_id, found.members) for path in paths]
    if as_json:
        click.echo(msgspec.json.encode(_plain({"stored": found, "processes": asked})).decode())
    else:
        click.echo("\n".join(_lines(message_id, found, asked)))
    if found.entry is None or any(one.error for one in asked):
        raise SystemExit(1)


async def _look_up(database_url: str, message_id: int) -> Stored:
    async with await postgres.connect(database_url, name="trace") as tx, tx.transaction():
        await tx.execute("set transaction isolation level repeatable read, read only")
        entry = await stored.entry(tx, message_id)
        absence = await stored.absence(tx, message_id)
        if entry is None:
            return Stored(None, absence, [], [], [])
        members = await stored.members(tx, entry)
        user_ids = [member.user_id for member in members]
        return Stored(entry, absence, members, await stored.devices(tx, user_ids), await stored.blocks(tx, user_ids))


def _ask(path: Path, message_id: int, members: Sequence[Member]) -> Asked:
    users = [member.user_id for member in members][:MOST_USERS_ASKED]
    try:
        return Asked(str(path), ask(path, Question("trace", message_id=message_id, users=users), ProcessTrace))
    except NoAnswer as why:
        return Asked(str(path), None, str(why))


def _plain(value: Any) -> Any:
    """Builtins, times as everywhere."""
    value = msgspec.to_builtins(value, builtin_types=(datetime,))

    def shown(part: Any) -> Any:
        if isinstance(part, datetime):
            return rfc3339(part)
        if isinstance(part, dict):
            return {name: shown(inner) for name, inner in part.items()}
        return [shown(inner) for inner in part] if isinstance(part, list) else part

    return shown(value)


# -- in words -------------------------------------------------------------------------------------------------------------


def _lines(message_id: int, found: Stored, asked: Sequence[Asked]) -> Iterator[str]:
    if found.entry is None:
        yield f"message {message_id} is not there: {_why_absent(message_id, found.absence)}"
        return
    yield from _entry_lines(found.entry)
    for one in asked:
        yield from _process_lines(one, found.entry)
    if not asked:
        yield "no server was asked: give --socket PATH, or set UIM_ADMIN_SOCKET, for when it was accepted, handed on and written"
    names = {member.user_id: member.username for member in found.members}
    for block in found.blocks:
        yield f"{names[block.user_id]} blocks {names[block.blocked_id]} since {rfc3339(block.since)}"
    if not found.members:
        yield "nobody was a member then"
    for member in found.members:
        yield ""
        yield from _member_lines(member, found, asked)


def _why_absent(message_id: int, absence: Absence) -> str:
    if message_id > absence.head:
        return f"the newest is {absence.head}"
    if message_id <= absence.horizon:
        return f"entries up to {absence.horizon} were removed by age"
    if absence.epoch is not None and absence.began_at is not None:
        return (
            f"it lies in the gap after {absence.after} where epoch {absence.epoch} begins at {absence.base} "
            f"({rfc3339(absence.began_at)}): no entry has such an id, or it was lost with the database that had it"
        )
    return "it is missing from the log: see `uim verify`"


def _entry_lines(entry: TracedEntry) -> Iterator[str]:
    kind = f"{entry.message_type} ({entry.kind})" if entry.kind else entry.message_type
    of = {"one_on_one": "the conversation of two", "group": "the group", "self": "the account's own conversation"}
    yield f"message {entry.message_id}: {kind}, seq {entry.seq} of {of.get(entry.conversation_type or '', '?')} {entry.conversation_id}"
    yield f"  from {entry.sender_name or 'an unknown user'} ({entry.sender_id})"
    if entry.client_message_id is not None:
        yield f"  under the client id {entry.client_message_id!r}"
    yield f"  committed {rfc3339(entry.created_at)}"
    if entry.deleted_at is not None:
        yield f"  taken back {rfc3339(entry.deleted_at)}"


def _process_lines(one: Asked, entry: TracedEntry) -> Iterator[str]:
    if one.answer is None:
        yield f"{one.error}; what only that server knows is missing here"
        return
    answer = one.answer
    yield f"process {answer.process} at {one.socket}:"
    if answer.accepted_at is not None:
        over = {"http": "over HTTP", "server": "by a request, as an entry of the server's own"}
        device = f", device {answer.accepted_device}" if answer.accepted_device else ", since gone"
        how = over.get(answer.accepted_over or "", f"over WebSocket session {answer.accepted_session}{device}")
        yield f"  accepted {answer.accepted_at} {how}"
    elif answer.handed_on_at is not None:
        yield "  accepted elsewhere: by another process, or into the spool while the database was away"
    if answer.handed_on_at is not None:
        yield f"  handed on {answer.handed_on_at} to those connected here"
    elif answer.position < entry.message_id:
        yield f"  not handed on yet: it is at {answer.position}"
    else:
        kept = f"it knows times from message {answer.kept_from} on" if answer.kept_from else "it began after it"
        yield f"  accepted and handed on: not known any more, {kept}"


def _member_lines(member: Member, found: Stored, asked: Sequence[Asked]) -> Iterator[str]:
    entry = found.entry
    assert entry is not None
    role = ", the sender" if member.user_id == entry.sender_id else ""
    stay = f"from {member.joined} on" if member.left is None else f"from {member.joined} to {member.left}"
    yield f"{member.username} ({member.user_id}){role}: a member {stay}"
    if member.is_deleted:
        yield "  the account is deleted"
    if member.has_hidden_it:
        yield "  has deleted it for themselves"
    if member.user_id != entry.sender_id:
        yield f"  {_reached('delivered', entry.message_id, member.delivered_up_to, member.delivered_at)}"
        why = "" if member.shows_reads else "; they hide read receipts"
        yield f"  {_reached('read', entry.message_id, member.read_up_to, member.read_at)}{why}"
    devices = [device for device in found.devices if device.user_id == member.user_id]
    if not devices and not member.is_deleted:
        yield "  no device of theirs has ever connected"
    for device in devices:
        yield from _device_lines(device, entry, asked)


def _reached(what: str, message_id: int, up_to: int, at: datetime | None) -> str:
    if at is not None:
        return f"{what} {rfc3339(at)}"
    if up_to >= message_id:
        return f"{what} (up to {up_to}), with no receipt told: hidden then, across a block, or from before they came back"
    return f"not {what}: up to {up_to}" if up_to else f"not {what}"


def _device_lines(device: Device, entry: TracedEntry, asked: Sequence[Asked]) -> Iterator[str]:
    past = "past it" if device.cursor >= entry.message_id else "before it"
    yield (
        f"  device {device.device_id}: cursor at {device.cursor}, {past}; connection {device.connection_no} "
        f"since {rfc3339(device.connected_at)}, cursor stored {rfc3339(device.updated_at)}"
    )
    answers = [one.answer for one in asked if one.answer is not None]
    here = [
        (answer.process, one)
        for answer in answers
        for one in answer.devices
        if (one.user_id, one.device_id) == (device.user_id, device.device_id)
    ]
    if answers and not here:
        owed = "" if device.cursor >= entry.message_id else ": it gets it at its next connect"
        yield f"    not connected to {'the server' if len(answers) == 1 else 'any server'} asked{owed}"
    for process, one in here:
        for line in _connection_lines(one):
            yield f"    {line} (process {process})" if len(answers) > 1 else f"    {line}"


def _connection_lines(one: DeviceTrace) -> Iterator[str]:
    for number, at in enumerate(one.written):
        yield f"written {at}" if number == 0 else f"written again {at}"
    if one.written_before is not None:
        yield f"written before {one.written_before}, the oldest write that is kept"
    yield _state_line(one)


def _state_line(one: DeviceTrace) -> str:
    if one.state == "confirmed":
        kept = f"before {one.confirmed_before}, the oldest confirmation that is kept"
        return f"confirmed {one.confirmed_at or kept}"
    if one.state == "unconfirmed":
        times = f" after {one.resends} resends" if one.resends else ""
        return f"not confirmed{times}: waited for since {one.waits_s} s, confirmed up to {one.confirmed}"
    if one.state == "catching_up":
        full = f"; its outbox was full at {one.full_at}, and it went back to catching up" if one.full_at else ""
        resent = f"; being sent again, for the {one.resends}. time" if one.resends else ""
        return f"catching up: at {one.sent}, confirmed up to {one.confirmed}{full}{resent}"
    words = {
        "sender": "sent it over this connection, and has the ack instead",
        "had": f"had everything up to {one.began} when it connected",
        "queued": f"not written yet: {one.waiting_bytes:,} bytes wait for this connection to take them",
        "coming": "live, and will be handed it in its turn",
        "connecting": "connecting: its cursor is being opened",
        "ending": "this connection is ending",
    }
    return words.get(one.state, one.state)

