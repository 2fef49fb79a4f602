"""A cluster on one bridge, in network namespaces: an origin with nginx, a tracker, and nodes, every
link shaped both ways. Real programs, real TCP; only the cables are slow.

    result = run(Case(nodes=8), folder)

Times are the nodes' own, from the moment that the tracker granted the first lease (or the node
joined, if that was later). What the origin sent is counted at its interface. How far a reader could
have read is seen in the nodes' state maps.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

from node.statemap import BODY, VERIFIED
from simulations.bench.processes import cpu_s
from simulations.case import Case, burst_bytes, reader_stall_s
from simulations.memory import held_ready
from simulations.netns import Host, Net, NetError, why_not
from simulations.nginx import config_text, program
from simulations.result import NodeResult, Result, origin_figures

TOKEN = "netlab"  # needed beyond loopback; these links lead nowhere
ORIGIN_IP, TRACKER_IP = "10.78.0.1", "10.78.0.2"
TRACKER = f"{TRACKER_IP}:7070"
MODEL = "model"
READY_S, PATIENCE = 60.0, 20.0  # a run may take so many times its bound
SAMPLE_S = 0.04
STEP = 8 << 20
# prints time and bytes sent by eth0 from inside the origin's namespace
SAMPLER = """
import time
while True:
    row = next(line for line in open("/proc/self/net/dev") if "eth0:" in line)
    print(time.time(), row.split(":")[1].split()[8], flush=True)
    time.sleep(0.02)
"""


@dataclass(slots=True)
class _Node:
    """A node while it runs."""

    number: int
    host: Host
    folder: Path
    process: "Popen[bytes] | None" = None
    state: int | None = None
    start_cpu_s: float = 0.0
    cpu_s: float = 0.0
    samples: list[tuple[float, int]] = field(default_factory=list)
    killed_at: float | None = None

    def close(self) -> None:
        """Let go of the state map."""
        if self.state is not None:
            os.close(self.state)

    def front(self, blocks: int) -> tuple[int, int]:
        """How many blocks are there, from the front on and in all."""
        if self.state is None:
            found = next(self.folder.glob("cache/*/state"), None)
            if found is None:
                return 0, 0
            self.state = os.open(found, os.O_RDONLY)
        data = os.pread(self.state, blocks, BODY)
        there = data.count(VERIFIED)
        return len(data) - len(data.lstrip(bytes([VERIFIED]))), there


class Netlab:
    """The hosts of one run. Use it in a `with` of its `net`."""

    def __init__(self, net: Net, case: Case, folder: Path) -> None:
        self.net, self.case, self.folder = net, case, folder
        net.allow_neighbours((case.nodes + 3) ** 2)
        self._switch = net.switch("lab")
        self.origin = self._host("origin", ORIGIN_IP, case.origin_mbit)
        self.tracker = self._host("tracker", TRACKER_IP)
        self.ips = [f"10.78.{1 + i // 250}.{1 + i % 250}" for i in range(case.nodes)]
        self.hosts = [
            self._host(f"n{i}", ip, case.mbit, case.up_mbit(i)) for i, ip in enumerate(self.ips)
        ]

    def _host(self, name: str, ip: str, mbit: float | None = None, up: float | None = None) -> Host:
        host = self.net.host(name)
        host.plug(
            self._switch, f"{ip}/16", mbit, up_mbit=up, mtu=self.case.mtu,
            burst_bytes=burst_bytes(mbit or 0), queue_bytes=self.case.queue_bytes,
        )  # fmt: skip
        if self.case.congestion:
            way = ("10.78.0.0/16", "dev", "eth0", "scope", "link", "src", ip)
            host.sh("ip", "route", "replace", *way, "congctl", self.case.congestion)
        return host

    def python(self, host: Host, log: Path, *words: str) -> "Popen[bytes]":
        """Start one of our programs on a host."""
        root = str(Path(__file__).resolve().parent.parent)
        env = {"P2P_TOKEN": TOKEN, "PYTHONPATH": root, "HOME": "/nonexistent"}
        return host.start(log, sys.executable, *words, env=env)

    def start_origin(self, root: Path) -> "Popen[bytes]":
        """nginx on port 80 of the origin; `root` is a folder of models."""
        work = self.folder / "nginx"
        work.mkdir()
        config, pid = work / "nginx.conf", work / "pid"
        config.write_text(config_text(work, root, "80"))
        command = (program(), "-p", str(work), "-c", str(config), "-e", str(work / "error.log"))
        process = self.origin.start(work / "log", *command)
        wait_for(lambda: pid.exists() and pid.read_text() != "", "nginx", process, work / "log")
        return process

    def start_tracker(self, together: int = 1) -> "Popen[bytes]":
        """One that grants no lease before so many nodes have joined."""
        log = self.folder / "tracker.log"
        tracker = self.python(
            self.tracker, log, "-m", "tracker", "serve", "--listen", TRACKER, "--http", "off",
            "--start-with", str(together),
        )  # fmt: skip
        wait_for(partial(says, log, "tracker: nodes"), "the tracker", tracker, log)
        return tracker

    def start_sampler(self) -> Path:
        """Write down what the origin sends; returns the log."""
        log = self.folder / "sampler"
        self.origin.start(log, sys.executable, "-S", "-c", SAMPLER)
        wait_for(lambda: log.exists() and b"\n" in log.read_bytes(), "the sampler")
        return log


def wait_for(
    condition: Callable[[], object],
    what: str,
    process: "Popen[bytes] | None" = None,
    log: Path | None = None,
    limit_s: float = READY_S,
) -> None:
    """Wait for something that a process does.

    Raises:
      NetError: it did not come, or the process ended first.
    """
    end = time.monotonic() + limit_s
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > end:
            said = log.read_text()[-2000:] if log is not None and log.exists() else ""
            raise NetError(f"{what} did not start{' (it ended)' if ended else ''}: {said}")
        time.sleep(0.02)


def write_model(folder: Path, size: int) -> str:
    """One file of random bytes; returns its SHA-256."""
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        path.chmod(0o755)
    digest = hashlib.sha256()
    with (folder / "model.bin").open("wb") as stream:
        for at in range(0, size, STEP):
            data = os.urandom(min(STEP, size - at))
            digest.update(data)
            stream.write(data)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def says(log: Path, text: str) -> bool:
    """A program has written this to its log."""
    return log.exists() and text in log.read_text()


class Run:
    """One run of our own programs in a lab."""

    def __init__(self, lab: Netlab, digest: str) -> None:
        self._lab, self._case, self._digest = lab, lab.case, digest
        self._nodes = [_Node(i, host, lab.folder / f"n{i}") for i, host in enumerate(lab.hosts)]
        self._blocks = -(-lab.case.size // lab.case.block_bytes)

    def _start_node(self, node: _Node) -> None:
        case = self._case
        node.folder.mkdir()
        workers = () if case.workers is None else ("--workers", str(case.workers))
        node.process = self._lab.python(
            node.host, node.folder / "log", "-m", "node", "join", "--tracker", TRACKER,
            "--origin", f"http://{ORIGIN_IP}/{MODEL}/", "--model-dir", str(node.folder / MODEL),
            "--cache-dir", str(node.folder / "cache"), "--report", str(node.folder / "report"),
            "--listen", f"{self._lab.ips[node.number]}:7071", "--until-complete", "--quiet",
            "--linger", "60", "--log-level", "info", "--chunk-size", str(case.chunk_bytes),
            "--block-size", str(case.block_bytes), *workers,
        )  # fmt: skip

    def go(self) -> Result:
        """Start all, release them together, and wait for the end.

        Raises:
          NetError: a program did not start, failed or hangs.
        """
        lab, case = self._lab, self._case
        nginx = lab.start_origin(lab.folder / "origin")
        sent = lab.start_sampler()
        try:
            if case.stagger_s:
                tracker = lab.start_tracker()
            else:
                self._start_nodes()
                tracker = lab.start_tracker(case.nodes)
            self._watch(time.monotonic())
        finally:
            for node in self._nodes:
                node.close()
        servers = cpu_s(tracker.pid), cpu_s(nginx.pid)
        return self._result(sent, *servers)

    def _start_nodes(self) -> None:
        """All of them, until each one has said that it is ready: all share the cores here, and a
        program's start is not to be in the way of those that have begun."""
        for node in self._nodes:
            self._start_node(node)
        for node in self._nodes:
            log = node.folder / "log"
            wait_for(partial(says, log, "peers at"), f"n{node.number}", node.process, log)

    def _watch(self, begin: float) -> None:
        """Start every node in its turn and sample it until its end; kill the victims when their
        time has come."""
        case, running = self._case, [node for node in self._nodes if node.process is not None]
        waiting = [node for node in self._nodes if node.process is None]
        step_s = case.stagger_s / max(1, case.nodes - 1)
        end = begin + READY_S + case.stagger_s + case.bound_s * PATIENCE
        started = False
        while waiting or running:
            while waiting and time.monotonic() >= begin + step_s * waiting[0].number:
                running.append(waiting.pop(0))
                self._start_node(running[-1])
            now = time.time()
            for node in list(running):
                front, there = node.front(self._blocks)
                node.samples.append((now, min(front * self._case.block_bytes, self._case.size)))
                if there and not started:
                    started = True
                    for one in self._nodes:
                        if one.process is not None:
                            one.start_cpu_s = cpu_s(one.process.pid)
                part = self._case.victims.get(node.number)
                if part is not None and there >= part * self._blocks:
                    self._kill(node, now)
                    running.remove(node)
                elif self._ended(node):
                    running.remove(node)
            if time.monotonic() > end:
                names = ", ".join(f"n{node.number}" for node in running)
                raise NetError(f"{names} did not end: see {self._lab.folder}")
            time.sleep(SAMPLE_S)

    def _kill(self, node: _Node, now: float) -> None:
        assert node.process is not None
        node.killed_at = now
        node.cpu_s = cpu_s(node.process.pid) - node.start_cpu_s
        os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait()

    def _ended(self, node: _Node) -> bool:
        process = node.process
        assert process is not None
        if (code := process.poll()) is None:
            return False
        if code:
            raise NetError(f"n{node.number} failed: {(node.folder / 'log').read_text()[-2000:]}")
        return True

    def _result(self, sent: Path, tracker_cpu_s: float, nginx_cpu_s: float) -> Result:
        case, nodes = self._case, [self._node_result(node) for node in self._nodes]
        origin = origin_figures(sent, case)
        completed = [self._report(node)["completed_at"] for node in self._nodes
                     if node.killed_at is None]  # fmt: skip
        return Result(
            case, case.bound_s, nodes, origin.bytes, origin.busy, max(completed) - origin.last_at,
            tracker_cpu_s, nginx_cpu_s,
        )  # fmt: skip

    def _report(self, node: _Node) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((node.folder / "report").read_text())
        return report

    def _node_result(self, node: _Node) -> NodeResult:
        case, number = self._case, node.number
        result = NodeResult(self._lab.ips[number], case.up_mbit(number), node.killed_at)
        result.start_cpu_s = node.start_cpu_s
        if node.killed_at is not None:
            result.cpu_s = node.cpu_s
            return result
        report = self._report(node)
        if sha256(node.folder / MODEL / "model.bin") != self._digest:
            raise NetError(f"n{number}: the copy differs from the source")
        result.seconds = report["seconds"]
        result.cpu_s = report["cpu_seconds"] - node.start_cpu_s
        for name in ("origin_bytes", "peer_bytes", "served_bytes", "duplicate_bytes"):
            setattr(result, name, report[name])
        begin = report["started_at"]
        samples = [(at - begin, front) for at, front in node.samples]
        result.stall_s = reader_stall_s(samples, case.size, case.mbit * 1e6 / 8)
        return result


@contextmanager
def laid(case: Case, folder: Path) -> Iterator[tuple[Netlab, str]]:
    """A lab in an empty folder, with a model at the origin; gives the model's SHA-256, too.

    Raises:
      NetError: it cannot be done here.
    """
    if text := why_not():
        raise NetError(text)
    folder.chmod(0o755)  # nginx reads as another user
    digest = write_model(folder / "origin" / MODEL, case.size)
    with held_ready(folder, case.nodes * case.size), Net() as net:
        yield Netlab(net, case, folder), digest


def run(case: Case, folder: Path) -> Result:
    """One run of ours in an empty folder.

    Raises:
      NetError: it cannot be done here, or went wrong.
    """
    with laid(case, folder) as (lab, digest):
        return Run(lab, digest).go()
