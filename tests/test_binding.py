"""Sockets that systemd hands over: which of them a setting names, and what is wrong where it names none or another's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.systemd import handing_over
from tests.test_cli import environment, settings_for
from uim.cli.binding import BindError, HandedOver
from uim.config import parse_bind

pytestmark = pytest.mark.timeout(30)
PID = 4711


def said(fds: str = "2", names: str = "public:operations", pid: str = "4711") -> dict[str, str]:
    return {"LISTEN_FDS": fds, "LISTEN_PID": pid, "LISTEN_FDNAMES": names}


@pytest.mark.parametrize(
    ("environ", "bind", "fds"),
    [
        (said(), "fd://", [3]),
        (said(), "fd://4", [4]),
        (said(), "fd://public", [3]),
        (said(), "fd://operations", [4]),
        (said("3", "public:operations:public"), "fd://public", [3, 5]),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "4711"}, "fd://", [3]),  # before systemd 227 they have no names
        ({}, "fd://", [3]),
        ({}, "fd://17", [17]),  # another supervisor: descriptors, and no word
    ],
)
def test_a_setting_names_sockets_by_place_number_or_name(environ: dict[str, str], bind: str, fds: list[int]) -> None:
    assert HandedOver.by_environ(environ, PID).fds_of(parse_bind(bind)) == fds


@pytest.mark.parametrize(
    ("environ", "bind", "why"),
    [
        (said(), "fd://5", r"fd://5 is not among .*: fd://3 \(public\), fd://4 \(operations\)"),
        (said(), "fd://metrics", r"fd://metrics is not among .*: fd://3 \(public\)"),
        (said("0", ""), "fd://", "there are none"),
        ({}, "fd://public", "there are none"),
        (said(pid="1"), "fd://", "were handed over to process 1, and this is 4711"),
        ({"LISTEN_FDS": "1"}, "fd://", "were handed over to process None"),
        (said("two"), "fd://", "LISTEN_FDS is 'two'"),
    ],
)
def test_what_was_not_handed_over_to_us_is_told(environ: dict[str, str], bind: str, why: str) -> None:
    with pytest.raises(BindError, match=why):
        HandedOver.by_environ(environ, PID).fds_of(parse_bind(bind))


def test_each_socket_is_named_once() -> None:
    handed_over = HandedOver.by_environ(said(), PID)
    handed_over.check_all_are_named([parse_bind("fd://public"), parse_bind("127.0.0.1:80"), parse_bind("fd://4")])
    with pytest.raises(BindError, match=r"handed over fd://4 \(operations\), which neither"):
        handed_over.check_all_are_named([parse_bind("fd://"), parse_bind("127.0.0.1:9090")])
    with pytest.raises(BindError, match="named twice: fd://3, fd://3, fd://4"):
        handed_over.check_all_are_named([parse_bind("fd://"), parse_bind("fd://public"), parse_bind("fd://operations")])


@pytest.fixture
def public() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("binds", "why"),
    [
        ({"UIM_BIND": "127.0.0.1:0", "UIM_OPERATIONS_BIND": "127.0.0.1:0"}, "systemd handed over fd://3 (public), which neither"),
        ({"UIM_BIND": "fd://pubic", "UIM_OPERATIONS_BIND": "127.0.0.1:0"}, "fd://pubic is not among"),
    ],
)
def test_serve_says_in_one_line_which_socket_is_whose(
    binds: dict[str, str], why: str, public: socket.socket, database_url: str, redis_url: str
) -> None:
    done = subprocess.run(
        handing_over({"public": public}, "serve"),
        env=environment(**settings_for(database_url, redis_url), **binds),
        pass_fds=(public.fileno(),),
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert why in done.stderr


def test_what_was_handed_over_to_its_parent_does_not_trouble_a_serve_that_asks_for_none(
    empty_database_url: str, redis_url: str
) -> None:
    binds = {"UIM_BIND": "127.0.0.1:0", "UIM_OPERATIONS_BIND": "127.0.0.1:0", "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    done = subprocess.run(
        [sys.executable, "-m", "uim", "serve"],
        env=environment(**settings_for(empty_database_url, redis_url), **binds),
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert "run `uim migrate` first" in done.stderr, "it has got as far as the database"
