"""`uim dev --demo`: three friends and what they said, told over HTTP; told again it changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.house import Server, serving, settings_for
from uim.cli.demo import PASSWORD, PEOPLE, TALK, Demo


@pytest.fixture
async def server(database_url: str, redis_url: str) -> AsyncIterator[Server]:
    async with serving(settings_for(database_url, redis_url)) as started:
        yield started


def fill(url: str) -> None:
    demo = Demo(url)
    demo.start()
    demo._thread.join()


async def test_the_demo_befriends_its_people_and_repeats_without_a_trace(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        await trio.to_thread.run_sync(fill, server.url)
    told = capsys.readouterr()
    assert told.out.count("Demo: sign in as ada, bob, cyd") == 2 and "could not" not in told.err
    names = {username for username, _ in PEOPLE}
    for username in names:
        person = await server.login(username, "phone", PASSWORD)
        friends = (await person.get("/api/friends"))["items"]
        assert {item["user"]["username"] for item in friends} == names - {username}
        assert {item["state"] for item in friends} == {"friend"}
    conversations = (await person.get("/api/conversations"))["items"]
    counts = [len((await person.get(f"/api/conversations/{c['conversation_id']}/messages"))["items"]) for c in conversations]
    assert sum(counts) >= sum(place == "group" for place, _, _ in TALK)
