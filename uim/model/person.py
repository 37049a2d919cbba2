"""A person: what others see of them, what they see of themselves, and the rules for their names, emails and passwords.

`RULES` maps each field's name to its rule: None where the text may stand, else why not, in words for its sender. Rule:
pure, so that both fronts and the command line ask the same questions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

import msgspec
from email_validator import EmailNotValidError, validate_email

from uim.errors import invalid

MAX_EMAIL_CHARS: Final = 255
MAX_AVATAR_URL_CHARS: Final = 2_048
MAX_STATUS_CHARS: Final = 140
LEAST_PASSWORD_CHARS: Final = 8
MAX_PASSWORD_CHARS: Final = 128
LEAST_PASSWORD_KINDS: Final = 3
_USERNAME: Final = re.compile(r"[A-Za-z0-9_]{3,50}")
# What others' clients will load: nothing but https, and no space or quote that would end it where it is written down.
_HTTPS: Final = re.compile(r"https://[^\s\"'<>\\^`{|}/?#@]+([/?#][^\s\"<>\\^`{|}]*)?", re.IGNORECASE)
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


class Caller(msgspec.Struct, frozen=True):
    """Who asks: a user, by which login, on which device."""

    user_id: UUID
    login_id: UUID
    device_id: str
    username: str


class User(msgspec.Struct, frozen=True):
    """A person as others see them. Across a block only the names: the rest is None, and `updated_at` tells nothing."""

    user_id: UUID
    username: str
    display_name: str | None
    avatar_url: str | None
    status_text: str | None
    updated_at: datetime


class PersonalSettings(msgspec.Struct, frozen=True):
    """What a person lets others know."""

    read_receipts: bool
    show_last_seen: bool


class Profile(msgspec.Struct, frozen=True):
    """A person as they see themselves."""

    user_id: UUID
    username: str
    email: str | None
    display_name: str | None
    avatar_url: str | None
    status_text: str | None
    availability: str
    settings: PersonalSettings
    created_at: datetime
    updated_at: datetime


class Device(msgspec.Struct, frozen=True):
    """A device as it names itself at sign-in."""

    device_id: str
    device_name: str | None = None
    platform: str | None = None


def text_fault(least: int, most: int, text: str) -> str | None:
    """Why `text` is not `least` to `most` code points that can be stored."""
    if not least <= len(text) <= most:
        return f"is {len(text)} characters long: it should be {least} to {most}"
    if _UNSTORABLE.search(text):
        return "holds the character NUL or half of a surrogate pair"
    return None


def username_fault(text: str) -> str | None:
    return None if _USERNAME.fullmatch(text) else "should be 3 to 50 of A-Z, a-z, 0-9 and _"


def email_fault(text: str) -> str | None:
    try:
        normal_email(text)
    except ValueError as why:
        return str(why)
    return None


def normal_email(text: str) -> str:
    """The address in the form that is stored: composed, its domain in small letters. Raises ValueError with why not.

    Nothing is looked up; a domain within `.test` is one like any other.
    """
    if fault := text_fault(1, MAX_EMAIL_CHARS, text):
        raise ValueError(fault)
    try:
        found = validate_email(
            text, check_deliverability=False, globally_deliverable=False, allow_quoted_local=True, test_environment=True
        )
    except EmailNotValidError as why:
        raise ValueError(str(why)) from None
    return found.normalized


def avatar_url_fault(text: str) -> str | None:
    if fault := text_fault(1, MAX_AVATAR_URL_CHARS, text):
        return fault
    return None if _HTTPS.fullmatch(text) else "should be an https URL"


def normal_password(password: str) -> str:
    """The form that is judged and hashed: keyboards differ in how they compose an ä."""
    return unicodedata.normalize("NFC", password)


def password_fault(password: str) -> str | None:
    normal = normal_password(password)
    if fault := text_fault(LEAST_PASSWORD_CHARS, MAX_PASSWORD_CHARS, normal):
        return fault
    if len({_kind_of(character) for character in normal}) < LEAST_PASSWORD_KINDS:
        return "should mix three of: small letters, capital letters, digits, other characters"
    return None


def _kind_of(character: str) -> str:
    if character.islower():
        return "lower"
    if character.isupper():
        return "upper"
    return "digit" if character.isdecimal() else "other"


Rule = Callable[[str], str | None]

RULES: Final[Mapping[str, Rule]] = {
    "username": username_fault,
    "email": email_fault,
    "password": password_fault,
    "new_password": password_fault,
    "display_name": partial(text_fault, 1, 100),
    "avatar_url": avatar_url_fault,
    "status_text": partial(text_fault, 0, MAX_STATUS_CHARS),
    "device_id": partial(text_fault, 1, 64),
    "device_name": partial(text_fault, 1, 100),
    "platform": partial(text_fault, 1, 20),
}


def faults_of(fields: Mapping[str, str | None]) -> dict[str, str]:
    """Every field at fault, by its name, with why; a field that is None is absent and has no fault."""
    judged = {name: RULES[name](text) for name, text in fields.items() if text is not None}
    return {name: fault for name, fault in judged.items() if fault is not None}


def check(fields: Mapping[str, str | None]) -> None:
    """Refuse the first field at fault: `validation_failed`, with its name."""
    for name, fault in faults_of(fields).items():
        raise invalid(name, fault)
