"""Many people at once. Where the database and the signing key are the run's own, they are rows and tokens made here, in seconds;
else they register as anybody does, a slow password hash each, and have several devices each.

Rule: what is made here is what registering would have left: an account with its own conversation, and a login that lives.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import trio

from loadtest import people
from loadtest.people import PASSWORD, Api, Member
from loadtest.target import Target
from loadtest.visitor import Visitor
from uim.chat.passwords import Passwords
from uim.chat.tokens import REFRESH_LIFE_S, Tokens
from uim.config import JwtKey

# Fewer than a user may have: a user's connects are counted too, 40 and then one a second.
DEVICES_A_USER: Final = 5
LOOPBACK: Final = ("127.0.0.1", "localhost")

_USERS: Final = """with new as (
        insert into users (username, email, password_hash)
        select name, name || '@example.com', %(hash)s
        from generate_series(1, %(count)s) n, concat('load_', %(run)s::text, '_', n) name
        returning user_id, username
    ), own as (
        insert into conversations (conversation_id, type, created_by) select gen_random_uuid(), 'self', user_id from new
        returning conversation_id, created_by
    ), seat as (
        insert into conversation_participants (conversation_id, user_id) select conversation_id, created_by from own
    ), stay as (
        insert into participations (conversation_id, user_id, joined_message_id) select conversation_id, created_by, 0 from own
    ), login as (
        insert into logins (login_id, user_id, device_id, refresh_key, refresh_hash, generation_used_at, expires_at)
        select gen_random_uuid(), user_id, 'load', '\\x00', '\\x00', now(), now() + make_interval(secs => %(life_s)s) from new
        returning login_id, user_id
    )
    select new.user_id, new.username, login.login_id from new join login using (user_id)"""


@dataclass(frozen=True, slots=True)
class Crowd:
    """People of a run. `renew(member)` gives a token that has its whole life before it."""

    members: list[Member]
    renew: Callable[[Member], str]


def gather(target: Target, users: int) -> Crowd:
    """That many new people, each signed in."""
    if target.database_url is None or target.signing_key is None:
        return _registered(target, users)
    tokens = Tokens([JwtKey(*target.signing_key)], time.time)
    given = {
        "run": secrets.token_hex(4),
        "count": users,
        "hash": trio.run(Passwords().hash, PASSWORD),
        "life_s": REFRESH_LIFE_S,
    }
    with psycopg.connect(target.database_url) as connection:
        rows = connection.execute(_USERS, given).fetchall()
        connection.commit()
        connection.autocommit = True
        connection.execute("analyze users, conversations, conversation_participants, participations, logins")
    who = {str(user_id): (username, login_id) for user_id, username, login_id in rows}

    def renew(member: Member) -> str:
        username, login_id = who[member.user_id]
        return tokens.sign_access(user_id=UUID(member.user_id), username=username, login_id=login_id, generation=1)

    return Crowd([Member(user_id, renew(Member(user_id, ""))) for user_id in who], renew)


def _registered(target: Target, users: int) -> Crowd:
    members = people.register(target.url, users)
    names = {}
    for member in members:
        with closing(Api(target.url, member.token)) as api:
            names[member.user_id] = api.call("GET", "/api/users/me")["username"]

    def renew(member: Member) -> str:
        # A device of its own: to sign in where a login lives would end that one, and its connections.
        wanted = {"username": names[member.user_id], "password": PASSWORD, "device_id": secrets.token_hex(8)}
        with closing(Api(target.url)) as api:
            return str(api.call("POST", "/api/auth/login", wanted)["access_token"])

    return Crowd(members, renew)


def visitors(target: Target, connections: int) -> tuple[Crowd, list[Visitor]]:
    """That many devices: of a user each, or, where people have to register, of as few users as may have them."""
    is_ours = target.database_url is not None and target.signing_key is not None
    a_user = 1 if is_ours else DEVICES_A_USER
    crowd = gather(target, -(-connections // a_user))
    return crowd, [
        visitor(target, crowd.members[number // a_user], number, device_id=f"load-{number % a_user}") for number in range(connections)
    ]


def visitor(target: Target, member: Member, number: int, *, device_id: str = "load") -> Visitor:
    return Visitor(member.user_id, member.token, device_id, source_of(target, number))


def source_of(target: Target, number: int) -> str:
    """On this machine everybody has an address of their own, as people do; the server counts strangers by address."""
    if urlsplit(target.url).hostname not in LOOPBACK:
        return ""
    return f"127.{1 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}"
