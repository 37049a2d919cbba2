"""Asking a running server over its admin socket, from a command.

Rule: a question takes seconds at most, and whatever stands in its way is one sentence.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from uim.admin.door import Question, Unanswered
from uim.cli.failing import WrongSettings

T = TypeVar("T")

ANSWER_WITHIN_S: Final = 15.0
# Where `uim dev` has it by default.
_OF_DEV: Final = Path("uim-data") / "admin.sock"

socket_option: Callable[[Any], Any] = click.option(
    "--socket",
    "sockets",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The server's admin socket. Default: UIM_ADMIN_SOCKET, else ./uim-data/admin.sock of `uim dev`. Again for each process.",
)


class NoAnswer(Exception):
    """Why a server did not answer; one sentence."""


def sockets_to_ask(given: Sequence[Path], setting: Path | None) -> list[Path]:
    """The admin sockets: those of the command line, else that of the settings, else the one of `uim dev` if it is here."""
    if given:
        return list(given)
    if setting is not None:
        return [setting]
    return [_OF_DEV] if _OF_DEV.exists() else []


def no_socket() -> WrongSettings:
    return WrongSettings("which server? Give --socket PATH, or set UIM_ADMIN_SOCKET as the server has it")


def ask(path: Path, question: Question, answer: type[T]) -> T:
    """One question to one server. Raises NoAnswer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ANSWER_WITHIN_S)
            line.connect(str(path))
            line.sendall(msgspec.json.encode(question) + b"\n")
            data = _read(line)
    except TimeoutError as error:
        raise NoAnswer(f"the server at {path} does not answer: it hangs, or is very busy") from error
    except OSError as error:
        why = {FileNotFoundError: "no server runs there", ConnectionRefusedError: "no server runs there any more"}
        more = why.get(type(error), os.strerror(error.errno) if error.errno else str(error))
        raise NoAnswer(f"no answer from {path}: {more}") from error
    if not data:
        raise NoAnswer(f"the server at {path} failed to answer: look at its log")
    try:
        decoded = msgspec.json.decode(data, type=dict[str, Any])
        if set(decoded) == {"error"}:
            raise NoAnswer(f"the server at {path} says: {msgspec.convert(decoded, Unanswered).error}")
        return msgspec.convert(decoded, answer)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise NoAnswer(f"what answers at {path} is no server of this release: {error}") from error


def _read(line: socket.socket) -> bytes:
    pieces = []
    while piece := line.recv(256 * 1024):
        pieces.append(piece)
    return b"".join(pieces)
