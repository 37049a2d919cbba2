"""One's own account over HTTP: changing the profile and settings, and deleting the account.

Rule: absent is unchanged, null is cleared (to what a new account has); every field at fault is named at once.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from uim.api.answers import Invalid
from uim.api.asking import Asking
from uim.api.routes import Routes
from uim.chat.farewell import Farewell
from uim.chat.profiles import Profiles
from uim.errors import invalid
from uim.model.person import Caller, Profile, faults_of

Column = str | bool | None


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class SettingsChange(_Body, frozen=True):
    """Both are true for a new account."""

    read_receipts: bool | UnsetType | None = UNSET
    show_last_seen: bool | UnsetType | None = UNSET


class ProfileChange(_Body, frozen=True):
    """`email` needs `current_password`; without an email that is not looked at."""

    display_name: str | UnsetType | None = UNSET
    avatar_url: str | UnsetType | None = UNSET
    status_text: str | UnsetType | None = UNSET
    availability: Literal["available", "away", "busy", "invisible"] | UnsetType | None = UNSET
    email: str | UnsetType | None = UNSET
    settings: SettingsChange | UnsetType | None = UNSET
    current_password: str | None = None


class AccountDeletion(_Body, frozen=True):
    current_password: str


def add_profiles(routes: Routes, profiles: Profiles, farewell: Farewell) -> None:
    """Add the routes of /api/users/me that change it."""

    @routes.route("PUT", "/api/users/me", asking=True, body=ProfileChange, answers=Profile, summary="Change one's profile and settings")
    async def change_own_profile(caller: Caller, asking: Asking, body: ProfileChange) -> Profile:
        texts = _texts_of(body)
        if faults := faults_of(texts):
            raise Invalid(faults)
        if body.email is not UNSET and body.current_password is None:
            raise invalid("current_password", "is required to change the email")
        return await profiles.change(
            caller,
            {**texts, **_choices_of(body)},
            current_password=body.current_password,
            address=asking.address,
        )

    @routes.route("DELETE", "/api/users/me", asking=True, body=AccountDeletion, summary="Delete one's account")
    async def delete_account(caller: Caller, asking: Asking, body: AccountDeletion) -> None:
        await farewell.delete_account(caller, current_password=body.current_password, address=asking.address)


def _texts_of(body: ProfileChange) -> dict[str, str | None]:
    given = {
        "display_name": body.display_name,
        "avatar_url": body.avatar_url,
        "status_text": body.status_text,
        "email": body.email,
    }
    return {name: value for name, value in given.items() if value is not UNSET}


def _choices_of(body: ProfileChange) -> dict[str, Column]:
    chosen: dict[str, Column] = {}
    if body.availability is not UNSET:
        chosen["availability"] = body.availability or "available"
    if body.settings is not UNSET:
        settings = body.settings or SettingsChange(read_receipts=None, show_last_seen=None)
        given = {"read_receipts": settings.read_receipts, "show_last_seen": settings.show_last_seen}
        chosen |= {name: True if value is None else value for name, value in given.items() if value is not UNSET}
    return chosen
