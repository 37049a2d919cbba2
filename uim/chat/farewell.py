"""Deleting one's account, and what follows from it.

First, in one small transaction, the account is anonymised and its logins end: nothing lets it in again. Then, step by step
so that nobody's messages wait long for the log, groups are handed over and left, friends told, and the rest is forgotten;
messages stay, with an author who has no name. Rule: what is still to do is told by the rows that are left, so whoever comes
next, in whichever process, carries on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID, uuid4

import trio

from uim.chat import groups
from uim.chat.accounts import Accounts, wrong_password
from uim.chat.appending import Append
from uim.chat.logins import Logins
from uim.chat.writer import Writer
from uim.errors import UIMError
from uim.log import get_logger
from uim.model.person import Caller
from uim.store import farewell, people
from uim.store import logins as login_rows
from uim.store.postgres import Connection, DatabaseError, Pool

# Few in one transaction: as long as it lasts, everybody's messages wait.
FRIENDS_AT_ONCE: Final = 50
MAX_WAITING: Final = 256
# Most accounts are wholly gone by then, and their answer says so; the others' goes on after it.
ANSWER_WITHIN_S: Final = 2.0
# For those whose process ended in between, or whose request was cancelled before it could hand them on.
SWEEP_EVERY_S: Final = 600.0
AGAIN_AFTER_S: Final = 5.0

log = get_logger(__name__)


class _Leaver:
    """An account that is gone already, in line for what follows."""

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self.is_done = trio.Event()


class Farewell:
    """The verb, and the room that does what follows; `run` is its task.

    `on_pair_changed(conversation_id)` hears of each one-on-one whose participants look otherwise now, `on_forgotten(user_id)` of
    each account of which nothing is left.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        writer: Writer,
        accounts: Accounts,
        logins: Logins,
        on_pair_changed: Callable[[UUID], None],
        on_forgotten: Callable[[UUID], None],
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._accounts = accounts
        self._logins = logins
        self._on_pair_changed = on_pair_changed
        self._on_forgotten = on_forgotten
        self._to_line, self._line = trio.open_memory_channel[_Leaver](MAX_WAITING)

    async def delete_account(self, caller: Caller, *, current_password: str, address: str) -> None:
        """End the caller's account. Raises `invalid_credentials` (403) or `too_many_attempts`. Cancelled, it may happen.

        Once it returns the account is gone; its groups and friends are told by then, or, if they are many, soon after.
        """
        who = await self._accounts.check_password(caller, password=current_password, address=address)

        async def act(tx: Connection, append: Append) -> list[UUID]:
            if not await people.lock_if_password_is(tx, user_id=who.user_id, password_hashes=[who.password_hash]):
                # Gone already: by this very call, whose commit's answer was lost, or by another device of the user's.
                if await farewell.is_gone(tx, who.user_id):
                    return []
                raise wrong_password()
            return await _go(tx, who.user_id)

        self._logins.ended(await self._writer.do(act, key=uuid4()))
        await self._hand_on(_Leaver(who.user_id))

    async def _hand_on(self, leaver: _Leaver) -> None:
        try:
            self._to_line.send_nowait(leaver)
        except trio.WouldBlock:
            return  # the next sweep finds it
        with trio.move_on_after(ANSWER_WITHIN_S):
            await leaver.is_done.wait()

    # -- the task ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See off who goes, until cancelled; what is left then is carried on at the next start."""
        task_status.started()
        while True:
            is_well = await self._sweep()
            sweep_at = trio.current_time() + (SWEEP_EVERY_S if is_well else AGAIN_AFTER_S)
            while (leaver := await self._next(sweep_at)) is not None:
                if not await self._see_off(leaver.user_id):
                    sweep_at = min(sweep_at, trio.current_time() + AGAIN_AFTER_S)
                leaver.is_done.set()

    async def _next(self, until: float) -> _Leaver | None:
        with trio.move_on_at(until):
            return await self._line.receive()
        return None

    async def _sweep(self) -> bool:
        """Carry on what was left; False if not all of it could be."""
        try:
            async with self._pool.connection() as tx:
                left = await farewell.unfinished(tx)
        except UIMError as away:
            log.warning("deleted accounts wait for the database", error=str(away))
            return False
        return all([await self._see_off(user_id) for user_id in left])

    async def _see_off(self, user_id: UUID) -> bool:
        """All that follows; False if it has to be tried again."""
        try:
            async with self._pool.connection() as tx:
                pair_ids = await farewell.pairs_of(tx, user_id)
            for conversation_id in pair_ids:
                self._on_pair_changed(conversation_id)
            while await self._writer.do(lambda tx, append: _leave_group(tx, append, user_id), key=uuid4()):
                pass
            while await self._writer.do(lambda tx, append: _leave_friends(tx, append, user_id), key=uuid4()):
                pass
            async with self._pool.connection() as tx:
                await farewell.forget(tx, user_id)
            self._on_forgotten(user_id)
        except (UIMError, DatabaseError) as error:
            log.warning("a deleted account's rest is tried again", user_id=str(user_id), error=str(error))
            return False
        return True


async def _go(tx: Connection, user_id: UUID) -> list[UUID]:
    """End the account itself; the logins that ended."""
    living = [login.login_id for login in await login_rows.living_of(tx, user_id)]
    ended = await login_rows.end(tx, user_id=user_id, login_ids=living, reason="account deleted")
    await farewell.anonymise(tx, user_id)
    return ended


async def _leave_group(tx: Connection, append: Append, user_id: UUID) -> bool:
    """Leave one group; False if there is none left."""
    group_id = await farewell.next_group_of(tx, user_id)
    if group_id is None:
        return False
    await groups.remove(tx, append, conversation_id=group_id, actor_id=user_id, target_id=user_id)
    return True


async def _leave_friends(tx: Connection, append: Append, user_id: UUID) -> bool:
    """End some friendships and requests; False if there were none left."""
    ended = await farewell.end_friendships(tx, user_id, at_most=FRIENDS_AT_ONCE)
    for friend in ended:
        if friend.knew:
            await append(
                conversation_id=friend.self_conversation_id,
                sender_id=friend.user_id,
                message_type="account",
                event={"event": "friend_removed", "user_id": str(user_id)},
            )
    return bool(ended)
