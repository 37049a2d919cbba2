"""How far a run is, on stderr, where somebody watches: quiet when that is no terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def bar(what: str, total: float, unit: str) -> Any:
    """A context manager whose `update(more)` moves it on; it leaves nothing behind."""
    layout = "{desc}: {bar} {n:.0f}/{total:.0f} {unit}"
    return tqdm(total=total, desc=f"{what:10}", unit=unit, disable=None, leave=False, bar_format=layout)
