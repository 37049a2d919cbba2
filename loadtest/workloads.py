"""The list of workloads: what `python -m loadtest NAME`, `all`, and the tests' two seconds find.

A workload is a module with a frozen dataclass of parameters (each field an `option`) and one function `(target, parameters) ->
Result`. Rule: it is in this list or it does not exist. It raises Broken, Missing, Torn or Refused rather than give figures of a
run in which a promise was broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from loadtest import absence, calls, crowded, group, growth, idle, lookups, pairs, reconnect, town
from loadtest.result import Result
from loadtest.servers import LIMITS_OFF
from loadtest.target import Target

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Workload(Generic[P]):
    """`full`, `quick` and `brief` are the parameters of `all`, of `all --quick`, and of a test, which takes two seconds and looks
    at no time. `settings` are those of the server that is started for it; it has a server and databases of its own. One that
    `brings_its_own` starts them itself, on a database that it fills first. One that `saturates` is also told in shares of what
    the machine can do.
    """

    name: str
    told: str
    run: Callable[[Target, P], Result]
    full: P
    quick: P
    brief: P
    settings: Mapping[str, str] = field(default_factory=lambda: LIMITS_OFF)
    brings_its_own: bool = False
    saturates: bool = False


WORKLOADS: Final[tuple[Workload[Any], ...]] = (
    Workload(
        "w1",
        "Pairs: one talks with a window of open sends, the other confirms. Messages a second, send to arrival.",
        pairs.run,
        full=pairs.Parameters(),
        quick=pairs.Parameters(seconds=5.0),
        brief=pairs.Parameters(pairs=3, seconds=1.0),
        saturates=True,
    ),
    Workload(
        "w2",
        "The same pairs at fixed rates: a text counts from the moment when it was due, whether or not it could be sent.",
        pairs.run_paced,
        full=pairs.PacedParameters(),
        quick=pairs.PacedParameters(seconds=5.0),
        brief=pairs.PacedParameters(rates="20,40", pairs=3, seconds=1.0),
    ),
    Workload(
        "w3",
        "One group, some of whose members talk. Deliveries a second.",
        group.run,
        full=group.Parameters(),
        quick=group.Parameters(seconds=5.0),
        brief=group.Parameters(members=6, senders=2, seconds=1.0, generators=2),
        saturates=True,
    ),
    Workload(
        "w8",
        "The specification's own case: 10,000 registered, 1,000 connected, 100 texts a second, bursts of 200; the default limits.",
        town.run,
        full=town.Parameters(),
        quick=town.Parameters(minutes=0.5, users=2_000, connections=300, burst_s=5.0, burst_every_s=15.0),
        brief=town.Parameters(minutes=0.02, users=30, connections=20, rate=20.0, burst_rate=40.0, burst_s=0.3, burst_every_s=0.6),
        settings={},
    ),
    Workload(
        "soak",
        "People talk, go, come back and read, for any length. Whether memory, tasks and open files grow.",
        town.run_soak,
        full=town.SoakParameters(),
        quick=town.SoakParameters(minutes=0.5),
        brief=town.SoakParameters(
            minutes=0.02, users=30, connections=20, rate=20.0, burst_rate=40.0, burst_s=0.3, burst_every_s=0.6, goes_per_s=10.0,
            reads_per_s=10.0,
        ),
    ),
    Workload(
        "api",
        "The HTTP API: signing in, refreshing, profile, conversations, history, sending. Calls a second of each kind.",
        calls.run,
        full=calls.Parameters(),
        quick=calls.Parameters(seconds=2.0),
        brief=calls.Parameters(users=3, conversations=2, texts=3, seconds=0.2),
    ),
    Workload(
        "w9",
        "Many groups, each at a steady rate of its own. When a text has come to the last member.",
        group.run_many,
        full=group.ManyParameters(),
        quick=group.ManyParameters(groups=5, seconds=5.0),
        brief=group.ManyParameters(groups=3, members=4, seconds=1.0, generators=2),
    ),
    Workload(
        "longest",
        "W3 with one who talks, in texts as long as they may be.",
        group.run,
        full=group.Parameters(senders=1, window=1, seconds=5.0, text_bytes=10_000),
        quick=group.Parameters(senders=1, window=1, seconds=2.0, text_bytes=10_000),
        brief=group.Parameters(members=6, senders=1, window=1, seconds=1.0, text_bytes=10_000),
    ),
    Workload(
        "w4",
        "Many who are connected and say nothing. KB and processor time of each in the server, and how fast they come.",
        idle.run,
        full=idle.Parameters(),
        quick=idle.Parameters(connections=1_000, steps="", idle_s=5.0),
        brief=idle.Parameters(connections=20, steps="5", idle_s=0.3),
        settings={**LIMITS_OFF, "UIM_MAX_CONNECTIONS": "20000"},
    ),
    Workload(
        "crowded",
        "W1 beside 100, 1,000 and 10,000 who are connected and say nothing. What a message costs must not grow.",
        crowded.run,
        full=crowded.Parameters(),
        quick=crowded.Parameters(connections=1_000, seconds=2.0),
        brief=crowded.Parameters(connections=100, pairs=2, seconds=0.5),
        settings={**LIMITS_OFF, "UIM_MAX_CONNECTIONS": "20000"},
    ),
    Workload(
        "w5",
        "A device comes back and has missed many messages. When it is live, and messages a second.",
        absence.run,
        full=absence.Parameters(),
        quick=absence.Parameters(missed="1000,10000", rounds=3),
        brief=absence.Parameters(missed="20,200", rounds=2),
    ),
    Workload(
        "w6",
        "All who are connected are torn at once and come back at once; and again after a restart. When the last one is live.",
        reconnect.run,
        full=reconnect.Parameters(),
        quick=reconnect.Parameters(connections=300, rounds=2),
        brief=reconnect.Parameters(connections=20, rounds=2, talkers=4),
        settings={**LIMITS_OFF, "UIM_MAX_CONNECTIONS": "20000"},
    ),
    Workload(
        "w7",
        "History, conversations and words looked up in a year of talk, of 10,000,000 messages. Milliseconds by what is asked for.",
        lookups.run,
        full=lookups.Parameters(),
        quick=lookups.Parameters(messages=200_000, asked=50),
        brief=lookups.Parameters(messages=10_000, users=200, people=20, asked=3),
        brings_its_own=True,
    ),
    Workload(
        "growth",
        "W7's questions in turn to servers on logs of 10,000 messages and ten times as many each, by people who have as much in each.",
        growth.run,
        full=growth.Parameters(messages=1_000_000),
        quick=growth.Parameters(messages=100_000, asked=30),
        brief=growth.Parameters(messages=10_000, people=5, asked=3),
        brings_its_own=True,
    ),
)
