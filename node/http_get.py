"""The strict ranged GET: one request on a connection, the head parsed by h11, the body raw.

Anything but a 206 with the exact range, total and validator is an error before a byte of the body
is read: a server that ignores Range answers with the whole object, up to hundreds of gigabytes.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import h11
import trio

from node import jobs
from node.dial import Dialler
from node.origins.base import public_url
from node.origins.control import delay_hint_s, request_id
from node.sockets import EndOfStream, Window, receive_into, send_all, wait_low_water
from node.throttle import Throttle
from node.tls import tls_context
from p2p.errors import OriginError

CONNECT_S = 5.0
SEND_S = 10.0
MAX_HEAD = 16 * 1024
MAX_INTERIM = 8  # 1xx answers before the real one
MAX_ERROR_BODY = 16 * 1024  # a store's XML with its own code for what went wrong

CHANGED = "changed"  # in place of a store's code: the object is not the manifest's any more

SINGLE = frozenset({"content-range", "content-length", "etag", "last-modified"})
FATAL = frozenset({400, 401, 403, 404, 405, 410, 412, 416})


@contextmanager
def _broken_as_os_error() -> Iterator[None]:
    """trio's word for a broken TLS connection, in the words of plain sockets."""
    try:
        yield
    except trio.BrokenResourceError as error:
        cause = error.__cause__ or error
        text = getattr(cause, "strerror", None) or str(cause) or "connection broken"
        raise OSError(0, f"TLS: {text}") from error


class Wire:
    """A connection to an origin, plain or TLS.

    `reusable` says that an answer was read to its end and the server keeps the connection.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: "trio.SSLStream[trio.SocketStream] | None",
        source_ip: str = "",
    ) -> None:
        self._sock = sock
        self._tls = tls
        self.source_ip = source_ip
        self.reusable = False
        self.window = Window(sock)

    async def send(self, data: bytes) -> None:
        """All of it."""
        if self._tls is not None:
            with trio.fail_after(SEND_S), _broken_as_os_error():
                await self._tls.send_all(data)
        else:
            await send_all(self._sock, data, SEND_S)

    async def receive(
        self, view: memoryview, stall_s: float, throttle: Throttle | None = None
    ) -> int:
        """At least one byte; raises EndOfStream, OSError, trio.TooSlowError."""
        if self._tls is None:
            return await receive_into(self._sock, view, stall_s, throttle)
        with trio.fail_after(stall_s), _broken_as_os_error():
            data = await self._tls.receive_some(len(view))
        if not data:
            raise EndOfStream
        view[: len(data)] = data
        if throttle is not None and throttle.pacer is not None:
            await throttle.pay(len(data))  # nobody knows before how much a record brings
        return len(data)

    async def receive_head(self, stall_s: float) -> bytes:
        """Some bytes of a response's head."""
        if self._tls is not None:
            with trio.fail_after(stall_s), _broken_as_os_error():
                return bytes(await self._tls.receive_some(MAX_HEAD))
        while True:
            try:
                return self._sock.recv(MAX_HEAD)
            except BlockingIOError:
                await wait_low_water(self._sock, 1, stall_s)

    def close(self) -> None:
        """At once."""
        self._sock.close()


async def open_wire(
    url: str, source_ip: str = "", dialler: Dialler | None = None, connect_s: float = CONNECT_S
) -> Wire:
    """Connect to the host of a URL, from a local address if one is named.

    Raises:
      OSError, trio.TooSlowError
    """
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    stream = await (dialler or Dialler()).connect(host, port, source_ip, connect_s)
    if tls:
        secure = trio.SSLStream(stream, tls_context(), server_hostname=host, https_compatible=True)
        with trio.fail_after(CONNECT_S), _broken_as_os_error():
            await secure.do_handshake()
        return Wire(stream.socket, secure, source_ip)  # type: ignore[arg-type]
    plain = socket.socket(fileno=stream.socket.detach())
    plain.setblocking(False)
    return Wire(plain, None, source_ip)


@dataclass(slots=True)
class Answer:
    """What is known of an answer, for the audit log: filled in as it comes."""

    status: int = 0
    request_id: str = ""
    had_head: bool = False
    sent: bool = False
    end: int = 0
    """of the bytes of the object that were asked for: fewer than planned if others took some"""


@dataclass(slots=True)
class Body:
    """A response whose head was accepted: `first` is what came of the body with it."""

    first: bytes
    keep_alive: bool


def request_bytes(job: jobs.FetchJob, start: int, end: int) -> tuple[h11.Connection, bytes]:
    """The request for bytes `start` to `end` (not included) of the object."""
    parts = urlsplit(job.url)
    headers = [("Host", parts.netloc.rpartition("@")[2]), ("Range", f"bytes={start}-{end - 1}")]
    headers += [(name, value) for name, value in job.headers]
    headers += [("Accept-Encoding", "identity"), ("User-Agent", "shoal")]
    if job.etag and not job.etag.startswith("W/"):
        headers.append(("If-Match", job.etag))
    elif job.modified:
        headers.append(("If-Unmodified-Since", job.modified))
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    request = h11.Request(method="GET", target=target, headers=headers)
    data = connection.send(request) or b""
    return connection, data + (connection.send(h11.EndOfMessage()) or b"")


def check_head(
    job: jobs.FetchJob, status: int, headers: dict[str, str], start: int, end: int
) -> None:
    """Accept exactly the 206 that was asked for.

    Raises:
      OriginError: anything else; it names the URL and what was wrong.
    """
    where = public_url(job.url)
    if status == 412:
        text = f"{where}: the object has changed at the origin (412)"
        raise OriginError(text, fatal=True, status=status, code=CHANGED)
    if status == 200:
        text = f"{where}: no range support: 200 to a range request"
        raise OriginError(text, fatal=True, status=status)
    if status != 206:
        raise OriginError(
            f"{where}: HTTP {status}",
            fatal=status in FATAL or 300 <= status < 400,
            retry_after_s=delay_hint_s(headers),
            status=status,
            date=headers.get("date", ""),
            location=headers.get("location", ""),
        )
    wanted = f"bytes {start}-{end - 1}/{job.total}"
    wrong = ""
    if headers.get("content-range", "").strip() != wanted:
        wrong = f"Content-Range {headers.get('content-range')!r}, not {wanted!r}"
    elif headers.get("content-length") != str(end - start):
        wrong = f"Content-Length {headers.get('content-length')!r}, not {end - start}"
    elif headers.get("content-encoding", "identity") != "identity":
        wrong = "the body is encoded, though it was asked not to"
    elif "transfer-encoding" in headers:  # its framing would be taken for bytes of the object
        wrong = f"Transfer-Encoding {headers['transfer-encoding']!r} of a range"
    if wrong:
        raise OriginError(f"{where}: {wrong}", fatal=True, status=status)
    check_validator(job, headers, where)


def check_validator(job: jobs.FetchJob, headers: dict[str, str], where: str) -> None:
    """The response is of the revision that the manifest names.

    Raises:
      OriginError: it is not.
    """
    if job.etag and headers.get("etag") != job.etag:
        raise OriginError(
            f"{where}: the object has changed at the origin "
            f"(ETag {headers.get('etag')!r}, not {job.etag!r})",
            fatal=True,
            code=CHANGED,
        )
    if not job.etag and job.modified:
        try:
            same = parsedate_to_datetime(headers.get("last-modified", "")) == parsedate_to_datetime(
                job.modified
            )
        except ValueError:
            same = False
        if not same:
            text = f"{where}: the object has changed at the origin"
            raise OriginError(text, fatal=True, code=CHANGED)


async def get(
    wire: Wire, job: jobs.FetchJob, start: int, end: int, stall_s: float, answer: Answer
) -> Body:
    """Send the request and accept the head; `answer` is filled in for the audit log.

    Raises:
      OriginError, OSError, trio.TooSlowError
    """
    wire.reusable = False
    connection, request = request_bytes(job, start, end)
    answer.sent, answer.end = True, end
    await wire.send(request)
    try:
        event = await _head(wire, connection, stall_s)
    except h11.RemoteProtocolError as error:
        raise OriginError(
            f"{public_url(job.url)}: bad HTTP response: {error}", fatal=False
        ) from error
    headers: dict[str, str] = {}
    for name, value in event.headers:
        word, text = name.decode("latin-1"), value.decode("latin-1")
        if headers.setdefault(word, text) != text and word in SINGLE:
            raise OriginError(f"{public_url(job.url)}: two headers {word} that differ", fatal=True)
    answer.had_head, answer.status = True, event.status_code
    answer.request_id = request_id(headers)
    keep = event.http_version == b"1.1" and not re.search(
        "close", headers.get("connection", ""), re.IGNORECASE
    )
    try:
        check_head(job, event.status_code, headers, start, end)
    except OriginError as error:
        if error.status not in (200, 206):
            await _name_refusal(wire, connection, headers, error, stall_s, keep)
        raise
    first = b""
    while isinstance(more := connection.next_event(), h11.Data):
        first += bytes(more.data)
    return Body(first, keep)


async def _head(wire: Wire, connection: h11.Connection, stall_s: float) -> h11.Response:
    """The response's head, past what servers say before it."""
    interim = 0
    while interim <= MAX_INTERIM:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            await _more(wire, connection, stall_s)
        elif isinstance(event, h11.Response):
            if not event.http_version.startswith(b"1."):
                version = event.http_version.decode()
                raise h11.RemoteProtocolError(f"the server speaks HTTP/{version}")
            return event
        elif isinstance(event, h11.InformationalResponse):
            interim += 1
        else:
            raise h11.RemoteProtocolError("no response came")
    raise h11.RemoteProtocolError("interim responses without an end")


async def _more(wire: Wire, connection: h11.Connection, stall_s: float) -> None:
    data = await wire.receive_head(stall_s)
    if not data:
        raise EndOfStream
    connection.receive_data(data)


async def _name_refusal(
    wire: Wire,
    connection: h11.Connection,
    headers: dict[str, str],
    error: OriginError,
    stall_s: float,
    keep: bool,
) -> None:
    """Read a refusal's short body, for the store's own word and to keep the connection."""
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_ERROR_BODY:
        return
    body = b""
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                await _more(wire, connection, stall_s)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
    except (OSError, trio.TooSlowError, h11.RemoteProtocolError):
        return
    from node.origins.listing import parse_error  # an XML parser, which no healthy load needs

    wire.reusable = keep
    code = parse_error(body).code
    if code and error.code != CHANGED:
        error.code, error.args = code, (f"{error} {code}",)
