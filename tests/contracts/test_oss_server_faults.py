"""The OSS server of the tests as a raw HTTP client sees it: ranges, errors, faults, records."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fastcrc
import pytest
from defusedxml import ElementTree
from support.cluster import wait_until
from support.oss import Fault, OssServer
from support.oss_client import send

KEYS = {"a/b/deep.bin": bytes(range(256)) * 16, "z": b"123456789"}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., OssServer]]:
    """Serve `KEYS` to anyone; a server that had errors fails the test at its end."""
    started: list[OssServer] = []

    def start(**options: object) -> OssServer:
        for key, data in KEYS.items():
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(data)
        started.append(OssServer(tmp_path, **{"anonymous_read": True, **options}))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.mark.parametrize(
    ("text", "default", "standard"),
    [
        ("bytes=0-3", (0, 4), (0, 4)),
        ("bytes=5-", (5, 9), (5, 9)),
        ("bytes=-2", (7, 9), (7, 9)),
        ("bytes=2-3,5-6", (2, 4), (2, 4)),
        ("bytes=8-8", (8, 9), (8, 9)),
        ("bytes=5-9", None, (5, 9)),
        ("bytes=-10", None, (0, 9)),
        ("bytes=9-", None, 416),
        ("bytes=9-20", None, 416),
        ("bytes=-0", None, 416),
        ("byte=0-3", None, None),
        ("bytes=3-2", None, None),
        ("bytes=-", None, None),
    ],
)
def test_ranges_as_oss_answers_them(serve, text, default, standard):
    server, data = serve(), KEYS["z"]
    for expected, headers in ((default, {}), (standard, {"x_oss_range_behavior": "standard"})):
        answer = send(server, "/models/z", range=text, **headers)
        if expected == 416:
            assert answer.code() == "416 InvalidRange"
            continue
        assert answer.headers["x-oss-hash-crc64ecma"] == str(0x995DC9BBDF1939FA)
        assert answer.headers["accept-ranges"] == "bytes"
        assert server.requests[-1].range == expected
        if expected is None:
            assert (answer.status, answer.body) == (200, data)
            assert "content-range" not in answer.headers
        else:
            start, end = expected
            assert (answer.status, answer.body) == (206, data[start:end])
            assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/9"


def test_errors_are_xml_and_bare_for_head(serve):
    server = serve(anonymous_read=False)
    answer = send(server, "/models/z")
    fields = {child.tag: child.text for child in ElementTree.fromstring(answer.body)}
    assert fields.keys() == {"Code", "Message", "RequestId", "HostId", "EC"}
    assert fields["RequestId"] == answer.headers["x-oss-request-id"]
    head = send(server, "/models/z", "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (403, b"", "0")
    assert "x-oss-err" not in head.headers
    for target in ("/models/z?a=b+c", "/models/z?a&a", "/models/%ff"):
        assert send(server, target).code() == "400 InvalidArgument", target
    twice = send(server, "/models/z", Range="bytes=0-1", range="bytes=2-3")
    assert twice.code() == "400 InvalidArgument"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("503", "503 DownloadTrafficRateLimitExceeded"),
        ("429", "429 QpsLimitExceeded"),
        (Fault(503, "TotalQpsLimitExceeded", delay_ms=120), "503 TotalQpsLimitExceeded"),
    ],
)
def test_throttling_and_the_delay_it_asks_for(serve, fault, code):
    asked = []

    def hook(request):
        asked.append((request.key, request.start, request.end, request.count))
        return fault if request.count == 0 else None

    server = serve(fault=hook)
    answer = send(server, "/models/z", range="bytes=1-4")
    assert answer.code() == code
    delay = "120" if isinstance(fault, Fault) else None
    assert answer.headers.get("x-oss-qos-delay-time") == delay
    assert send(server, "/models/z").body == KEYS["z"]
    assert asked == [("z", 1, 5, 0), ("z", 0, 9, 1)]
    assert [(r.status, r.range) for r in server.requests] == [(int(code[:3]), (1, 5)), (200, None)]
    assert server.body_bytes == 9


@pytest.mark.parametrize(
    ("fault", "received"), [("cut", 2048), ("nothing", 0), (Fault(cut_after=7), 7)]
)
def test_a_cut_closes_the_connection_inside_the_body(serve, fault, received):
    server = serve(fault=lambda _: fault)
    with pytest.raises(http.client.IncompleteRead) as caught:
        send(server, "/models/a/b/deep.bin")
    assert caught.value.partial == KEYS["a/b/deep.bin"][:received]
    assert server.body_bytes == received


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_stall_lasts_until_one_side_ends_it(serve, end):
    threads = threading.active_count()
    server = serve(fault=lambda _: "stall")
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=10)
    connection.request("GET", "/models/a/b/deep.bin")
    answer = connection.getresponse()
    assert answer.read(2048) == KEYS["a/b/deep.bin"][:2048]
    connection.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        answer.read(1)
    assert threading.active_count() == threads + 2
    if end == "server":
        server.close()
    answer.close()
    connection.close()
    left = threads if end == "server" else threads + 1
    wait_until(lambda: threading.active_count() == left, "the end of the handler", 10)


def test_a_slow_body_takes_its_time(serve):
    server = serve(fault=lambda _: Fault(rate_bytes_s=16384))
    began = time.monotonic()
    assert send(server, "/models/a/b/deep.bin").body == KEYS["a/b/deep.bin"]
    assert time.monotonic() - began >= 4096 / 16384


def test_a_damaged_byte_shows_only_in_the_crc(serve):
    server, data = serve(corrupt={"a/b/deep.bin": 100}), KEYS["a/b/deep.bin"]
    damaged = data[:100] + bytes([data[100] ^ 0xFF]) + data[101:]
    sound = {"x-oss-hash-crc64ecma": str(fastcrc.crc64.xz(data))}
    sound["etag"] = send(server, "/models/a/b/deep.bin", "HEAD").headers["etag"]
    for _ in range(2):
        answer = send(server, "/models/a/b/deep.bin")
        assert answer.body == damaged
        assert sound.items() <= answer.headers.items()
    for first, last in ((0, 99), (0, 100), (100, 100), (100, 110), (101, 110)):
        answer = send(server, "/models/a/b/deep.bin", range=f"bytes={first}-{last}")
        assert answer.body == damaged[first : last + 1]
        assert sound.items() <= answer.headers.items()


def test_the_crc_may_be_untold(serve):
    assert "x-oss-hash-crc64ecma" in send(serve(), "/models/z").headers
    assert "x-oss-hash-crc64ecma" not in send(serve(crc_header=False), "/models/z").headers


def test_large_bodies_one_connection_and_what_is_recorded(serve, tmp_path):
    data = bytes(range(256)) * (1 << 17)
    (tmp_path / "big").write_bytes(data)
    server = serve()
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=30)
    sockets = set()
    for method, target, status in (
        ("GET", "/models/big", 200),
        ("HEAD", "/models/none", 404),
        ("GET", "/models/none", 404),
        ("HEAD", "/models/big", 200),
        ("GET", "/models/big", 200),
    ):
        connection.request(method, target, headers={"X-Any": "Kept"})
        sockets.add(connection.sock)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == status
        if status == 200:
            assert body == (data if method == "GET" else b"")
            assert answer.headers["Content-Length"] == str(len(data))
            assert answer.headers["x-oss-hash-crc64ecma"] == str(fastcrc.crc64.xz(data))
    connection.close()
    assert len(sockets) == 1
    assert server.body_bytes == 2 * len(data)
    record = server.requests[0]
    assert (record.method, record.key, record.sent) == ("GET", "big", len(data))
    assert record.headers["x-any"] == "Kept"


def test_an_error_inside_a_hook_is_not_lost(tmp_path):
    (tmp_path / "z").write_bytes(b"z")
    server = OssServer(tmp_path, anonymous_read=True, fault=lambda _: "no such fault")
    with pytest.raises(http.client.RemoteDisconnected):
        send(server, "/models/z")
    with pytest.raises(KeyError, match="no such fault"):
        server.close()
