"""The log: the specification's fields, the context's facts, the libraries' warnings, and never a credential."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from uim import log


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("uim").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uim").setLevel(ours)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_specified_fields_first_and_the_context() -> None:
    stream = io.StringIO()
    log.configure("INFO", None, "json", stream)
    structlog.contextvars.bind_contextvars(user_id="u1")
    log.get_logger("uim.test").info("message sent", message_id=7)
    log.get_logger("uim.test").debug("not this one")
    log.get_logger("uim.test").warning("slow")
    first, second = lines_of(stream)
    assert list(first)[:4] == ["timestamp", "level", "service", "message"]
    assert (first["level"], first["service"], first["message"]) == ("INFO", "uim-server", "message sent")
    assert (first["message_id"], first["user_id"], first["logger"]) == (7, "u1", "uim.test")
    assert str(first["timestamp"]).endswith("Z")
    assert second["level"] == "WARN"


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_credential_reaches_a_line(format: str) -> None:
    stream = io.StringIO()
    log.configure("DEBUG", None, format, stream)
    ours = log.get_logger("uim.test")
    ours.info("GET /ws?device_id=d&token=eyJ.secret&x=1", url="postgresql://uim:secret@db/uim", peer="http://127.0.0.1:8080/x")
    logging.getLogger("hypercorn.access").warning('"GET /ws?token=%s HTTP/1.1"', "secret")
    try:
        raise ValueError("/ws?token=secret")
    except ValueError:
        ours.exception("failed", nested={"path": "/ws?token=secret"})
    text = stream.getvalue()
    assert "secret" not in text
    assert "[hidden]&x=1" in text
    assert "http://127.0.0.1:8080/x" in text


def test_libraries_are_heard_from_warning_in_the_same_form() -> None:
    stream = io.StringIO()
    log.configure("DEBUG", None, "json", stream)
    logging.getLogger("trio-websocket").info("a frame")
    logging.getLogger("hypercorn.error").warning("odd %s", "client")
    assert [(line["level"], line["message"], line["logger"]) for line in lines_of(stream)] == [
        ("WARN", "odd client", "hypercorn.error")
    ]


def test_an_exception_is_one_line_with_its_traceback() -> None:
    stream = io.StringIO()
    log.configure("INFO", None, "json", stream)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        log.get_logger("uim.test").exception("a bug")
    (line,) = lines_of(stream)
    assert line["level"] == "ERROR"
    assert "RuntimeError: boom" in str(line["exception"])


def test_a_log_file_is_written_instead_of_the_stream(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "uim.log"
    log.configure("INFO", file, "json", stream)
    log.get_logger("uim.test").info("hello")
    assert stream.getvalue() == ""
    assert json.loads(file.read_text())["message"] == "hello"
