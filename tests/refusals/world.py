"""People who know each other, one who doesn't, and for every endpoint a request that is valid.

Rule: a sample is made afresh whenever it may succeed, for a success changes the world; what is refused changes nothing, so
refused attempts share one sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

from tests.house import PASSWORD, Person, Server
from tests.refusals.http import Talk


@dataclass
class World:
    """alice tries everything; bob and cyd share a group with her; eve shares one with bob alone, and dora knows nobody."""

    server: Server
    talk: Talk
    alice: Person
    bob: Person
    cyd: Person
    dora: Person
    eve: Person
    group_id: str
    foreign_group_id: str
    message_id: int
    foreign_message_id: int
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @cached_property
    def bearer(self) -> str:
        return str(self.alice.tokens["access_token"])

    def new_name(self) -> str:
        return f"newcomer_{next(self.numbers)}"


async def new_world(server: Server) -> World:
    alice, bob, cyd, dora, eve = [await server.register(name) for name in ("alice", "bob", "cyd", "dora", "eve")]
    group_id = await server.group(alice, bob, cyd)
    foreign_group_id = await server.group(eve, bob, cyd, name="not alice's")
    posted = [
        (await who.post(f"/api/conversations/{where}/messages", {"client_message_id": "first", "content": "hello"}, expect=201))
        for who, where in ((alice, group_id), (eve, foreign_group_id))
    ]
    return World(
        server, Talk(server.url), alice, bob, cyd, dora, eve, group_id, foreign_group_id,
        posted[0]["message_id"], posted[1]["message_id"],
    )  # fmt: skip


@dataclass
class Sample:
    """A request that succeeds. `longest` is the rule for texts that the schema leaves to the room; `told` are the codes that a
    well-formed but other value may be refused with; `foreign` are ids in its path that are somebody else's, each a 404.
    """

    places: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    bearer: str | None = None
    longest: dict[str, tuple[int, int]] = field(default_factory=dict)
    told: frozenset[str] = frozenset()
    foreign: dict[str, str] = field(default_factory=dict)

    def path_of(self, template: str) -> str:
        return template.format(**self.places)


Maker = Callable[[World], Awaitable[Sample]]
SAMPLES: dict[str, Maker] = {}

DEVICE = {"device_id": (1, 64), "device_name": (1, 100), "platform": (1, 20)}
CONVERSATION = "/api/conversations/{conversation_id}"


def sample(endpoint: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        SAMPLES[endpoint] = make
        return make

    return add


# -- accounts ---------------------------------------------------------------------------------------------------------------


@sample("POST /api/auth/register")
async def _register(world: World) -> Sample:
    name = world.new_name()
    device = {"device_id": "tablet", "device_name": "a tablet", "platform": "android"}
    body = {
        "username": name,
        "email": f"{name}@example.com",
        "password": PASSWORD,
        "display_name": "New",
        "cookie": False,
        **device,
    }
    longest = {"username": (3, 50), "email": (3, 255), "password": (8, 128), "display_name": (1, 100), **DEVICE}
    return Sample(body=body, longest=longest, told=frozenset({"username_taken", "email_taken"}))


@sample("POST /api/auth/login")
async def _login(world: World) -> Sample:
    device = {"device_id": "tablet", "device_name": "a tablet", "platform": "android"}
    body = {"username": world.dora.username, "password": PASSWORD, "cookie": False, **device}
    return Sample(body=body, longest=DEVICE, told=frozenset({"invalid_credentials", "too_many_attempts"}))


@sample("POST /api/auth/refresh")
async def _refresh(world: World) -> Sample:
    signed_in = await world.server.login(world.dora.username, f"refreshing {next(world.numbers)}")
    return Sample(body={"refresh_token": signed_in.tokens["refresh_token"]}, told=frozenset({"invalid_refresh_token"}))


@sample("POST /api/auth/logout")
async def _logout(world: World) -> Sample:
    leaving = await world.server.login(world.dora.username, "leaving")
    return Sample(bearer=str(leaving.tokens["access_token"]))


@sample("GET /api/auth/sessions")
async def _sessions(world: World) -> Sample:
    return Sample()


@sample("DELETE /api/auth/sessions/{login_id}")
async def _end_session(world: World) -> Sample:
    other = await world.server.login(world.alice.username, "other")
    return Sample(places={"login_id": other.login_id}, foreign={"login_id": world.eve.login_id})


@sample("POST /api/auth/password")
async def _password(world: World) -> Sample:
    changing = await world.server.register("changing")
    body = {"current_password": PASSWORD, "new_password": "Through-The-1871"}
    return Sample(
        body=body,
        bearer=str(changing.tokens["access_token"]),
        longest={"new_password": (8, 128)},
        told=frozenset({"invalid_credentials", "too_many_attempts"}),
    )


# -- people -----------------------------------------------------------------------------------------------------------------


@sample("GET /api/users/me")
async def _own_profile(world: World) -> Sample:
    return Sample()


@sample("PUT /api/users/me")
async def _change_profile(world: World) -> Sample:
    body = {
        "display_name": "New",
        "avatar_url": "https://example.com/a.png",
        "status_text": "here",
        "availability": "away",
        "email": f"{world.new_name()}@example.com",
        "settings": {"read_receipts": True, "show_last_seen": False},
        "current_password": PASSWORD,
    }
    changing = await world.server.register("changing")
    return Sample(
        body=body,
        bearer=str(changing.tokens["access_token"]),
        longest={"display_name": (1, 100), "avatar_url": (1, 2_048), "status_text": (0, 140), "email": (3, 255)},
        told=frozenset({"invalid_credentials", "too_many_attempts"}),
    )


@sample("DELETE /api/users/me")
async def _delete_account(world: World) -> Sample:
    leaving = await world.server.register("leaving")
    return Sample(
        body={"current_password": PASSWORD},
        bearer=str(leaving.tokens["access_token"]),
        told=frozenset({"invalid_credentials", "too_many_attempts"}),
    )


@sample("GET /api/users/me/export")
async def _export(world: World) -> Sample:
    return Sample()


@sample("GET /api/users")
async def _find_users(world: World) -> Sample:
    return Sample(query={"query": "bob", "limit": "2"})


@sample("GET /api/users/{user_id}")
async def _user(world: World) -> Sample:
    return Sample(places={"user_id": world.eve.user_id}, foreign={"user_id": str(uuid4())})


@sample("GET /api/users/{user_id}/presence")
async def _presence(world: World) -> Sample:
    return Sample(places={"user_id": world.eve.user_id}, foreign={"user_id": str(uuid4())})


# -- friends and blocks -----------------------------------------------------------------------------------------------------


@sample("GET /api/friends")
async def _friends(world: World) -> Sample:
    return Sample(query={"limit": "2"})


@sample("POST /api/friends")
async def _ask_to_be_friends(world: World) -> Sample:
    asked = await world.server.register("asked")
    return Sample(body={"user_id": asked.user_id}, told=frozenset({"not_found"}))


@sample("PUT /api/friends/{user_id}")
async def _accept_friend(world: World) -> Sample:
    asker = await world.server.register("asker")
    await asker.post("/api/friends", {"user_id": world.alice.user_id}, expect=201)
    return Sample(places={"user_id": asker.user_id}, foreign={"user_id": world.eve.user_id})


@sample("DELETE /api/friends/{user_id}")
async def _end_friendship(world: World) -> Sample:
    asked = await world.server.register("asked")
    await world.alice.post("/api/friends", {"user_id": asked.user_id}, expect=201)
    return Sample(places={"user_id": asked.user_id}, foreign={"user_id": world.eve.user_id})


@sample("GET /api/blocks")
async def _blocks(world: World) -> Sample:
    return Sample(query={"limit": "2"})


@sample("PUT /api/blocks/{user_id}")
async def _block(world: World) -> Sample:
    pest = await world.server.register("pest")
    return Sample(places={"user_id": pest.user_id}, foreign={"user_id": str(uuid4())})


@sample("DELETE /api/blocks/{user_id}")
async def _unblock(world: World) -> Sample:
    pest = await world.server.register("pest")
    await world.alice.call("PUT", f"/api/blocks/{pest.user_id}", expect=204)
    return Sample(places={"user_id": pest.user_id}, foreign={"user_id": world.eve.user_id})


# -- conversations ----------------------------------------------------------------------------------------------------------


@sample("GET /api/conversations")
async def _conversations(world: World) -> Sample:
    return Sample(query={"limit": "2", "changed_since": "2026-01-05T10:00:00Z"})


@sample("POST /api/conversations")
async def _make_group(world: World) -> Sample:
    others = [world.bob.user_id, world.cyd.user_id]
    body = {"type": "group", "name": "new", "participant_ids": others, "client_conversation_id": str(uuid4())}
    return Sample(body=body, told=frozenset({"not_found"}))


@sample(f"GET {CONVERSATION}")
async def _conversation(world: World) -> Sample:
    return Sample(places={"conversation_id": world.group_id}, foreign={"conversation_id": world.foreign_group_id})


@sample(f"PATCH {CONVERSATION}")
async def _rename(world: World) -> Sample:
    return Sample(
        places={"conversation_id": world.group_id}, body={"name": "friends"}, foreign={"conversation_id": world.foreign_group_id}
    )


@sample(f"DELETE {CONVERSATION}")
async def _delete_conversation(world: World) -> Sample:
    group_id = await world.server.group(world.alice, world.bob, world.cyd)
    return Sample(places={"conversation_id": group_id}, foreign={"conversation_id": world.foreign_group_id})


@sample(f"POST {CONVERSATION}/participants")
async def _add_participants(world: World) -> Sample:
    return Sample(
        places={"conversation_id": world.group_id},
        body={"user_ids": [world.dora.user_id]},
        told=frozenset({"not_found"}),
        foreign={"conversation_id": world.foreign_group_id},
    )


@sample(f"PATCH {CONVERSATION}/participants/{{user_id}}")
async def _change_role(world: World) -> Sample:
    return Sample(
        places={"conversation_id": world.group_id, "user_id": world.bob.user_id},
        body={"role": "admin"},
        foreign={"conversation_id": world.foreign_group_id, "user_id": world.eve.user_id},
    )


@sample(f"DELETE {CONVERSATION}/participants/{{user_id}}")
async def _remove_participant(world: World) -> Sample:
    group_id = await world.server.group(world.alice, world.bob, world.cyd)
    return Sample(
        places={"conversation_id": group_id, "user_id": world.bob.user_id},
        foreign={"conversation_id": world.foreign_group_id, "user_id": world.eve.user_id},
    )


# -- messages ---------------------------------------------------------------------------------------------------------------


def _in_group(world: World, **more: Any) -> Sample:
    return Sample(places={"conversation_id": world.group_id}, foreign={"conversation_id": world.foreign_group_id}, **more)


@sample(f"GET {CONVERSATION}/messages")
async def _history(world: World) -> Sample:
    return _in_group(world, query={"before": str(world.message_id), "limit": "2"})


@sample(f"POST {CONVERSATION}/messages")
async def _post(world: World) -> Sample:
    body = {"client_message_id": str(uuid4()), "content": "hello", "metadata": {"tone": "warm"}}
    return _in_group(world, body=body, told=frozenset({"conflict"}))


@sample(f"GET {CONVERSATION}/messages/{{message_id}}")
async def _message(world: World) -> Sample:
    made = _in_group(world)
    made.places["message_id"], made.foreign["message_id"] = str(world.message_id), str(world.foreign_message_id)
    return made


@sample(f"DELETE {CONVERSATION}/messages/{{message_id}}")
async def _delete_message(world: World) -> Sample:
    path = f"/api/conversations/{world.group_id}/messages"
    posted = await world.alice.post(path, {"client_message_id": str(uuid4()), "content": "to be deleted"}, expect=201)
    made = _in_group(world, query={"for": "everyone"})
    made.places["message_id"], made.foreign["message_id"] = str(posted["message_id"]), str(world.foreign_message_id)
    return made


@sample(f"POST {CONVERSATION}/read")
async def _read(world: World) -> Sample:
    return _in_group(world, body={"message_id": world.message_id})


@sample("GET /api/messages/search")
async def _search(world: World) -> Sample:
    return Sample(query={"q": "hello", "conversation_id": world.group_id, "limit": "2"}, told=frozenset({"not_found"}))


@sample("GET /api/sync")
async def _sync(world: World) -> Sample:
    return Sample(query={"device_id": "tablet", "last_sync_id": "0", "limit": "2"})


@sample("GET /api/openapi.json")
async def _openapi(world: World) -> Sample:
    return Sample()
