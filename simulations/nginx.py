"""A real nginx on a free loopback port: one worker process, sendfile, nothing logged."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
daemon off; worker_processes 1; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; default_type application/octet-stream;
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }}
}}
"""
WHERE = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
START_S, STOP_S = 10.0, 5.0


@contextmanager
def serving(root: Path, work: Path) -> Iterator[str]:
    """Serve a folder; gives the URL, without a slash at its end.

    Args:
      root: started by root, nginx reads it as another user: it must be readable for all.
      work: an empty folder for its own files.

    Raises:
      SystemExit: nginx is not installed, or does not start.
    """
    program = shutil.which("nginx", path=WHERE)
    if program is None:
        raise SystemExit("nginx is not installed: it is the origin here (apt-get install nginx)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, errors = work / "nginx.conf", work / "error.log"
    config.write_text(CONFIG.format(work=work, root=root, port=port))
    process = subprocess.Popen(
        [program, "-p", str(work), "-c", str(config), "-e", str(errors)],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(process, port, errors)
        yield f"http://127.0.0.1:{port}"
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
    text = errors.read_text().strip() if errors.exists() else "it says nothing"
    raise SystemExit(f"nginx did not start: {text}")
