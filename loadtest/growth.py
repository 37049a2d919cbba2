"""Growth: the questions of W7 in turn to servers on 10,000 to 10,000,000 messages, by people who have as much in each.

A thousand messages a person, five talks a person, in each: so only the whole grows, and what a person is shown does not. All servers
run at once and are asked in turn, for a machine drifts more in a minute than most answers grow. Rule: the same people's worth, or
the figures say nothing.
"""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Final

from loadtest import archive, lookups
from loadtest.lookups import Asking
from loadtest.parameters import option
from loadtest.phrases import phrases
from loadtest.questions import alike, questions
from loadtest.result import Result
from loadtest.servers import server_on
from loadtest.target import Target

LEAST: Final = 10_000
MESSAGES_A_PERSON: Final = 1_000
LEAST_PEOPLE: Final = 20


@dataclass(frozen=True, slots=True)
class Parameters:
    messages: int = option(1_000_000, "In the largest; the others have a tenth of the next.", least=LEAST)
    people: int = option(100, "Those who look things up, in each.", least=5)
    asked: int = option(100, "Times of each question, in each.", least=1)
    keep: str = option("", "A folder for the databases, which stay and are found there the next time.")


def run(_target: Target, parameters: Parameters) -> Result:
    """Needs no target: databases and servers are its own. Medians, and by how much the largest's is above the smallest's."""
    said = phrases(archive.PHRASES)
    askings: dict[int, Asking] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(lookups.a_folder(parameters.keep))
        for messages in sizes(parameters.messages):
            size = archive.Size(messages, max(LEAST_PEOPLE, messages // MESSAGES_A_PERSON))
            servers = stack.enter_context(archive.kept(folder / str(messages), size, lookups.teller()))
            server = stack.enter_context(server_on(servers))
            persons = alike(servers.database_url, parameters.people)
            askings[messages] = Asking(server.url, persons, questions(said, messages))
        lookups.ask(list(askings.values()), parameters.asked, random.Random(1815))
    return Result("growth", asdict(parameters), _figures({messages: asking.took for messages, asking in askings.items()}))


def sizes(most: int) -> list[int]:
    """The largest and its tenths, the smallest first."""
    found = [most]
    while found[0] >= LEAST * 10:
        found.insert(0, found[0] // 10)
    return found


def _figures(took: dict[int, dict[str, list[int]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for kind in next(iter(took.values())):
        medians = {messages: statistics.median(of[kind]) / 1e6 for messages, of in took.items() if kind in of}
        name = kind.replace(" ", "_")
        figures |= {f"{name}_at_{messages}_p50_ms": ms for messages, ms in medians.items()}
        figures[f"{name}_growth_share"] = medians[max(medians)] / medians[min(medians)]
    return figures
