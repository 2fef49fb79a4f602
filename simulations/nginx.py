"""A real nginx: one worker process, sendfile, nothing logged; here on a free loopback port."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONFIG = """
daemon off; worker_processes 1; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; default_type application/octet-stream;
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  server {{
    listen {listen}; keepalive_requests 1000000;
    location / {{ root {root}; autoindex on; autoindex_format json; }}
  }}
}}
"""
WHERE = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
START_S, STOP_S = 10.0, 5.0


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running server. `url` has no slash at its end."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of its worker process so far, to a clock tick (10 ms)."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        ticks = 0
        for child in children:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def config_text(work: Path, root: Path, listen: str) -> str:
    """A configuration that serves `root`, keeps its own files in `work`, and is not a daemon."""
    return CONFIG.format(work=work, root=root, listen=listen)


def program() -> str:
    """Where nginx is.

    Raises:
      SystemExit: it is not installed.
    """
    found = shutil.which("nginx", path=WHERE)
    if found is None:
        raise SystemExit("nginx is not installed: it is the origin here (apt-get install nginx)")
    return found


@contextmanager
def serving(root: Path, work: Path) -> Iterator[Nginx]:
    """Serve a folder.

    Args:
      root: started by root, nginx reads it as another user: it must be readable for all.
      work: an empty folder for its own files.

    Raises:
      SystemExit: nginx is not installed, does not start, or ends before its time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, errors = work / "nginx.conf", work / "error.log"
    config.write_text(config_text(work, root, f"127.0.0.1:{port}"))
    process = subprocess.Popen(
        [program(), "-p", str(work), "-c", str(config), "-e", str(errors)],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(process, port, errors)
        try:
            yield Nginx(f"http://127.0.0.1:{port}", process.pid)
        finally:
            if process.poll() is not None:  # the cause of whatever else went wrong
                raise SystemExit(f"nginx has ended by itself: {_said(errors)}")
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, errors: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"nginx did not start: {_said(errors)}")


def _said(errors: Path) -> str:
    text = errors.read_text().strip() if errors.exists() else ""
    return text or "its error log is empty"
