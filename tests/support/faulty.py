"""An HTTP origin that tells lies when it is told to; a real server with real sockets.

`fault(request)` is asked before each ranged GET and returns None (answer well) or a name:

    "503" "403" ...  that status, no body
    "200"            the whole object, as a server without range support does
    "wrong-range"    a 206 whose Content-Range begins one byte later
    "wrong-total"    a 206 of an object of another size
    "short"          half of the body, then the connection is closed
    "nothing"        the head, and then the connection is closed
    "other-etag"     a 206 of another revision, If-Match or not
"""

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Ranged:
    """A ranged GET: bytes `start` to `end` (not included) of `path`; `count` earlier ones."""

    path: str
    start: int
    end: int
    count: int


Fault = Callable[[Ranged], str | None]


class FaultyOrigin:
    """Serves a folder, listed like nginx does it, on a free loopback port until `close`.

    Args:
      probes: whether faults also meet the one-byte probe of a listing.
      listing: the names to list, instead of those that are there.
    """

    def __init__(
        self,
        root: Path,
        fault: Fault = lambda _: None,
        *,
        probes: bool = False,
        listing: list[str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.root, self.fault, self.probes, self.listing = root, fault, probes, listing
        self.body_bytes = 0
        self.requests: list[Ranged] = []
        self.etags: dict[str, str] = {}
        self.lock = threading.Lock()
        origin = self

        class Handler(_Handler):
            pass

        Handler.origin = origin
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        scheme, port = ("https" if tls else "http"), self.server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{port}/"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: FaultyOrigin

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the tests look at `requests`."""

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _list(self, folder: Path) -> None:
        names = self.origin.listing
        if names is None:
            names = sorted(child.name for child in folder.iterdir())
        kinds = {name: "directory" if (folder / name).is_dir() else "file" for name in names
                 if "\0" not in name}  # fmt: skip
        body = json.dumps([{"name": n, "type": kinds.get(n, "file")} for n in names]).encode()
        self._head(200, len(body))
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Size and ETag."""
        self.do_GET()

    def do_GET(self) -> None:
        """A listing, a whole file, or a range of one."""
        name = unquote(urlsplit(self.path).path)
        path = self.origin.root / name.lstrip("/")
        if path.is_dir():
            return self._list(path)
        if not path.is_file():
            return self._head(404, 0)
        data = path.read_bytes()
        etag = self.origin.etags.get(name, f'"{len(data)}-{path.stat().st_mtime_ns}"')
        if self.command == "HEAD":
            return self._head(200, len(data), ETag=etag)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        return self._range(name, data, etag, int(first), int(last) + 1)

    def _range(self, name: str, data: bytes, etag: str, start: int, end: int) -> None:
        origin = self.origin
        with origin.lock:
            ranged = Ranged(name, start, end, len(origin.requests))
            probe = end == 1 and start == 0
            if not probe:
                origin.requests.append(ranged)
        fault = origin.fault(ranged) if origin.probes or not probe else None
        if fault is not None and fault.isdecimal() and fault != "200":
            return self._head(int(fault), 0)
        if fault == "other-etag":
            etag = '"another"'
        elif self.headers.get("If-Match", etag) != etag:
            return self._head(412, 0)
        if fault == "200":
            self._head(200, len(data), ETag=etag)
            return self._body(data)
        shown = start + 1 if fault == "wrong-range" else start
        total = len(data) + 1 if fault == "wrong-total" else len(data)
        content_range = f"bytes {shown}-{end - 1}/{total}"
        self._head(206, end - start, ETag=etag, Content_Range=content_range)
        if fault in ("short", "nothing"):
            self._body(data[start : (start + end) // 2] if fault == "short" else b"")
            self.close_connection = True
            return None
        return self._body(data[start:end])

    def _body(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except OSError:  # the client had seen enough
            self.close_connection = True
            return
        with self.origin.lock:
            self.origin.body_bytes += len(data)
