"""An origin that takes its time until the first byte, as object stores do: a folder over HTTP/1.1.

    python -m simulations.late_origin FOLDER HOST PORT DELAY_MS

Every GET of a file waits so long after its head has come, each connection by itself, and is then
answered with `sendfile`. Folders are listed as JSON, as nginx does, without a delay.
"""

import json
import os
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root = Path()
    delay_s = 0.0

    def do_GET(self) -> None:
        """A listing, or a file or a range of it."""
        path = (self.root / self.path.lstrip("/")).resolve()
        if not path.is_relative_to(self.root) or not path.exists():
            self.send_error(404)
        elif path.is_dir():
            self._list(path)
        else:
            time.sleep(self.delay_s)
            self._send(path)

    def _list(self, path: Path) -> None:
        entries = []
        for child in sorted(path.iterdir()):
            status = child.stat()
            entry = {"name": child.name, "mtime": formatdate(status.st_mtime, usegmt=True)}
            kind = {"type": "file", "size": status.st_size}
            entries.append({**entry, **({"type": "directory"} if child.is_dir() else kind)})
        body = json.dumps(entries).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, path: Path) -> None:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            start, end, total = 0, status.st_size, status.st_size
            unit, _, wanted = self.headers.get("Range", "").partition("=")
            if unit == "bytes":
                first, _, last = wanted.partition("-")
                start, end = int(first), min(int(last) + 1 if last else total, total)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{total:x}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            while start < end and self.command == "GET":
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)

    do_HEAD = do_GET

    def handle(self) -> None:
        """Who breaks off wants no traceback."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Nothing is logged."""


def main() -> None:
    """Serve until killed; says `ready` first."""
    root, host, port, delay_ms = sys.argv[1:]
    Handler.root, Handler.delay_s = Path(root).resolve(), float(delay_ms) / 1000
    server = ThreadingHTTPServer((host, int(port)), Handler)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
