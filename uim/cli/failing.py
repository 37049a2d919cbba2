"""How a command fails before its user: one sentence on stderr, a code, no traceback.

Exit codes: 1 something failed, 2 wrong use or settings (click's own code for wrong use).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import click
import psycopg

from uim import log
from uim.cli.binding import BindError
from uim.cli.child import EmbeddedError
from uim.config import OperatorSettings, Settings, SettingsError, read_operator_settings, read_settings
from uim.store.migrations import MigrationError

T = TypeVar("T")


class Failed(click.ClickException):
    """Exit code 1."""

    exit_code = 1


class WrongSettings(click.ClickException):
    """Exit code 2."""

    exit_code = 2


def settings_or_exit(environ: Mapping[str, str]) -> Settings:
    """The settings; every fault is told at once, exit code 2."""
    try:
        return read_settings(environ)
    except SettingsError as error:
        raise _wrong(error) from error


def operator_settings_or_exit(environ: Mapping[str, str], *, needs_database: bool) -> OperatorSettings:
    """The same for a command that needs no more than these."""
    try:
        return read_operator_settings(environ, needs_database=needs_database)
    except SettingsError as error:
        raise _wrong(error) from error


def _wrong(error: SettingsError) -> WrongSettings:
    faults = "".join(f"\n  {fault}" for fault in error.faults)
    return WrongSettings(f"the settings are wrong:{faults}")


def log_or_exit(settings: Settings) -> None:
    try:
        log.configure(settings.log_level, settings.log_file, settings.log_format, sys.stderr)
    except OSError as error:
        raise WrongSettings(f"UIM_LOG_FILE cannot be written: {error}") from error


def told(action: Callable[[], T]) -> T:
    """The action's result; what is known to go wrong becomes one sentence, exit code 1."""
    try:
        return action()
    except (BindError, EmbeddedError, MigrationError) as error:
        raise Failed(str(error)) from error
    except psycopg.OperationalError as error:
        raise Failed(f"the database cannot be reached: {one_line(error)}") from error
    except psycopg.Error as error:
        raise Failed(f"the database refused: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
