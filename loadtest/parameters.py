"""A workload's parameters: fields of a frozen dataclass, each with its words for `--help`, and the command line made of them.

Rule: a parameter stands in one place. Its name is the option's (`text_bytes`: `--text-bytes`), its default that of the full run.
"""

from __future__ import annotations

import math
from dataclasses import field, fields
from typing import Any

import click


def option(default: Any, told: str, *, least: float | None = None, most: float | None = None, is_list: bool = False) -> Any:
    """A field of such a dataclass; `least` and `most` are what the command line takes. `is_list`: text that `whole_numbers` reads;
    at least one of them, unless `least` is 0."""
    return field(default=default, metadata={"told": told, "least": least, "most": most, "is_list": is_list})


def whole_numbers(told: str) -> list[int]:
    """What stands there with commas between, in that order. Raises ValueError unless each is a whole number above 0."""
    numbers = [int(each) for each in told.split(",")] if told else []
    if any(number < 1 for number in numbers):
        raise ValueError(told)
    return numbers


class _List(click.ParamType[Any]):
    name = "numbers"

    def __init__(self, *, may_be_empty: bool) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if whole_numbers(value) or self._may_be_empty:
                return value
        except ValueError:
            pass
        self.fail(f"{value!r} is not whole numbers above 0 with commas between them", param, ctx)


class _Number(click.FloatRange):
    """One that is finite: no limit keeps NaN out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


def command_options(parameters: Any) -> list[click.Option]:
    """Their defaults are these parameters'."""
    return [_command_option(each, getattr(parameters, each.name)) for each in fields(parameters)]


def _command_option(each: Any, default: Any) -> click.Option:
    name, limits = f"--{each.name.replace('_', '-')}", each.metadata
    if isinstance(default, bool):
        return click.Option([f"{name}/--no-{name[2:]}"], default=default, show_default=True, help=limits["told"])
    kind: click.ParamType[Any] = click.STRING
    if limits["is_list"]:
        kind = _List(may_be_empty=limits["least"] == 0)
    elif isinstance(default, int):
        kind = click.IntRange(limits["least"], limits["most"])
    elif isinstance(default, float):
        kind = _Number(limits["least"], limits["most"])
    return click.Option([name], type=kind, default=default, show_default=True, help=limits["told"])
