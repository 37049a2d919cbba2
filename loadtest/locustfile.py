"""People who chat, for Locust: `locust -f loadtest/locustfile.py --host http://127.0.0.1:8080`, against `uim dev` for one.

They register or sign in, chat in pairs and groups over WebSockets, go away and come back, read history, look through their
conversations and search. `--help` (under "Custom arguments") and the web page tell the options; each has an environment variable
too. Rule: a run in which something acknowledged did not arrive, or in another order, ends with exit code 1 (`settle`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import secrets
import ssl
import time
import uuid
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from locust import FastHttpUser, events, task
from locust.runners import MasterRunner, WorkerRunner

from loadtest.locust_device import DEVICE_ID, Account, Device, Said
from loadtest.locust_ledger import Ledger

PASSWORD = "Load-test-1815"
# The server hashes passwords on two threads, and lets fifty strangers of one address in.
SIGN_INS_AT_ONCE = 8
MOST_TRIES = 8
SETTLE_WITHIN_S = 30.0
WORDS = """
    yes no maybe hello tomorrow tonight train station coffee lunch meeting photo thanks sorry where when why nice great late early
    ja nein vielleicht Grüße morgen Bahnhof oui non peut-être demain да нет завтра 你好 明天 見面 はい いいえ 안녕 내일 مرحبا غدا
""".split()  # noqa: SIM905 a list of sixty quoted words is hard to read
WEIGHTS = {"pair": 10, "group": 5, "history": 3, "read": 3, "list": 2, "typing": 2, "search": 1, "away": 1}
# Times in texts are of CLOCK_MONOTONIC, one clock for all processes since a machine was booted; from other machines none is read.
BOOT = Path("/proc/sys/kernel/random/boot_id")
CLOCK = BOOT.read_text().strip()[:8] if BOOT.exists() else f"{uuid.getnode():x}"
MARK = re.compile(r"@(\w+) (\d+) ")


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    def add(name: str, default: Any, told: str, least: float = 0, most: float = 10_000) -> None:
        def read(given: str) -> Any:
            value = type(default)(given)
            if not isinstance(value, str) and not least <= value <= most:
                raise argparse.ArgumentTypeError(f"{given} is not from {least} to {most}")
            return value

        variable = f"UIM_LOAD_{name.upper().replace('-', '_')}"
        parser.add_argument(f"--{name}", type=read, default=default, env_var=variable, help=told)

    add("accounts", f"l{secrets.token_hex(3)}", "Names of accounts begin with this. Default: new ones; an earlier run's are signed in")
    parser.add_argument("--reuse", action="store_true", env_var="UIM_LOAD_REUSE", help="Sign in first, register who is not known")
    parser.add_argument("--unverified-tls", action="store_true", env_var="UIM_LOAD_UNVERIFIED_TLS", help="Any certificate will do")
    add("wait-least", 0.5, "Seconds between what a user does, at least")
    add("wait-most", 3.0, "and at most")
    add("text-least", 20, "Characters of a text, at least (a mark of some 25 is in each)")
    add("text-most", 200, "and at most")
    add("away-most", 10.0, "Seconds that a user is away, at most")
    told = "Members of a group, 3 to 50; each user is in one, in which the users of one process stand in order"
    add("group-size", 5, told, least=3, most=50)
    for name, weight in WEIGHTS.items():
        add(f"weight-{name}", weight, f"How often a user does this: {name}")


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """What the users of this process have in common."""
    environment.uim = SimpleNamespace(ledger=Ledger(), users=[], gate=BoundedSemaphore(SIGN_INS_AT_ONCE), begun=0)


@events.init.add_listener
def listen(environment: Any, **_: Any) -> None:
    """A master waits until its workers have settled: what they find then still counts."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message("settle", _stop_and_tell, concurrent=True)
    elif isinstance(runner, MasterRunner):
        runner.register_message("settled", lambda environment, msg: environment.settled.add(msg.node_id))


def _stop_and_tell(environment: Any, msg: Any) -> None:
    environment.runner.stop()
    environment.runner.send_message("settled")


def _await_workers(environment: Any) -> None:
    environment.settled = set()
    environment.runner.send_message("settle")
    until = time.monotonic() + SETTLE_WITHIN_S + 5.0
    while len(environment.settled) < environment.runner.worker_count and time.monotonic() < until:
        gevent.sleep(0.1)


@events.test_stop.add_listener
def settle(environment: Any, **_: Any) -> None:
    """Everybody is there once more, until nothing is under way; then the ledger is judged, before the figures are told."""
    if isinstance(environment.runner, MasterRunner):
        _await_workers(environment)
        return
    devices = [user.device for user in environment.uim.users]
    until = time.monotonic() + SETTLE_WITHIN_S
    settling = [gevent.spawn(device.settle, until) for device in devices]
    gevent.joinall(settling)
    ledger = environment.uim.ledger
    late = [told.value for told in settling if told.value is not None]
    nobody = [] if devices or isinstance(environment.runner, WorkerRunner) else ["nobody signed in: nothing was looked at"]
    faults = nobody + late + ledger.faults(device.account.user_id for device in devices)
    for fault in faults:
        environment.process_exit_code = 1
        report(environment, "promise", 0.0, 0, fault)
    for device in devices:
        device.leave()
    print(f"{len(devices)} users: {ledger.acknowledged} texts acknowledged, {ledger.arrived} entries arrived, {len(faults)} faults")


@events.quitting.add_listener
def stop(environment: Any, **_: Any) -> None:
    """However it ends, it is settled first, for Locust decides its exit code right after this."""
    if hasattr(environment, "uim"):
        environment.runner.stop()


def report(environment: Any, name: str, ms: float, length: int, fault: str | None) -> None:
    exception = None if fault is None else RuntimeError(fault)
    environment.events.request.fire(
        request_type="WS", name=name, response_time=ms, response_length=length, exception=exception, context={}
    )


def read_mark(content: str) -> Said | None:
    """By which clock a user of Locust said this text, when, and how long ago; None of any other text."""
    found = MARK.match(content)
    if found is None:
        return None
    clock, said_at_ns = found[1], int(found[2])
    return clock, said_at_ns, (time.monotonic_ns() - said_at_ns) / 1e6 if clock == CLOCK else None


class ChatUser(FastHttpUser):
    """One person with one device. `device` stays after Locust has ended the user, until the run is settled."""

    def __init__(self, environment: Any) -> None:
        self.options: Any = environment.parsed_options
        self.insecure = self.options.unverified_tls
        super().__init__(environment)
        self.common = environment.uim
        environment.uim.begun += 1
        self.number = environment.uim.begun
        self.tokens: dict[str, Any] = {}
        weighed = {name: getattr(self.options, f"weight_{name}") for name in WEIGHTS}
        acts: list[Any] = type(self).tasks
        self.tasks = [act for act in acts for _ in range(weighed[act.__name__.removeprefix("do_")])]

    def wait_time(self) -> float:
        return random.uniform(self.options.wait_least, self.options.wait_most)

    # -- coming and going -------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        with self.common.gate:
            while not self.sign_in():
                gevent.sleep(random.uniform(0.5, 2.0))
        account = Account(self.user_id, self.host or "", lambda: self.tokens["access_token"], self.renew, read_mark, self.sslopt())
        self.device = Device(account, self.common.ledger, lambda *told: report(self.environment, *told))
        self.device.come_back()
        self.common.users.append(self)
        self.place = len(self.common.users)
        self.do_list()
        self.meet()

    def on_stop(self) -> None:
        # At the end of the test all stay until it is settled.
        if hasattr(self, "device") and self.environment.runner.state not in ("stopping", "cleanup"):
            self.device.leave()

    @property
    def user_id(self) -> str:
        return str(self.tokens["user"]["user_id"])

    def sslopt(self) -> dict[str, Any]:
        return {"cert_reqs": ssl.CERT_NONE, "check_hostname": False} if self.insecure else {}

    def username(self) -> str:
        """The same in a later run, and spread evenly, so that a piece of a name finds some of the others."""
        place = f"{getattr(self.environment.runner, 'worker_index', 0)}.{self.number}"
        return f"{self.options.accounts}_{hashlib.md5(place.encode()).hexdigest()[:12]}"

    def sign_in(self) -> bool:
        """Register, or sign in where the name is taken; the other way round with --reuse. Whether it succeeded."""
        name = self.username()
        login = {"username": name, "password": PASSWORD, "device_id": DEVICE_ID}
        ways = [("register", login | {"email": f"{name}@example.com"}, 201, {409}), ("login", login, 200, {401})]
        for way, body, succeeded, other in reversed(ways) if self.options.reuse else ways:
            status, told = self.ask("POST", f"/api/auth/{way}", body=body, good={succeeded} | other)
            if status == succeeded:
                self.tokens = told
                return True
            if status not in other:
                return False
        return False

    def renew(self, old: str | None) -> None:
        """Other tokens, unless there are others already; a login that was ended is made anew."""
        if old not in (None, self.tokens["access_token"]):
            return
        body = {"refresh_token": self.tokens["refresh_token"]}
        status, told = self.ask("POST", "/api/auth/refresh", body=body, good={200, 401})
        if status == 200:
            self.tokens = told
        elif status == 401:
            self.sign_in()

    def meet(self) -> None:
        """A pair with somebody of the run; and with the last few who came to this process a group, once there are enough."""
        people = self.people(f"{self.options.accounts}_{random.randrange(256):02x}") or self.people(f"{self.options.accounts}_")
        if people:
            self.make({"type": "one_on_one", "participant_ids": [random.choice(people)]})
        if self.place % self.options.group_size == 0:
            others = [user.user_id for user in self.common.users[self.place - self.options.group_size : self.place - 1]]
            self.make({"type": "group", "name": f"group {self.place}", "participant_ids": others})

    def people(self, prefix: str) -> list[str]:
        page = self.call("GET", f"/api/users?query={prefix}", "/api/users?query=")
        return [other["user_id"] for other in page["items"] if other["user_id"] != self.user_id] if page else []

    def make(self, wanted: dict[str, Any]) -> None:
        made = self.call("POST", "/api/conversations", body=wanted, good={200, 201})
        if made:
            self.device.groups[made["conversation_id"]] = made["type"] == "group"
            self.common.ledger.made(made["conversation_id"], [member["user_id"] for member in made["participants"]])

    # -- what a user does -------------------------------------------------------------------------------------------------

    @task(WEIGHTS["pair"])
    def do_pair(self) -> None:
        self.say(self.one_of(is_group=False))

    @task(WEIGHTS["group"])
    def do_group(self) -> None:
        self.say(self.one_of(is_group=True))

    @task(WEIGHTS["typing"])
    def do_typing(self) -> None:
        if (conversation_id := self.one_of()) is not None:
            self.device.send("TYPING_INDICATOR", conversation_id=conversation_id, typing=True)
            gevent.sleep(1.0)
            self.say(conversation_id)

    @task(WEIGHTS["read"])
    def do_read(self) -> None:
        conversation_id = self.one_of()
        if conversation_id is not None and (newest := self.device.newest.get(conversation_id)) and self.device.is_live:
            self.device.send("MESSAGE_ACK", status="read", conversation_id=conversation_id, message_id=newest)

    @task(WEIGHTS["history"])
    def do_history(self) -> None:
        """The newest page, and as often as not the one before it."""
        if (conversation_id := self.one_of()) is None:
            return
        path, name = f"/api/conversations/{conversation_id}/messages", "/api/conversations/{id}/messages"
        page = self.call("GET", path, name, check=_in_order)
        if page and len(page["items"]) == 50 and random.random() < 0.5:
            self.call("GET", f"{path}?before={page['items'][0]['message_id']}", f"{name}?before=", check=_in_order)

    @task(WEIGHTS["list"])
    def do_list(self) -> None:
        page = self.call("GET", "/api/conversations") or {"items": []}
        self.device.groups.update({one["conversation_id"]: one["type"] == "group" for one in page["items"]})

    @task(WEIGHTS["search"])
    def do_search(self) -> None:
        word = random.choice(WORDS)
        self.call("GET", f"/api/messages/search?q={word}", "/api/messages/search?q=", check=lambda page: _found(page, word))

    @task(WEIGHTS["away"])
    def do_away(self) -> None:
        self.device.leave()
        gevent.sleep(random.uniform(0.0, self.options.away_most))
        self.device.come_back()

    def one_of(self, *, is_group: bool | None = None) -> str | None:
        """One of this user's conversations, of that kind."""
        ours = [conversation_id for conversation_id, group in self.device.groups.items() if is_group in (None, group)]
        return random.choice(ours) if ours else None

    def say(self, conversation_id: str | None) -> None:
        if conversation_id is not None:
            self.device.say(conversation_id, self.write)

    def write(self, now_ns: int) -> str:
        """A text: when it is said, by which clock, then words."""
        text = f"@{CLOCK} {now_ns} "
        wanted = random.randint(*sorted((self.options.text_least, self.options.text_most)))
        while len(text) < wanted:
            text += random.choice(WORDS) + " "
        return text

    # -- HTTP -------------------------------------------------------------------------------------------------------------

    def call(
        self, method: str, path: str, name: str | None = None, body: Any = None, good: frozenset[int] | set[int] = frozenset({200}),
        check: Any = None,
    ) -> Any:
        """One request as this user; what it answered, or None if it failed. `check(answer)` says what is wrong with it, if it is."""
        for _ in range(MOST_TRIES):
            token = self.tokens["access_token"]
            status, told = self.ask(method, path, name, body, {*good, 401}, token, check)
            if status != 401:
                return told if status in good else None
            self.renew(token)
        return None

    def ask(
        self, method: str, path: str, name: str | None = None, body: Any = None, good: frozenset[int] | set[int] = frozenset({200}),
        token: str | None = None, check: Any = None,
    ) -> tuple[int, Any]:
        """One request, again where the server tells to wait: its status (0: none came) and JSON. Reported by name."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        status, told = 0, None
        for _ in range(MOST_TRIES):
            with self.client.request(method, path, name=name, json=body, headers=headers, catch_response=True) as answer:
                status, told = answer.status_code, _json_of(answer)
                wait_s = float(answer.headers.get("Retry-After") or 0) if answer.headers else 0.0
                if status == 429 and wait_s:
                    # What was asked for is measured by itself, and to be told to wait is no failure.
                    answer.request_meta["name"] = f"{name or path} (told to wait)"
                _judge(answer, status in good or (status == 429 and wait_s > 0), check(told) if check and status in good else None)
            if not wait_s:
                break
            gevent.sleep(wait_s)
        return status, told


def _json_of(answer: Any) -> Any:
    try:
        return json.loads(answer.text or "null")
    except ValueError:
        return None


def _judge(answer: Any, is_good: bool, fault: str | None) -> None:
    if is_good and fault is None:
        answer.success()
    else:
        answer.failure(fault or f"{answer.status_code}: {answer.text or answer.error}"[:300])


def _in_order(page: dict[str, Any]) -> str | None:
    seqs = [item["seq"] for item in page["items"]]
    return None if all(one + 1 == other for one, other in pairwise(seqs)) else f"a page has a hole: seqs {seqs}"


def _found(page: dict[str, Any], word: str) -> str | None:
    wrong = [item["message"]["message_id"] for item in page["items"] if word.lower() not in item["message"]["content"].lower()]
    return f"{word} is not in {wrong}" if wrong else None
