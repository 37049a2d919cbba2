"""What must hold after every run of people who talk: what was acknowledged is stored, and has come to everybody else, in order.

Stored is what PostgreSQL has, where the run may ask it; else what sync gives to a member who asks for everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import psycopg

from loadtest import people
from loadtest.plan import Heard, Party
from loadtest.progress import bar
from loadtest.target import Broken, Target

STORED = """select conversation_id::text, message_id from messages
    where conversation_id = any(%s::uuid[]) and message_type = 'text' order by conversation_id, seq"""


def check(target: Target, parties: Sequence[Party], heard: Sequence[Heard]) -> dict[str, float]:
    """What the whole run came to, warm-up and all. Raises Broken for each way in which it is not as promised.

    `stored_share` is of what was acknowledged, `delivered_share` of what was to come to each other member: 1 each, or it raises.
    """
    with bar("count", len(parties), "conversations") as shown:
        stored = stored_ids(target, parties)
        shown.update(len(parties))
    by_party: dict[int, list[Heard]] = defaultdict(list)
    for device in heard:
        by_party[device.party].append(device)
    for number, ids in enumerate(stored):
        check_party(by_party[number], ids)
    acknowledged = sum(len(device.acknowledged) for device in heard)
    wanted = sum(len(ids) * (len(party.members) - 1) for party, ids in zip(parties, stored, strict=True))
    return {
        "acknowledged": acknowledged,
        "stored": sum(map(len, stored)),
        "repeated": sum(device.repeats for device in heard),
        "stored_share": sum(map(len, stored)) / max(acknowledged, 1),
        "delivered_share": sum(len(device.arrived) for device in heard) / max(wanted, 1),
    }


def stored_ids(target: Target, parties: Sequence[Party]) -> list[list[int]]:
    """Of each party, in the order in which it is given."""
    if target.database_url is None:
        with ThreadPoolExecutor(people.AT_ONCE) as threads:
            return list(threads.map(lambda party: people.stored_message_ids(target.url, party.members[0]), parties))
    with psycopg.connect(target.database_url) as connection:
        rows = connection.execute(STORED, ([party.conversation_id for party in parties],)).fetchall()
    found = {conversation_id: [row[1] for row in rows_of] for conversation_id, rows_of in groupby(rows, lambda row: row[0])}
    return [found.get(party.conversation_id, []) for party in parties]


def check_party(devices: Sequence[Heard], stored: list[int]) -> None:
    if stored != sorted(set(stored)):
        raise Broken("an entry is stored twice, or out of order")
    acknowledged = {message_id for device in devices for message_id in device.acknowledged}
    if acknowledged != set(stored):
        lost, unasked = len(acknowledged - set(stored)), len(set(stored) - acknowledged)
        raise Broken(f"{lost} acknowledged texts are not stored, {unasked} are stored and were never acknowledged")
    for device in devices:
        own = set(device.acknowledged)
        wanted = [message_id for message_id in stored if message_id not in own] if own else stored
        if list(device.arrived) != wanted:
            raise Broken(f"a device got {len(device.arrived)} texts of {len(wanted)}, or not in order")
