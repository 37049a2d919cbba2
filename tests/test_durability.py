"""What `uim check` says of a Redis on which nothing could be queued."""

from __future__ import annotations

import pytest

from uim.store import durability


@pytest.mark.parametrize(("version", "is_enough"), [("7.2.4", True), ("8.0.1", True), ("7.0.15", False), ("6.2.14", False), ("", False)])
def test_a_redis_that_cannot_wait_for_its_disk_is_told(version: str, is_enough: bool) -> None:
    fault = durability.redis_version({"redis_version": version})
    assert (fault is None) is is_enough
    assert fault is None or "WAITAOF" in fault


def test_a_replica_is_told_and_a_primary_is_not() -> None:
    assert durability.takes_writes({"role": "master"}) is None
    assert "replica" in (durability.takes_writes({"role": "slave"}) or "")
