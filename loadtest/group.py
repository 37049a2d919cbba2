"""W3: one group, of which a few members talk with a window of open sends and everybody confirms, in batches.

Rule: what counts is deliveries: a text is said once and arrives everywhere else.
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
    members: int = option(50, "Members of the group.", least=3, most=50)
    senders: int = option(4, "Those who talk.", least=1, most=50)
    window: int = option(4, "Open sends of each who talks.", least=1, most=64)
    seconds: float = option(10.0, "How long is measured.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)


def run(target: Target, parameters: Parameters) -> Result:
    group = people.register(target.url, parameters.members)
    conversation_id = people.make_group(target.url, group)
    talkers = [
        (one, Talker(conversation_id, "w3", window=parameters.window, text_bytes=parameters.text_bytes))
        for one in group[: parameters.senders]
    ]
    party = talk.Party(talkers, [(one, Listener()) for one in group[parameters.senders :]])
    return talk.measured("w3", target, [party], parameters, parameters.seconds)
