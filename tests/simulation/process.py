"""One server process: the rooms of chat and the WebSocket front, as server.py starts them, on a stand-in for what is below.

Rule: a kill is a kill: the process's sockets are torn, its link and its database connections are gone at that moment, and
nothing that its tasks still do on their way out is seen by anybody.
"""

from __future__ import annotations

from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

import trio

from tests.simulation.broker import Link
from tests.simulation.clients import Connection
from tests.simulation.database import Killed
from tests.simulation.pipes import End, connection
from uim.admission import Peer
from uim.chat import redelivery
from uim.chat.house import House, build_house
from uim.listener import ByteStream, Deadlines
from uim.live.arrivals import Arrivals
from uim.live.upgrade import WebSocketFront

if TYPE_CHECKING:
    from tests.simulation.world import World

LOG_ID = UUID(int=1)
HERE: ContextVar[Process | None] = ContextVar("process", default=None)


class Process:
    """`identity` names the present life of it; a dead one's is never used again."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"server-{number}"
        self.lives = 0
        self.is_serving = False
        self.house: House | None = None
        self.link: Link | None = None
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.rooms = 0
        self._tree: trio.Nursery | None = None
        self._ends: list[End] = []
        self._ports = count(1)

    @property
    def identity(self) -> str:
        return f"{self.name}.{self.lives}"

    async def run(self) -> None:
        """Live, and live again after each kill, until the world is over."""
        HERE.set(self)
        while not self.world.over:
            self.lives += 1
            await self._live()
            if not self.world.over:
                await trio.sleep(self.world.chance.uniform(0.2, 4.0))

    async def _live(self) -> None:
        identity = self.identity
        self.ended = trio.Event()
        self.world.history.note(identity, "starts")
        try:
            with trio.CancelScope() as self.scope:
                async with trio.open_nursery() as self._tree:
                    await self._start(self._tree)
        except* Killed:
            pass
        except* Exception as bugs:
            if not self.world.is_dead(identity):
                self.world.observer.breaks("BUG", f"{identity} ended with {bugs.exceptions!r}")
        finally:
            self.is_serving = False
            self.ended.set()

    async def _start(self, tree: trio.Nursery) -> None:
        settings = self.world.settings(self.identity)
        house = self.house = build_house(settings, log_id=LOG_ID, passwords=None)  # type: ignore[arg-type]  # nobody signs in here
        rooms: list[Any] = [house.link, house.bus, house.writer, house.tailer, house.receipts, house.connects, house.announcements]
        for room in rooms:
            await tree.start(room.run)
        await tree.start(redelivery.run, house.switchboard)
        await tree.start(house.spool.run)
        await tree.start(house.typing.run)
        await tree.start(house.offline.run)
        arrivals = Arrivals(per_user=settings.devices_per_user, randomness=self.world.chance)
        self._front = WebSocketFront(house, arrivals=arrivals, on_signed_in=lambda *_: None, is_draining=lambda: False)
        self.rooms = self.tasks()
        self.is_serving = True
        self.world.history.note(self.identity, f"serves, its log is at {house.tailer.position}")

    def accept(self, client: Connection) -> End:
        """A connection from that client; its end of it."""
        assert self._tree is not None
        chance = self.world.chance
        theirs, ours = connection(self.world.network, capacity=chance.choice((1024, 8192, 65536)), slowest_s=self.world.plan.slowest_s)
        self._ends = [end for end in self._ends if not end.is_over]
        self._ends.append(ours)
        self._tree.start_soon(self._serve, ours, client)
        return theirs

    async def _serve(self, end: End, client: Connection) -> None:
        identity = self.identity
        try:
            stream = ByteStream(end, end, Deadlines(), end.write_now)  # type: ignore[arg-type]  # all that it asks of a socket is there
            head = b""
            with trio.move_on_after(10.0):
                while b"\r\n\r\n" not in head:
                    more = await stream.receive_some()
                    if not more:
                        return
                    head += more
            stream.unread(head)
            client.arrived()
            await self._front(stream, Peer("192.0.2.1", next(self._ports), False))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* Exception as bugs:
            if not self.world.is_dead(identity):
                self.world.observer.breaks("BUG", f"a connection of {identity} failed: {bugs.exceptions!r}")
        finally:
            end.close()

    def kill(self) -> None:
        """kill -9. Does not await."""
        self.is_serving = False
        if self.link is not None:
            self.link.die()
        for end in self._ends:
            end.tear()
        self._ends.clear()
        self.scope.cancel()

    def tasks(self) -> int:
        """How many tasks there are in its tree."""
        return 0 if self._tree is None else sum(_tasks(task) for task in self._tree.child_tasks)

    async def do(self, act: Any) -> Any:
        """Run something as a task of this process. Gives None if the process dies first."""
        assert self._tree is not None
        answers: list[Any] = []
        done = trio.Event()

        async def carry_out() -> None:
            try:
                answers.append(await act())
            finally:
                done.set()

        self._tree.start_soon(carry_out)
        await done.wait()
        return answers[0] if answers else None


def _tasks(task: trio.lowlevel.Task) -> int:
    return 1 + sum(_tasks(child) for nursery in task.child_nurseries for child in nursery.child_tasks)
