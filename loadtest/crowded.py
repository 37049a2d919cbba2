"""Growth by connections: W1 beside 100, 1,000 and 10,000 who are connected and say nothing.

What a message costs must not depend on who else is there. Rule: one server, the crowd only grows, and the pairs are new each time;
while they talk the crowd's own heartbeats wait, so a turn is shorter than the server's patience with silence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from loadtest import pairs
from loadtest.crowd import visitors
from loadtest.parameters import option
from loadtest.result import Result
from loadtest.target import Broken, Missing, Target
from loadtest.visits import Visits, raise_open_files

# Besides the connections: databases, files, the pairs, what the interpreter has open.
OTHER_FILES: Final = 400
LIVE_WITHIN_S: Final = 180.0
SETTLE_S: Final = 1.0
TENFOLD: Final = 10


@dataclass(frozen=True, slots=True)
class Parameters:
    connections: int = option(10_000, "Silent connections in the end; before that a tenth and a hundredth.", least=100)
    pairs: int = option(50, "Pairs of users who talk.", least=1)
    window: int = option(4, "Open sends of each who talks.", least=1, most=64)
    seconds: float = option(5.0, "How long is measured, beside each number.", least=0.1, most=30.0)
    at_once: int = option(200, "Connections that may be opening at the same time.", least=1)


def run(target: Target, parameters: Parameters) -> Result:
    """Figures beside each number by its name: w1_at_1000_p50_ms, w1_at_1000_server_us; and the last as a share of the first."""
    if parameters.connections > raise_open_files() - OTHER_FILES:
        raise Missing(f"{parameters.connections} connections need more open files than one process may have here")
    _, everybody = visitors(target, parameters.connections)
    visits = Visits(target.websocket_url, at_once=parameters.at_once)
    whole = Result("crowded", asdict(parameters), {})
    steps = sorted({max(1, parameters.connections // share) for share in (TENFOLD * TENFOLD, TENFOLD, 1)})
    try:
        for step in steps:
            visits.come(everybody[visits.live : step])
            if not visits.run(LIVE_WITHIN_S, lambda step=step: visits.live >= step):  # type: ignore[misc]  # bound for this turn
                raise Broken(f"only {visits.live} of {step} connections were live within {LIVE_WITHIN_S:g} s")
            visits.run(SETTLE_S)
            talk = pairs.Parameters(pairs=parameters.pairs, window=parameters.window, seconds=parameters.seconds)
            whole.figures |= _named(step, pairs.run(target, talk).figures)
    finally:
        visits.close()
    costs = [whole.figures.get(f"w1_at_{step}_server_us") for step in (steps[0], steps[-1])]
    if costs[0] and costs[1]:
        whole.figures["server_us_growth_share"] = costs[1] / costs[0]
    return whole


def _named(step: int, figures: dict[str, float]) -> dict[str, float]:
    wanted = {"acknowledged_per_s": "per_s", "p50_ms": "p50_ms", "p99_ms": "p99_ms", "server_us_per_arrival": "server_us"}
    return {f"w1_at_{step}_{short}": figures[name] for name, short in wanted.items() if name in figures}
