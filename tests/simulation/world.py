"""One world from one seed: processes, a database, a bus, people with devices, and what goes wrong between them.

`run_seed(seed)` gives its history and the laws that it broke. Rule: a seed first chooses which faults there are at all, then how
often: worlds with one kind of trouble find what worlds with all of them drown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import trio
import trio.testing

from tests.house import settings_for
from tests.simulation import bounds
from tests.simulation.broker import Broker, Link
from tests.simulation.clients import Connection, Device
from tests.simulation.database import Connection as DatabaseConnection
from tests.simulation.database import Database, now, wall_clock
from tests.simulation.laws import SKIP_TO, Broken, History, Observer
from tests.simulation.pipes import End
from tests.simulation.process import HERE, Process
from tests.simulation.seeding import seeded
from tests.simulation.store import STAND_INS
from tests.simulation.tables import User
from uim.chat.tokens import Tokens
from uim.config import JwtKey, Settings
from uim.errors import UIMError
from uim.store import postgres, redis
from uim.store.postgres import USUAL, Deadlines

SETTLE_WITHIN_S = 150.0
CLOSE_WITHIN_S = 120.0
AGAIN_LOOKS = 25
REPLACED_LOOKS = 15
KEY = JwtKey("simulation", b"k" * 32)

# What devices do, and how often among all that they do.
HABITS = {
    "say": 12, "ping": 1, "tear": 1, "leave": 1, "fall silent": 1, "sleep": 1, "mute": 2, "rewind": 1, "skip": 1, "lose store": 1,
    "replace": 1, "go offline": 1, "read": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a seed has chosen."""

    processes: int
    people: int
    lasts_s: float
    habits: dict[str, int]
    resets: float
    hangs: float
    slows: float
    slow_pages: float
    kills: int
    power_cuts: float
    call_kills: float
    partitions: int
    bus_cuts: int
    bus_lost: float
    bus_repeated: float
    bus_slowest_s: float
    slowest_s: float
    membership_every_s: float
    is_small: bool
    has_outage: bool


def plan_of(chance: Random) -> Plan:
    def maybe(share: float, low: float, high: float) -> float:
        return chance.uniform(low, high) if chance.random() < share else 0.0

    partitions = int(maybe(0.65, 1, 4))
    habits = {name: weight for name, weight in HABITS.items() if name == "say" or chance.random() < 0.5}
    return Plan(
        processes=chance.choice((1, 1, 2, 2, 3)),
        people=chance.choice((2, 3, 3, 4)),
        lasts_s=chance.choice((4.0, 6.0, 10.0)) if partitions else chance.choice((2.0, 3.0, 4.0, 6.0)),
        habits=habits,
        resets=maybe(0.5, 0.0, 0.04),
        hangs=maybe(0.2, 0.0, 0.005),
        slows=maybe(0.4, 0.0, 0.05),
        slow_pages=maybe(0.4, 0.1, 0.5),
        kills=int(maybe(0.5, 1, 4)),
        power_cuts=maybe(0.5, 0.2, 0.8),
        call_kills=maybe(0.4, 0.0, 0.01),
        partitions=partitions,
        bus_cuts=int(maybe(0.4, 1, 4)),
        bus_lost=maybe(0.5, 0.0, 0.6),
        bus_repeated=maybe(0.4, 0.0, 0.3),
        bus_slowest_s=chance.choice((0.002, 0.02, 0.5)),
        slowest_s=chance.choice((0.002, 0.02, 0.2)),
        membership_every_s=chance.choice((0.3, 1.0, 3.0, 100.0)),
        is_small=chance.random() < 0.6,
        has_outage=chance.random() < 0.25,
    )


@dataclass(frozen=True)
class Result:
    seed: int
    history: list[str]
    broken: list[Broken]

    def told(self) -> str:
        """For a person: what broke, how to see it again, and all that led there."""
        repeat = f"pytest tests/simulation/test_seeds.py --seed {self.seed}"
        return "\n".join([f"seed {self.seed} broke {self.broken[0]}", "", *self.history, "", *map(str, self.broken[:5]),
                          "", f"again: {repeat}"])  # fmt: skip


class World:
    """What a run is made of; also the trouble of the database."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = Random(f"{seed} world")
        self.network = Random(f"{seed} network")
        self.faults = Random(f"{seed} faults")
        self.plan = plan_of(Random(f"{seed} plan"))
        self.history = History()
        self.observer = Observer(self.history)
        self.database = Database(Random(f"{seed} database"), self, self._committed)
        self.broker = Broker(Random(f"{seed} bus"))
        self.processes = [Process(self, number + 1) for number in range(self.plan.processes)]
        self.devices: list[Device] = []
        self.groups: list[UUID] = []
        self.people: list[UUID] = []
        self.over = False
        self.is_troubled = self.is_dark = False
        self.call_kills_left = 3
        self._dead: set[str] = set()
        self._reach: dict[str, str] = {}

    def _committed(self, process: str, what: str, before: Any, after: Any) -> None:
        self.observer.committed(process, what, before, after)

    # -- the ground ---------------------------------------------------------------------------------------------------------

    def settle_in(self) -> None:
        """People, their logins and devices, groups and pairs: the world at its beginning."""
        tables, history = self.database.tables, self.history
        tokens = Tokens((KEY,), wall_clock)
        for number in range(self.plan.people):
            user_id, name = uuid4(), ("ann", "bob", "cyd", "dan")[number]
            self.people.append(user_id)
            history.names[user_id] = name
            tables.users[user_id] = User(name)
            for device in ("phone", "tablet")[: self.chance.choice((1, 2))]:
                login_id = uuid4()
                tables.logins[login_id] = (user_id, device)
                token = tokens.sign_access(user_id=user_id, username=name, login_id=login_id, generation=1)
                made = Device(self, user_id, device, token, Random(f"{self.seed} {name} {device}"))
                made.trusts = self.chance.random() < 0.5
                self.devices.append(made)
                self.observer.devices[user_id, device] = made
        for number in range(self.chance.choice((1, 2))):
            self._make_group(f"group-{number + 1}")
        if self.chance.random() < 0.5:
            pair = uuid4()
            history.names[pair] = "pair"
            tables.open_pair(
                conversation_id=pair, user_id=self.people[0], other_id=self.people[1], client_conversation_id=None, now=now()
            )
        self.observer.tables = tables

    def _make_group(self, name: str) -> None:
        tables, group_id, owner = self.database.tables, uuid4(), self.people[0]
        self.history.names[group_id] = name
        self.groups.append(group_id)
        tables.insert_group(conversation_id=group_id, user_id=owner, name=name, client_conversation_id=None, now=now())
        made = tables.append_own(
            conversation_id=group_id, sender_id=owner, server_key=uuid4(), message_type="system",
            metadata=f'{{"event":"created","name":"{name}","type":"group"}}', now=now(),
        )  # fmt: skip
        others = self.people[1:]
        tables.seat(group_id, {owner: ("owner", made.message_id), **dict.fromkeys(others, ("admin", made.message_id))}, now())

    def conversations_of(self, user_id: UUID) -> list[UUID]:
        """Those that the user is or was in, and the groups, in which it may not be."""
        mine = [conversation_id for conversation_id, member in self.observer.tables.places if member == user_id]
        return mine or self.groups

    def settings(self, identity: str) -> Settings:
        plain = settings_for(f"simulation://{identity}", f"simulation://{identity}")
        return replace(plain, jwt_keys=(KEY,), database_pool=self.chance.choice((1, 2, 10)))

    async def connect_to_database(
        self, url: str, *, name: str, settings: Any = None, deadlines: Deadlines = USUAL
    ) -> DatabaseConnection:
        return await self.database.connect(url.partition("://")[2], name, deadlines)

    def link_to_redis(self, url: str) -> Link:
        link = Link(self.broker)
        process = HERE.get()
        assert process is not None
        process.link = link
        return link

    async def dial(self, connection: Connection) -> End | None:
        await trio.sleep(self.network.random() * self.plan.slowest_s)
        serving = [process for process in self.processes if process.is_serving]
        if not serving:
            return None
        process = self.network.choice(serving)
        if connection.device.connection is not connection:
            return None  # given up meanwhile
        connection.note(f"reaches {process.name}")
        return process.accept(connection)

    # -- trouble ------------------------------------------------------------------------------------------------------------

    def is_dead(self, process: str) -> bool:
        return process in self._dead

    def reach(self, process: str) -> str:
        return self._reach.get(process.partition(".")[0], "")

    def at(self, process: str, point: str) -> str:
        if not self.is_troubled or process in self._dead:
            return ""
        drawn, plan = self.faults.random(), self.plan
        if plan.slow_pages and "hidden_of" in point and self.faults.random() < plan.slow_pages:
            return "slow"
        for share, what in ((plan.resets, "reset"), (plan.hangs, "hang"), (plan.slows, "slow"), (plan.call_kills, "kill")):
            if drawn < share:
                if what == "kill" and not self._may_kill(process):
                    return ""
                if what != "slow":
                    self.history.note(process, f"{what} {point}")
                if what == "kill":
                    self.kill(process)
                return what
            drawn -= share
        return ""

    def _may_kill(self, process: str) -> bool:
        if any(each.identity == process and not each.is_serving for each in self.processes) or not self.call_kills_left:
            return False
        self.call_kills_left -= 1
        return True

    def kill(self, identity: str) -> None:
        for process in self.processes:
            if process.identity == identity and identity not in self._dead:
                self.history.note(identity, "is killed")
                self._dead.add(identity)
                process.kill()

    def queued(self) -> None:
        """Somebody has just been told that a text is queued: the moment for everything to go at once."""
        if self.is_troubled and self.faults.random() < self.plan.power_cuts:
            self.is_dark = True
            self.history.note("world", "the power is cut: every process is killed, and redis")
            for process in self.processes:
                if process.is_serving:
                    self.kill(process.identity)
            self.broker.crash()

    async def _light_up(self) -> None:
        while True:
            await trio.sleep(1.0)
            if self.is_dark:
                self.is_dark = False
                self._mend_links()

    async def _kill_now_and_then(self) -> None:
        for _ in range(self.plan.kills):
            await trio.sleep(self.faults.uniform(0.5, self.plan.lasts_s / self.plan.kills))
            serving = [process for process in self.processes if process.is_serving]
            if serving:
                self.kill(self.faults.choice(serving).identity)

    async def _part_now_and_then(self) -> None:
        for _ in range(self.plan.partitions):
            await trio.sleep(self.faults.uniform(0.2, 2.0))
            # One process; or all of them: then the database itself is away.
            names = [process.name for process in self.processes]
            parted = self.faults.choice(([self.faults.choice(names)], names))
            how = self.faults.choice(("refused", "refused", "hung"))
            self._reach.update(dict.fromkeys(parted, how))
            self.history.note("database", f"cannot be reached: {how} by {', '.join(parted)}")
            await trio.sleep(self.faults.choice((0.3, 2.5, 4.0, 8.0)))
            for name in parted:
                self._reach.pop(name, None)
            self.history.note("database", f"can be reached again by {', '.join(parted)}")

    async def _lose_the_database(self) -> None:
        """For everybody, at once and for long enough: what is said meanwhile is queued."""
        await trio.sleep(self.faults.uniform(0.3, 1.0))
        names = [process.name for process in self.processes]
        self._reach.update(dict.fromkeys(names, "refused"))
        self.history.note("database", "is down")
        await trio.sleep(self.faults.uniform(2.5, 5.0))
        for name in names:
            self._reach.pop(name, None)
        self.history.note("database", "is up")

    async def _silence_the_bus(self) -> None:
        for _ in range(self.plan.bus_cuts):
            await trio.sleep(self.faults.uniform(0.2, self.plan.lasts_s / self.plan.bus_cuts))
            process = self.faults.choice(self.processes)
            if self.faults.random() < 0.5:
                self.history.note("redis", "is killed, and starts with what it has on disk")
                self.broker.crash()
                await trio.sleep(self.faults.uniform(0.2, 3.0))
                self._mend_links()
            elif process.link is not None:
                self.history.note("redis", f"is away for {process.name}")
                process.link.cut()
                await trio.sleep(self.faults.uniform(0.2, 8.0))
                self._mend_links()

    def _mend_links(self) -> None:
        for process in self.processes:
            if process.link is not None:
                process.link.mend()

    async def _change_members(self) -> None:
        """Come and go in the groups; now and then a new pair, a new name, a new role."""
        while True:
            await trio.sleep(self.chance.expovariate(1 / self.plan.membership_every_s))
            serving = [process for process in self.processes if process.is_serving]
            if serving:
                with trio.move_on_after(15.0):
                    await self._change(self.chance.choice(serving))

    async def _change(self, process: Process) -> None:
        chance, tables = self.chance, self.observer.tables
        group_id = chance.choice(self.groups)
        user_id = chance.choice(self.people[1:])
        place = tables.places.get((group_id, user_id))
        rooms = process.house.conversations if process.house else None
        assert rooms is not None
        owner, verb = self.people[0], chance.choice(("move", "move", "move", "rename", "pair"))
        group, who = self.history.name(group_id), self.history.name(user_id)
        if verb == "move" and (place is None or place.is_out):
            self.history.note(process.identity, f"is asked to add {who} to {group}")
            act: Callable[[], Any] = lambda: rooms.add(user_id=owner, conversation_id=group_id, user_ids=[user_id])  # noqa: E731
        elif verb == "move":
            actor = chance.choice((owner, user_id))
            self.history.note(process.identity, f"is asked to remove {who} from {group}")
            act = lambda: rooms.remove(user_id=actor, conversation_id=group_id, target_id=user_id)  # noqa: E731
        elif verb == "rename":
            name = f"{group} {chance.randrange(1000)}"
            act = lambda: rooms.rename(user_id=owner, conversation_id=group_id, name=name)  # noqa: E731
        else:
            one, other = chance.sample(self.people, 2)
            act = lambda: rooms.make_one_on_one(user_id=one, other_id=other)  # noqa: E731

        async def judged() -> None:
            try:
                await act()
            except UIMError as refusal:
                self.history.note(process.identity, f"refuses: {refusal.code}")

        await process.do(judged)

    async def _act(self, device: Device) -> None:
        names, weights = list(self.plan.habits), list(self.plan.habits.values())
        pace_s = device.chance.choice((0.2, 0.4, 0.8))
        while True:
            await trio.sleep(device.chance.expovariate(1 / pace_s))
            device.act(device.chance.choices(names, weights)[0])

    # -- the run ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self.settle_in()
        tasks_before = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_at_a_broken_law, scope)
                nursery.start_soon(self.broker.run)
                async with trio.open_nursery() as processes:
                    for process in self.processes:
                        processes.start_soon(process.run)
                    async with trio.open_nursery() as people:
                        for device in self.devices:
                            people.start_soon(device.run)
                        await self._trouble()
                        await self._come_to_rest()
                        self.over = True
                        people.cancel_scope.cancel()
                    await self._all_gone()
                    processes.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        if not self.observer.broken and trio.lowlevel.current_statistics().tasks_living != tasks_before:
            self.observer.breaks("TASKS", "some are left when all is over")

    async def _stop_at_a_broken_law(self, scope: trio.CancelScope) -> None:
        await self.observer.failed.wait()
        self.over = True
        scope.cancel()

    async def _trouble(self) -> None:
        plan, broker = self.plan, self.broker
        broker.lost, broker.repeated, broker.slowest_s = plan.bus_lost, plan.bus_repeated, plan.bus_slowest_s
        self.is_troubled = True
        with trio.move_on_after(max(plan.lasts_s, 6.0) if plan.has_outage else plan.lasts_s):
            async with trio.open_nursery() as nursery:
                for device in self.devices:
                    nursery.start_soon(self._act, device)
                if plan.membership_every_s < plan.lasts_s:
                    nursery.start_soon(self._change_members)
                nursery.start_soon(self._kill_now_and_then)
                nursery.start_soon(self._part_now_and_then)
                if plan.has_outage:
                    nursery.start_soon(self._lose_the_database)
                nursery.start_soon(self._silence_the_bus)
                nursery.start_soon(self._light_up)
        self.is_troubled = False
        self._reach.clear()
        broker.lost = broker.repeated = 0.0
        self._mend_links()
        self.history.note("world", "the faults have stopped")

    async def _be_stubborn(self) -> None:
        """One device, connected and quiet, confirms nothing for a while: what it then gets must come again."""
        await trio.sleep(3.0)
        device = self.chance.choice(self.devices)
        connection = device.connection
        if connection is None or not connection.is_live or not device.may_be_silent():
            return
        device.note("confirms nothing")
        device.confirming = "never"
        before, connection.lowest_in_batches = connection.confirmed_ever, SKIP_TO
        self.devices[0].say(2)
        await trio.sleep(6.0)
        # A line that is never idle has the second copy later, and the fourth and fifth resend wait for 8 and 16 s more.
        for _ in range(AGAIN_LOOKS):
            once = self._came_once(connection, above=before)
            if not once:
                break
            await trio.sleep(2.0)
        else:
            self.observer.breaks("AGAIN", f"{connection} has never confirmed {once}, and it came only once")
        device.confirming = "at once"
        connection.wake.set()

    def _came_once(self, connection: Connection, *, above: int) -> int:
        """The oldest entry of others that came, if nothing up to there came again.

        Of what is long unconfirmed only the first pages come again, and a connection's own entries are among those.
        """
        log = self.database.tables.log
        others = [at for at in connection.seen if at > above and log[at].client_message_id not in connection.sent_here]
        oldest = min(others, default=0)
        return oldest if connection.is_open and oldest < connection.lowest_in_batches else 0

    async def _come_to_rest(self) -> None:
        for device in self.devices:
            device.confirming, device.offline_until = "at once", 0.0
            if device.connection is not None:
                device.connection.wake.set()
        if self.chance.random() < 0.3:
            await self._be_stubborn()
        with trio.move_on_after(SETTLE_WITHIN_S):
            while True:
                for device in self.devices:
                    if device.connection is not None and device.connection.is_ready:
                        device.connection.act("ping")
                await trio.sleep(1.0)
                if not self.observer.unsettled():
                    break
        await self._older_ones_go()
        self.observer.check_the_end()

    async def _older_ones_go(self) -> None:
        """What a device has replaced is ended by its server, soon: also where the newer connection is another process's."""
        left: list[Connection] = []
        for _ in range(REPLACED_LOOKS):
            left = [each for device in self.devices for each in device.not_replaced()]
            if not left:
                return
            await trio.sleep(1.0)
        self.observer.breaks("NEWEST", f"{', '.join(map(str, left))}: replaced long ago, and still open")

    async def _all_gone(self) -> None:
        """Once all clients have gone, each process has the tasks of its rooms and no others."""
        with trio.move_on_after(CLOSE_WITHIN_S):
            while any(process.tasks() != process.rooms for process in self.processes if process.is_serving):
                await trio.sleep(0.5)
            return
        left = {process.name: process.tasks() - process.rooms for process in self.processes if process.is_serving}
        self.observer.breaks("TASKS", f"the clients have gone, tasks are left: {left}")


class Log:
    """In place of a module's `log`: lines of the history; an exception that was caught and logged is a broken law."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _say(self, level: str, event: str, fields: dict[str, Any]) -> None:
        process = HERE.get()
        if process is not None and not self._world.is_dead(process.identity):
            told = " ".join(f"{name}={value}" for name, value in fields.items() if name != "exc_info")
            self._world.history.note(process.identity, f"{level}: {event} {told}")

    def debug(self, event: str, **fields: Any) -> None:
        pass

    def info(self, event: str, **fields: Any) -> None:
        self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._say("error", event, fields)
        if event == "dead letter" and "alert" not in fields:
            self._world.observer.breaks("BUG", f"a dead letter: {fields}")

    def exception(self, event: str, **fields: Any) -> None:
        process = HERE.get()
        if process is None or not self._world.is_dead(process.identity):
            self._say("exception", event, fields)
            self._world.observer.breaks("BUG", f"{event}: {sys.exc_info()[1]!r}")


@contextmanager
def installed(world: World) -> Iterator[None]:
    """The stand-ins in the places of what they stand for."""
    with ExitStack() as stack:
        for module, functions in STAND_INS.items():
            for name, function in functions.items():
                stack.enter_context(patch.object(module, name, function))
        log = Log(world)
        for name, module in sorted(sys.modules.items()):
            if not name.startswith("uim."):
                continue
            if getattr(module, "connect", None) is postgres.connect:
                stack.enter_context(patch.object(module, "connect", world.connect_to_database))
            if getattr(module, "RedisLink", None) is redis.RedisLink and module is not redis:
                stack.enter_context(patch.object(module, "RedisLink", world.link_to_redis))
            if hasattr(module, "log") and hasattr(module.log, "warning"):
                stack.enter_context(patch.object(module, "log", log))
        stack.enter_context(bounds.watched(world.observer, is_small=world.plan.is_small))
        yield


def run_seed(seed: int) -> Result:
    """One world, from its beginning to its end or to the first broken law."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded(str(seed), clock):
        world = World(seed)
        with installed(world):
            trio.run(world.run, clock=clock)
    return Result(seed, world.history.lines, world.observer.broken)
