"""People who talk, and what became of what they said: what W1 and W3 have in common.

Durable, with acks, deliveries and receipts. Rule: a run whose acknowledged texts are not all stored and not all arrived, each
once and in order, gives no figures: it fails. (A second copy of what a device was slow to confirm is counted, for it is promised.)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from loadtest import people
from loadtest.devices import Listener, Talker
from loadtest.latencies import Counts, Latencies, count_us
from loadtest.people import Member
from loadtest.result import Result, timeline
from loadtest.sockets import Loop
from loadtest.target import Broken, Target

WARM_UP_S: Final = 1.0
LIVE_WITHIN_S: Final = 20.0
SETTLE_WITHIN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Party:
    """A conversation's talkers and listeners, by who they are. Everyone hears every text but their own."""

    talkers: list[tuple[Member, Talker]]
    listeners: list[tuple[Member, Listener]]

    @property
    def devices(self) -> Sequence[tuple[Member, Listener]]:
        return [*self.talkers, *self.listeners]


def measured(workload: str, target: Target, parties: list[Party], parameters: Any, seconds: float) -> Result:
    """All of them talk for that long; figures of that time, counts of the whole. Raises Broken, Torn or Refused."""
    devices = [device for party in parties for _, device in party.devices]
    talkers = [talker for party in parties for _, talker in party.talkers]
    loop = Loop()
    try:
        _go_live(loop, target, parties)
        for talker in talkers:
            talker.talk()
        loop.run(seconds=min(WARM_UP_S, seconds))
        figures, by_second = _measure(loop, target, devices, talkers, seconds)
        _settle(loop, parties)
    finally:
        loop.close()
    arrivals = Latencies(sum(by_second.values(), Counter()))
    figures |= arrivals.figures() | _checked(target.url, parties)
    return Result(workload, asdict(parameters), figures, {"arrival": arrivals}, timeline(by_second))


def _go_live(loop: Loop, target: Target, parties: list[Party]) -> None:
    for party in parties:
        for member, device in party.devices:
            loop.connect(f"{target.websocket_url}?last_sync_id=0", device, token=member.token)
    devices = [device for party in parties for _, device in party.devices]
    if not loop.run(seconds=LIVE_WITHIN_S, until=lambda: all(device.is_live for device in devices)):
        raise Broken(f"not every device was live within {LIVE_WITHIN_S:g} s")


def _measure(
    loop: Loop, target: Target, devices: list[Listener], talkers: list[Talker], seconds: float
) -> tuple[dict[str, float], dict[int, Counts]]:
    """Rates and costs; and the times from send to arrival, by second. `generator_share` is of one core.

    `server_us_per_arrival`: processor time of the server's process (not of PostgreSQL's), where it is known. It drifts least.
    """
    acknowledged = -sum(len(talker.acknowledged) for talker in talkers)
    arrived = -sum(len(device.arrived) for device in devices)
    for device in devices:
        device.is_measured = True
    began_at, own_s, server_s = time.monotonic(), -time.process_time(), target.processor_s()
    by_second = {}
    for second in range(max(1, round(seconds))):
        loop.run(seconds=min(seconds, began_at + second + 1 - time.monotonic()))
        by_second[second] = _counted(devices)
    # On a machine that stalls a short run may see nothing: a long latency is a figure too.
    if not any(by_second.values()):
        loop.run(seconds=SETTLE_WITHIN_S, until=lambda: any(device.latencies_ns for device in devices))
        by_second[0] = _counted(devices)
    took_s, own_s = time.monotonic() - began_at, own_s + time.process_time()
    spent_s = target.processor_s() or 0.0
    for device in devices:
        device.is_measured = False
    if not any(by_second.values()):
        raise Broken(f"nothing arrived within {SETTLE_WITHIN_S:g} s")
    acknowledged += sum(len(talker.acknowledged) for talker in talkers)
    arrived += sum(len(device.arrived) for device in devices)
    figures = {"acknowledged_per_s": acknowledged / took_s, "arrived_per_s": arrived / took_s, "generator_share": own_s / took_s}
    if server_s is not None:
        figures["server_us_per_arrival"] = (spent_s - server_s) / arrived * 1e6
    return figures, by_second


def _counted(devices: list[Listener]) -> Counts:
    """What was timed since the last time."""
    counts: Counts = Counter()
    for device in devices:
        counts += count_us(device.latencies_ns)
        del device.latencies_ns[:]
    return counts


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


def _checked(url: str, parties: list[Party]) -> dict[str, float]:
    """What was acknowledged is what is stored and what has arrived. Raises Broken for each way in which they differ."""
    with ThreadPoolExecutor(people.AT_ONCE) as threads:
        stored = list(threads.map(lambda party: people.stored_message_ids(url, party.devices[0][0]), parties))
    for party, ids in zip(parties, stored, strict=True):
        _check(party, ids)
    return {
        "acknowledged": sum(len(talker.acknowledged) for party in parties for _, talker in party.talkers),
        "stored": sum(map(len, stored)),
        "repeated": sum(device.repeats for party in parties for _, device in party.devices),
    }


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
