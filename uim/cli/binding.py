"""Listening sockets: bound before anything else starts, or handed over by systemd; and telling systemd that we are ready.

Rule: whatever stands in the way of listening is one sentence that names the address, before a client could be lost.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from uim.config import FIRST_HANDED_OVER_FD, Bind

# The kernel caps it at net.core.somaxconn; a restart brings every client back within seconds.
BACKLOG: Final = 4096
_ADVICE: Final = {
    errno.EADDRINUSE: "another program listens there; choose another port",
    errno.EACCES: "not allowed for this account; take a port above 1023, or let systemd hand the socket over (fd://)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class BindError(Exception):
    """Why an address cannot be listened on; one sentence."""


class HandedOver:
    """The sockets that systemd has handed over, from FIRST_HANDED_OVER_FD on, by its word (sd_listen_fds(3)).

    Where it says nothing, descriptors are taken as they are named: another supervisor, or a test, may have left them open.
    """

    def __init__(self, names: Sequence[str] = (), *, is_said: bool = False) -> None:
        self._names = names
        self._is_said = is_said

    @classmethod
    def by_environ(cls, environ: Mapping[str, str], pid: int) -> HandedOver:
        """Raises BindError where what is said is not for the process `pid`, or not to be understood."""
        said, whose = environ.get("LISTEN_FDS"), environ.get("LISTEN_PID")
        if said is None:
            return cls()
        if whose != str(pid):
            raise BindError(
                f"sockets were handed over to process {whose}, and this is {pid}: let systemd start `uim serve` itself, "
                "or a shell by its exec"
            )
        if not said.isdecimal():
            raise BindError(f"LISTEN_FDS is {said!r}: it should be a number of sockets")
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        return cls(names if len(names) == int(said) else ["unknown"] * int(said), is_said=True)

    def fds_of(self, bind: Bind) -> list[int]:
        """The descriptors that this bind names; several sockets may have one name. Raises BindError."""
        found = [fd for fd, name in self._all() if bind.name == name or bind.fd == fd]
        if not found and bind.fd is not None and not self._is_said:
            return [bind.fd]
        if not found:
            raise BindError(f"{bind} is not among the sockets that systemd handed over: {self}")
        return found

    def check_all_are_named(self, binds: Iterable[Bind]) -> None:
        """Raises BindError for a socket that no bind names, or two do."""
        named = sorted(fd for bind in binds if bind.is_handed_over for fd in self.fds_of(bind))
        if len(set(named)) < len(named):
            raise BindError(f"a socket that was handed over is named twice: {', '.join(f'fd://{fd}' for fd in named)}")
        if forgotten := [f"fd://{fd} ({name})" for fd, name in self._all() if fd not in named]:
            raise BindError(
                f"systemd handed over {', '.join(forgotten)}, which neither UIM_BIND nor UIM_OPERATIONS_BIND names: "
                "whoever connects there would wait for ever"
            )

    def _all(self) -> list[tuple[int, str]]:
        return list(enumerate(self._names, FIRST_HANDED_OVER_FD))

    def __str__(self) -> str:
        return ", ".join(f"fd://{fd} ({name})" for fd, name in self._all()) or "there are none"


NOTHING: Final = HandedOver()


def listen(binds: Iterable[Bind], handed_over: HandedOver = NOTHING) -> list[socket.socket]:
    """A listening socket for each address of each bind (a name may have several). Raises BindError, then none is open."""
    sockets: list[socket.socket] = []
    try:
        for bind in binds:
            sockets += [_handed_over(fd) for fd in handed_over.fds_of(bind)] if bind.is_handed_over else _bound(bind)
    except BindError:
        for made in sockets:
            made.close()
        raise
    return sockets


def address_of(listening: socket.socket) -> Bind:
    """Where a socket really listens: the port is the kernel's choice where 0 was asked for."""
    host, port = listening.getsockname()[:2]
    return Bind(host, port)


def _bound(bind: Bind) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise BindError(f"cannot listen on {bind}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    # A name may stand twice in /etc/hosts for one address.
    for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
        made = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(made)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Else [::] would take 0.0.0.0 along, and refuse it to whoever lists both.
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(address)
            made.listen(BACKLOG)
        except OSError as error:
            for opened in sockets:
                opened.close()
            why = _ADVICE.get(error.errno or 0, os.strerror(error.errno or 0))
            raise BindError(f"cannot listen on {bind}: {why}") from error
    return sockets


def _handed_over(fd: int) -> socket.socket:
    try:
        given = socket.socket(fileno=fd)
    except OSError as error:
        raise BindError(f"fd://{fd} is no socket that systemd handed over: {error.strerror}") from error
    if given.type != socket.SOCK_STREAM or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        given.detach()
        raise BindError(f"fd://{fd} is no listening stream socket: the .socket unit needs ListenStream=")
    given.set_inheritable(False)
    return given


@contextmanager
def admin_socket(path: Path | None) -> Iterator[socket.socket | None]:
    """A unix socket that listens at `path`, for its owner alone; the file is removed at the end. None without a path.

    Left behind by a server that was killed, it is taken over. Raises BindError: another server answers there, or the path
    is something else, or cannot be made.
    """
    if path is None:
        yield None
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        try:
            _make_way(path)
            # Linux makes the file with the mode of the socket: there is no moment in which others could enter.
            os.fchmod(made.fileno(), 0o600)
            made.bind(str(path))
            path.chmod(0o600)
            made.listen(8)
        except OSError as error:
            raise BindError(f"the admin socket cannot be made at {path}: {os.strerror(error.errno or 0)}") from error
        ours = path.stat()
        try:
            yield made
        finally:
            _remove(path, ours)


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens at any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BindError(f"the admin socket cannot be made at {path}: something else is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.settimeout(1.0)
        try:
            visitor.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        else:
            raise BindError(f"the admin socket cannot be made at {path}: another server answers there")


def _remove(path: Path, ours: os.stat_result) -> None:
    # A server started since may have its own there.
    try:
        there = path.lstat()
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            path.unlink()
    except OSError:
        return  # the folder has gone, and the socket with it


def notify_systemd(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd a state such as READY=1 (sd_notify(3)); nothing happens where no systemd waits for it."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
        messenger.connect("\0" + path[1:] if path.startswith("@") else path)
        messenger.sendall(state.encode())
