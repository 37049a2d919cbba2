"""`python -m tests.faults --kills N`: kill -9 under load, any number of times; one line for each, and a verdict.

Exit code 0 if every promise was kept, 1 if one was broken. Rule: a run that failed tells its seed.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import click
import trio

from tests.faults.kills import ALL, DRAIN, KINDS, RATE, carry_out, plan
from tests.faults.world import SOURCE


@click.command(help="Kill UIM's server, PostgreSQL and Valkey under load, and hold what clients were told against what is there.")
@click.option("--kills", type=click.IntRange(1), default=60, show_default=True)
@click.option("--seed", type=int, help="Of the plan; a random one if not given.")
@click.option(
    "--what",
    default=",".join(KINDS),
    show_default=True,
    help="What is killed, by commas; `all`: everything at once; `drain`: into a drain.",
)
@click.option("--processes", type=click.IntRange(1, 8), default=1, show_default=True, help="How many `uim serve` there are.")
@click.option("--rate", type=click.FloatRange(0.1, 200), default=RATE, show_default=True, help="Texts a second of each of 6 devices.")
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=SOURCE,
    help="Another copy of the project, in which something is broken, to see that it is found out.",
)
def main(kills: int, seed: int | None, what: str, processes: int, rate: float, source: Path) -> None:
    kinds = [kind.strip() for kind in what.split(",") if kind.strip()]
    if not kinds or not set(kinds) <= {*KINDS, ALL, DRAIN}:
        raise click.UsageError(f"--what is one or more of {', '.join(KINDS)}, {ALL}, {DRAIN}")
    seed = seed if seed is not None else random.SystemRandom().randrange(10**6)
    planned = plan(seed, kills, kinds, processes)
    click.echo(f"seed {seed}")
    verdict = trio.run(
        partial(carry_out, planned, seed=seed, processes=processes, tell=click.echo, source=source, rate=rate)
    )
    click.echo(verdict)
    if verdict.faults:
        click.echo(f"\n{verdict.tails}\n\nagain: python -m tests.faults --kills {kills} --seed {seed} --what {what}"
                   f" --processes {processes} --rate {rate:g}")  # fmt: skip
        sys.exit(1)


if __name__ == "__main__":
    main()
