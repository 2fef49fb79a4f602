"""The strict ranged GET: only the exact 206 is accepted, and every other answer says why."""

import http.client
import io
import socket
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from node.http_get import Answer, Body, Wire, check_head, get, request_bytes
from node.jobs import FetchJob
from node.origins.base import public_url
from node.origins.control import delay_hint_s
from p2p.errors import OriginError

JOB = FetchJob(0, "http://user:secret@host/path/file?sig=secret", [], '"e1"', "", 1000)
GOOD = {"content-range": "bytes 100-199/1000", "content-length": "100", "etag": '"e1"'}


def test_the_exact_206_is_accepted():
    check_head(JOB, 206, GOOD, 100, 200)


@pytest.mark.parametrize(
    ("status", "change", "words", "fatal"),
    [
        (200, {}, "no range support", True),
        (206, {"content-range": "bytes 0-99/1000"}, "Content-Range", True),
        (206, {"content-range": "bytes 100-199/1001"}, "Content-Range", True),
        (206, {"content-range": "bytes 100-199/*"}, "Content-Range", True),
        (206, {"content-length": "99"}, "Content-Length", True),
        (206, {"etag": '"e2"'}, "has changed", True),
        (206, {"etag": 'W/"e1"'}, "has changed", True),
        (206, {"content-encoding": "gzip"}, "encoded", True),
        (206, {"transfer-encoding": "chunked"}, "Transfer-Encoding", True),
        (302, {}, "302", True),
        (403, {}, "403", True),
        (404, {}, "404", True),
        (412, {}, "has changed", True),
        (416, {}, "416", True),
        (429, {"retry-after": "7"}, "429", False),
        (503, {}, "503", False),
    ],
)
def test_any_other_answer_is_an_error_that_names_the_url_without_its_secrets(
    status, change, words, fatal
):
    with pytest.raises(OriginError, match=words) as caught:
        check_head(JOB, status, {**GOOD, **change}, 100, 200)
    assert caught.value.fatal == fatal
    assert "http://host/path/file" in str(caught.value)
    assert "secret" not in str(caught.value)
    if status == 429:
        assert caught.value.retry_after_s == 7.0


def test_hints_of_both_kinds_are_seconds():
    assert delay_hint_s({"x-oss-qos-delay-time": "250"}) == 0.25
    assert delay_hint_s({"retry-after": "3"}) == 3.0
    assert delay_hint_s({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None
    assert public_url("https://a:b@h:1/p%20q?x=y") == "https://h:1/p%20q"


DATED = FetchJob(0, "http://host/file", [], "", "Wed, 21 Oct 2026 07:28:00 GMT", 1000)


def test_without_an_etag_the_time_of_the_last_change_is_the_revision():
    good = {key: GOOD[key] for key in ("content-range", "content-length")}
    check_head(DATED, 206, {**good, "last-modified": DATED.modified}, 100, 200)
    for changed in ({"last-modified": "Wed, 21 Oct 2026 07:28:01 GMT"}, {"last-modified": "x"}, {}):
        with pytest.raises(OriginError, match="has changed") as caught:
            check_head(DATED, 206, {**good, **changed}, 100, 200)
        assert caught.value.fatal


def test_the_request_asks_for_the_range_of_this_revision_with_the_headers_it_was_given():
    job = replace(JOB, headers=[["Authorization", "Basic c2VjcmV0"]])
    _, request = request_bytes(job, 100, 200)
    first, *lines = request.decode().split("\r\n")
    assert first == "GET /path/file?sig=secret HTTP/1.1"
    assert {"Host: host", "Range: bytes=100-199", 'If-Match: "e1"'} <= set(lines)
    assert {"Authorization: Basic c2VjcmV0", "Accept-Encoding: identity"} <= set(lines)
    _, request = request_bytes(DATED, 0, 1)
    assert f"If-Unmodified-Since: {DATED.modified}" in request.decode().split("\r\n")


# -- the head as a server may send it, over a real socket -----------------------------------------


def answer_to(response: bytes) -> Body | OriginError | OSError:
    """What `get` makes of these bytes and the end of the connection."""

    async def ask() -> Body | OriginError | OSError:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(response)
            theirs.shutdown(socket.SHUT_WR)
            try:
                return await get(Wire(ours, None), JOB, 100, 200, 5.0, Answer())
            except (OriginError, OSError) as error:
                return error

    return trio.run(ask)


def response(status: bytes, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    lines = [b"HTTP/1.1 " + status, *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


RIGHT = [(b"Content-Range", b"bytes 100-199/1000"), (b"Content-Length", b"100"), (b"ETag", b'"e1"')]
WRONG = [
    (b"Content-Range", b"bytes 0-99/1000"), (b"Content-Range", b"bytes 100-199/*"),
    (b"content-range", b"BYTES 100-199/1000"), (b"Content-Length", b"99"),
    (b"Content-Length", b"+100"), (b"ETag", b'"e2"'),
    (b"ETag", b'W/"e1"'), (b"Transfer-Encoding", b"chunked"), (b"Content-Encoding", b"gzip"),
]  # fmt: skip
HARMLESS = [(b"X-Other", b"1"), (b"Date", b"Tue, 24 Nov 2026 22:00:00 GMT"),
            (b"Connection", b"close"), (b"content-encoding", b"identity")]  # fmt: skip


@given(
    st.sampled_from([b"206 Partial Content", b"206", b"200 OK", b"416 Range", b"503 Busy"]),
    st.lists(st.sampled_from(RIGHT + RIGHT + WRONG + HARMLESS), max_size=7),
    st.binary(max_size=120),
)
@settings(max_examples=400, deadline=None)
def test_only_the_right_headers_in_any_order_make_a_body(status, headers, body):
    got = answer_to(response(status, headers, body))
    right = (
        status.startswith(b"206")
        and all(header in headers for header in RIGHT)
        and not any(header in headers for header in WRONG)
    )
    assert isinstance(got, Body) == right, (got, headers)
    if right:
        assert got.first == body[:100]
        assert got.keep_alive == ((b"Connection", b"close") not in headers)


@pytest.mark.parametrize("version", [b"0.9", b"0.1", b"2.0"])
def test_another_major_version_of_http_is_refused_by_name(version):
    good = response(b"206 Partial Content", RIGHT)
    got = answer_to(good.replace(b"HTTP/1.1", b"HTTP/" + version, 1))
    assert f"the server speaks HTTP/{version.decode()}" in str(got)


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_bytes_changed_anywhere_in_a_head_are_refused_or_mean_the_same(data):
    """The judge is another parser: whatever is accepted says the same to http.client."""
    good = response(b"206 Partial Content", [*RIGHT, *HARMLESS[:2]])
    at = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.integers(0, 3))
    new = data.draw(st.binary(max_size=4) | st.sampled_from([b"\r\n", b":", b" ", b"\n", b"\0"]))
    changed = good[:at] + new + good[at + cut :]
    got = answer_to(changed)
    if isinstance(got, Body):
        parsed = http.client.HTTPResponse(Socket(changed))
        parsed.begin()
        assert parsed.status == 206
        # a folded line is one line: both parsers say so, http.client with the fold left in
        assert " ".join(parsed.getheader("Content-Range").split()) == "bytes 100-199/1000"
        assert parsed.getheader("Content-Length").strip() == "100"
        assert parsed.getheader("ETag").strip() == '"e1"'
        assert parsed.getheader("Transfer-Encoding") is None


class Socket(io.BytesIO):
    """What http.client reads from."""

    def makefile(self, mode: str) -> io.BytesIO:
        """Itself."""
        return self


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_garbage_is_no_answer(data):
    assert not isinstance(answer_to(data), Body)


def test_a_head_without_an_end_and_interim_answers_without_an_end_are_given_up():
    endless = b"HTTP/1.1 206 Partial Content\r\nX: " + b"x" * 40_000
    assert "bad HTTP response" in str(answer_to(endless))
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * 9
    assert "without an end" in str(answer_to(interim + response(b"206", RIGHT)))
    assert isinstance(answer_to(interim[: len(interim) // 9 * 8] + response(b"206", RIGHT)), Body)
