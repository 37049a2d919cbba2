"""`uim serve`: the server in production, from settings alone.

Rule: what can be found wrong before the first client is found here: settings, sockets, certificate, schema.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

import click
import trio

from uim import server
from uim.cli.binding import NOTHING, HandedOver, admin_socket, listen, notify_systemd
from uim.cli.check import tls_fault
from uim.cli.failing import Failed, WrongSettings, log_or_exit, settings_or_exit, told
from uim.config import Settings, process_environ
from uim.store import migrations, postgres

EXAMPLE = """\b
Example:
  set -a; . /etc/uim/uim.env; set +a
  uim migrate && uim serve
"""


@click.command(help=f"Run the server, from UIM_* settings. SIGTERM or Ctrl-C drains it and ends it.\n\n{EXAMPLE}")
def serve() -> None:
    environ = process_environ()
    settings = settings_or_exit(environ)
    log_or_exit(settings)
    if fault := tls_fault(settings):
        raise WrongSettings(fault)
    with ExitStack() as stack:
        handed_over = told(lambda: _handed_over(settings, environ))
        sockets = told(lambda: listen(settings.bind, handed_over))
        operations_sockets = told(lambda: listen([settings.operations_bind], handed_over))
        for opened in (*sockets, *operations_sockets):
            stack.enter_context(opened)
        admin = told(lambda: stack.enter_context(admin_socket(settings.admin_socket)))
        if missing := told(lambda: trio.run(_missing_migrations, settings)):
            raise Failed(f"the database lacks {', '.join(missing)}: run `uim migrate` first")
        server.run(
            settings,
            sockets=sockets,
            operations_sockets=operations_sockets,
            admin_socket=admin,
            on_ready=lambda: notify_systemd(environ, "READY=1"),
        )


def _handed_over(settings: Settings, environ: Mapping[str, str]) -> HandedOver:
    binds = [*settings.bind, settings.operations_bind]
    is_for_us = environ.get("LISTEN_PID") == str(os.getpid())
    if not is_for_us and not any(bind.is_handed_over for bind in binds):
        return NOTHING  # inherited from whoever started us, and none of our business
    handed_over = HandedOver.by_environ(environ, os.getpid())
    handed_over.check_all_are_named(binds)
    return handed_over


async def _missing_migrations(settings: Settings) -> list[str]:
    async with await postgres.connect(settings.database_url, name="serve") as tx:
        return await migrations.pending(tx)
