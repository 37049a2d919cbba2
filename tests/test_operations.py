"""What is told about the server: its contract, its health, its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from tests.http_house import SEEN, SIGNED_IN, SOME_ID, client_of, house_app, is_problem
from uim.api.app import new_app
from uim.api.operations import Checkup, add_public_health, free_memory, judge_free, operations_app
from uim.metrics import Metrics

pytestmark = pytest.mark.timeout(30)


async def test_openapi_tells_what_the_routes_check() -> None:
    async with client_of(house_app()) as client:
        document = (await client.get("/api/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        see = document["paths"]["/api/users/{user_id}/messages/{message_id}"]["get"]
        assert [parameter["name"] for parameter in see["parameters"]] == ["user_id", "message_id", "limit", "q"]
        assert see["security"] == [{"bearer": []}]
        post = document["paths"]["/api/notes"]["post"]
        assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Note"}
        assert document["components"]["schemas"]["Note"]["additionalProperties"] is False
        assert "201" in post["responses"] and post["security"] == []


async def fine() -> None:
    await trio.lowlevel.checkpoint()


async def away() -> None:
    raise ConnectionRefusedError("no server there")


@pytest.mark.parametrize(
    ("postgresql", "redis", "status", "http_status"),
    [
        (fine, fine, "ok", 200),
        (fine, away, "degraded", 200),
        (away, fine, "failed", 503),
        (trio.sleep_forever, fine, "failed", 503),
    ],
)
async def test_health_is_that_of_the_worst(
    postgresql: Any, redis: Any, status: str, http_status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This machine's own disk and memory may be short.
    monkeypatch.setattr("uim.api.operations.judge_free", lambda free: "ok")
    checkup = Checkup(postgresql=postgresql, redis=redis, disk=tmp_path, probe_s=0.1)
    public = new_app()
    add_public_health(public, checkup)
    async with client_of(public) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (http_status, {"status": status})
        assert (await client.get("/health/ready")).status_code == http_status
        assert (await client.get("/health/live")).json() == {"status": "ok"}
        is_problem(await client.get("/metrics"), 404, "not_found")
    async with client_of(operations_app(checkup, Metrics(CollectorRegistry()))) as client:
        full = await client.get("/health")
        assert full.status_code == http_status and full.json()["status"] == status
        checks = full.json()["checks"]
        assert list(checks) == ["disk", "memory", "postgresql", "redis"] and checks["disk"] == {"status": "ok"}
        assert all(check["status"] == "ok" or check["error"] for check in checks.values())


async def test_draining_is_not_ready() -> None:
    public = new_app()
    checkup = Checkup(postgresql=fine, redis=fine, disk=Path("/"))
    add_public_health(public, checkup, is_draining=lambda: True)
    async with client_of(public) as client:
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200


async def test_health_asks_once_a_second_however_often_it_is_called(autojump_clock: trio.abc.Clock) -> None:
    asked = []

    async def count() -> None:
        asked.append(1)

    checkup = Checkup(postgresql=count, redis=fine, disk=Path("/"))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(checkup.health)
    assert len(asked) == 1
    await trio.sleep(1.1)
    await checkup.health()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("free", "status"), [(1.0, "ok"), (0.10, "ok"), (0.0999, "degraded"), (0.02, "degraded"), (0.0199, "failed")]
)
def test_free_space_is_judged(free: float, status: str) -> None:
    assert judge_free(free) == status


def test_memory_is_judged_by_the_tighter_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n")
    assert free_memory(tmp_path, tmp_path) == 0.4
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("950\n")
    (tmp_path / "memory.stat").write_text("anon 800\ninactive_file 50\n")
    assert free_memory(tmp_path, tmp_path) == 0.4
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path, tmp_path) == pytest.approx(0.1)


async def test_metrics_count_by_route_and_not_by_path() -> None:
    metrics = Metrics(CollectorRegistry())
    async with client_of(house_app(metrics=metrics)) as client:
        await client.get(SEEN, headers=SIGNED_IN)
        await client.get("/scan/me")
        await client.request("BREW", "/scan/me")
    async with client_of(operations_app(Checkup(postgresql=fine, redis=fine, disk=Path("/")), metrics)) as client:
        told = (await client.get("/metrics")).text
        route = "/api/users/<user_id>/messages/<message_id>"
        assert f'uim_http_requests_total{{method="GET",route="{route}",status="200"}} 1.0' in told
        assert 'uim_http_requests_total{method="other",route="none",status="404"} 1.0' in told
        assert "scan" not in told and str(SOME_ID) not in told


async def test_what_is_away_is_logged_when_it_changes_not_at_each_question() -> None:
    troubles: list[str] = ["one", "one", "one", "another", "", "another"]

    async def trouble() -> None:
        await trio.lowlevel.checkpoint()
        if why := troubles.pop(0):
            raise ConnectionRefusedError(why)

    checkup = Checkup(postgresql=trouble, redis=fine, disk=Path("/"))
    with structlog.testing.capture_logs() as logged:
        while troubles:
            await checkup._ask_all()
    assert [str(line["exc_info"]) for line in logged] == ["one", "another", "another"]
