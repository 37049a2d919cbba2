"""`python -m loadtest WORKLOAD`: one workload, or `all` of them with their shares of what the machine does bare.

Without --url a run starts its own server on fresh databases. Rule: what cannot be relied upon is not printed: a run that saw a
promise broken exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from loadtest import append, echo, group, pairs, search, verification
from loadtest.frames import Torn
from loadtest.machine import machine
from loadtest.parameters import command_options
from loadtest.people import Refused
from loadtest.result import Report, Result, write
from loadtest.servers import bare_echo, migrated_databases, whole_server
from loadtest.target import Broken, Missing, Target
from loadtest.workloads import WORKLOADS, Workload
from uim.cli.child import EmbeddedError

Figures = dict[str, float]
# W1 makes batches of about this size; its share is given of what PostgreSQL takes in them.
TYPICAL_BATCH: Final = "batches of 64"
Command = Callable[..., None]


def _options(*names: str) -> Callable[[Command], Command]:
    known = {
        "pairs": click.option("--pairs", type=click.IntRange(1), default=50, show_default=True),
        "window": click.option("--window", type=click.IntRange(1, 64), default=4, show_default=True, help="Open sends of each."),
        "seconds": click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True),
        "text-bytes": click.option("--text-bytes", type=click.IntRange(20, 10_000), default=200, show_default=True),
        "json": click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too."),
    }

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = known[name](command)
        return command

    return add


@click.group(help="How much the server carries, and how much of what this machine can carry at all.")
def main() -> None:
    pass


@main.command("echo", help="Frames of that size sent back by bare trio-websocket. The ceiling of what sockets carry here.")
@_options("pairs", "window", "seconds", "text-bytes", "json")
def echo_command(pairs: int, json_file: Path | None, **parameters: Any) -> None:
    with bare_echo() as url:
        _tell("echo", {"connections": pairs, **parameters}, echo.measure(url, connections=pairs, **parameters), json_file)


@main.command("append", help="Texts through log_append alone, by size of batch. The ceiling of what PostgreSQL stores here.")
@_options("seconds", "text-bytes", "json")
def append_command(json_file: Path | None, **parameters: Any) -> None:
    with migrated_databases() as servers:
        _tell("append", parameters, append.measure(servers.database_url, **parameters), json_file)


@main.command("search", help="A member of 50 conversations looks for words. Milliseconds; and what packing costs the writer.")
@click.option("--messages", type=click.IntRange(1_000), default=1_000_000, show_default=True, help="In the whole log.")
@click.option("--own-share", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Of them in those conversations.")
@click.option("--asked", type=click.IntRange(1), default=30, show_default=True, help="Times of each question.")
@_options("seconds", "json")
def search_command(seconds: float, json_file: Path | None, **parameters: Any) -> None:
    with migrated_databases() as servers:
        figures = search.measure(servers.database_url, **parameters)
    with migrated_databases() as servers:
        cost = search.measure_cost(servers.database_url, seconds=seconds, rounds=4)
    _tell("search", {**parameters, "seconds": seconds}, figures | _named("writer", cost), json_file)


@main.command("verify", help="How long uim verify looks at a log of that length, and with how much memory.")
@click.option("--messages", type=click.IntRange(10_000), default=1_000_000, show_default=True)
@_options("json")
def verify_command(json_file: Path | None, messages: int) -> None:
    with migrated_databases() as servers:
        _tell("verify", {"messages": messages}, verification.measure(servers.database_url, messages=messages), json_file)


@main.command("all", help="echo, append, w1 and w3, one after the other, and the shares.")
@_options("window", "seconds", "text-bytes", "json")
def all_command(json_file: Path | None, **parameters: Any) -> None:
    storing = {name: value for name, value in parameters.items() if name != "window"}
    figures: Figures = {}
    with bare_echo() as url:
        figures |= _named("echo", echo.measure(url, connections=50, **parameters))
    with migrated_databases() as servers:
        figures |= _named("append", append.measure(servers.database_url, **storing))
    with whole_server() as at:
        figures |= _named("w1", pairs.run(at, pairs.Parameters(**parameters)).figures)
        figures |= _named("w3", group.run(at, group.Parameters(**parameters)).figures)
    figures["w1 share of echo"] = figures["w1 acknowledged_per_s"] / figures["echo echoes_per_s"]
    figures["w1 share of append"] = figures["w1 acknowledged_per_s"] / figures[f"append {TYPICAL_BATCH}"]
    figures["w3 share of echo"] = figures["w3 arrived_per_s"] / figures["echo echoes_per_s"]
    _tell("all", parameters, figures, json_file)


def _command(workload: Workload[Any]) -> click.Command:
    def run(url: str | None, database_url: str | None, json_file: Path | None, **parameters: Any) -> None:
        with _server(url, database_url, workload) as target:
            result = workload.run(target, replace(workload.full, **parameters))
        _print(workload.name, result.parameters, result.figures)
        if json_file is not None:
            write(Report(machine(), [result]), json_file)

    where = [
        click.Option(["--url"], help="A server that runs already, its limits off; else one is started."),
        click.Option(["--database-url"], help="Its PostgreSQL, for workloads that look into it."),
        click.Option(["--json", "json_file"], type=click.Path(path_type=Path), help="Write the result there too."),
    ]
    options: list[click.Parameter] = [*command_options(type(workload.full)), *where]
    return click.Command(workload.name, callback=run, params=options, help=workload.told)


def _server(url: str | None, database_url: str | None, workload: Workload[Any]) -> AbstractContextManager[Target]:
    if workload.brings_its_own:
        if url is not None:
            raise Missing(f"{workload.name} fills a database of its own, and asks a server on it: it takes no --url")
        return nullcontext(Target(""))
    if url is None:
        return whole_server(workload.settings)
    return nullcontext(Target(url.rstrip("/"), database_url=database_url))


def _named(workload: str, figures: Figures) -> Figures:
    return {f"{workload} {name}": value for name, value in figures.items()}


def _tell(workload: str, parameters: dict[str, Any], figures: Figures, json_file: Path | None) -> None:
    _print(workload, parameters, figures)
    if json_file is not None:
        write(Report(machine(), [Result(workload, parameters, figures)]), json_file)


def _print(workload: str, parameters: Mapping[str, Any], figures: Figures) -> None:
    click.echo(f"{workload} ({', '.join(f'{name} {_parameter(value)}' for name, value in parameters.items())})")
    for name, value in figures.items():
        click.echo(f"  {name.replace('_', ' '):28} {_shown(value):>12}")


def _parameter(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


for each in WORKLOADS:
    main.add_command(_command(each))

if __name__ == "__main__":
    try:
        main()
    except (Broken, Missing, Torn, Refused, EmbeddedError, OSError) as why:
        sys.exit(f"the run failed: {why}")
