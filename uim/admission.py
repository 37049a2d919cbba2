"""Who is at the other end, and how many who have not signed in may be here at once.

A connection costs memory and a file descriptor before anybody has proved anything, so those are counted: in all, and
per address, so that one host cannot take every place. Rule: a connection is in the count from its accept until its
first successful authentication or its end, whichever comes first, and leaves it exactly once. One account may vouch for
so many at once and no more: the rest stay strangers, or its owner could open connections until nobody else can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

MAX_STRANGERS: Final = 1_000
MAX_STRANGERS_PER_ADDRESS: Final = 50
# Twenty devices with a socket each, and a browser's six for the rest on most of them.
MAX_VOUCHED: Final = 100


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
        max_vouched: int = MAX_VOUCHED,
    ) -> None:
        self._trusted_proxies = tuple(trusted_proxies)
        self._max_strangers = max_strangers
        self._max_per_address = max_per_address
        # (address, port) → the neighbourhood it counts for; None for one that has no bound of its own.
        self._strangers: dict[tuple[str, int], str | None] = {}
        self._of_neighbourhood: Counter[str] = Counter()
        self._max_vouched = max_vouched
        # (address, port) → the user who signed in on it first, and how many each has.
        self._vouched: dict[tuple[str, int], Hashable] = {}
        self._of_user: Counter[Hashable] = Counter()

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

    def signed_in(self, address: str, port: int, user: Hashable) -> None:
        """Take the connection out of the count, unless this user has enough; a second call, or an unknown one, does nothing."""
        connection = (address, port)
        # What comes through a proxy is everybody's in turn.
        if connection in self._strangers and self._strangers[connection] is not None:
            if self._of_user.get(user, 0) >= self._max_vouched:
                return
            self._of_user[user] += 1
            self._vouched[connection] = user
        self._forget(connection)

    def leave(self, address: str, port: int) -> None:
        """The connection has ended."""
        connection = (address, port)
        self._forget(connection)
        if connection in self._vouched:
            _decrease(self._of_user, self._vouched.pop(connection))

    def _forget(self, connection: tuple[str, int]) -> None:
        neighbourhood = self._strangers.pop(connection, None)
        if neighbourhood is not None:
            _decrease(self._of_neighbourhood, neighbourhood)

    def _neighbourhood(self, address: str) -> str | None:
        if not address:
            return None
        ip = ip_address(address)
        if any(ip in network for network in self._trusted_proxies):
            return None
        return _neighbourhood_of(ip)


def _decrease(counts: Counter[KeyT], key: KeyT) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _neighbourhood_of(ip: IPv4Address | IPv6Address) -> str:
    # One subscriber is given a whole /64, so a bound per IPv6 address would be no bound.
    return str(ip) if isinstance(ip, IPv4Address) else f"{int(ip) >> 64:x}::/64"


def plain_address(text: str) -> str:
    """An address as text, with IPv4 in its own form where a dual-stack socket gives it mapped into IPv6."""
    ip = ip_address(text)
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return str(mapped or ip)
