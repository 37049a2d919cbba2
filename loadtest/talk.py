"""W1 and W3: people who talk, and what became of what they said.

W1: pairs, one of each talks, the other confirms. W3: one group, a few of its members talk, everybody confirms. Durable, with
acks, deliveries and receipts. Rule: a run whose acknowledged texts are not all stored and not all arrived, each once and in
order, gives no figures: it fails. (A second copy of what a device was slow to confirm is counted, for it is promised.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest import people
from loadtest.devices import Listener, Talker
from loadtest.people import Member
from loadtest.sockets import Loop

WARM_UP_S: Final = 1.0
LIVE_WITHIN_S: Final = 20.0
SETTLE_WITHIN_S: Final = 20.0
TEXT_BYTES: Final = 200


class Broken(Exception):
    """A promise that the run saw broken."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load; `pid` is its process, if it is on this machine."""

    url: str
    pid: int | None = None

    def processor_s(self) -> float | None:
        """Seconds of processor time that its process has had."""
        if self.pid is None:
            return None
        # After the name, which may hold anything but ends with the last bracket: state is field 3, utime 14, stime 15.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Party:
    """A conversation's talkers and listeners, by who they are. Everyone hears every text but their own."""

    talkers: list[tuple[Member, Talker]]
    listeners: list[tuple[Member, Listener]]

    @property
    def devices(self) -> Sequence[tuple[Member, Listener]]:
        return [*self.talkers, *self.listeners]


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured. Times are from send to arrival; `generator_share`: of one core, this process's own part meanwhile.

    `server_us_per_arrival`: processor time of the server's process (not of PostgreSQL's), where it is known. It drifts least.
    """

    acknowledged_per_s: float
    arrived_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    generator_share: float
    server_us_per_arrival: float | None


@dataclass(frozen=True, slots=True)
class Count:
    """What the whole run came to, warm-up and all. `repeated`: second copies that devices got."""

    acknowledged: int
    stored: int
    repeated: int


def w1(
    target: Target, *, pairs: int, window: int, seconds: float, text_bytes: int = TEXT_BYTES
) -> tuple[Pace, Count]:
    """Pairs with `window` sends open each. Raises Broken, Torn or Refused."""
    url = target.url
    members = people.register(url, 2 * pairs)
    parties = []
    for one, other in zip(members[:pairs], members[pairs:], strict=True):
        talker = Talker(people.make_pair(url, one, other), "w1", window=window, text_bytes=text_bytes)
        parties.append(Party([(one, talker)], [(other, Listener())]))
    return _measured(target, parties, seconds)


def w3(
    target: Target, *, members: int, senders: int, window: int, seconds: float, text_bytes: int = TEXT_BYTES
) -> tuple[Pace, Count]:
    """One group, of which `senders` members talk. Raises Broken, Torn or Refused."""
    url = target.url
    group = people.register(url, members)
    conversation_id = people.make_group(url, group)
    talkers = [(one, Talker(conversation_id, "w3", window=window, text_bytes=text_bytes)) for one in group[:senders]]
    return _measured(target, [Party(talkers, [(one, Listener()) for one in group[senders:]])], seconds)


def _measured(target: Target, parties: list[Party], seconds: float) -> tuple[Pace, Count]:
    devices = [device for party in parties for _, device in party.devices]
    talkers = [talker for party in parties for _, talker in party.talkers]
    loop = Loop()
    try:
        _go_live(loop, target.url, parties)
        for talker in talkers:
            talker.talk()
        loop.run(seconds=min(WARM_UP_S, seconds))
        pace = _measure(loop, target, devices, talkers, seconds)
        _settle(loop, parties)
    finally:
        loop.close()
    return pace, _checked(target.url, parties)


def _go_live(loop: Loop, url: str, parties: list[Party]) -> None:
    for party in parties:
        for member, device in party.devices:
            loop.connect(url.replace("http", "ws", 1) + "/ws?last_sync_id=0", device, token=member.token)
    devices = [device for party in parties for _, device in party.devices]
    if not loop.run(seconds=LIVE_WITHIN_S, until=lambda: all(device.is_live for device in devices)):
        raise Broken(f"not every device was live within {LIVE_WITHIN_S:g} s")


def _measure(loop: Loop, target: Target, devices: list[Listener], talkers: list[Talker], seconds: float) -> Pace:
    acknowledged = -sum(len(talker.acknowledged) for talker in talkers)
    arrived = -sum(len(device.arrived) for device in devices)
    for device in devices:
        device.is_measured = True
    began_at, own_s, server_s = time.perf_counter(), -time.process_time(), target.processor_s()
    loop.run(seconds=seconds)
    # On a machine that stalls a short run may see nothing: a long latency is a figure too.
    loop.run(seconds=SETTLE_WITHIN_S, until=lambda: any(device.latencies_ns for device in devices))
    took_s, own_s = time.perf_counter() - began_at, own_s + time.process_time()
    spent_s = target.processor_s() or 0.0
    for device in devices:
        device.is_measured = False
    acknowledged += sum(len(talker.acknowledged) for talker in talkers)
    arrived += sum(len(device.arrived) for device in devices)
    latencies_ms = sorted(ns / 1e6 for device in devices for ns in device.latencies_ns)
    if not latencies_ms:
        raise Broken(f"nothing arrived within {SETTLE_WITHIN_S:g} s")
    p50, p95, p99 = (latencies_ms[int(len(latencies_ms) * share)] for share in (0.50, 0.95, 0.99))
    us_per_arrival = None if server_s is None else (spent_s - server_s) / arrived * 1e6
    return Pace(acknowledged / took_s, arrived / took_s, p50, p95, p99, own_s / took_s, us_per_arrival)


def _settle(loop: Loop, parties: list[Party]) -> None:
    """No more is said; what was said is acked, arrives everywhere, and is told as delivered."""
    for party in parties:
        for _, talker in party.talkers:
            talker.stop()
    if not loop.run(seconds=SETTLE_WITHIN_S, until=lambda: all(_is_settled(party) for party in parties)):
        raise Broken(f"acks, texts or receipts were missing {SETTLE_WITHIN_S:g} s after the last text")


def _is_settled(party: Party) -> bool:
    said = sum(len(talker.acknowledged) for _, talker in party.talkers)
    return (
        all(talker.is_done() for _, talker in party.talkers)
        and all(len(talker.arrived) + len(talker.acknowledged) >= said for _, talker in party.talkers)
        and all(len(listener.arrived) >= said for _, listener in party.listeners)
    )


def _checked(url: str, parties: list[Party]) -> Count:
    """What was acknowledged is what is stored and what has arrived. Raises Broken for each way in which they differ."""
    with ThreadPoolExecutor(people.AT_ONCE) as threads:
        stored = list(threads.map(lambda party: people.stored_message_ids(url, party.devices[0][0]), parties))
    for party, ids in zip(parties, stored, strict=True):
        _check(party, ids)
    return Count(
        acknowledged=sum(len(talker.acknowledged) for party in parties for _, talker in party.talkers),
        stored=sum(map(len, stored)),
        repeated=sum(device.repeats for party in parties for _, device in party.devices),
    )


def _check(party: Party, stored: list[int]) -> None:
    if stored != sorted(set(stored)):
        raise Broken("sync gave an entry twice, or out of order")
    acknowledged = {message_id for _, talker in party.talkers for message_id in talker.acknowledged}
    if acknowledged != set(stored):
        lost, unasked = len(acknowledged - set(stored)), len(set(stored) - acknowledged)
        raise Broken(f"{lost} acknowledged texts are not stored, {unasked} are stored and were never acknowledged")
    for _, talker in party.talkers:
        own = set(talker.acknowledged)
        _check_arrived(talker, [message_id for message_id in stored if message_id not in own])
    for _, listener in party.listeners:
        _check_arrived(listener, stored)


def _check_arrived(device: Listener, wanted: list[int]) -> None:
    if list(device.arrived) != wanted:
        raise Broken(f"a device got {len(device.arrived)} texts of {len(wanted)}, or not in order")
