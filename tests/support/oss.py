"""An OSS bucket that is a folder: a real server with real sockets, as strict as the real thing.

It reads only. Signatures are checked by the SDK's own code (`oss_auth`); ranges, errors and
listings are as OSS documents them, its 200 to a range beyond the end included (`oss_objects`).
CRC-64 and ETag always belong to the true object, so a damaged body can be told from a changed one.

`fault(get)` is asked before each GET of an object that would be answered well. It returns None,
a `Fault`, or one of these names:

    "503" "429" "500" "403" "404"   that status, with the code that OSS gives with it
    "cut"      half of the body, then the connection is closed
    "nothing"  the head, then the connection is closed
    "stall"    half of the body, then nothing until the client goes away

A request is in `requests` before the first byte of its answer can be seen, and the counts of bytes
are never behind what a client has received. What goes wrong inside the server, the hook included,
is raised by `close`.
"""

import contextlib
import itertools
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.oss_auth import (
    Authority,
    OssError,
    Received,
    TemporaryCredentials,
    invalid,
    parse_request,
    signature_kind,
)
from support.oss_objects import Bucket, Version, list_objects, parse_range

PIECE = 1 << 20  # handed to the kernel at once: close() and rates act between two of them


@dataclass
class Request:
    """One request and its answer.

    Attributes:
      key: None for the bucket itself.
      range: first byte and end (not included) of a range that is honoured; None for the whole.
      sent: bytes of the body handed to the kernel so far.
      signature: v4, v1, anonymous or unknown; whether it was right is told by `status`.
      headers: names in lower case.
    """

    method: str
    key: str | None
    query: Mapping[str, str]
    range: tuple[int, int] | None
    status: int
    sent: int
    signature: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class ObjectGet:
    """A GET about to be answered with `start` to `end` (not included); `count` earlier ones."""

    key: str
    start: int
    end: int
    count: int
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer: an error in its place, or a body that comes badly.

    Attributes:
      status, code: the error; `delay_ms` is its x-oss-qos-delay-time.
      rate_bytes_s: the body comes no faster.
      cut_after, stall_after: bytes of the body after which the connection is closed, or silent.
    """

    status: int | None = None
    code: str = ""
    delay_ms: int | None = None
    rate_bytes_s: float | None = None
    cut_after: int | None = None
    stall_after: int | None = None

    def check(self) -> None:
        """Raise the error, if it is one."""
        if self.status is not None:
            headers = {}
            if self.delay_ms is not None:
                headers["x-oss-qos-delay-time"] = str(self.delay_ms)
            raise OssError(self.status, self.code, "a fault of the test", headers=headers)


NAMED_FAULTS = {
    "503": Fault(503, "DownloadTrafficRateLimitExceeded"),
    "429": Fault(429, "QpsLimitExceeded"),
    "500": Fault(500, "InternalError"),
    "403": Fault(403, "AccessDenied"),
    "404": Fault(404, "NoSuchKey"),
    "nothing": Fault(cut_after=0),
}
FaultHook = Callable[[ObjectGet], str | Fault | None]
ControlHook = Callable[[str, str | None], str | Fault | None]


def _as_fault(answer: str | Fault | None, length: int = 0) -> Fault:
    if not isinstance(answer, str):
        return answer or Fault()
    halves = {"cut": Fault(cut_after=length // 2), "stall": Fault(stall_after=length // 2)}
    return {**NAMED_FAULTS, **halves}[answer]


class OssServer:
    """Serves a folder as a bucket on a free loopback port until `close`.

    Args:
      credentials: secrets by access key id; STS adds its own with `issue_token`.
      anonymous_read: whether objects may be read unsigned; a listing never may.
      signatures: the versions that are allowed.
      virtual_only: whether path style is forbidden, as OSS does it for its own domains.
      versioning: whether replaced objects are kept, and version ids told.
      crc_header: whether x-oss-hash-crc64ecma is told.
      page_size: most entries in one page of a listing, whatever is asked for.
      clock_offset_s: how far the server's clock is ahead; may be changed at any time.
      control_fault: as `fault`, for listings (key None) and HEAD: `control_fault(method, key)`.
      corrupt: by key, the offset of a byte that is wrong in every body; may be changed.
      extra: objects beside the folder's, for keys that no file can have ("dir/", "../x").
    """

    def __init__(
        self,
        root: Path,
        bucket: str = "models",
        *,
        region: str = "cn-test",
        credentials: Mapping[str, str] | None = None,
        anonymous_read: bool = False,
        signatures: Collection[str] = ("v1", "v4"),
        virtual_only: bool = False,
        versioning: bool = False,
        crc_header: bool = True,
        page_size: int | None = None,
        clock_offset_s: float = 0.0,
        fault: FaultHook = lambda _: None,
        control_fault: ControlHook = lambda _method, _key: None,
        corrupt: Mapping[str, int] | None = None,
        extra: Mapping[str, bytes] | None = None,
    ) -> None:
        self.bucket, self.region = bucket, region
        self.virtual_only, self.crc_header, self.page_size = virtual_only, crc_header, page_size
        self.clock_offset_s, self.fault, self.control_fault = clock_offset_s, fault, control_fault
        self.corrupt = dict(corrupt or {})
        self.authority = Authority(region, credentials or {}, signatures, anonymous_read)
        self.objects = Bucket(root, extra or {}, versioning)
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.body_bytes = 0
        self.object_gets = 0
        self.request_ids = itertools.count(1)
        self.closing = threading.Event()
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def now(self) -> float:
        """The server's clock."""
        return time.time() + self.clock_offset_s

    def issue_token(self, lifetime_s: float) -> TemporaryCredentials:
        """Temporary credentials as STS makes them: id, secret, token, expiration."""
        return self.authority.issue_token(lifetime_s, self.now())

    def replace(self, key: str, data: bytes) -> Version:
        """Write a new object; answers that have begun go on with the old one."""
        return self.objects.replace(key, data)

    def close(self) -> None:
        """Stop serving, ending what is under way; raises what went wrong inside the server."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()  # waits for the handlers
        self.objects.close()
        if self._server.errors:
            raise self._server.errors[0]


class _Server(ThreadingHTTPServer):
    """Joins its handlers at the end: no thread outlives a test, and no error is only printed."""

    daemon_threads = False
    request_queue_size = 128  # the default of 5 delays a node's many connections by seconds

    def __init__(self, oss: OssServer) -> None:
        self.oss = oss
        self.errors: list[BaseException] = []
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Know the connection before its thread can be waited for."""
        with self.oss.lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection and close it."""
        with self.oss.lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        """Wake all handlers: reads end, writes fail, stalls see the hang-up."""
        with self.oss.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what a handler died of, unless a client went away."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "AliyunOSS", ""
    disable_nagle_algorithm = True
    server: _Server
    record: Request
    number: str

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the tests look at `requests`."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header, by the server's own clock."""
        return formatdate(self.server.oss.now() if timestamp is None else timestamp, usegmt=True)

    def do_HEAD(self) -> None:
        """What a GET would say, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """A listing or an object."""
        headers = {name.lower(): text for name, text in self.headers.items()}
        self.number = f"{next(self.server.oss.request_ids):024X}"
        self.record = Request(self.command, None, {}, None, 0, 0, signature_kind(headers), headers)
        try:
            if len(headers) != len(self.headers):
                raise invalid("a header came twice")
            request = self._admit(headers)
            if request.key is None:
                self._list(request)
            else:
                self._object(request, request.key)
        except OssError as error:
            self._refuse(error)

    def _admit(self, headers: Mapping[str, str]) -> Received:
        oss = self.server.oss
        target = self.requestline.split()[1]  # `path` would have lost a slash of "//key"
        request = parse_request(self.command, target, headers, oss.bucket)
        self.record.key, self.record.query = request.key, request.query
        if oss.virtual_only and not request.virtual:
            message = "Please use virtual hosted style to access."
            raise OssError(403, "SecondLevelDomainForbidden", message, "0003-00001401")
        oss.authority.check(request, oss.now())
        if request.bucket != oss.bucket:
            message = "The specified bucket does not exist."
            raise OssError(404, "NoSuchBucket", message, "0015-00000101")
        if request.key is None or self.command == "HEAD":
            _as_fault(oss.control_fault(self.command, request.key)).check()
        return request

    def _list(self, request: Received) -> None:
        if self.command == "HEAD":
            raise OssError(501, "NotImplemented", "HEAD of a bucket is not served here")
        oss = self.server.oss
        body = list_objects(oss.objects, oss.bucket, request.query, oss.page_size)
        self._head(200, len(body), {"Content-Type": "application/xml"})
        self._write(body)

    def _object(self, request: Received, key: str) -> None:
        oss, headers = self.server.oss, request.headers
        if not request.query.keys() <= {"versionId"}:
            raise OssError(501, "NotImplemented", f"not served here: {sorted(request.query)}")
        version = oss.objects.find(key, request.query.get("versionId"))
        if headers.get("if-match", "*") not in ("*", version.etag):
            message = "At least one of the pre-conditions you specified did not hold."
            raise OssError(412, "PreconditionFailed", message)
        described = version.describe(oss.crc_header, oss.objects.versioning)
        if self.command == "HEAD":
            return self._head(200, version.size, described)
        standard = headers.get("x-oss-range-behavior") == "standard"
        span = parse_range(headers.get("range", ""), version.size, standard)
        self.record.range = span
        start, end = span or (0, version.size)
        with oss.lock:
            count, oss.object_gets = oss.object_gets, oss.object_gets + 1
        fault = _as_fault(oss.fault(ObjectGet(key, start, end, count, headers)), end - start)
        fault.check()
        if span:
            described["Content-Range"] = f"bytes {start}-{end - 1}/{version.size}"
        self._head(206 if span else 200, end - start, described)
        self._body(key, version, start, end, fault)
        return None

    def _refuse(self, error: OssError) -> None:
        body = b""
        if self.command != "HEAD":
            body = error.document(self.number, self.headers.get("Host", ""))
        described = {"Content-Type": "application/xml", "x-oss-ec": error.ec, **error.headers}
        self._head(error.status, len(body), described)
        self._write(body)

    def _head(self, status: int, length: int, described: Mapping[str, str]) -> None:
        oss = self.server.oss
        self.record.status = status
        with oss.lock:
            oss.requests.append(self.record)
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("x-oss-request-id", self.number)
        for name, text in described.items():
            self.send_header(name, text)
        self.end_headers()

    def _write(self, body: bytes) -> None:
        self.record.sent = len(body)
        self.wfile.write(body)

    def _body(self, key: str, version: Version, start: int, end: int, fault: Fault) -> None:
        limits = [limit for limit in (fault.cut_after, fault.stall_after) if limit is not None]
        stop = min([end, *(start + limit for limit in limits)])
        try:
            self._send(version, start, stop, self.server.oss.corrupt.get(key, -1), fault)
        except OSError:  # the client had seen enough, or the server closes
            self.close_connection = True
            return
        if limits:
            self.close_connection = True
            if fault.stall_after is not None:
                self._stall()

    def _send(self, version: Version, start: int, stop: int, wrong: int, fault: Fault) -> None:
        piece = PIECE
        if fault.rate_bytes_s:
            piece = max(1, min(PIECE, int(fault.rate_bytes_s / 50)))
        while start < stop:
            length = min(piece, stop - start)
            if start < wrong < start + length:
                length = wrong - start
            if fault.rate_bytes_s and self.server.oss.closing.wait(length / fault.rate_bytes_s):
                raise ConnectionAbortedError
            self._count(length)
            sent = 0
            try:
                if start == wrong:
                    byte = os.pread(version.stream.fileno(), 1, start)[0] ^ 0xFF
                    sent = self.connection.send(bytes([byte]))
                else:
                    out, source = self.connection.fileno(), version.stream.fileno()
                    sent = os.sendfile(out, source, start, length)
            finally:
                self._count(sent - length)
            if not sent:
                raise RuntimeError(f"the file became shorter while it was served: {version}")
            start += sent

    def _count(self, length: int) -> None:
        oss = self.server.oss
        with oss.lock:
            self.record.sent += length
            oss.body_bytes += length

    def _stall(self) -> None:
        poll = select.poll()
        # a hang-up of ours counts too, so close() ends the wait
        poll.register(self.connection, select.POLLRDHUP)
        poll.poll()
