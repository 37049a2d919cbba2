"""The settings: one frozen dataclass, read once from UIM_* variables.

Every UIM_X may also be given as UIM_X_FILE, which names a file that holds the value (for secrets). Rule: only this room
touches the process's environment, and it tells all faults at once, never the first alone, never with a secret's value.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

LEAST_SECRET_BYTES: Final = 32
# sun_path holds 108 bytes on Linux, 104 on macOS, with its end mark.
MOST_SOCKET_PATH_BYTES: Final = 100
# What systemd hands over starts here (sd_listen_fds(3)).
FIRST_HANDED_OVER_FD: Final = 3


@dataclass(frozen=True, slots=True)
class Bind:
    """Where to listen: an address and a port, or (`fd` or `name` set, the rest empty) a socket that systemd has bound."""

    host: str
    port: int
    fd: int | None = None
    name: str | None = None

    @property
    def is_handed_over(self) -> bool:
        return self.fd is not None or self.name is not None

    def __str__(self) -> str:
        if self.is_handed_over:
            return f"fd://{self.name or self.fd}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class JwtKey:
    kid: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that an operator decides. 0 switches a rate limit, or retention, off."""

    bind: tuple[Bind, ...]
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    jwt_keys: tuple[JwtKey, ...]
    tls_cert: Path | None
    tls_key: Path | None
    public_url: str | None
    allowed_origins: tuple[str, ...]
    operations_bind: Bind
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    max_connections: int
    devices_per_user: int
    database_pool: int
    messages_per_minute: int
    messages_per_hour: int
    requests_per_second: int
    requests_per_minute: int
    presence_grace_s: float
    retention_days: int
    log_level: str
    log_file: Path | None
    log_format: str
    least_app_version: str | None
    admin_socket: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """What the commands need that look at a running service from beside it."""

    database_url: str = field(repr=False)
    admin_socket: Path | None


class SettingsError(Exception):
    """`faults`: one line for each wrong variable: its name, what is wrong, what it should be."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


VARIABLES: Final = (
    "UIM_BIND",
    "UIM_DATABASE_URL",
    "UIM_REDIS_URL",
    "UIM_JWT_KEYS",
    "UIM_TLS_CERT",
    "UIM_TLS_KEY",
    "UIM_PUBLIC_URL",
    "UIM_ALLOWED_ORIGINS",
    "UIM_OPERATIONS_BIND",
    "UIM_TRUSTED_PROXIES",
    "UIM_MAX_CONNECTIONS",
    "UIM_DEVICES_PER_USER",
    "UIM_DATABASE_POOL",
    "UIM_MESSAGES_PER_MINUTE",
    "UIM_MESSAGES_PER_HOUR",
    "UIM_REQUESTS_PER_SECOND",
    "UIM_REQUESTS_PER_MINUTE",
    "UIM_PRESENCE_GRACE",
    "UIM_RETENTION_DAYS",
    "UIM_LOG_LEVEL",
    "UIM_LOG_FILE",
    "UIM_LOG_FORMAT",
    "UIM_LEAST_APP_VERSION",
    "UIM_ADMIN_SOCKET",
)


def process_environ() -> dict[str, str]:
    """A copy of the process's environment; for the commands, which pass it on."""
    return dict(os.environ)


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that `environ` gives, defaults filled in.

    Raises SettingsError with every fault: missing, malformed, contradictory, unreadable and unknown UIM_* variables.
    """
    values = _Values(environ)
    take = values.take
    # The stand-ins of required values are never seen: their absence is a fault, and faults raise below.
    settings = Settings(
        bind=take("UIM_BIND", _list_of(parse_bind), (Bind("127.0.0.1", 8080),)),
        database_url=values.require("UIM_DATABASE_URL", _database_url, ""),
        redis_url=values.require("UIM_REDIS_URL", _redis_url, ""),
        jwt_keys=values.require("UIM_JWT_KEYS", _jwt_keys, ()),
        tls_cert=take("UIM_TLS_CERT", _readable_file, None),
        tls_key=take("UIM_TLS_KEY", _readable_file, None),
        public_url=take("UIM_PUBLIC_URL", _origin, None),
        allowed_origins=take("UIM_ALLOWED_ORIGINS", _list_of(_origin), ()),
        operations_bind=take("UIM_OPERATIONS_BIND", parse_bind, Bind("127.0.0.1", 9090)),
        trusted_proxies=take("UIM_TRUSTED_PROXIES", _list_of(_network), ()),
        max_connections=take("UIM_MAX_CONNECTIONS", _whole(1, 1_000_000), 10_000),
        devices_per_user=take("UIM_DEVICES_PER_USER", _whole(1, 1_000), 20),
        database_pool=take("UIM_DATABASE_POOL", _whole(1, 1_000), 10),
        messages_per_minute=take("UIM_MESSAGES_PER_MINUTE", _whole(0, 1_000_000), 50),
        messages_per_hour=take("UIM_MESSAGES_PER_HOUR", _whole(0, 1_000_000), 500),
        requests_per_second=take("UIM_REQUESTS_PER_SECOND", _whole(0, 1_000_000), 10),
        requests_per_minute=take("UIM_REQUESTS_PER_MINUTE", _whole(0, 1_000_000), 100),
        presence_grace_s=take("UIM_PRESENCE_GRACE", _seconds, 5.0),
        retention_days=take("UIM_RETENTION_DAYS", _retention_days, 0),
        log_level=take("UIM_LOG_LEVEL", _log_level, "INFO"),
        log_file=take("UIM_LOG_FILE", Path, None),
        log_format=take("UIM_LOG_FORMAT", _one_of("json", "console"), "json"),
        least_app_version=take("UIM_LEAST_APP_VERSION", _version, None),
        admin_socket=take("UIM_ADMIN_SOCKET", socket_path, None),
    )
    if values.is_set("UIM_TLS_CERT") != values.is_set("UIM_TLS_KEY"):
        there, missing = ("CERT", "KEY") if values.is_set("UIM_TLS_CERT") else ("KEY", "CERT")
        values.faults.append(f"UIM_TLS_{missing} is missing: UIM_TLS_{there} is set, and TLS needs both or neither")
    if values.faults:
        raise SettingsError(values.faults)
    return settings


def read_operator_settings(environ: Mapping[str, str], *, needs_database: bool) -> OperatorSettings:
    """The few of the settings that `uim verify`, `trace` and `tasks` use; the others are not looked at. Raises SettingsError."""
    values = _Values({name: value for name, value in environ.items() if name.removesuffix("_FILE") in _OPERATORS})
    settings = OperatorSettings(
        database_url=values.require("UIM_DATABASE_URL", _database_url, "") if needs_database else "",
        admin_socket=values.take("UIM_ADMIN_SOCKET", socket_path, None),
    )
    if values.faults:
        raise SettingsError(values.faults)
    return settings


_OPERATORS: Final = ("UIM_DATABASE_URL", "UIM_ADMIN_SOCKET")


class _Values:
    """The raw values, and the faults found so far."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # An empty value is an unset one: environment files are full of `UIM_X=`.
        self._given = {name: value for name, value in environ.items() if name.startswith("UIM_") and value.strip()}
        self.faults = [_unknown(name) for name in sorted(self._given) if name not in _accepted()]

    def is_set(self, name: str) -> bool:
        return name in self._given or f"{name}_FILE" in self._given

    def require(self, name: str, parse: Callable[[str], T], stand_in: T) -> T:
        if not self.is_set(name):
            self.faults.append(f"{name} is missing: {_MEANING[name]}")
        return self.take(name, parse, stand_in)

    def take(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """The parsed value or the default; a value that cannot be had is noted as a fault."""
        try:
            text = self._text(name)
            return default if text is None else parse(text)
        except ValueError as why:
            self.faults.append(f"{name} {why}")
            return default

    def _text(self, name: str) -> str | None:
        from_file = self._given.get(f"{name}_FILE")
        if from_file is None:
            value = self._given.get(name)
            return None if value is None else value.strip()
        if name in self._given:
            raise ValueError(f"and {name}_FILE are both set: only one of them should be")
        try:
            text = Path(from_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read from the file that {name}_FILE names: {error}") from error
        if not text:
            raise ValueError(f"is missing: the file that {name}_FILE names is empty")
        return text


def _accepted() -> frozenset[str]:
    return frozenset(VARIABLES) | {f"{name}_FILE" for name in VARIABLES}


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, sorted(_accepted()), n=1)
    return f"{name} is not a setting" + (f": did you mean {near[0]}?" if near else "")


_MEANING: Final = {
    "UIM_DATABASE_URL": "it should be the PostgreSQL database, like postgresql://uim:password@host/uim",
    "UIM_REDIS_URL": "it should be the Redis or Valkey server, like redis://host:6379/0",
    "UIM_JWT_KEYS": f"it should be kid:secret[,kid:secret…], each secret of {LEAST_SECRET_BYTES} bytes or more",
}


def parse_bind(text: str) -> Bind:
    """`host:port`, `[ipv6]:port`, `fd://` (the first), `fd://N` or `fd://name`. Raises ValueError."""
    if handed_over := re.fullmatch(r"fd://(\d{0,4})", text):
        return Bind("", 0, fd=int(handed_over[1] or FIRST_HANDED_OVER_FD))
    if named := re.fullmatch(r"fd://([A-Za-z][\w.@-]{0,254})", text):
        return Bind("", 0, name=named[1])
    parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text)
    if parts is None or int(parts[3]) > 65535:
        raise ValueError(f"is {text!r}: it should be address:port, like 127.0.0.1:8080 or [::1]:8080, or fd://")
    return Bind(parts[1] or parts[2], int(parts[3]))


def _list_of(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return partial(_each, parse)


def _each(parse: Callable[[str], T], text: str) -> tuple[T, ...]:
    return tuple(parse(part.strip()) for part in text.split(",") if part.strip())


def _url(schemes: tuple[str, ...], name: str, text: str) -> str:
    # The value is never shown: it may hold a password.
    try:
        scheme = urlsplit(text).scheme
    except ValueError as error:
        raise ValueError(f"is not a URL ({error}): {_MEANING[name]}") from error
    if scheme not in schemes or "://" not in text:
        known = ", ".join(f"{known}://" for known in schemes)
        raise ValueError(f"does not begin with one of {known}: {_MEANING[name]}")
    return text


_database_url = partial(_url, ("postgresql", "postgres"), "UIM_DATABASE_URL")
_redis_url = partial(_url, ("redis", "rediss", "unix"), "UIM_REDIS_URL")


def _jwt_keys(text: str) -> tuple[JwtKey, ...]:
    keys = _each(_jwt_key, text)
    if not keys:
        raise ValueError(f"holds no key: {_MEANING['UIM_JWT_KEYS']}")
    kids = [key.kid for key in keys]
    if len(set(kids)) < len(kids):
        raise ValueError(f"names a kid twice ({', '.join(kids)}): each key should have its own")
    return keys


def _jwt_key(text: str) -> JwtKey:
    kid, colon, secret = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", kid):
        raise ValueError("holds a key without a kid of letters, digits, _ . -: it should be kid:secret[,kid:secret…]")
    if len(secret.encode()) < LEAST_SECRET_BYTES:
        raise ValueError(
            f"has a secret of {len(secret.encode())} bytes under kid {kid}: "
            f"it should have {LEAST_SECRET_BYTES} or more, like the output of `openssl rand -hex 32`"
        )
    return JwtKey(kid, secret.encode())


def _readable_file(text: str) -> Path:
    try:
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise ValueError(f"cannot be read: {error}") from error


def socket_path(text: str) -> Path:
    """Where a unix socket may stand. Raises ValueError."""
    if len(os.fsencode(text)) > MOST_SOCKET_PATH_BYTES:
        raise ValueError(f"is too long for a socket: it should have {MOST_SOCKET_PATH_BYTES} bytes at most, like /run/uim/admin.sock")
    return Path(text)


def _origin(text: str) -> str:
    origin = text.rstrip("/").lower()
    if not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[^\s/:@?#\[\]]+)(:\d{1,5})?", origin):
        raise ValueError(f"is {text!r}: it should be an origin without a path, like https://chat.example.org")
    return origin


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"is {text!r} ({error}): it should be a network, like 10.0.0.0/8") from error


def _whole(least: int, most: int) -> Callable[[str], int]:
    return partial(_whole_within, least, most)


def _whole_within(least: int, most: int, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ValueError(f"is {text!r}: it should be a whole number from {least} to {most}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", text) or float(text) > 3600:
        raise ValueError(f"is {text!r}: it should be seconds, from 0 to 3600")
    return float(text)


def _retention_days(text: str) -> int:
    days = _whole_within(0, 100_000, text)
    if 0 < days < 365:
        raise ValueError(f"is {text!r}: it should be 365 or more, or 0 to keep messages for ever")
    return days


def _one_of(*choices: str) -> Callable[[str], str]:
    return partial(_chosen, choices)


def _chosen(choices: tuple[str, ...], text: str) -> str:
    if text not in choices:
        raise ValueError(f"is {text!r}: it should be one of {', '.join(choices)}")
    return text


def _log_level(text: str) -> str:
    upper = text.upper()
    return _chosen(("DEBUG", "INFO", "WARN", "ERROR"), "WARN" if upper == "WARNING" else upper)


def _version(text: str) -> str:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", text):
        raise ValueError(f"is {text!r}: it should be numbers with dots, like 1.4.0")
    return text
