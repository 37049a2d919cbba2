"""`uim tasks`: what a running server is doing: its tasks, whose connections they serve, and where each waits.

Rule: a person reads it at three in the morning: the rooms first, then the connections with most to do, then the crowd by
where it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from uim.admin.door import MOST, Question
from uim.admin.tasks import ConnectionNode, Node, Tree
from uim.cli.asking import NoAnswer, ask, no_socket, socket_option, sockets_to_ask
from uim.cli.failing import Failed, operator_settings_or_exit
from uim.config import process_environ

NAME_COLUMN = 34
EXAMPLE = """\b
Example:
  uim tasks --socket /run/uim/admin.sock --user alice
"""


@click.command(
    help=f"Show a running server's tasks, with connection, user, age, outbox, and where each waits.\n\n{EXAMPLE}"
)
@socket_option
@click.option("--user", help="Only this user's connections: a username or an id.")
@click.option(
    "--most",
    type=click.IntRange(0, MOST),
    default=20,
    show_default=True,
    help="Show that many connections one by one: those with most to do.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines: one line of JSON a server.")
def tasks(sockets: tuple[Path, ...], user: str | None, most: int, as_json: bool) -> None:
    settings = operator_settings_or_exit(process_environ(), needs_database=False)
    paths = sockets_to_ask(sockets, settings.admin_socket)
    if not paths:
        raise no_socket()
    unanswered = []
    for path in paths:
        try:
            tree = ask(path, Question("tasks", user=user, most=most), Tree)
        except NoAnswer as why:
            unanswered.append(str(why))
            continue
        click.echo(msgspec.json.encode(tree).decode() if as_json else "\n".join(_lines(tree, user)))
    if unanswered:
        raise Failed("; ".join(unanswered))


def _lines(tree: Tree, user: str | None) -> Iterator[str]:
    yield (
        f"process {tree.process} at {tree.at}: {tree.tasks} tasks, {tree.connections_here} connections "
        f"(seen in {tree.walk_ms:.0f} ms, at most {tree.longest_slice_ms:.1f} ms at a time)"
    )
    yield ""
    for room in tree.rooms:
        yield from _node_lines(room, "", "")
    shown = tree.connections
    if user is not None and not shown:
        yield ""
        yield f"no connection of {user!r} here"
    if shown:
        yield ""
        yield f"{len(shown)} of the connections, those with most to do first:"
    for connection in shown:
        yield ""
        yield _connection_line(connection)
        yield from _node_lines(connection.tree, "  ", "  ")
    if tree.waiting:
        yield ""
        yield "Where the tasks of these connections wait:" if shown else "Where the tasks of connections wait:"
    for waiting in tree.waiting:
        yield f"{waiting.tasks:7,} × {waiting.name}, the oldest {_age(waiting.oldest_s)}: {_where(waiting.where)}"


def _node_lines(node: Node, first: str, rest: str) -> Iterator[str]:
    yield f"{first + node.name:<{NAME_COLUMN}} {_age(node.age_s):>9}  {_where(node.where)}"
    for number, child in enumerate(node.children, 1):
        is_last = number == len(node.children)
        yield from _node_lines(child, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))


def _connection_line(connection: ConnectionNode) -> str:
    outbox = connection.outbox
    if outbox is None:
        return connection.tree.name
    state = "live" if outbox.live else "catching up"
    more = f", {outbox.resends} resends" if outbox.resends else ""
    more += f", {outbox.late} updates wait for room" if outbox.late else ""
    more += f", {connection.open_sends} sends open" if connection.open_sends else ""
    return (
        f"{connection.username} ({connection.user_id}), device {connection.device_id}, from {connection.address}, {state}\n"
        f"  session {connection.session_id}, last heard of {_age(connection.silent_s)} ago\n"
        f"  outbox: {outbox.frames} frames, {outbox.bytes:,} bytes; {outbox.unconfirmed} unconfirmed; "
        f"sent up to {outbox.sent}, confirmed up to {outbox.confirmed}{more}"
    )


def _where(where: list[str]) -> str:
    return " › ".join(where) or "about to run"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
