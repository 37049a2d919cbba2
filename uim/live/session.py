"""One connection's life: a scope, and in it inbound, outbound and heartbeat.

Everything that ends a connection ends this scope: the peer leaving, a cut with its reason, a bug. What belongs to the connection
(its place in the switchboard, its key in Redis, its cursor) is given back by leaving. Rule: one scope, one reason, one error
boundary, and a shielded, bounded goodbye.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import structlog
import trio

from uim.chat.connects import Begun, Connect
from uim.chat.house import House
from uim.chat.outbox import Outbox
from uim.errors import Cut, UIMError
from uim.live.arrivals import Arrivals, OverCapacity, Turn
from uim.live.hello import Hello, session_ready
from uim.live.pacing import PRICES, REFUSED
from uim.live.sockets import FrameStream, ServerSocket
from uim.log import get_logger
from uim.model.person import Caller
from uim.store import cursors
from uim.wire.codec import Malformed, Refused
from uim.wire.frames import MAX_FRAME_IN_BYTES, ClientFrame, error_frame

SILENCE_S: Final = 90.0
GOODBYE_S: Final = 3.0
LAST_WORDS_S: Final = 1.0
MALFORMED_ALLOWED: Final = 2
MALFORMED_WITHIN_S: Final = 60.0
DATABASE_REST_S: Final = 0.5

log = get_logger(__name__)

# From the position that the client asks for.
Opening = Callable[[int | None], Awaitable[Begun]]


class Session:
    """Made by the upgrade, run once. `outbox` is what the rest of the house knows of it."""

    def __init__(
        self,
        house: House,
        ws: ServerSocket,
        stream: FrameStream,
        *,
        caller: Caller,
        hello: Hello,
        client_info: dict[str, str | None],
        session_id: UUID,
        came_at: float,
        arrivals: Arrivals,
        turn: Turn,
        handle: Callable[[Session, ClientFrame], Awaitable[None]],
    ) -> None:
        self.house = house
        self._client_info = client_info
        self._arrivals = arrivals
        self._turn: Turn | None = turn
        self._handle = handle
        self.caller = caller
        self.hello = hello
        self._ws = ws
        self._stream = stream
        self.life = trio.CancelScope()
        self._cut: Cut | None = None
        self._nursery: trio.Nursery | None = None
        self._catching_up: trio.CancelScope | None = None
        self._sync_request: str | None = None
        # Known when the cursor was opened, of the catching up that follows it.
        self._nothing_up_to: int | None = None
        # Before it stood in line: of two connections of a device the one that came later is the one in use.
        self._came_at = came_at
        # Until it has begun a client's frames wait; pings are answered.
        self._begun: trio.Event | None = trio.Event()
        self._malformed_at: list[float] = []
        self.pace = ws.pace
        self.sends_open = 0
        self.outbox = Outbox(
            user_id=caller.user_id,
            device_id=hello.device_id or caller.device_id,
            login_id=caller.login_id,
            session_id=session_id,
            cut=self.cut,
            catch_up=self.catch_up,
            came_at=came_at,
        )

    @property
    def address(self) -> str | None:
        return self._client_info.get("ip_address")

    async def open_send(self) -> None:
        """Wait until this user may have one more send open."""
        await self.house.open_sends.take(self.caller.user_id)
        self.sends_open += 1

    def close_send(self) -> None:
        self.sends_open -= 1
        self.house.open_sends.give_back(self.caller.user_id)

    def cut(self, reason: Cut) -> None:
        """End this connection from our side; the first reason counts. Does not await."""
        if self._cut is None:
            self._cut = reason
            self.life.cancel()

    async def run(self) -> None:
        """The connection from acceptance to goodbye; returns when it is over. Never raises but for cancellation."""
        structlog.contextvars.bind_contextvars(session_id=str(self.outbox.session_id), user_id=str(self.caller.user_id))
        with self.house.switchboard.attached(self.outbox) as is_attached:
            if not is_attached:
                self.cut(Cut.TOO_MANY_DEVICES)
            elif self.house.logins.has_ended(self.caller.login_id):
                # Between its check and our registration: whoever told of it found nobody here to cut.
                self.cut(Cut.LOGIN_ENDED)
            try:
                with self.life:
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        nursery.start_soon(self._outbound)
                        nursery.start_soon(self._heartbeat)
                        await self._inbound()
                        await self._arrivals.departure()
                        nursery.cancel_scope.cancel()
            except* Exception:
                log.exception("a connection failed")
                self.cut(Cut.BUG)
            finally:
                self._end_turn()
                self.outbox.end()
                self._nursery = self._catching_up = None
                if not self.outbox.unconfirmed and self.outbox.connection_no and self._cut is not Cut.REPLACED:
                    self.keep_position()
                self.house.sessions.left(self.outbox)
                self.house.presence.left(self.outbox)
                with trio.move_on_after(GOODBYE_S, shield=True):
                    await self._say_goodbye()

    # -- the three children -----------------------------------------------------------------------------------------------

    async def _inbound(self) -> None:
        """Frame by frame, in order: the next is not read before this one has been taken. Returns when the peer has gone."""
        await self._ws.read(self._hear)

    async def _hear(self, text: str | bytes) -> None:
        if self._begun is not None:
            await self._begun.wait()
        self.outbox.heard_at = trio.current_time()
        # One that asks and never reads is read no further: TCP tells it to wait.
        await self.outbox.room()
        if isinstance(text, bytes):
            self._count_malformed()
            await self.pace.spend(REFUSED)
            return
        if len(text) > MAX_FRAME_IN_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > MAX_FRAME_IN_BYTES:
            self.cut(Cut.TOO_BIG)
            return
        try:
            frame = self.house.codec.decode(text)
        except Malformed as malformed:
            self._count_malformed(malformed.request_id)
            await self.pace.spend(REFUSED)
        except Refused as refused:
            self.outbox.push(
                error_frame(refused.error, request_id=refused.request_id, client_message_id=refused.client_message_id)
            )
            await self.pace.spend(REFUSED)
        else:
            if price := PRICES.get(type(frame)):
                await self.pace.spend(price)
            await self._handle(self, frame)

    async def _outbound(self) -> None:
        """First how it begins, for before that there is nothing to say; then all that waits, in one write."""
        await self._begin()
        outbox = self.outbox
        while True:
            data = outbox.take()
            if not data:
                await outbox.wake.wait()
                continue
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._stream.hang_up()
                self.life.cancel()
                return
            except trio.Cancelled:
                if not self._stream.torn:
                    outbox.put_back(data)  # for the goodbye: an answer that was ready is still given
                raise
            outbox.written(len(data))

    async def _heartbeat(self) -> None:
        """Any frame is a sign of life; after 90 s without one the connection ends."""
        while True:
            silent_s = trio.current_time() - self.outbox.heard_at
            if silent_s >= SILENCE_S:
                self.cut(Cut.SILENT)
                return
            # Not sleep: a quiet connection would keep its inner frames.
            with trio.CancelScope(deadline=self.outbox.heard_at + SILENCE_S):
                await trio.sleep_forever()

    # -- beginning --------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """The device's cursor, SESSION_READY, and catching up from there."""
        if self.outbox.older is not None:
            # Were the older connection's cursor opened after ours, ours would be the one that is replaced.
            with trio.move_on_after(GOODBYE_S):
                await self.outbox.older.gone.wait()
            self.outbox.older = None
        begun = await self._open(self._try_in_turn, self.hello.last_sync_id)
        self.outbox.push(session_ready(self.house, self.outbox, begun.opened, begun.behind))
        self.outbox.is_ready = True
        self.house.sessions.came(self.outbox, self._client_info)
        self.house.presence.came(self.outbox)
        self.catch_up()
        if self._begun is not None:
            self._begun.set()
        self._begun = None

    async def _open(self, try_to_open: Opening, asked: int | None) -> Begun:
        """Raise this device's connection_no and set its cursor; what that skips counts as delivered.

        Waits while the database is away, and nothing is read from the client then: silence ends that.
        """
        # While the number is being raised, ours looks like that of an older connection to whoever reads the table.
        self.outbox.connection_no = 0
        while True:
            try:
                return await try_to_open(asked)
            except OverCapacity:
                self.cut(Cut.OVER_CAPACITY)
            except cursors.Overtaken:
                # Its device has come again by another process. A connect that is none the less its newest (they came at
                # the same moment) may come back; a rewind is of a connection that is known to be replaced.
                self.cut(Cut.REPLACED if self.outbox.is_ready else Cut.GOING_AWAY)
            except UIMError as refused:
                if refused.code == "session_ended":
                    self.cut(Cut.LOGIN_ENDED)
                elif refused.code != "unavailable":
                    raise
            await trio.sleep(DATABASE_REST_S)

    async def _try_in_turn(self, asked: int | None) -> Begun:
        """The first try is in the turn that let this connection in; another stands in line again."""
        if self._turn is None:
            self._turn = await self._arrivals.turn(self.caller.user_id)
        try:
            return await self._try_to_open(asked)
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._turn = None

    async def _try_to_open(self, asked: int | None) -> Begun:
        user_id = self.caller.user_id
        device_id = self.outbox.device_id
        # Let in by its token alone, where the database was away.
        await self.house.logins.confirm(self.caller.login_id)
        begun = await self.house.connects.begin(
            Connect(
                user_id,
                device_id,
                asked,
                session_id=self.outbox.session_id,
                came_at=None if self.outbox.is_ready else self._came_at,
                replaced=self.outbox.replaced,
            )
        )
        opened = begun.opened
        self.outbox.connection_no = opened.connection_no
        self.outbox.start_at(opened.at)
        # Counted after the head was read: nothing above the cursor then is nothing up to that head.
        self._nothing_up_to = max(opened.head, opened.at) if begun.behind == 0 else None
        self.house.bus.replaced(user_id, device_id, opened.connection_no)
        return begun

    async def sync_from(self, last_sync_id: int, request_id: str) -> None:
        """SYNC_REQUEST: rewind or skip, then pages that carry its request_id."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        self.outbox.live = False
        await self._open(self._try_to_open, last_sync_id)
        self._sync_request = request_id
        self.catch_up()

    def catch_up(self) -> None:
        """Start catching up from what was sent, in place of any that is under way. Does not await."""
        # Once cancelled, the nursery may have closed before our own task has had its turn to say so.
        if self._nursery is None or self.life.cancel_called or self._nursery.cancel_scope.cancel_called:
            return
        if self._catching_up is not None:
            self._catching_up.cancel()
        nothing_up_to, self._nothing_up_to = self._nothing_up_to, None
        if nothing_up_to is not None and self.house.catchup.nothing(self.outbox, self._sync_request, up_to=nothing_up_to):
            self._caught_up()
            return
        self._catching_up = trio.CancelScope()
        self._nursery.start_soon(self._catch_up, self._catching_up)

    async def _catch_up(self, scope: trio.CancelScope) -> None:
        with scope:
            await self.house.catchup.run(self.outbox, self._sync_request)
            self._caught_up()

    def _caught_up(self) -> None:
        self.house.presence.live(self.outbox)
        self._sync_request = self._catching_up = None

    # -- the cursor -------------------------------------------------------------------------------------------------------

    def position(self) -> int:
        """Every entry up to here that the user may see has been queued to this connection."""
        return max(self.outbox.sent, self.house.tailer.position) if self.outbox.live else self.outbox.sent

    def keep_position(self) -> None:
        """With nothing unconfirmed the stored cursor moves to the position, so that a quiet device's does not fall behind."""
        if self.outbox.live or self.outbox.sent == self.outbox.confirmed:
            self.house.receipts.keep_cursor(self.outbox, self.position())

    # -- ending -----------------------------------------------------------------------------------------------------------

    def _count_malformed(self, request_id: str | None = None) -> None:
        now = trio.current_time()
        self._malformed_at = [at for at in self._malformed_at if now - at < MALFORMED_WITHIN_S]
        self._malformed_at.append(now)
        if len(self._malformed_at) > MALFORMED_ALLOWED:
            self.cut(Cut.BAD_FRAMES)
        else:
            refusal = UIMError("bad_request", "a frame is a JSON object with a type and a payload")
            self.outbox.push(error_frame(refusal, request_id=request_id))

    async def _say_goodbye(self) -> None:
        """What still waits, then the closing frame. A torn stream, or a peer that is slow even now, is hung up on."""
        reason = self._cut or Cut.GOING_AWAY
        if not self._stream.torn and self._ws.closed is None:
            with trio.move_on_after(LAST_WORDS_S):
                try:
                    if data := self.outbox.take():
                        await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        if not self._stream.torn and self._ws.closed is None:
            await self._ws.close(reason.close_code, self._words(reason))
        elif not self._stream.torn:
            await self._stream.aclose()  # trio-websocket has said why; to who still sends that would be lost in a reset
        self._stream.hang_up()

    def _words(self, reason: Cut) -> str:
        return self._arrivals.words() if reason in (Cut.RESTART, Cut.OVER_CAPACITY) else reason.reason
