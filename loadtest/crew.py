"""`python -m loadtest.crew FD`: one process of the generator: some of the run's devices on one loop, and the director's
words by a pipe.

The steps are the director's: all live, talk from a given moment, settle, tell. Between them the loop goes on, for devices must
confirm. Rule: it counts and never judges; and it ends when the director does.
"""

from __future__ import annotations

import signal
import sys
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final

from loadtest.devices import Listener, Talker
from loadtest.frames import Torn
from loadtest.latencies import Counts, count_us
from loadtest.plan import Heard, Pace, Plan, Seat, Told
from loadtest.sockets import Connection, Loop
from loadtest.target import Broken

LIVE_WITHIN_S: Final = 60.0
SETTLE_WITHIN_S: Final = 20.0
WARM_UP_S: Final = 1.0
ASK_EVERY_S: Final = 0.02
SECOND_NS: Final = 1_000_000_000
NEVER_NS: Final = 2**63
# The WebSocket's URL, the plan, this process's seats; its number, and how many processes there are.
Orders = tuple[Plan, list[Seat], tuple[int, int]]


class Lasts:
    """When each text of a party has come to the last who was to get it."""

    def __init__(self, listeners: int) -> None:
        self.times_ns: array[int] = array("q")
        self._listeners = listeners
        self._came: Counter[int] = Counter()

    def note(self, message_id: int, took_ns: int) -> None:
        self._came[message_id] += 1
        if self._came[message_id] == self._listeners:
            del self._came[message_id]
            self.times_ns.append(took_ns)


class Witness(Listener):
    """A listener whose arrivals are noted for its party too."""

    lasts: Lasts

    def time(self, message_id: int, took_ns: int) -> None:
        super().time(message_id, took_ns)
        self.lasts.note(message_id, took_ns)


class WitnessTalker(Talker, Witness):
    """A talker who hears the others' texts so."""


class Metronome:
    """Every interval one text is due, of each talker in turn. `late_ns`: how late this process itself was."""

    def __init__(self, talkers: list[tuple[Connection, Talker]], *, interval_ns: float, begins_at_ns: float) -> None:
        self._talkers = talkers
        self._interval_ns = interval_ns
        self._begins_at_ns = begins_at_ns
        self._number = 0
        self.late_ns: array[int] = array("q")
        self.ends_at_ns = NEVER_NS

    def next_due_ns(self) -> int:
        due_ns = int(self._begins_at_ns + self._number * self._interval_ns)
        return due_ns if due_ns < self.ends_at_ns else NEVER_NS

    def due(self, now_ns: int) -> Iterator[tuple[Connection, bytes]]:
        while (due_ns := self.next_due_ns()) <= now_ns:
            connection, talker = self._talkers[self._number % len(self._talkers)]
            self._number += 1
            self.late_ns.append(now_ns - due_ns)
            yield connection, talker.say(due_ns)


class Crew:
    """`share`: this process's number, and how many there are."""

    def __init__(self, pipe: Pipe, plan: Plan, seats: list[Seat], share: tuple[int, int]) -> None:
        self._pipe = pipe
        self._plan = plan
        self._share = share
        self._loop = Loop()
        self._lasts: dict[int, Lasts] = {}
        self._seats = [(seat, self._device(seat)) for seat in seats]
        self._talkers: list[tuple[Connection, Talker]] = []
        self._times: dict[str, dict[int, Counts]] = defaultdict(lambda: defaultdict(Counter))
        self._metronome: Metronome | None = None

    def run(self) -> None:
        try:
            self._go_live()
            self._pipe.send("live")
            self._pipe.send(self._talk(self._word()))
            self._fall_silent()
            self._pipe.send(self._said())
            self._hear_all(self._word())
            self._drain(ceil(self._plan.seconds) - 1)
            self._pipe.send(Told([_heard(seat, device) for seat, device in self._seats], _plain(self._times)))
        finally:
            self._loop.close()

    def _device(self, seat: Seat) -> Listener:
        name, window, size = self._plan.name, self._plan.window, self._plan.text_bytes
        if not self._plan.is_last_timed:
            return Talker(seat.conversation_id, name, window=window, text_bytes=size) if seat.is_talker else Listener()
        witness: Witness = Witness()
        if seat.is_talker:
            witness = WitnessTalker(seat.conversation_id, name, window=window, text_bytes=size)
        witness.lasts = self._lasts.setdefault(seat.party, Lasts(seat.members - 1))
        return witness

    def _go_live(self) -> None:
        for seat, device in self._seats:
            connection = self._loop.connect(f"{seat.websocket_url}?last_sync_id=0", device, token=seat.token)
            if isinstance(device, Talker):
                self._talkers.append((connection, device))
            self._pipe.send(1)
        if not self._loop.run(seconds=LIVE_WITHIN_S, until=lambda: all(device.is_live for _, device in self._seats)):
            raise Broken(f"not every device was live within {LIVE_WITHIN_S:g} s")

    def _word(self) -> Any:
        """What the director says next."""
        while not self._pipe.poll():
            self._loop.run(seconds=ASK_EVERY_S)
        return self._pipe.recv()

    def _talk(self, begins_at_ns: int) -> Pace:
        """Warm up from that moment on, then measure."""
        self._serve_until(begins_at_ns)
        self._begin(begins_at_ns)
        measured_from_ns = begins_at_ns + int(min(WARM_UP_S, self._plan.seconds) * SECOND_NS)
        self._serve_until(measured_from_ns)
        for _, device in self._seats:
            device.is_measured = True
        acknowledged, arrived = self._progress()
        began_at, own_s = time.monotonic(), time.process_time()
        ends_at_ns = measured_from_ns + int(self._plan.seconds * SECOND_NS)
        if self._metronome is not None:
            self._metronome.ends_at_ns = ends_at_ns
        for second in range(ceil(self._plan.seconds)):
            self._serve_until(min(ends_at_ns, measured_from_ns + (second + 1) * SECOND_NS))
            self._drain(second)
        took_s, own_s = time.monotonic() - began_at, time.process_time() - own_s
        acknowledged_now, arrived_now = self._progress()
        return Pace(took_s, own_s, acknowledged_now - acknowledged, arrived_now - arrived)

    def _begin(self, begins_at_ns: int) -> None:
        if not self._plan.texts_per_s:
            for _, talker in self._talkers:
                talker.talk()
        elif self._talkers:
            number, of = self._share
            interval_ns = SECOND_NS / self._plan.texts_per_s
            begins_ns = begins_at_ns + number * interval_ns
            self._metronome = Metronome(self._talkers, interval_ns=interval_ns * of, begins_at_ns=begins_ns)

    def _serve_until(self, moment_ns: int) -> None:
        self._loop.run(seconds=(moment_ns - time.monotonic_ns()) / SECOND_NS, schedule=self._metronome)

    def _progress(self) -> tuple[int, int]:
        acknowledged = sum(len(talker.acknowledged) for _, talker in self._talkers)
        return acknowledged, sum(len(device.arrived) for _, device in self._seats)

    def _drain(self, second: int) -> None:
        """Count what was timed since the last time under that second; the last one has what came after it too."""
        for _, device in self._seats:
            self._count("arrival", second, device.latencies_ns)
        for _, talker in self._talkers:
            self._count("ack", second, talker.acks_ns)
        for lasts in self._lasts.values():
            self._count("last arrival", second, lasts.times_ns)
        if self._metronome is not None:
            self._count("generator late", second, self._metronome.late_ns)

    def _count(self, name: str, second: int, times_ns: array[int]) -> None:
        if times_ns:
            self._times[name][second].update(count_us(times_ns))
            del times_ns[:]

    def _fall_silent(self) -> None:
        """What was said is acked, and told as delivered."""
        for _, talker in self._talkers:
            talker.stop()
        self._settle(lambda: all(talker.is_done() for _, talker in self._talkers), lambda: "acks or receipts")

    def _said(self) -> Counter[int]:
        """Texts that were acknowledged here, by party."""
        said: Counter[int] = Counter()
        for seat, device in self._seats:
            if isinstance(device, Talker):
                said[seat.party] += len(device.acknowledged)
        return said

    def _hear_all(self, said: Counter[int]) -> None:
        """Everybody has got what others said, in all processes."""

        def lacks(seat: Seat, device: Listener) -> int:
            own = len(device.acknowledged) if isinstance(device, Talker) else 0
            return max(said[seat.party] - len(device.arrived) - own, 0)

        def lacking() -> list[int]:
            return [count for seat, device in self._seats if (count := lacks(seat, device))]

        self._settle(lambda: not lacking(), lambda: f"{sum(lacking())} texts, on {len(lacking())} of {len(self._seats)} devices,")

    def _settle(self, until: Callable[[], bool], what: Callable[[], str]) -> None:
        if not self._loop.run(seconds=SETTLE_WITHIN_S, until=until):
            raise Broken(f"{what()} were missing {SETTLE_WITHIN_S:g} s after the last text")


def _heard(seat: Seat, device: Listener) -> Heard:
    acknowledged = device.acknowledged if isinstance(device, Talker) else array("q")
    return Heard(seat.party, acknowledged, device.arrived, device.repeats)


def _plain(times: dict[str, dict[int, Counts]]) -> dict[str, dict[int, Counts]]:
    return {name: dict(by_second) for name, by_second in times.items()}


def main(pipe: Pipe) -> None:
    """The process, its orders first. The director gets what is wrong as an exception."""
    # Ctrl-C is the director's, who ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        plan, seats, share = pipe.recv()
        Crew(pipe, plan, seats, share).run()
    except EOFError:
        # The director has gone.
        pass
    except (Broken, Torn, OSError) as why:
        with suppress(OSError):
            pipe.send(Broken(f"{type(why).__name__}: {why}"))


if __name__ == "__main__":
    main(Pipe(int(sys.argv[1])))
