"""Settings: defaults as documented, every fault told at once, nothing secret in a fault."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from pathlib import Path

import pytest

from uim.config import Bind, JwtKey, Settings, SettingsError, read_settings

SECRET = "0123456789abcdef0123456789abcdef"
REQUIRED = {
    "UIM_DATABASE_URL": "postgresql://uim:hunter2@db/uim",
    "UIM_REDIS_URL": "redis://cache/0",
    "UIM_JWT_KEYS": f"a:{SECRET}",
}


def faults_of(**variables: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        read_settings(REQUIRED | variables)
    return raised.value.faults


def test_defaults_are_those_of_the_settings_table() -> None:
    settings = read_settings(REQUIRED)
    assert settings == Settings(
        bind=(Bind("127.0.0.1", 8080),),
        database_url="postgresql://uim:hunter2@db/uim",
        redis_url="redis://cache/0",
        jwt_keys=(JwtKey("a", SECRET.encode()),),
        tls_cert=None,
        tls_key=None,
        public_url=None,
        allowed_origins=(),
        operations_bind=Bind("127.0.0.1", 9090),
        trusted_proxies=(),
        max_connections=10_000,
        devices_per_user=20,
        database_pool=10,
        messages_per_minute=50,
        messages_per_hour=500,
        requests_per_second=10,
        requests_per_minute=100,
        presence_grace_s=5.0,
        retention_days=0,
        log_level="INFO",
        log_file=None,
        log_format="json",
        least_app_version=None,
    )


def test_everything_can_be_set() -> None:
    settings = read_settings(
        REQUIRED
        | {
            "UIM_BIND": "0.0.0.0:80, [::]:80, fd://, fd://4, fd://public, localhost:8080",
            "UIM_JWT_KEYS": f"new:{SECRET}:with-colon, old:{SECRET}",
            "UIM_PUBLIC_URL": "https://Chat.Example.org/",
            "UIM_ALLOWED_ORIGINS": "https://a.example:8443, http://[::1]:3000",
            "UIM_TRUSTED_PROXIES": "10.0.0.0/8,::1",
            "UIM_MESSAGES_PER_MINUTE": "0",
            "UIM_PRESENCE_GRACE": "0.5",
            "UIM_RETENTION_DAYS": "365",
            "UIM_LOG_LEVEL": "warning",
            "UIM_LOG_FORMAT": "console",
            "UIM_LEAST_APP_VERSION": "1.4.0",
        }
    )
    assert settings.bind == (
        Bind("0.0.0.0", 80),
        Bind("::", 80),
        Bind("", 0, 3),
        Bind("", 0, 4),
        Bind("", 0, name="public"),
        Bind("localhost", 8080),
    )
    assert [key.kid for key in settings.jwt_keys] == ["new", "old"]
    assert settings.jwt_keys[0].secret == f"{SECRET}:with-colon".encode()
    assert settings.public_url == "https://chat.example.org"
    assert settings.allowed_origins == ("https://a.example:8443", "http://[::1]:3000")
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert (settings.messages_per_minute, settings.presence_grace_s, settings.retention_days) == (0, 0.5, 365)
    assert (settings.log_level, settings.log_format, settings.least_app_version) == ("WARN", "console", "1.4.0")


def test_every_setting_but_the_required_has_a_working_default() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} >= {"bind", "log_file"}
    with pytest.raises(SettingsError) as raised:
        read_settings({})
    assert [fault.split()[0] for fault in raised.value.faults] == sorted(
        REQUIRED, key=["UIM_DATABASE_URL", "UIM_REDIS_URL", "UIM_JWT_KEYS"].index
    )


def test_all_faults_are_told_at_once_each_with_its_variable() -> None:
    faults = faults_of(UIM_BIND="here", UIM_MAX_CONNECTIONS="many", UIM_LOG_FORMAT="xml", UIM_RETENTION_DAYS="30")
    assert [fault.split()[0] for fault in faults] == [
        "UIM_BIND",
        "UIM_MAX_CONNECTIONS",
        "UIM_RETENTION_DAYS",
        "UIM_LOG_FORMAT",
    ]
    assert all("should be" in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UIM_BIND", "127.0.0.1"),
        ("UIM_BIND", "127.0.0.1:70000"),
        ("UIM_BIND", "::1:8080"),
        ("UIM_DATABASE_URL", "mysql://x"),
        ("UIM_DATABASE_URL", "http://["),
        ("UIM_REDIS_URL", "cache:6379"),
        ("UIM_JWT_KEYS", "short:secret"),
        ("UIM_JWT_KEYS", SECRET),
        ("UIM_JWT_KEYS", f"a:{SECRET},a:{SECRET}"),
        ("UIM_JWT_KEYS", ","),
        ("UIM_PUBLIC_URL", "chat.example.org"),
        ("UIM_ALLOWED_ORIGINS", "https://a.example/path"),
        ("UIM_OPERATIONS_BIND", "9090"),
        ("UIM_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("UIM_MAX_CONNECTIONS", "0"),
        ("UIM_DEVICES_PER_USER", "-1"),
        ("UIM_DATABASE_POOL", "1.5"),
        ("UIM_MESSAGES_PER_HOUR", "١٢"),
        ("UIM_PRESENCE_GRACE", "nan"),
        ("UIM_RETENTION_DAYS", "364"),
        ("UIM_LOG_LEVEL", "LOUD"),
        ("UIM_LEAST_APP_VERSION", "v1"),
    ],
)
def test_a_wrong_value_is_one_fault_that_names_it(name: str, value: str) -> None:
    faults = faults_of(**{name: value})
    assert len(faults) == 1
    assert faults[0].startswith(f"{name} ")


@pytest.mark.parametrize("name", ["UIM_DATABASE_URL", "UIM_REDIS_URL", "UIM_JWT_KEYS"])
def test_no_secret_stands_in_a_fault_or_in_the_settings_text(name: str) -> None:
    assert "hunter2" not in faults_of(**{name: "http://u:hunter2@h"})[0]
    assert "hunter2" not in repr(read_settings(REQUIRED))
    assert SECRET not in repr(read_settings(REQUIRED))


def test_an_unknown_variable_is_a_fault_with_the_nearest_name() -> None:
    assert faults_of(UIM_MAX_CONECTIONS="5") == ["UIM_MAX_CONECTIONS is not a setting: did you mean UIM_MAX_CONNECTIONS?"]


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "keys"
    secret.write_text(f"a:{SECRET}\n")
    given = {name: value for name, value in REQUIRED.items() if name != "UIM_JWT_KEYS"}
    assert read_settings(given | {"UIM_JWT_KEYS_FILE": str(secret)}).jwt_keys == (JwtKey("a", SECRET.encode()),)


def test_a_value_and_a_file_for_it_are_a_fault(tmp_path: Path) -> None:
    secret = tmp_path / "keys"
    secret.write_text(f"a:{SECRET}")
    assert faults_of(UIM_JWT_KEYS_FILE=str(secret)) == [
        "UIM_JWT_KEYS and UIM_JWT_KEYS_FILE are both set: only one of them should be"
    ]


def test_an_unreadable_or_empty_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    assert "No such file" in faults_of(UIM_BIND_FILE=str(tmp_path / "none"))[0]
    assert "is empty" in faults_of(UIM_BIND_FILE=str(tmp_path / "empty"))[0]


def test_tls_needs_both_files_and_they_must_be_readable(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("pem")
    assert faults_of(UIM_TLS_CERT=str(cert)) == ["UIM_TLS_KEY is missing: UIM_TLS_CERT is set, and TLS needs both or neither"]
    assert faults_of(UIM_TLS_CERT=str(cert), UIM_TLS_KEY=str(tmp_path / "none"))[0].startswith("UIM_TLS_KEY cannot be read")
    assert read_settings(REQUIRED | {"UIM_TLS_CERT": str(cert), "UIM_TLS_KEY": str(cert)}).tls_cert == cert


def test_an_empty_value_is_an_unset_one() -> None:
    assert read_settings(REQUIRED | {"UIM_TLS_CERT": "", "UIM_BIND": " "}).bind == (Bind("127.0.0.1", 8080),)


def test_other_programs_variables_are_none_of_our_business() -> None:
    assert read_settings(REQUIRED | {"PATH": "/bin", "UIMX": "1"}).log_level == "INFO"
