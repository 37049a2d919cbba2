"""Who is at the other end, and how many who have not signed in may be here at once.

A connection costs memory and a file descriptor before anybody has proved anything, so those are counted: in all, and
per address, so that one host cannot take every place. Rule: a connection is in the count from its accept until its
first successful authentication or its end, whichever comes first, and leaves it exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

MAX_STRANGERS: Final = 1_000
MAX_STRANGERS_PER_ADDRESS: Final = 50


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of one connection: its address as text (IPv4 even if mapped into IPv6), port, and whether by TLS.

    A Unix socket has no address: `address` is "" and `port` the descriptor's number, which is unique while it is open.
    """

    address: str
    port: int
    tls: bool


class Admission:
    """Counts connections that have not signed in. Nothing here awaits."""

    def __init__(
        self,
        *,
        trusted_proxies: Iterable[IPv4Network | IPv6Network] = (),
        max_strangers: int = MAX_STRANGERS,
        max_per_address: int = MAX_STRANGERS_PER_ADDRESS,
    ) -> None:
        self._trusted_proxies = tuple(trusted_proxies)
        self._max_strangers = max_strangers
        self._max_per_address = max_per_address
        # (address, port) → the neighbourhood it counts for; None for one that has no bound of its own.
        self._strangers: dict[tuple[str, int], str | None] = {}
        self._of_neighbourhood: Counter[str] = Counter()

    @property
    def strangers(self) -> int:
        """How many connections have not signed in."""
        return len(self._strangers)

    def enter(self, address: str, port: int) -> bool:
        """Count a new connection; False, and nothing counted, if it is over a bound."""
        if len(self._strangers) >= self._max_strangers:
            return False
        neighbourhood = self._neighbourhood(address)
        if neighbourhood is not None:
            if self._of_neighbourhood[neighbourhood] >= self._max_per_address:
                return False
            self._of_neighbourhood[neighbourhood] += 1
        self._strangers[address, port] = neighbourhood
        return True

    def signed_in(self, address: str, port: int) -> None:
        """Take the connection out of the count; a second call, or one for an unknown connection, does nothing."""
        neighbourhood = self._strangers.pop((address, port), None)
        if neighbourhood is None:
            return
        self._of_neighbourhood[neighbourhood] -= 1
        if not self._of_neighbourhood[neighbourhood]:
            del self._of_neighbourhood[neighbourhood]

    def leave(self, address: str, port: int) -> None:
        """The connection has ended; nothing to do for one that had signed in."""
        self.signed_in(address, port)

    def _neighbourhood(self, address: str) -> str | None:
        if not address:
            return None
        ip = ip_address(address)
        if any(ip in network for network in self._trusted_proxies):
            return None
        return _neighbourhood_of(ip)


def _neighbourhood_of(ip: IPv4Address | IPv6Address) -> str:
    # One subscriber is given a whole /64, so a bound per IPv6 address would be no bound.
    return str(ip) if isinstance(ip, IPv4Address) else f"{int(ip) >> 64:x}::/64"


def plain_address(text: str) -> str:
    """An address as text, with IPv4 in its own form where a dual-stack socket gives it mapped into IPv6."""
    ip = ip_address(text)
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return str(mapped or ip)
