"""The endpoints as the running server tells them, ready to be tried one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.refusals.shapes import Definitions, Schema
from tests.refusals.world import SAMPLES, Sample, World


@dataclass(frozen=True)
class Endpoint:
    """One method of one path; `fields` and `required` are those of its body."""

    name: str
    method: str
    template: str
    needs_sign_in: bool
    takes_body: bool
    success: int
    fields: Mapping[str, Schema]
    required: frozenset[str]
    query: Mapping[str, Schema]
    known: Definitions = field(repr=False)

    async def sample(self, world: World) -> Sample:
        made = await SAMPLES[self.name](world)
        if made.bearer is None and self.needs_sign_in:
            made.bearer = world.bearer
        return made


async def endpoints(world: World) -> list[Endpoint]:
    """Every endpoint of the contract that has a sample; a test of its own tells of those without."""
    return [one for one in await all_endpoints(world) if one.name in SAMPLES]


async def all_endpoints(world: World) -> list[Endpoint]:
    """Every endpoint of the contract."""
    document = (await world.talk.ask("GET", "/api/openapi.json")).json()
    known = document["components"]["schemas"]
    return [
        _endpoint(method.upper(), template, operation, known)
        for template, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _endpoint(method: str, template: str, operation: dict[str, Any], known: Definitions) -> Endpoint:
    body: Schema = {}
    if "requestBody" in operation:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        body = known[reference.rpartition("/")[2]]
        assert body["additionalProperties"] is False, f"{method} {template} takes fields that it does not know"
    return Endpoint(
        name=f"{method} {template}",
        method=method,
        template=template,
        needs_sign_in=bool(operation["security"]),
        takes_body="requestBody" in operation,
        success=next(int(status) for status in operation["responses"] if status != "default"),
        fields=body.get("properties", {}),
        required=frozenset(body.get("required", ())),
        query={one["name"]: one["schema"] for one in operation["parameters"] if one["in"] == "query"},
        known=known,
    )
