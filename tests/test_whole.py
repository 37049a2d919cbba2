"""A request is read as whole only where h11 reads the same: whatever the bytes, the two never differ."""

from __future__ import annotations

import h11
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from uim.api.answers import Answer
from uim.api.whole import Whole, piece_of, whole_of
from uim.listener import MAX_FIELDS, MAX_HEAD_BYTES

pytestmark = pytest.mark.timeout(60)

GET = b"GET /api/users/me?limit=7 HTTP/1.1\r\n"
POST = b"POST /api/notes HTTP/1.1\r\nHost: x\r\n"


def by_h11(data: bytes) -> Whole | None:
    """The request that these bytes are to h11; None if they are none, or not only one."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    server.receive_data(data)
    body = b""
    try:
        request = server.next_event()
        if not isinstance(request, h11.Request) or request.http_version != b"1.1":
            return None
        while isinstance(said := server.next_event(), h11.Data):
            body += said.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(said, h11.EndOfMessage) or server.trailing_data[0]:
        return None
    server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    server.send(h11.EndOfMessage())
    path, _, query = request.target.partition(b"?")
    goes_on = server.our_state is h11.DONE
    return Whole(request.method.decode(), path.decode("latin-1"), query, list(request.headers), body, goes_on)


@pytest.mark.parametrize(
    ("data", "body", "goes_on"),
    [
        (GET + b"Host: x\r\n\r\n", b"", True),
        (GET + b"HOST:x\r\nAccept: \t a/b; q=1 \t\r\nX:\r\n\r\n", b"", True),
        (GET + b"Host: x\r\nConnection: Keep-Alive\r\n\r\n", b"", True),
        (GET + b"Host: x\r\nConnection: close\r\n\r\n", b"", False),
        (GET + b"Host: x\r\nX: caf\xc3\xa9\r\nX: again\r\n\r\n", b"", True),
        (POST + b"Content-Length: 0\r\n\r\n", b"", True),
        (POST + b"Content-Length: 4\r\n\r\n\r\n\r\n", b"\r\n\r\n", True),
        (POST + b"Content-Length: 2\r\n\r\n{}", b"{}", True),
    ],
)
def test_a_request_of_the_plain_form_is_read(data: bytes, body: bytes, goes_on: bool) -> None:
    whole = whole_of(data)
    assert whole is not None and (whole.body, whole.goes_on) == (body, goes_on)
    assert whole == by_h11(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        GET,
        GET + b"Host: x\r\n",
        GET + b"Host: x\n\n",
        GET + b"Host: x\r\n\r\nG",
        GET + b"Host: x\r\n\r\n\r\n",
        (GET + b"Host: x\r\n\r\n") * 2,
        b"\r\n" + GET + b"Host: x\r\n\r\n",
        GET + b"\r\n",
        GET + b"Host: x\r\nHost: x\r\n\r\n",
        GET + b"Host : x\r\n\r\n",
        GET + b"Host: x\r\nX: a\r\n b\r\n\r\n",
        GET + b"Host: x\r\nX: a\x00b\r\n\r\n",
        GET + b"Host: x\r\nX: a\rb\r\n\r\n",
        GET + b"Host: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        GET + b"Host: x\r\nConnection: HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        GET + b"Host: x\r\nConnection: close, te\r\n\r\n",
        GET.replace(b"1.1", b"1.0") + b"Host: x\r\n\r\n",
        GET.replace(b" /", b"  /") + b"Host: x\r\n\r\n",
        GET.replace(b" HTTP", b"  HTTP") + b"Host: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 1\r\n\r\n{}",
        POST + b"Content-Length: 02\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 2, 2\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        GET + b"Host: x\r\n" + b"X: y\r\n" * MAX_FIELDS + b"\r\n",
        GET + b"Host: x\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
    ],
    ids=lambda data: repr(data[-40:]),
)
def test_everything_else_is_left_to_h11(data: bytes) -> None:
    assert whole_of(data) is None


# Of each part the usual form and the strange ones: most requests have a strange part or two, some have none.
NAMES = [b"X", b"host", b"Content-Length", b"Connection", b"Transfer-Encoding", b"Upgrade", b"x-\xff", b"", b"A B", b"Host "]
VALUES = [b"x", b"", b"0", b"2", b"4", b"close", b"keep-alive", b"chunked", b"\xff", b"a b", b"a\tb", b"\x0b", b"\x7f", b"a\x85", b"1, 2"]
METHODS = [b"GET", b"POST", b"PUT", b"BREW", b"CONNECT", b"PRI", b"get", b"M-SEARCH", b"SOURCE", b"", b"\r\nGET"]
TARGETS = [b"/", b"/a?b=c", b"*", b"http://x/a", b"/a b", b"/\xff", b"/a#b", b"x:1", b"", b"//", b"/\x01", b"/%00"]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1", b"ICE/1.0", b"RTSP/1.0"]
BLANKS = [b" ", b"  ", b"\t"]
ENDS = [b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\t"]


def mostly(forms: list[bytes]) -> st.SearchStrategy[bytes]:
    """The first of the forms in seven of eight cases."""
    return st.integers(0, 7).flatmap(lambda number: st.sampled_from(forms) if number == 7 else st.just(forms[0]))


starts = st.tuples(mostly(METHODS), mostly(BLANKS), mostly(TARGETS), mostly(BLANKS), mostly(VERSIONS), mostly(ENDS)).map(b"".join)
values = st.sampled_from(VALUES) | mostly([b"x"]) | st.binary(max_size=4)
separators = mostly([b": ", b":", b":\t", b" : ", b"", b": \r\n "])
fields = st.tuples(mostly(NAMES), separators, values, mostly([b"", b" ", b"\t "]), mostly(ENDS)).map(b"".join)
lengths = st.sampled_from([b"", b"", b"Content-Length: 2\r\n", b"Content-Length: 4\r\n", b"Content-Length: 4\r\nConnection: close\r\n"])
bodies = st.sampled_from([b"", b"", b"{}", b"\r\n\r\n", b"0\r\n\r\n"])
requests = st.tuples(
    starts, mostly([b"Host: x\r\n", b""]), st.lists(fields, max_size=3).map(b"".join), lengths, mostly([b"\r\n", b"", b"\n"]), bodies
).map(b"".join)


@settings(max_examples=1500, deadline=None)
@given(requests | st.binary(max_size=40))
@example(GET + b"Host: x\r\nX: a\x85\r\n\r\n")
@example(GET + b"Host: x\r\nX: \x0b\r\n\r\n")
def test_what_is_read_h11_reads_alike(data: bytes) -> None:
    whole = whole_of(data)
    event("read" if whole is not None else "left")
    if whole is not None:
        assert whole == by_h11(data)


def test_an_answer_is_written_as_h11_writes_it() -> None:
    given_ = Answer(201, b'{"a":1}', [(b"content-type", b"application/json"), (b"content-length", b"7")])
    date = (b"date", b"Fri, 27 Nov 2026 05:32:46 GMT")
    for goes_on in (True, False):
        server = h11.Connection(h11.SERVER)
        server.receive_data(GET + b"Host: x\r\n" + (b"\r\n" if goes_on else b"Connection: close\r\n\r\n"))
        assert isinstance(server.next_event(), h11.Request)
        written = server.send(h11.Response(status_code=201, headers=[*given_.headers, date])) or b""
        written += server.send(h11.Data(data=given_.body)) or b""
        assert piece_of(given_, now_s=1795757566.9, goes_on=goes_on) == written
