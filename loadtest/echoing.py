"""`python -m loadtest.echoing FD`: bare trio-websocket on a listening socket, sending back what it gets, until SIGTERM.

Rule: nothing but the library: it is the measure of what a Trio process can carry of WebSocket frames on this machine.
"""

from __future__ import annotations

import socket
import sys
from functools import partial

import trio
from trio_websocket import ConnectionClosed, wrap_server_stream


async def echo(stream: trio.SocketStream) -> None:
    """One connection, until its client has gone."""
    async with trio.open_nursery() as nursery:
        ws = await (await wrap_server_stream(nursery, stream)).accept()
        try:
            while True:
                await ws.send_message(await ws.get_message())
        except ConnectionClosed:
            nursery.cancel_scope.cancel()


def main(fd: int) -> None:
    listening = trio.socket.from_stdlib_socket(socket.socket(fileno=fd))
    trio.run(partial(trio.serve_listeners, echo, [trio.SocketListener(listening)]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
