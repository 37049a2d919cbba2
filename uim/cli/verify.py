"""`uim verify`: does everything in the database hold? A line for each rule; `--repair` mends what is derived.

Rule: it may run beside servers that write, on a database of any size: one snapshot, bounded steps, bounded memory. What is
wrong is told in words, with the ids and how many; content is never shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click
import trio

from uim.chat import verification
from uim.chat.verification import Report
from uim.cli.failing import Failed, operator_settings_or_exit, told
from uim.config import process_environ
from uim.model.ids import rfc3339
from uim.store import migrations, postgres

PROGRESS_EVERY_S = 0.2
EXAMPLE = """\b
Example:
  UIM_DATABASE_URL=postgresql://uim@/uim uim verify
"""


@click.command(
    help="Look through the database for what must not be: exit code 1 if anything is wrong. Servers may run meanwhile; of the "
    f"settings only UIM_DATABASE_URL is needed.\n\n{EXAMPLE}"
)
@click.option(
    "--repair",
    is_flag=True,
    help="Then mend what is derived from other rows: watermarks, cursors above the head, blocks for search. Messages, memberships "
    "and receipts are never touched.",
)
def verify(repair: bool) -> None:
    settings = operator_settings_or_exit(process_environ(), needs_database=True)
    if missing := told(lambda: trio.run(_missing_migrations, settings.database_url)):
        raise Failed(f"the database lacks {', '.join(missing)}: run `uim migrate` first")
    report = _looked(settings.database_url)
    is_whole = not report.wrong
    if report.wrong and repair:
        is_whole = _mended(settings.database_url, report)
    if not is_whole:
        raise SystemExit(1)


def _looked(database_url: str) -> Report:
    began_at = time.monotonic()
    report = told(lambda: trio.run(verification.verify, database_url, _progress()))
    click.echo(
        f"looked at {', '.join(f'{seen:,} {what}' for what, seen in report.rows.items())}, "
        f"as of message {report.head} at {rfc3339(report.at)}, in {time.monotonic() - began_at:.1f} s"
    )
    for finding in report.findings:
        if not finding.number:
            click.echo(f"ok     {finding.invariant.name}")
            continue
        derived = "" if finding.invariant.mend is None else " (derived: --repair mends it)"
        times = "once" if finding.number == 1 else f"{finding.number:,} times"
        click.echo(f"WRONG  {finding.invariant.name}: {times} not{derived}")
        for example in finding.examples:
            click.echo(f"         {example}")
        if finding.number > len(finding.examples):
            click.echo(f"         and {finding.number - len(finding.examples):,} more")
    return report


def _mended(database_url: str, report: Report) -> bool:
    """Mend, look again, and whether all is well now."""

    def tell(what: str, number: int) -> None:
        if number:
            click.echo(f"mended {number:,} {what}")

    async def mend() -> None:
        await verification.repair(database_url, report, tell)

    try:
        told(lambda: trio.run(mend))
    except TimeoutError as late:
        raise Failed(str(late)) from late
    click.echo("looking again:")
    return not _looked(database_url).wrong


def _progress() -> Callable[[str, int], None]:
    """On a terminal, one line that is written over; else nothing."""
    if not sys.stderr.isatty():
        return lambda what, seen: None
    told_at = 0.0

    def tell(what: str, seen: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= PROGRESS_EVERY_S:
            told_at = time.monotonic()
            sys.stderr.write(f"\r\x1b[K{what}: {seen:,}\r")
            sys.stderr.flush()

    return tell


async def _missing_migrations(database_url: str) -> list[str]:
    async with await postgres.connect(database_url, name="verify") as tx:
        return await migrations.pending(tx)

