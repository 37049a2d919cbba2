"""Search over HTTP.

Rule: the question is checked here for its shape and in chat/ for its sense; the answer's messages are those of api/messages.py.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from uim.api.answers import Answer, json_answer
from uim.api.messages import ListedMessage
from uim.api.routes import Routes
from uim.chat.search import Search
from uim.model.person import Caller
from uim.wire.paging import DEFAULT_LIMIT, Cursor, Limit


class SearchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`q`: 2 or more code points without the spaces at its ends; found as it stands, without regard to case."""

    q: Annotated[str, Meta(min_length=2, max_length=200)]
    conversation_id: UUID | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_LIMIT


class FoundMessage(msgspec.Struct, frozen=True):
    """`highlights`: where the match stands in the content, [start, end) in code points; the first 100."""

    message: ListedMessage
    highlights: list[tuple[int, int]]


class SearchAnswer(msgspec.Struct, frozen=True):
    items: list[FoundMessage]
    next: str | None


def add_search(routes: Routes, search: Search) -> None:
    summary = "Search one's own conversations, the last 30 days, the newest first"

    @routes.route("GET", "/api/messages/search", query=SearchQuery, answers=SearchAnswer, summary=summary)
    async def search_messages(caller: Caller, *, query: SearchQuery) -> Answer:
        page = await search.page(
            user_id=caller.user_id,
            q=query.q,
            conversation_id=query.conversation_id,
            cursor=query.cursor,
            limit=query.limit,
        )
        items = [{"message": msgspec.Raw(hit.message), "highlights": hit.highlights} for hit in page.items]
        return json_answer(msgspec.json.encode({"items": items, "next": page.next}))
