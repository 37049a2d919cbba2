"""`python -m loadtest WORKLOAD`: one workload of the list, `all` of them, or what the machine does bare.

Without --url a run starts its own server on fresh databases. Rule: what cannot be relied upon is not printed: a run that saw a
promise broken exits with 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

import click
import msgspec

from loadtest import append, echo, report, search, verification
from loadtest.machine import machine
from loadtest.parameters import command_options
from loadtest.result import Parameter, Report, Result, read, write
from loadtest.servers import bare_echo, migrated_databases
from loadtest.specification import Verdict, judge
from loadtest.suite import FAILURES, Place, run, run_all
from loadtest.tables import comparison, terminal
from loadtest.target import Missing
from loadtest.workloads import WORKLOADS, Workload

Figures = dict[str, float]
Command = Callable[..., None]
WRITTEN: Final = click.Path(dir_okay=False, path_type=Path)
READ: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
HERE: Final = Path(__file__).parent


def _server_url(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """http(s)://host[:port], or the wrong server would be measured: what has no host is looked for on this machine."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_known = False
    if not is_known or parts.path.strip("/") or parts.query:
        raise click.BadParameter(f"{url!r} is not http://HOST[:PORT] or https://HOST[:PORT]")
    return url


def _writable(_context: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
    """Before a run, which may take hours."""
    if file is not None and not (file.parent.is_dir() and os.access(file if file.exists() else file.parent, os.W_OK)):
        raise click.BadParameter(f"{file} cannot be written")
    return file


URL: Final = click.Option(["--url"], callback=_server_url, help="A server that runs already, its limits off; else one is started.")
DATABASE_URL: Final = click.Option(["--database-url"], help="The PostgreSQL of that server; else sync tells what is stored.")
JSON: Final = click.Option(["--json", "json_file"], type=WRITTEN, callback=_writable, help="Write the result there, with its histograms.")
PLOT: Final = click.Option(["--plot", "plot_file"], type=WRITTEN, callback=_writable, help="Draw it there: FILE.png, FILE.svg, FILE.pdf.")


def _options(*names: str) -> Callable[[Command], Command]:
    known = {
        "pairs": click.option("--pairs", type=click.IntRange(1), default=50, show_default=True),
        "window": click.option("--window", type=click.IntRange(1, 64), default=4, show_default=True, help="Open sends of each."),
        "seconds": click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True),
        "text-bytes": click.option("--text-bytes", type=click.IntRange(20, 10_000), default=200, show_default=True),
        "json": click.option("--json", "json_file", type=WRITTEN, callback=_writable, help="Write the figures there too."),
    }

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = known[name](command)
        return command

    return add


@click.group(help="How much the server carries, and how much of what this machine can carry at all.")
def main() -> None:
    pass


def _command(workload: Workload[Any]) -> click.Command:
    def run_it(
        url: str | None, database_url: str | None, json_file: Path | None, plot_file: Path | None, ceilings: bool, processes: int,
        **parameters: Any
    ) -> None:
        if url is not None and processes > 1:
            raise click.UsageError("--processes is of a server that is started here, not of one that runs already")
        chosen = replace(workload.full, **parameters)
        found = Report(machine(url), [])
        found.results.append(run(workload, chosen, Place(url, database_url, processes), with_ceilings=ceilings))
        click.echo(terminal(found.results[0]))
        _keep(found, json_file, plot_file)

    ceilings = click.Option(["--ceilings"], is_flag=True, help="Measure before what the machine can do, and give shares of it.")
    processes = click.Option(
        ["--processes"], type=click.IntRange(1, 8), default=1, show_default=True, help="Of the server; devices connect to them in turn."
    )
    options: list[click.Parameter] = [*command_options(workload.full), URL, DATABASE_URL, JSON, PLOT, ceilings, processes]
    return click.Command(workload.name, callback=run_it, params=options, help=workload.told)


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
    figures |= {f"writer {name}": value for name, value in cost.items()}
    _tell("search", {**parameters, "seconds": seconds}, figures, json_file)


@main.command("verify", help="How long uim verify looks at a log of that length, and with how much memory.")
@click.option("--messages", type=click.IntRange(10_000), default=1_000_000, show_default=True)
@_options("json")
def verify_command(json_file: Path | None, messages: int) -> None:
    with migrated_databases() as servers:
        _tell("verify", {"messages": messages}, verification.measure(servers.database_url, messages=messages), json_file)


def _all(
    quick: bool, only: str, url: str | None, database_url: str | None, results: Path, plot_file: Path | None
) -> None:
    chosen = _chosen(only)
    results.parent.mkdir(parents=True, exist_ok=True)

    def keep(so_far: Report) -> None:
        report.write(so_far, {each.name: each.told for each in chosen}, results.with_suffix(".md"))
        write(so_far, results.with_suffix(".json"))

    found = run_all(chosen, Place(url, database_url), keep, is_quick=quick)
    findings = judge(found.results)
    if plot_file is not None:
        _draw(results.with_suffix(".json"), plot_file)
    for each in findings:
        click.echo(f"{each.verdict:18}{each.demand.section:6}{each.demand.words}: {each.measured}")
    click.echo(f"\nwritten to {results.with_suffix('.md')} and .json")
    missed = [each for each in findings if each.verdict is Verdict.FAIL]
    if missed or found.failed:
        sys.exit(f"{len(missed)} figures missed; failed: {', '.join(found.failed) or 'none'}")


def _chosen(only: str) -> Sequence[Workload[Any]]:
    names = only.split(",") if only else [each.name for each in WORKLOADS]
    unknown = set(names) - {each.name for each in WORKLOADS}
    if unknown:
        raise click.UsageError(f"no such workload: {', '.join(sorted(unknown))}")
    return [each for each in WORKLOADS if each.name in names]


@main.command(help="Two files of results side by side, with ratios. Compare shares: absolute figures do not carry over.")
@click.argument("first", type=READ)
@click.argument("second", type=READ)
def compare(first: Path, second: Path) -> None:
    one, other = _report(first), _report(second)
    click.echo(comparison(one, other))
    if not {result.workload for result in one.results} & {result.workload for result in other.results}:
        sys.exit("no workload is in both of them")


@main.command("plot", help="Draw a file of results: FILE.png, FILE.svg or FILE.pdf.")
@click.argument("results", type=READ)
@click.argument("plot_file", type=WRITTEN, callback=_writable, metavar="FILE")
def plot_command(results: Path, plot_file: Path) -> None:
    _report(results)
    _draw(results, plot_file)


def _report(file: Path) -> Report:
    try:
        return read(file)
    except msgspec.DecodeError as why:
        raise click.UsageError(f"{file} is no file of results: {why}") from why


def _keep(found: Report, json_file: Path | None, plot_file: Path | None) -> None:
    if json_file is not None:
        write(found, json_file)
    if plot_file is not None:
        with TemporaryDirectory() as folder:
            write(found, Path(folder, "results.json"))
            _draw(Path(folder, "results.json"), plot_file)


def _draw(results: Path, plot_file: Path) -> None:
    ran = subprocess.run([sys.executable, "-m", "loadtest.plot", str(results), str(plot_file)], check=False)
    if ran.returncode:
        raise click.ClickException("nothing was drawn")


def _tell(workload: str, parameters: dict[str, Parameter], figures: Figures, json_file: Path | None) -> None:
    result = Result(workload, parameters, figures)
    click.echo(terminal(result))
    _keep(Report(machine(), [result]), json_file, None)


ALL_HELP: Final = (
    "Every workload, each on a server and databases of its own, with shares of what the machine does bare; then every figure of the "
    "specification with its verdict. Exit code 1 if one is missed, or a workload failed."
)
ALL_OPTIONS: Final[list[click.Parameter]] = [
    click.Option(["--quick"], is_flag=True, help="Shorter and smaller; not every figure can be shown then."),
    click.Option(["--only"], default="", help="Names with commas between them."),
    URL,
    DATABASE_URL,
    click.Option(
        ["--results"], type=WRITTEN, default=HERE / "results", show_default="loadtest/results", help="Written as .md and .json."
    ),
    PLOT,
]
main.add_command(click.Command("all", callback=_all, params=ALL_OPTIONS, help=ALL_HELP))
for each in WORKLOADS:
    main.add_command(_command(each))

if __name__ == "__main__":
    # Whoever ends us (timeout, CI) gets what Ctrl-C gives: the server and its databases are ended too, their folder removed.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except (Missing, *FAILURES) as why:
        sys.exit(f"the run failed: {why}")
