"""W1: pairs, of which one talks with a window of open sends and the other confirms; durable, with ack, delivery and receipt.

Rule: what saturates is the server: each talker sends on as soon as it may.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest import people, talk
from loadtest.devices import Listener, Talker
from loadtest.parameters import option
from loadtest.result import Result
from loadtest.target import Target


@dataclass(frozen=True, slots=True)
class Parameters:
    pairs: int = option(50, "Pairs of users.", least=1)
    window: int = option(4, "Open sends of each who talks.", least=1, most=64)
    seconds: float = option(10.0, "How long is measured.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)


def run(target: Target, parameters: Parameters) -> Result:
    members = people.register(target.url, 2 * parameters.pairs)
    parties = []
    for one, other in zip(members[: parameters.pairs], members[parameters.pairs :], strict=True):
        conversation_id = people.make_pair(target.url, one, other)
        talker = Talker(conversation_id, "w1", window=parameters.window, text_bytes=parameters.text_bytes)
        parties.append(talk.Party([(one, talker)], [(other, Listener())]))
    return talk.measured("w1", target, parties, parameters, parameters.seconds)
