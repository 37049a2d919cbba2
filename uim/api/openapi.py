"""The HTTP contract as OpenAPI 3.1, made from the table of routes and its own types.

Rule: nothing is said twice; what a handler takes and answers is read from its route, so the reference cannot differ
from what the server checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from uim.api.answers import Problem
from uim.api.routes import Route, Routes

REFS: Final = "#/components/schemas/{name}"
_NUMBER: Final = {"type": "integer", "minimum": 1}
_ID: Final = {"type": "string", "format": "uuid"}


def openapi(routes: Iterable[Route], *, title: str, version: str) -> dict[str, Any]:
    """The whole document, ready for JSON."""
    known = list(routes)
    types = [
        type_
        for route in known
        for type_ in (route.body, route.query, route.answers, *route.also.values())
        if type_ is not None
    ]
    # One call for all, so that two types of one name are told apart.
    schemas, components = msgspec.json.schema_components([Problem, *types], ref_template=REFS)
    schema_of = iter(schemas[1:])
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        body, query, answers = (
            next(schema_of) if type_ is not None else None for type_ in (route.body, route.query, route.answers)
        )
        operation = _operation(route, body, query, answers, components)
        for status in route.also:
            operation["responses"][str(status)] = _success(next(schema_of))
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def add_openapi(routes: Routes, *, title: str, version: str) -> None:
    """Add `GET /api/openapi.json`, which tells all routes of the table, its own too, whenever they were added."""

    @routes.route("GET", "/api/openapi.json", answers=dict[str, Any], signed_in=False, summary="This document")
    async def tell_openapi() -> dict[str, Any]:
        return openapi(routes, title=title, version=version)


def _operation(route: Route, body: Any, query: Any, answers: Any, components: dict[str, Any]) -> dict[str, Any]:
    refused = {"application/problem+json": {"schema": {"$ref": REFS.format(name="Problem")}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "parameters": [*_path_parameters(route), *_query_parameters(query, components)],
        "responses": {str(route.status): _success(answers), "default": {"description": "a problem", "content": refused}},
        "security": [{"bearer": []}] if route.signed_in else [],
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _success(answers: Any) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "success"}
    if answers is not None:
        success["content"] = {"application/json": {"schema": answers}}
    return success


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _NUMBER if name == "message_id" else _ID}
        for name in route.places
    ]


def _query_parameters(query: Any, components: dict[str, Any]) -> list[dict[str, Any]]:
    if query is None:
        return []
    struct = components[query["$ref"].rpartition("/")[2]]
    required = struct.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in struct["properties"].items()
    ]
