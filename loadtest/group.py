"""W3 and W9: groups. W3 is one, of which a few members talk with a window of open sends and everybody confirms, in batches.

W9 is many, each with its own steady rate, its members in turn; a text counts when it has come to the last of them. Rule: what
counts is deliveries: a text is said once and arrives everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest import people
from loadtest.director import perform
from loadtest.parameters import option
from loadtest.plan import Party, Plan
from loadtest.result import Result
from loadtest.target import Missing, Target


@dataclass(frozen=True, slots=True)
class Parameters:
    members: int = option(50, "Members of the group.", least=3, most=50)
    senders: int = option(4, "Those who talk.", least=1, most=50)
    window: int = option(4, "Open sends of each who talks.", least=1, most=64)
    seconds: float = option(10.0, "How long is measured.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)
    generators: int = option(1, "Processes that play the users.", least=1, most=16)


@dataclass(frozen=True, slots=True)
class ManyParameters:
    groups: int = option(20, "Groups.", least=1)
    members: int = option(50, "Members of each group, nobody in two.", least=3, most=50)
    rate: float = option(10.0, "Texts a second in each group (not of each member).", least=0.1)
    seconds: float = option(20.0, "How long is measured.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)
    generators: int = option(1, "Processes that play the users.", least=1, most=16)


def run(target: Target, parameters: Parameters) -> Result:
    if parameters.senders > parameters.members:
        raise Missing(f"{parameters.senders} who talk, in a group of {parameters.members}")
    group = people.register(target.url, parameters.members)
    party = Party(people.make_group(target.url, group), group, parameters.senders)
    plan = Plan("w3", parameters.seconds, parameters.text_bytes, window=parameters.window)
    return perform("w3", target, [party], plan, parameters)


def run_many(target: Target, parameters: ManyParameters) -> Result:
    members = people.register(target.url, parameters.groups * parameters.members)
    size = parameters.members
    groups = [members[at : at + size] for at in range(0, len(members), size)]
    parties = [Party(people.make_group(target.url, group), group, size) for group in groups]
    rate = parameters.rate * parameters.groups
    plan = Plan("w9", parameters.seconds, parameters.text_bytes, texts_per_s=rate, is_last_timed=True)
    return perform("w9", target, parties, plan, parameters)
