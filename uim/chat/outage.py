"""Whether the database takes what we append: since when not, why, and how long to rest before the next try.

One that lets us in and takes no write (a full disk, a quota, a lock that somebody holds) is away as well, and must not be asked
without end. Rule: only something appended ends an outage, or a line in which nothing is left; a new connection does not.
"""

from __future__ import annotations

from typing import Final

import trio

from uim.log import get_logger

# Between tries to connect.
REST_S: Final = 0.2
# Between connections on which nothing could be appended: none at first, for lines may break one after the other; then twice as
# long each time.
RESTS_AFTER_LOSSES: Final = 4
LEAST_REST_S: Final = 0.02
MOST_REST_S: Final = 1.0
MOST_LOSSES: Final = 12

log = get_logger(__name__)


class Outage:
    """The writer's. A connection that is lost and made again within `patience_s` is no outage yet.

    `losses`: in mid-append, without a success between.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._began_at = 0.0
        self._trouble = ""
        self.losses = 0

    def lost(self, why: Exception) -> None:
        self.losses = min(self.losses + 1, MOST_LOSSES)
        self.note(why)

    def note(self, why: Exception) -> None:
        """Another try came to nothing. Told once until it changes: it may be tried for hours."""
        if not self._trouble:
            self._began_at = trio.current_time()
        trouble = next(iter(str(why).splitlines()), repr(why))
        if trouble != self._trouble:
            log.warning("nothing can be appended", error=trouble)
        self._trouble = trouble

    def ended(self) -> None:
        if self._trouble:
            log.info("the writer goes on", after_s=round(trio.current_time() - self._began_at, 1))
        self._trouble = ""
        self.losses = 0

    @property
    def is_long(self) -> bool:
        return bool(self.losses) and trio.current_time() >= self._began_at + self._patience_s

    @property
    def rest_s(self) -> float:
        """Before the next connection."""
        doublings = self.losses - RESTS_AFTER_LOSSES
        return min(LEAST_REST_S * 2**doublings, MOST_REST_S) if doublings >= 0 else 0.0

    @property
    def trouble(self) -> str:
        """What an operator is told once it is an outage; else empty."""
        return f"nothing can be appended: {self._trouble}" if self.is_long else ""
