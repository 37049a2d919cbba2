"""W1 and W2: pairs, of which one talks and the other confirms; durable, with ack, delivery and delivered receipt.

W1 saturates: each talker sends on as soon as its window lets it. W2 does not wait for the server: each text has its time, and
counts from then, whenever it was sent. Rule: people are new in each part of a run, so that nobody has anything to catch up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from loadtest import people
from loadtest.director import perform
from loadtest.parameters import option, whole_numbers
from loadtest.plan import Party, Plan
from loadtest.result import Result
from loadtest.target import Target


@dataclass(frozen=True, slots=True)
class Parameters:
    pairs: int = option(50, "Pairs of users.", least=1)
    window: int = option(4, "Open sends of each who talks.", least=1, most=64)
    seconds: float = option(10.0, "How long is measured.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)
    generators: int = option(1, "Processes that play the users.", least=1, most=16)


@dataclass(frozen=True, slots=True)
class PacedParameters:
    rates: str = option("100,200,1000", "Texts a second of all pairs together, one rate after the other.", least=1, is_list=True)
    pairs: int = option(50, "Pairs of users.", least=1)
    seconds: float = option(20.0, "How long is measured, at each rate.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)
    generators: int = option(1, "Processes that play the users.", least=1, most=16)


def run(target: Target, parameters: Parameters) -> Result:
    plan = Plan("w1", parameters.seconds, parameters.text_bytes, window=parameters.window)
    return perform("w1", target, _pairs(target, parameters.pairs), plan, parameters)


def run_paced(target: Target, parameters: PacedParameters) -> Result:
    """Figures of each rate by its name: at_100_p50_ms, and so on. The timeline tells one rate after the other."""
    whole = Result("w2", asdict(parameters), {})
    for rate in whole_numbers(parameters.rates):
        plan = Plan(f"w2-{rate}", parameters.seconds, parameters.text_bytes, texts_per_s=rate)
        part = perform("w2", target, _pairs(target, parameters.pairs), plan, parameters)
        _append(whole, part, rate)
    return whole


def _append(whole: Result, part: Result, rate: int) -> None:
    whole.figures |= {f"at_{rate}_{name}": value for name, value in part.figures.items()}
    whole.latencies |= {f"{name} at {rate}/s": each for name, each in part.latencies.items()}
    begins = whole.timeline[-1].second + 1 if whole.timeline else 0
    whole.timeline += [moment.later(begins) for moment in part.timeline]


def _pairs(target: Target, pairs: int) -> list[Party]:
    members = people.register(target.url, 2 * pairs)
    both = [[one, other] for one, other in zip(members[:pairs], members[pairs:], strict=True)]
    return [Party(people.make_pair(target.url, *pair), pair, talkers=1) for pair in both]
