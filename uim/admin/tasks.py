"""The live nursery tree: what each task is, whose connection it serves, how old it is, and where it waits.

Trio's own tree is walked from its root, in slices, so that a server with thousands of connections goes on serving meanwhile.
Rule: it only looks. The rooms are told one by one; of connections those with most to do, the rest by where their tasks wait.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path, PurePath
from typing import Any, Final

import msgspec
import trio

from uim.admin.door import Question
from uim.chat.outbox import Outbox
from uim.live.session import Session
from uim.model.ids import rfc3339

# Some 35 µs a task, so a slice is a third of a millisecond; a collection of garbage may fall into one.
TASKS_A_SLICE: Final = 10
MAX_DEPTH: Final = 40
_HOUSE: Final = f"{Path(__file__).parents[1]}/"
_CONNECTION: Final = "trio._highlevel_serve_listeners._run_handler"
_NAMES: Final = {
    "uim.server.serve": "server",
    "uim.server._stop_on_signal": "signals",
    "uim.store.redis.RedisLink.run": "redis link",
    "uim.store.redis.RedisLink._pump": "redis pipelines",
    "uim.store.redis.RedisLink._listen": "redis subscription",
    "uim.chat.writer.Writer.run": "log writer",
    "uim.chat.writer.Writer._come_back": "connecting again",
    "uim.chat.tailer.Tailer.run": "log tailer",
    "uim.chat.receipts.Receipts.run": "receipts and cursors",
    "uim.chat.offline.Offline.run": "offline queue",
    "uim.chat.indexer.Indexer.run": "packing for search",
    "uim.chat.lastseen.LastSeen.run": "last seen",
    "uim.listener.serve": "listener",
    "uim.admin.desk.run": "admin socket",
    "uim.live.session.Session._outbound": "outbound",
    "uim.live.session.Session._heartbeat": "heartbeat",
    "uim.live.session.Session._catch_up": "catching up",
    "uim.api.connection._hang_up_when_cancelled": "hanging up when cancelled",
    "hypercorn.trio.task_group._handle": "request",
    "hypercorn.trio.tcp_server.TCPServer._idle_timeout": "idle deadline",
    "trio._highlevel_serve_listeners._serve_one_listener": "accepting",
}
_BY_FRAME: Final = {
    "WebSocketFront.__call__": "WebSocket connection, not signed in yet",
    "HttpFront.__call__": "HTTP connection",
    "_Door.meet": "question over the admin socket",
}


class Node(msgspec.Struct, omit_defaults=True):
    """One task. `where`: its innermost frame of ours, then the innermost of all; empty for one that is about to run."""

    name: str
    task: str
    where: list[str]
    age_s: float
    children: list[Node] = []


class OutboxDepth(msgspec.Struct):
    """What a connection is owed: frames and bytes that wait, entries sent and not confirmed."""

    frames: int
    bytes: int
    late: int
    unconfirmed: int
    sent: int
    confirmed: int
    resends: int
    live: bool


class ConnectionNode(msgspec.Struct, omit_defaults=True):
    """One connection with its tasks; all but `tree` only where it is a WebSocket that is signed in."""

    tree: Node
    user_id: str | None = None
    username: str | None = None
    device_id: str | None = None
    session_id: str | None = None
    address: str | None = None
    connection_no: int | None = None
    silent_s: float | None = None
    open_sends: int | None = None
    outbox: OutboxDepth | None = None


class Waiting(msgspec.Struct):
    """How many tasks of connections wait at one place, and the oldest of them."""

    name: str
    where: list[str]
    tasks: int
    oldest_s: float


class Tree(msgspec.Struct):
    """The answer. `connections`: those with most to do first; `waiting`: the tasks of all connections, by where they wait."""

    process: int
    at: str
    tasks: int
    connections_here: int
    walk_ms: float
    longest_slice_ms: float
    rooms: list[Node]
    connections: list[ConnectionNode]
    waiting: list[Waiting]


class Births(trio.abc.Instrument):
    """When each task began; Trio itself does not note it. Half a microsecond for each task that begins and ends."""

    def __init__(self) -> None:
        self._at: dict[trio.lowlevel.Task, float] = {}
        self._began_at = time.monotonic()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._at[task] = time.monotonic()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._at.pop(task, None)

    def age_s(self, task: trio.lowlevel.Task) -> float:
        """Seconds; of a task that was there before, since this began to look."""
        return round(time.monotonic() - self._at.get(task, self._began_at), 3)


async def tree(births: Births, question: Question) -> Tree:
    """Walk the tree. Tasks that begin or end meanwhile may be in it or not."""
    began_at = time.perf_counter()
    walk = _Walk(births, question)
    root = trio.lowlevel.current_root_task()
    assert root is not None
    rooms = await walk.children(root, 0)
    return Tree(
        process=os.getpid(),
        at=rfc3339(datetime.now(UTC)),
        tasks=walk.seen,
        connections_here=walk.connections_here,
        walk_ms=round((time.perf_counter() - began_at) * 1000, 3),
        longest_slice_ms=round(walk.longest_slice_s * 1000, 3),
        rooms=rooms,
        connections=walk.chosen(),
        waiting=walk.waiting(),
    )


@dataclass
class _Place:
    tasks: int = 0
    oldest_s: float = 0.0


@dataclass
class _Walk:
    births: Births
    question: Question
    seen: int = 0
    connections_here: int = 0
    longest_slice_s: float = 0.0
    _looked: int = 0
    _slice_began: float = field(default_factory=time.perf_counter)
    _heap: list[tuple[tuple[float, ...], int, ConnectionNode]] = field(default_factory=list)
    _places: dict[tuple[str, ...], _Place] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    async def children(self, task: trio.lowlevel.Task, depth: int) -> list[Node]:
        """The nodes of a task's children, connections put aside."""
        nodes: list[Node] = []
        # Copies: while this waits between two slices tasks begin and end.
        for nursery in list(task.child_nurseries):
            for child in nursery.child_tasks:
                await self._breathe()
                if child.name == _CONNECTION:
                    await self._connection(child, depth)
                else:
                    nodes.append(await self.node(child, depth))
        return sorted(nodes, key=lambda node: -node.age_s)

    async def node(self, task: trio.lowlevel.Task, depth: int) -> Node:
        self.seen += 1
        frames = list(task.iter_await_frames())
        below = await self.children(task, depth + 1) if depth < MAX_DEPTH else []
        return Node(_name_of(task, frames), task.name, _where(frames), self.births.age_s(task), below)

    async def _connection(self, task: trio.lowlevel.Task, depth: int) -> None:
        if task is trio.lowlevel.current_task():
            return
        self.connections_here += 1
        session = _session_of(task)
        if self.question.user is not None and not _is_of(session, self.question.user):
            return
        shown = _shown(await self.node(task, depth), session)
        self._count(shown.tree)
        weight = _weight(shown)
        heapq.heappush(self._heap, (weight, next(self._numbers), shown))
        if len(self._heap) > self.question.most:
            heapq.heappop(self._heap)

    def _count(self, node: Node) -> None:
        place = self._places.setdefault((node.name, *node.where), _Place())
        place.tasks += 1
        place.oldest_s = max(place.oldest_s, node.age_s)
        for child in node.children:
            self._count(child)

    async def _breathe(self) -> None:
        self._looked += 1
        if self._looked % TASKS_A_SLICE == 0:
            self.longest_slice_s = max(self.longest_slice_s, time.perf_counter() - self._slice_began)
            await trio.lowlevel.checkpoint()
            self._slice_began = time.perf_counter()

    def chosen(self) -> list[ConnectionNode]:
        return [shown for _, _, shown in sorted(self._heap, key=lambda one: one[:2], reverse=True)]

    def waiting(self) -> list[Waiting]:
        by_many = sorted(self._places.items(), key=lambda item: -item[1].tasks)
        return [Waiting(key[0], list(key[1:]), place.tasks, place.oldest_s) for key, place in by_many[:100]]


# -- what a task is -------------------------------------------------------------------------------------------------------

_Frames = list[tuple[Any, int]]


def _name_of(task: trio.lowlevel.Task, frames: _Frames) -> str:
    if task.name in _NAMES:
        return _NAMES[task.name]
    if task.name == _CONNECTION:
        return _connection_name(frames)
    parts = task.name.split(".")
    if parts[0] != "uim" or len(parts) < 3:
        return task.name
    # uim.chat.bus.Bus._be_heard is "bus: be heard", uim.chat.spool.Spool.run is "spool".
    return parts[2] if parts[-1] == "run" else f"{parts[2]}: {parts[-1].strip('_').replace('_', ' ')}"


def _connection_name(frames: _Frames) -> str:
    inside = [frame.f_code.co_qualname for frame, _ in frames]
    if "Session.run" in inside:
        return "inbound" if "Session._inbound" in inside else "beginning" if "Session._begin" in inside else "ending"
    return next((_BY_FRAME[name] for name in inside if name in _BY_FRAME), "connection whose first request has not come whole")


def _where(frames: _Frames) -> list[str]:
    """The innermost frame of ours, and, if that waits for somebody else's, the innermost outside of Trio's core."""
    ours = [place for place in frames if _is_ours(place[0].f_code.co_filename)]
    others = [place for place in frames if "/trio/_core/" not in place[0].f_code.co_filename]
    chosen = [places[-1] for places in (ours, others) if places]
    return list(dict.fromkeys(_place(frame, line) for frame, line in chosen))


def _is_ours(filename: str) -> bool:
    return filename.startswith(_HOUSE)


def _place(frame: Any, line: int) -> str:
    filename = frame.f_code.co_filename
    shown = f"uim/{filename.removeprefix(_HOUSE)}" if _is_ours(filename) else "/".join(PurePath(filename).parts[-2:])
    return f"{shown}:{line} {frame.f_code.co_qualname}"


# -- whose connection it is -----------------------------------------------------------------------------------------------


def _session_of(task: trio.lowlevel.Task) -> Session | None:
    for frame, _ in task.iter_await_frames():
        if frame.f_code is Session.run.__code__:
            session = frame.f_locals["self"]
            return session if isinstance(session, Session) else None
    return None


def _is_of(session: Session | None, user: str) -> bool:
    return session is not None and user.lower() in (str(session.caller.user_id), session.caller.username.lower())


def _shown(tree: Node, session: Session | None) -> ConnectionNode:
    if session is None:
        return ConnectionNode(tree)
    outbox = session.outbox
    return ConnectionNode(
        tree,
        user_id=str(session.caller.user_id),
        username=session.caller.username,
        device_id=outbox.device_id,
        session_id=str(outbox.session_id),
        address=session.address,
        connection_no=outbox.connection_no,
        silent_s=round(trio.current_time() - outbox.heard_at, 3),
        open_sends=session.sends_open,
        outbox=depth_of(outbox),
    )


def depth_of(outbox: Outbox) -> OutboxDepth:
    return OutboxDepth(
        frames=len(outbox.frames),
        bytes=outbox.size,
        late=outbox.late,
        unconfirmed=len(outbox.unconfirmed),
        sent=outbox.sent,
        confirmed=outbox.confirmed,
        resends=outbox.resends,
        live=outbox.live,
    )


def _weight(shown: ConnectionNode) -> tuple[float, ...]:
    """More for a connection that an operator looks for: one that takes nothing, confirms nothing, or is old."""
    depth = shown.outbox
    owed = (depth.resends, depth.bytes, depth.unconfirmed) if depth is not None else (0, 0, 0)
    return (*owed, shown.tree.age_s)
