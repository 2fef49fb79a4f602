"""A real nginx for tests, on a port of its own."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CONFIG = """
daemon off; worker_processes 1; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format body '$request_method $status $body_bytes_sent $uri';
  access_log {work}/access.log body;
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  sendfile on;
  server {{
    listen 127.0.0.1:{port}{ssl};
    location / {{ root {root}; autoindex on; autoindex_format json; {extra} }}
  }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running server of one folder."""

    url: str
    log: Path

    def body_bytes(self, method: str = "GET") -> int:
        """Body bytes sent so far, listings included."""
        lines = [line.split(" ", 3) for line in self.log.read_text().splitlines()]
        return sum(int(line[2]) for line in lines if line[0] == method)


@pytest.fixture
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Nginx]]:
    """Start nginx on a folder: `nginx(root, extra directives of its location, certificate)`."""
    started = []

    def start(root: Path, extra: str = "", certificate: Path | None = None) -> Nginx:
        program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
        assert program, "nginx is not installed (see .ci/run)"
        work = tmp_path_factory.mktemp("nginx")
        work.parent.chmod(0o755)
        work.chmod(0o777)
        for path in [root, *root.parents][:-2]:
            path.chmod(path.stat().st_mode | 0o055)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = work / "nginx.conf"
        ssl = ""
        if certificate is not None:
            ssl = f" ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate}"
        config.write_text(CONFIG.format(work=work, port=port, root=root, extra=extra, ssl=ssl))
        process = subprocess.Popen(
            [program, "-p", str(work), "-c", str(config), "-e", str(work / "error.log")]
        )
        started.append(process)
        end = time.monotonic() + 10
        while True:
            assert process.poll() is None, (work / "error.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "nginx did not start"
                time.sleep(0.02)
        scheme = "https" if certificate else "http"
        return Nginx(f"{scheme}://127.0.0.1:{port}/", work / "access.log")

    yield start
    for process in started:
        process.terminate()
        process.wait()
