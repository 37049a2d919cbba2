"""The server: one nursery tree, its signals, its drain. Read this first.

    server                       starts the rooms below in order, stops them in reverse
    ├─ redis link, bus           what may be lost, and what other processes say
    ├─ log writer, spool         group commit; what waits through an outage
    ├─ log tailer                next id in line → the connections of this process
    ├─ receipts and cursors      written behind; announcements; redelivery
    ├─ farewell                  what follows when an account is deleted
    ├─ listeners                 one port: HTTP connections and WebSocket sessions; another for operations
    └─ admin socket              where the above is asked what it does

Rule: every task's parent outlives it. SIGTERM drains: no new connections, what the writer holds is answered and handed on,
receipts are stored, every socket gets 1012, and only then is the tree cancelled.
"""

from __future__ import annotations

import gc
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import trio
from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio

from uim import __version__, listener
from uim.admin import desk
from uim.admission import Admission
from uim.api.accounts import SignInDoor, add_accounts
from uim.api.app import new_app
from uim.api.connection import HttpFront
from uim.api.conversations import add_conversation_routes
from uim.api.deletion import add_deletion_routes
from uim.api.export import add_export
from uim.api.friends import add_friends
from uim.api.messages import add_message_routes
from uim.api.openapi import add_openapi
from uim.api.operations import Checkup, add_public_health, operations_app
from uim.api.people import add_people
from uim.api.presence import add_presence
from uim.api.profiles import add_profiles
from uim.api.routes import Routes, register
from uim.api.search import add_search
from uim.api.sync import add_sync
from uim.chat import redelivery
from uim.chat.house import House, build_house
from uim.chat.passwords import Passwords
from uim.config import Settings
from uim.errors import Cut, unavailable
from uim.live.arrivals import Arrivals
from uim.live.upgrade import WebSocketFront
from uim.log import get_logger
from uim.metrics import Metrics
from uim.model.person import Caller
from uim.store import identity
from uim.store.postgres import ConnectionLost, connect

# Together 8.2 s, and a second in which what is cancelled then asks a hung database to cancel too: within 10 s in all.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
WRITER_WITHIN_S: Final = 4.5
STORING_WITHIN_S: Final = 4.9
# A session's own goodbye has 3 s.
GOODBYES_WITHIN_S: Final = 3.3
REST_S: Final = 0.5
# Of objects that are kept, in place of Python's 700, 10, 10: what lives as long as its connection would be looked through again and
# again, a fifth of what a connect costs, and in the end all of it at once, for half a second. Connections leave without the collector.
COLLECT_AFTER: Final = (5_000, 5, 100)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves: where, and its rooms. Setting the `stop` that `serve` was given drains it."""

    house: House
    addresses: list[tuple[str, int]]
    operations_addresses: list[tuple[str, int]]


def run(
    settings: Settings,
    *,
    sockets: Sequence[socket.socket],
    operations_sockets: Sequence[socket.socket],
    admin_socket: socket.socket | None = None,
    on_ready: Callable[[], None],
) -> None:
    """Serve on sockets that listen already, until SIGTERM or SIGINT has drained it. `on_ready` is called once it serves."""

    outside: list[int] = []

    async def main() -> None:
        stop, starting = trio.Event(), trio.CancelScope()
        # From before anything starts, for a signal during the start ends it too, until all has ended: many a supervisor sends a
        # second one.
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            if outside:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, signals, stop, starting)
                async with trio.open_nursery() as serving:
                    with starting:
                        await serving.start(
                            partial(
                                serve,
                                settings,
                                sockets=sockets,
                                operations_sockets=operations_sockets,
                                admin_socket=admin_socket,
                                stop=stop,
                            )
                        )
                        # What was loaded stays: looking through it again is 50 ms, again and again, in which nothing else is done.
                        gc.collect()
                        gc.freeze()
                        gc.set_threshold(*COLLECT_AFTER)
                        on_ready()
                nursery.cancel_scope.cancel()

    # What comes before the receiver is there ends it as well; what comes after it is one signal more, and the exit code stays 0,
    # also while the interpreter ends, which undoes handlers and leaves what is ignored.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: outside.append(number))
    trio.run(main)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def _stop_on_signal(signals: AsyncIterator[int], stop: trio.Event, starting: trio.CancelScope) -> None:
    async for number in signals:
        log.info("stopping already" if stop.is_set() else "stopping", signal=signal.Signals(number).name)
        stop.set()
        starting.cancel()


async def serve(
    settings: Settings,
    *,
    sockets: Sequence[socket.socket],
    operations_sockets: Sequence[socket.socket],
    admin_socket: socket.socket | None = None,
    stop: trio.Event,
    passwords: Passwords | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The whole server, until `stop` is set and it has drained. Waits at its start while the database is away.

    Raises what ended a room of it. Cancelled, clients see their connections torn: set `stop` instead.
    """
    house = build_house(settings, log_id=await _log_id(settings.database_url), passwords=passwords or Passwords())
    admission = Admission(trusted_proxies=settings.trusted_proxies)
    arrivals = Arrivals(per_user=settings.devices_per_user, randomness=random.Random())
    metrics = _metrics(house, admission, arrivals, stop)
    checkup = Checkup(postgresql=partial(_probe_database, house), redis=house.link.probe, disk=Path.cwd())
    http = HttpFront(_public_app(house, admission, metrics, checkup, stop))
    operations_http = HttpFront(operations_app(checkup, metrics, is_draining=stop.is_set))
    sockets_front = WebSocketFront(house, arrivals=arrivals, on_signed_in=admission.signed_in, is_draining=stop.is_set)
    tls = listener.tls_context(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    async with trio.open_nursery() as tree:
        if admin_socket is not None:
            await tree.start(desk.run, house, admin_socket)
        await tree.start(house.link.run)
        await tree.start(house.epochs.run)
        for room in (house.bus, house.writer, house.tailer, house.receipts, house.connects, house.announcements, house.profiles):
            # By the room's own name, for two of them run the same function.
            await tree.start(room.run, name=f"{type(room).__module__}.{type(room).__name__}.run")
        await tree.start(redelivery.run, house.switchboard)
        await tree.start(house.indexer.run)
        await tree.start(house.spool.run)
        await tree.start(house.typing.run)
        await tree.start(house.presence.run)
        await tree.start(house.farewell.run)
        await tree.start(house.offline.run)
        public = await tree.start(
            partial(listener.serve, _listeners(sockets), tls=tls, http=http, websocket=sockets_front, admission=admission)
        )
        operations = await tree.start(
            partial(
                listener.serve,
                _listeners(operations_sockets),
                tls=None,
                http=operations_http,
                websocket=None,
                admission=Admission(),
            )
        )
        task_status.started(Running(house, public.addresses, operations.addresses))
        log.info("serving", addresses=public.addresses, version=__version__)
        await stop.wait()
        began_at = trio.current_time()
        await _drain(house, arrivals, public, http)
        log.info("drained", seconds=round(trio.current_time() - began_at, 3), connections_left=house.switchboard.connections)
        tree.cancel_scope.cancel()
    log.info("stopped")


async def _drain(house: House, arrivals: Arrivals, public: listener.Listener, http: HttpFront) -> None:
    """In the order in which work flows, so that nothing acknowledged is left behind. Each step has its time."""
    await public.close_accepting()
    arrivals.close()
    await http.finish()
    house.writer.close(within_s=WRITER_WITHIN_S)
    with trio.move_on_after(STORING_WITHIN_S):
        await house.writer.drained.wait()
        await house.tailer.passed_all()
        house.receipts.close()
        await house.receipts.drained.wait()
    house.presence.close()
    for outbox in house.switchboard.all():
        outbox.cut(Cut.RESTART)
    with trio.move_on_after(GOODBYES_WITHIN_S):
        await public.emptied.wait()


async def _log_id(database_url: str) -> UUID:
    while True:
        try:
            async with await connect(database_url, name="start") as tx:
                return await identity.log_id(tx)
        except ConnectionLost as lost:
            log.warning("the database cannot be reached", error=str(lost).splitlines()[0])
            await trio.sleep(REST_S)


async def _probe_database(house: House) -> None:
    """One round trip, and whether it takes what is appended: a full disk answers too. Raises UIMError `unavailable`."""
    if trouble := house.writer.trouble or house.spool.trouble:
        raise unavailable(trouble)
    await house.pool.probe()


def _public_app(house: House, admission: Admission, metrics: Metrics, checkup: Checkup, stop: trio.Event) -> QuartTrio:
    app = new_app(metrics=metrics)
    door = SignInDoor(house.logins, house.origins)
    routes = Routes()
    add_accounts(routes, house.accounts, door, on_signed_in=admission.signed_in)
    add_people(routes, house.people)
    add_profiles(routes, house.profiles, house.farewell)
    add_export(routes, house.exports)
    add_presence(routes, house.presence)
    add_friends(routes, friends=house.friends, blocks=house.blocks)
    add_conversation_routes(routes, conversations=house.conversations)
    add_message_routes(routes, history=house.history, writer=house.writer, receipts=house.receipts)
    add_deletion_routes(routes, house.deletion)
    add_search(routes, house.search)
    add_sync(routes, house)
    add_openapi(routes, title="UIM", version=__version__)

    def turn_of(caller: Caller) -> AbstractAsyncContextManager[None]:
        return house.turns.turn(caller.user_id)

    def vouch(address: str, port: int, caller: Caller) -> None:
        admission.signed_in(address, port, caller.user_id)

    register(app, routes, authenticate=door.authenticate, on_signed_in=vouch, turn_of=turn_of)
    add_public_health(app, checkup, is_draining=stop.is_set)
    return app


def _metrics(house: House, admission: Admission, arrivals: Arrivals, stop: trio.Event) -> Metrics:
    metrics = Metrics(CollectorRegistry())
    writer, watch = house.writer, metrics.watch
    watch("uim_connections_not_signed_in", "Connections that have not signed in.", lambda: admission.strangers)
    watch("uim_sessions", "WebSocket connections signed in.", lambda: house.switchboard.connections)
    watch("uim_sessions_in_line", "WebSocket connections that wait for their turn to open.", lambda: arrivals.waiting)
    watch("uim_sessions_sent_away", "WebSocket connections told to come back.", lambda: arrivals.sent_away, counts=True)
    watch("uim_tasks", "Trio's tasks.", lambda: trio.lowlevel.current_statistics().tasks_living)
    watch("uim_draining", "1 once the server has been told to stop.", lambda: float(stop.is_set()))
    watch("uim_log_position", "The entry up to which this process has delivered.", lambda: house.tailer.position)
    watch("uim_writer_waiting", "Entries that wait for the writer.", lambda: writer.waiting)
    watch("uim_writer_queued", "Texts answered queued, while the database is away.", lambda: writer.queued)
    watch("uim_spool_drained", "Texts that a process left in the spool and this one appended.", lambda: house.spool.drained, counts=True)
    watch("uim_texts_appended", "Texts that this process has appended.", lambda: writer.appended, counts=True)
    watch("uim_appends", "Batches of texts that this process has appended.", lambda: writer.appends, counts=True)
    watch("uim_dead_letters", "Texts that no database would take; look at the log.", lambda: writer.dead_letters, counts=True)
    watch("uim_offline_pushed", "Entries pushed to offline queues.", lambda: house.offline.pushed, counts=True)
    watch("uim_redis_refused", "Commands that Redis refused, whose answer nobody needed.", lambda: house.link.refused, counts=True)
    watch("uim_redis_up", "1 while Redis answers.", lambda: float(house.link.is_up))
    return metrics


def _listeners(sockets: Sequence[socket.socket]) -> list[trio.SocketListener]:
    return [trio.SocketListener(trio.socket.from_stdlib_socket(opened)) for opened in sockets]
