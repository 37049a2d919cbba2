"""`uim check`: is everything there that the promises need? A line for each finding; changes nothing.

Rule: one fault hides no other: each check that can still be made is made.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import NamedTuple

import click
import psycopg
import redis
import trio

from uim.cli.failing import one_line, settings_or_exit
from uim.config import Settings, process_environ
from uim.store import durability, migrations, postgres

REDIS_WITHIN_S = 5.0
EXAMPLE = """\b
Example:
  set -a; . /etc/uim/uim.env; set +a
  uim check
"""


class Finding(NamedTuple):
    """What was looked at, and what is wrong with it (None: nothing)."""

    what: str
    fault: str | None


@click.command(help=f"Look at settings, PostgreSQL, Redis and TLS files; exit code 1 if anything failed.\n\n{EXAMPLE}")
def check() -> None:
    settings = settings_or_exit(process_environ())
    findings = [Finding("settings", None), *_tls(settings)]
    findings += trio.run(_postgresql, settings.database_url)
    findings += _redis(settings.redis_url)
    for what, fault in findings:
        click.echo(f"ok      {what}" if fault is None else f"FAILED  {what}: {fault}")
    if any(finding.fault for finding in findings):
        raise SystemExit(1)


def tls_fault(settings: Settings) -> str | None:
    """Why the certificate and the key cannot be used together, or None."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        # An empty password: a key that needs one is refused, where without it OpenSSL would ask on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except OSError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            return f"UIM_TLS_KEY {settings.tls_key} is not the key of UIM_TLS_CERT {settings.tls_cert}"
        return f"UIM_TLS_CERT and UIM_TLS_KEY cannot be loaded as PEM files: {one_line(error)}"
    return None


def _tls(settings: Settings) -> Iterator[Finding]:
    if settings.tls_cert is not None:
        yield Finding("TLS certificate and key", tls_fault(settings))


async def _postgresql(database_url: str) -> list[Finding]:
    try:
        async with await postgres.connect(database_url, name="check") as tx:
            return [
                Finding("PostgreSQL: reachable", None),
                Finding("PostgreSQL: version", durability.postgresql_version(tx)),
                Finding("PostgreSQL: fsync", await durability.fsync(tx)),
                Finding("PostgreSQL: synchronous_commit", await durability.synchronous_commit(tx)),
                Finding("PostgreSQL: schema", await _schema_fault(tx)),
            ]
    except psycopg.Error as error:
        return [Finding("PostgreSQL: reachable", one_line(error))]


async def _schema_fault(tx: postgres.Connection) -> str | None:
    try:
        missing = await migrations.pending(tx)
    except migrations.MigrationError as error:
        return str(error)
    return f"lacks {', '.join(missing)}: run `uim migrate`" if missing else None


def _redis(redis_url: str) -> list[Finding]:
    try:
        with redis.Redis.from_url(redis_url, socket_timeout=REDIS_WITHIN_S, socket_connect_timeout=REDIS_WITHIN_S) as client:
            persistence = client.info("persistence")
            memory = client.info("memory")
            server = client.info("server")
            replication = client.info("replication")
    except (redis.RedisError, OSError, ValueError) as error:
        return [Finding("Redis: reachable", one_line(error))]
    return [
        Finding("Redis: reachable", None),
        Finding("Redis: version", durability.redis_version(server)),
        Finding("Redis: takes writes", durability.takes_writes(replication)),
        Finding("Redis: append-only file", durability.append_only(persistence)),
        Finding("Redis: eviction", durability.eviction(memory)),
    ]
