"""`uim migrate`: bring the database's schema up to this release. Safe to repeat, and to run twice at once."""

from __future__ import annotations

import click
import trio

from uim.cli.failing import settings_or_exit, told
from uim.config import process_environ
from uim.store import migrations

EXAMPLE = """\b
Example:
  set -a; . /etc/uim/uim.env; set +a
  uim migrate
"""


@click.command(help=f"Bring the database's schema up to this release.\n\n{EXAMPLE}")
def migrate() -> None:
    settings = settings_or_exit(process_environ())
    applied = told(lambda: trio.run(migrations.migrate, settings.database_url))
    for name in applied:
        click.echo(f"applied {name}")
    click.echo("the database is up to date")
