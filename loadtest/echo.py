"""`echo`: frames of a message's size to a server that only sends them back.

It is the ceiling of every workload on sockets: what the same generator gets from trio-websocket when nothing is done with the
frames. Rule: the same connections, windows and sizes as W1.
"""

from __future__ import annotations

import time

from loadtest.devices import Echoed
from loadtest.sockets import Loop

WARM_UP_S = 0.5


def measure(url: str, *, connections: int, window: int, seconds: float, text_bytes: int) -> dict[str, float]:
    """Echoes a second, and this process's own part of a core meanwhile. Raises Torn or OSError."""
    peers = [Echoed(window=window, text_bytes=text_bytes) for _ in range(connections)]
    loop = Loop()
    try:
        for peer in peers:
            loop.connect(url, peer)
        loop.run(seconds=min(WARM_UP_S, seconds))
        echoes = -sum(peer.echoes for peer in peers)
        began_at, own_s = time.perf_counter(), -time.process_time()
        loop.run(seconds=seconds)
        took_s, own_s = time.perf_counter() - began_at, own_s + time.process_time()
        echoes += sum(peer.echoes for peer in peers)
    finally:
        loop.close()
    return {"echoes_per_s": echoes / took_s, "generator_share": own_s / took_s}
