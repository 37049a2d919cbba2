"""A workload's parameters: fields of a frozen dataclass, each with its words for `--help`, and the command line made of them.

Rule: a parameter stands in one place. Its name is the option's (`text_bytes`: `--text-bytes`), its default that of the full run.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

import click


def option(default: Any, told: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A field of such a dataclass; `least` and `most` are what the command line takes."""
    return field(default=default, metadata={"told": told, "least": least, "most": most})


def command_options(parameters: Any) -> list[click.Option]:
    """Their defaults are these parameters'."""
    return [_command_option(each, getattr(parameters, each.name)) for each in fields(parameters)]


def _command_option(each: Any, default: Any) -> click.Option:
    name, limits = f"--{each.name.replace('_', '-')}", each.metadata
    if isinstance(default, bool):
        return click.Option([f"{name}/--no-{name[2:]}"], default=default, show_default=True, help=limits["told"])
    kind: click.ParamType[Any] = click.STRING
    if isinstance(default, int):
        kind = click.IntRange(limits["least"], limits["most"])
    elif isinstance(default, float):
        kind = click.FloatRange(limits["least"], limits["most"])
    return click.Option([name], type=kind, default=default, show_default=True, help=limits["told"])
