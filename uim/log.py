"""The log: structured lines, one way out for our own code and for the libraries.

A line is JSON with timestamp, level, service and message first, or coloured text for a person. What a task has put into
structlog's contextvars (session_id, user_id, request_id) is on every line it writes. Rule: a credential never reaches
a line: `token=` in a query string and a password in a URL are blanked wherever they stand, tracebacks included.
"""

from __future__ import annotations

import logging
import logging.handlers
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
import structlog

SERVICE: Final = "uim-server"
# A month of days; the operator's own rotation may take them away earlier.
KEPT_LOG_FILES: Final = 30

# The blanked part holds no quote and no backslash, so a JSON line stays a JSON line.
_CREDENTIAL: Final = re.compile(r"(?i)(token=|://[^\s:/@]*:(?=[^\s/@\"'\\]+@))[^\s&@#\"'\\]+")
_LEVELS: Final[Mapping[str, str]] = {"warning": "WARN", "critical": "ERROR", "exception": "ERROR"}


def configure(level: str, file: Path | None, format: str, stream: TextIO) -> None:
    """Set the process's log up, once, at start: to `file` (turned over at midnight UTC), or to `stream` without one.

    `level`: DEBUG, INFO, WARN or ERROR for our own lines; libraries are heard from WARNING. `format`: json or console.
    Raises OSError if the file cannot be opened.
    """
    handler = _file_handler(file) if file is not None else logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(format, stream, file)],
            foreign_pre_chain=_facts(),
        )
    )
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("uim").setLevel(level)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_facts(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: `log = get_logger(__name__)`, then `log.info("message sent", message_id=7)`."""
    return structlog.stdlib.get_logger(name)


def _file_handler(file: Path) -> logging.Handler:
    return logging.handlers.TimedRotatingFileHandler(
        file, when="midnight", utc=True, backupCount=KEPT_LOG_FILES, encoding="utf-8"
    )


def _facts() -> list[structlog.types.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _rendering(format: str, stream: TextIO, file: Path | None) -> list[structlog.types.Processor]:
    if format == "console":
        colours = file is None and stream.isatty()
        return [structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0), _without_credentials]
    return [
        structlog.processors.format_exc_info,
        _in_order,
        structlog.processors.JSONRenderer(serializer=_to_json),
        _without_credentials,
    ]


def _without_credentials(_logger: Any, _method: str, line: Any) -> str:
    return _CREDENTIAL.sub(r"\1[hidden]", line)


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    level = event.pop("level", "info")
    return {
        "timestamp": event.pop("timestamp", None),
        "level": _LEVELS.get(level, level.upper()),
        "service": SERVICE,
        "message": event.pop("event", ""),
        **event,
    }


def _to_json(event: Mapping[str, Any], **_unused: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
