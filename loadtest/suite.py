"""Workloads run: one of them, or the whole list, each against a server of its own or one that runs already.

Rule: one that breaks a promise does not stop the others, and is told; one that cannot run where it was pointed at is left out,
with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final

import click
import psycopg

from loadtest import ceilings
from loadtest.frames import Torn
from loadtest.machine import machine
from loadtest.people import Refused
from loadtest.result import Report, Result
from loadtest.servers import whole_server
from loadtest.tables import terminal
from loadtest.target import Broken, Missing, Target
from loadtest.workloads import Workload
from uim.cli.child import EmbeddedError

CEILING_S: Final = 3.0
# What ends a run, as words for people.
FAILURES: Final = (Broken, Torn, Refused, EmbeddedError, OSError, HTTPException, psycopg.Error)


@dataclass(frozen=True, slots=True)
class Place:
    """The server that a run was pointed at, or None: then it starts its own."""

    url: str | None = None
    database_url: str | None = None
    # Of a server that is started for the run.
    processes: int = 1

    def server_for(self, workload: Workload[Any]) -> AbstractContextManager[Target]:
        if workload.brings_its_own:
            if self.url is not None:
                raise Missing(f"{workload.name} fills a database of its own, and asks a server on it: it takes no --url")
            return nullcontext(Target(""))
        if self.url is None:
            return whole_server(workload.settings, self.processes)
        return nullcontext(Target(self.url.rstrip("/"), database_url=self.database_url))


def run(workload: Workload[Any], parameters: Any, place: Place, *, with_ceilings: bool) -> Result:
    """Raises Missing, or one of FAILURES."""
    found = ceilings.measure(CEILING_S) if with_ceilings else {}
    with place.server_for(workload) as target:
        try:
            result = workload.run(target, parameters)
        except ConnectionError as why:
            raise Broken(f"{target.url}: {why}") from why
    result.workload = workload.name
    ceilings.add_shares(result, found)
    return result


def run_all(
    workloads: Sequence[Workload[Any]], place: Place, keep: Callable[[Report], None], *, is_quick: bool
) -> Report:
    """Each is printed when it is done, and all until then are kept: the whole takes long."""
    report = Report(machine(place.url), [])
    for workload in workloads:
        parameters = workload.quick if is_quick else workload.full
        try:
            result = run(workload, parameters, place, with_ceilings=workload.saturates and place.url is None)
        except Missing as why:
            report.left_out[workload.name] = str(why)
        except FAILURES as why:
            report.failed[workload.name] = f"{type(why).__name__}: {why}"
            click.echo(f"{workload.name} FAILED: {why}\n")
        else:
            report.results.append(result)
            click.echo(terminal(result) + "\n")
        keep(report)
    return report
