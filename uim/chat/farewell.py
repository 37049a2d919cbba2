"""Deleting one's account.

All in one transaction: owned groups are handed over and all groups left, friends told, logins ended, and the account
anonymised; messages stay, with an author who has no name. Rule: it happens wholly or not at all, and once it has happened
nothing lets the account in again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from uim.chat import groups
from uim.chat.accounts import Accounts, wrong_password
from uim.chat.logins import Logins
from uim.chat.writer import Append, Writer
from uim.model.person import Caller
from uim.store import farewell, people
from uim.store import logins as login_rows
from uim.store.postgres import Connection


@dataclass(frozen=True, slots=True)
class _Left:
    """What hears of it after the commit: the logins that ended, the one-on-ones whose other sees a new name."""

    login_ids: list[UUID] = field(default_factory=list)
    pair_ids: list[UUID] = field(default_factory=list)


class Farewell:
    """The verb. `on_pair_changed(conversation_id)` hears of each one-on-one whose participants look otherwise now."""

    def __init__(
        self, *, writer: Writer, accounts: Accounts, logins: Logins, on_pair_changed: Callable[[UUID], None]
    ) -> None:
        self._writer = writer
        self._accounts = accounts
        self._logins = logins
        self._on_pair_changed = on_pair_changed

    async def delete_account(self, caller: Caller, *, current_password: str, address: str) -> None:
        """End the caller's account. Raises `invalid_credentials` (403) or `too_many_attempts`. Cancelled, it may happen."""
        who = await self._accounts.check_password(caller, password=current_password, address=address)

        async def act(tx: Connection, append: Append) -> _Left:
            if not await people.lock_if_password_is(tx, user_id=who.user_id, password_hashes=[who.password_hash]):
                # Gone already: by this very call, whose commit's answer was lost, or by another device of the user's.
                if await farewell.is_gone(tx, who.user_id):
                    return _Left()
                raise wrong_password()
            return await _leave(tx, append, who.user_id)

        left = await self._writer.do(act, key=uuid4())
        self._logins.ended(left.login_ids)
        for conversation_id in left.pair_ids:
            self._on_pair_changed(conversation_id)


async def _leave(tx: Connection, append: Append, user_id: UUID) -> _Left:
    group_ids, pair_ids = await farewell.conversations_of(tx, user_id)
    for group_id in group_ids:
        await groups.remove(tx, append, conversation_id=group_id, actor_id=user_id, target_id=user_id)
    for friend_id in await farewell.listing(tx, user_id):
        await append(
            conversation_id=await people.self_conversation_of(tx, friend_id),
            sender_id=friend_id,
            message_type="account",
            event={"event": "friend_removed", "user_id": str(user_id)},
        )
    living = [login.login_id for login in await login_rows.living_of(tx, user_id)]
    ended = await login_rows.end(tx, user_id=user_id, login_ids=living, reason="account deleted")
    await farewell.erase(tx, user_id)
    return _Left(ended, pair_ids)
