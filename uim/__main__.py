"""The roof: `uim` and its commands, one file each in cli/. Exit codes: 0 done, 1 failed, 2 wrong use or settings."""

from __future__ import annotations

import click

from uim import __version__
from uim.cli.check import check
from uim.cli.dev import dev
from uim.cli.migrate import migrate
from uim.cli.serve import serve
from uim.cli.tasks import tasks
from uim.cli.trace import trace
from uim.cli.verify import verify


@click.group(
    commands=[dev, serve, migrate, check, verify, trace, tasks],
    help="UIM, an instant-messaging server.\n\n\b\nExample:\n  uim dev\n",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="uim")
def main() -> None:
    pass


if __name__ == "__main__":
    main()
