"""One's own profile and settings: changing them, and telling those who know one.

A change is an account entry, so that all of one's own devices learn it, and a USER_UPDATE to friends and members of common
groups who are connected. Rule: what others are told is a hint behind the commit, never across a block; who misses it finds
the same with changed_since, or by asking for the user.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import UUID, uuid4

from uim.chat.accounts import Accounts, wrong_password
from uim.chat.appending import Append
from uim.chat.switchboard import Switchboard
from uim.chat.telling import Telling
from uim.chat.writer import Writer
from uim.errors import UIMError
from uim.model.ids import rfc3339
from uim.model.person import Caller, Profile, User, normal_email
from uim.store import people
from uim.store.postgres import Connection, Pool
from uim.wire.frames import frame

SETTINGS: Final = frozenset({"read_receipts", "show_last_seen"})
# What a PRESENCE_UPDATE shows.
PRESENTED: Final = frozenset({"availability", "status_text", "show_last_seen"})

Columns = Mapping[str, str | bool | None]


class Profiles:
    """One a process: `change` is the verb, `changed` is called from anywhere, `run` is its task.

    `on_changed(user_id)` hears, after the commit, that others see that user otherwise now; for the bus. `on_choosing(user_id)`
    hears before the commit, `on_chosen(user_id, changed)` after it, what the user shows otherwise of their presence.
    `online_among(user_ids)` tells who is there.
    `settle_reads()` returns once what was read until now is stored.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        writer: Writer,
        accounts: Accounts,
        switchboard: Switchboard,
        on_changed: Callable[[UUID], None],
        on_choosing: Callable[[UUID], None],
        on_chosen: Callable[[UUID, frozenset[str]], None],
        online_among: Callable[[Sequence[UUID]], Awaitable[set[UUID]]],
        settle_reads: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._accounts = accounts
        self._switchboard = switchboard
        self._on_changed = on_changed
        self._on_choosing = on_choosing
        self._on_chosen = on_chosen
        self._online_among = online_among
        self._settle_reads = settle_reads
        telling = Telling(self._tell)
        self.changed, self.run = telling.changed, telling.run

    # -- the verb ---------------------------------------------------------------------------------------------------------

    async def change(self, caller: Caller, columns: Columns, *, current_password: str | None, address: str) -> Profile:
        """Set these fields of the caller's profile and settings (checked before), and give the whole of it.

        A change of the email needs the password: raises `invalid_credentials` (403), `too_many_attempts` or `email_taken`;
        `session_ended` if the account is no more. Cancelled, it may happen.
        """
        if "email" in columns:
            columns = {**columns, **await self._email(caller, columns["email"], current_password, address)}
        if "read_receipts" in columns:
            # Reads are written behind: one from before the change is not to be judged by the setting after it.
            await self._settle_reads()
        # Asked only where it counts: who becomes invisible while there was last seen now.
        is_online = columns.get("availability") == "invisible" and bool(await self._online_among([caller.user_id]))

        async def act(tx: Connection, append: Append) -> frozenset[str]:
            changed = await people.change_profile(tx, user_id=caller.user_id, columns=columns, is_online=is_online)
            if changed is None:
                raise UIMError("session_ended", "this account is no more")
            await _tell_own(tx, append, caller.user_id, columns, changed)
            if changed & PRESENTED:
                # Before the commit: if its answer is lost, friends must not be told by what was chosen before.
                self._on_choosing(caller.user_id)
            return changed

        changed = await self._writer.do(act, key=uuid4())
        if changed & people.SHOWN:
            self.changed(caller.user_id)
            self._on_changed(caller.user_id)
        if changed & PRESENTED:
            self._on_chosen(caller.user_id, changed)
        async with self._pool.connection() as tx:
            profile = await people.profile_of(tx, caller.user_id)
        if profile is None:
            raise UIMError("session_ended", "this account is no more")
        return profile

    async def _email(self, caller: Caller, email: object, current_password: str | None, address: str) -> Columns:
        if current_password is None:
            raise wrong_password()
        await self._accounts.check_password(caller, password=current_password, address=address)
        return {"email": normal_email(email) if isinstance(email, str) else None}

    # -- telling others ---------------------------------------------------------------------------------------------------

    async def _tell(self, user_id: UUID) -> None:
        async with self._pool.connection() as tx:
            here = [other for other in await people.acquaintances_of(tx, user_id) if self._switchboard.is_here(other)]
            found = (await people.users_by_id(tx, viewer=user_id, user_ids=[user_id])) if here else {}
        if user_id not in found:
            return
        data = _user_update(found[user_id])
        for other in here:
            for outbox in self._switchboard.of_user(other):
                outbox.update(("user", user_id), data)


def _user_update(user: User) -> bytes:
    return frame(
        "USER_UPDATE",
        {
            "user": {
                "user_id": user.user_id,
                "username": user.username,
                "display_name": user.display_name,
                "avatar_url": user.avatar_url,
                "status_text": user.status_text,
                "updated_at": rfc3339(user.updated_at),
            }
        },
    )


async def _tell_own(tx: Connection, append: Append, user_id: UUID, columns: Columns, changed: frozenset[str]) -> None:
    """An entry each for the profile and the settings, where they changed.

    A profile's values stay out of the log, which keeps them for ever; the settings, which say nothing of anybody, are told.
    """
    settings = {name: "true" if columns[name] else "false" for name in sorted(changed & SETTINGS)}
    events: list[dict[str, object]] = [{"event": "profile"}] if changed - SETTINGS else []
    events += [{"event": "settings", **settings}] if settings else []
    for event in events:
        own = await people.self_conversation_of(tx, user_id)
        await append(conversation_id=own, sender_id=user_id, message_type="account", event=event)
