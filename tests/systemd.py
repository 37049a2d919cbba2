"""systemd's part of a start: sockets that are bound and listened on here, handed over as descriptors 3 and on by its protocol.

As sd_listen_fds(3) says: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, set in the process that becomes the service.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping

# Copied out of the way first: a socket may lie where another one has to be.
_BECOME_THE_SERVICE = """
import fcntl, os, sys
fds, names, *arguments = sys.argv[1:]
given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 200) for fd in fds.split(",")]
for fd in fds.split(","):
    os.close(int(fd))
for at, fd in enumerate(given, 3):
    os.dup2(fd, at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-m", "uim", *arguments])
"""


def handing_over(sockets: Mapping[str, socket.socket], *arguments: str) -> list[str]:
    """The command that runs `uim …` with these sockets, by name; give their descriptors to its process as `pass_fds`."""
    fds = ",".join(str(opened.fileno()) for opened in sockets.values())
    return [sys.executable, "-S", "-c", _BECOME_THE_SERVICE, fds, ":".join(sockets), *arguments]
