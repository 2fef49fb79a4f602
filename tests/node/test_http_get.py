"""The strict ranged GET: only the exact 206 is accepted, and every other answer says why."""

import pytest

from node.http_get import check_head, retry_after_s, shown
from node.jobs import FetchJob
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
    assert retry_after_s({"x-oss-qos-delay-time": "250"}) == 0.25
    assert retry_after_s({"retry-after": "3"}) == 3.0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None
    assert shown("https://a:b@h:1/p%20q?x=y") == "https://h:1/p%20q"
