"""Real processes for end-to-end tests: a tracker, nodes, and models with awkward sizes."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

DEADLINE_S = 90.0


def make_model(folder: Path, seed: int, sizes: dict[str, int]) -> Path:
    """Files of random bytes; the seed is printed so that a failure can be repeated."""
    print(f"model seed {seed}")
    rng = random.Random(seed)
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            while size:
                piece = rng.randbytes(min(size, 1 << 20))
                stream.write(piece)
                size -= len(piece)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by relative path; hidden files are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with path.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def wait_until(condition: Any, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll a real condition; fail by name when it does not come."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"did not come within {deadline_s} s: {what}")


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, whichever of its threads started them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(words[1]) == pid:
            found.append(int(stat.parent.name))
    return found


class Process:
    """A command with its output in a file, killed at the end whatever happens."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *command: str,
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ):
        self.log = folder / f"{name}.log"
        self.output = self.log.open("ab")
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, "-m", *command],
            stdout=self.output,
            stderr=self.output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "P2P_TOKEN": "", **(env or {})},
            start_new_session=True,
        )

    @property
    def text(self) -> str:
        """All output so far."""
        return self.log.read_text(errors="replace")

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code."""
        try:
            return self.popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s} s:\n{self.text}") from None

    def send(self, number: signal.Signals) -> None:
        """A signal to the control process alone."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the whole group: the control process and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self.output.close()


class Cluster:
    """One tracker and some nodes in a folder of their own."""

    def __init__(self, folder: Path, workers: int = 1):
        self.folder = folder
        self.workers = workers
        self.tracker_address = "127.0.0.1:0"
        self.http_address = "127.0.0.1:0"
        self.processes: list[Process] = []

    def start_tracker(self, *options: str) -> Process:
        """Start (or restart, on the same ports) the tracker and wait for its ready line."""
        log = self.folder / "tracker.log"
        before = log.stat().st_size if log.exists() else 0
        process = Process(
            self.folder, "tracker", "tracker", "serve", "--listen", self.tracker_address,
            "--http", self.http_address, *options,
        )  # fmt: skip
        self.processes.append(process)

        def ready() -> list[str]:
            assert process.popen.poll() is None, process.text
            return [x for x in process.text[before:].splitlines() if x.startswith("tracker: nodes")]

        words = wait_until(ready, "the tracker's ready line")[0].split()
        self.tracker_address = words[3].rstrip(",")
        self.http_address = words[-1].removeprefix("http://").removesuffix("/status")
        return process

    def node_folder(self, name: str) -> Path:
        """Where a node keeps everything."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def start_node(
        self,
        name: str,
        *options: str,
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> Process:
        """Start a node, by the command `prefix`; its model dir is NAME/model, its report
        NAME/report.json."""
        folder = self.node_folder(name)
        process = Process(
            folder, "node", "node", "join", "--tracker", self.tracker_address,
            "--model-dir", str(folder / "model"), "--report", str(folder / "report.json"),
            "--workers", str(self.workers), "--log-level", "info", "--quiet", *options, env=env,
            prefix=prefix,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def report(self, name: str) -> dict[str, Any]:
        """A node's report."""
        report: dict[str, Any] = json.loads((self.folder / name / "report.json").read_text())
        return report

    def status(self) -> dict[str, Any]:
        """The tracker's /status."""
        with urllib.request.urlopen(f"http://{self.http_address}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
        return status

    def node_status(self, name: str) -> dict[str, Any] | None:
        """A node's own status over its Unix socket; None while it does not answer."""
        from node.status import read_status
        from p2p.errors import P2PError

        try:
            return read_status(self.folder / name / ".model.shoal")
        except (P2PError, ValueError):
            return None

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()


def sums(cluster: Cluster, names: list[str], key: str) -> int:
    """A figure of the reports of several nodes, added up."""
    return sum(cluster.report(name)[key] for name in names)
