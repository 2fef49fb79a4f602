"""One run in containers, from the model to the verdict; whatever happens, nothing is left behind.

    compose up --links shaped as they come--> watch, with faults --all complete--> compare, count

A run that makes no progress for a minute is given up, and says which nodes stand still. The first
Ctrl-C ends it in order; while everything is being removed another one has no effect.
"""

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import requests
from docker.errors import DockerException
from docker.models.containers import Container
from rich.live import Live

from p2p.errors import UsageError
from simulations.bench.processes import console, machine, show_machine, write_json, write_random
from simulations.cluster import faults
from simulations.cluster.case import ClusterCase
from simulations.cluster.engine import (
    EngineError,
    NoEngine,
    Project,
    connect,
    ip_of,
    log_of,
    pid_of,
    run_in,
    tail,
)
from simulations.cluster.faults import Fault
from simulations.cluster.images import check_images
from simulations.cluster.outcome import NodeOutcome, Outcome
from simulations.cluster.shaping import shape, why_not
from simulations.cluster.watch import ClusterNode, Watch
from simulations.demo import hashes
from simulations.netns import NetError

STALL_S, UP_S = 60.0, 120.0
LOOK_S, CLOSE_LOOK_S = 0.4, 0.08  # between looks; the second one while a fault is to come
ENDED_LOOK_S = 1.0
MTU = 9000  # as in the lab
TOKEN_BYTES = 32
MODEL, REPORT = "/data/model", "/data/report.json"  # in every node
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def say(text: str) -> None:
    """A line of progress; never broken, for whoever greps it."""
    console.print(text, soft_wrap=True, highlight=False)


def interrupt_once() -> None:
    """SIGINT or SIGTERM is an exception from now on, once: what comes then is cleaning up."""

    def interrupted(number: int, _frame: FrameType | None) -> None:
        ignore_interrupts()
        raise SystemExit(128 + number)

    for each in INTERRUPTS:
        signal.signal(each, interrupted)


def ignore_interrupts() -> None:
    """Nothing may stop what follows."""
    for each in INTERRUPTS:
        signal.signal(each, signal.SIG_IGN)


class Run:
    """One run on a project that the caller removes."""

    def __init__(self, project: Project, case: ClusterCase, source: Path) -> None:
        self._project, self._case = project, case
        self._hashes = hashes(source)
        self._size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        self._nodes: list[ClusterNode] = []
        self._shaped: dict[str, tuple[int, str]] = {}
        self._up_s = 0.0

    def go(self) -> Outcome:
        """All of it.

        Raises:
          EngineError, NetError: it cannot be done, a container has failed, or nothing moves.
        """
        case = self._case
        say(f"project {self._project.name}: starting {case.nodes} nodes")
        self._start()
        (tracker,) = self._project.containers("tracker")
        watch = Watch(tracker, self._nodes)
        try:
            trackers = self._plan(tracker)
            say(f"all containers run after {self._up_s:.1f} s")
            with Live(console=console, auto_refresh=False, transient=True) as live:
                self._watch(watch, trackers, live)
        finally:
            watch.close()
        say("complete: comparing every copy with the source")
        return self._outcome(watch)

    def _start(self) -> None:
        """Until the compose command has ended; links are shaped as soon as they are there: a node
        needs half a second to its first byte, and all wait for the last one."""
        project, begin = self._project, time.monotonic()
        project.start(self._case.nodes)
        ended = False
        while not ended:
            ended = project.started()
            if self._case.mbit is not None:
                for service in ("origin", "node"):
                    self._shape(project.containers(service))
            if time.monotonic() > begin + UP_S:
                raise EngineError(f"the containers did not start within {UP_S:.0f} s")
            time.sleep(0.05)
        self._up_s = time.monotonic() - begin
        found = project.containers("node")
        self._nodes = [ClusterNode(number, one) for number, one in enumerate(found, 1)]

    def _shape(self, containers: list[Container]) -> None:
        """Those whose links are new."""
        for one in containers:
            link = (pid_of(one), ip_of(one))
            if link[0] and self._shaped.get(one.id or "") != link:
                assert self._case.mbit is not None
                shape(link[0], self._case.mbit)
                self._shaped[one.id or ""] = link

    def _plan(self, tracker: Container) -> Fault | None:
        """Give every victim its fault; returns the tracker's own."""
        case = self._case
        for number, kind in case.victims.items():
            node = self._nodes[number - 1]
            one = node.container
            if kind == "kill":
                node.fault = faults.kill(one, case.at, case.restart)
            elif kind == "pause":
                node.fault = faults.pause(one, case.at, case.away_s)
            else:
                node.fault = faults.disconnect(one, case.at, case.away_s)
        return faults.restart(tracker, case.at) if case.restart_tracker else None

    def _watch(self, watch: Watch, trackers: Fault | None, live: Live) -> None:
        """Until every node that is to end has ended, and every fault is over."""
        moved_at, before, ended_at = time.monotonic(), -1.0, 0.0
        while True:
            now = time.monotonic()
            watch.look(now)
            live.update(watch.table(), refresh=True)
            self._step(watch, trackers)
            waiting = [node for node in self._nodes if not (node.done or node.lost)]
            settled = all(one.settled for one in self._faults(trackers))
            if not waiting and settled:
                return
            if (progress := watch.progress) != before or not settled:
                moved_at, before = now, progress
            if now > moved_at + STALL_S:
                held = ", ".join(f"{node.name} at {node.progress:.0%}" for node in waiting)
                raise EngineError(f"nothing has moved for {STALL_S:.0f} s: {held}")
            if now > ended_at + ENDED_LOOK_S:
                ended_at = now
                self._check_alive()
            close = any(one.came_at is None for one in self._faults(trackers))
            time.sleep(CLOSE_LOOK_S if close else LOOK_S)

    def _faults(self, trackers: Fault | None) -> list[Fault]:
        mine = [node.fault for node in self._nodes if node.fault is not None]
        return mine if trackers is None else [*mine, trackers]

    def _step(self, watch: Watch, trackers: Fault | None) -> None:
        """Faults that are due, of nodes first: to restart the tracker takes a second."""
        for node in self._nodes:
            if node.fault is None:
                continue
            done = node.fault.step(node.progress, time.monotonic())
            if not done:
                continue
            say(f"{node.name}: {done}")
            node.container.reload()
            if node.fault.over:
                if node.fault.kind == "kill":
                    node.restarted()
                if self._case.mbit is not None:
                    self._shape([node.container])
        if trackers is not None and (done := trackers.step(watch.progress, time.monotonic())):
            say(f"tracker: {done}")
            watch.tracker.reload()

    def _check_alive(self) -> None:
        """Nothing may end by itself.

        Raises:
          EngineError: something did; with its last words.
        """
        expected = {node.container.id for node in self._nodes if node.away}
        for one in self._project.ended():
            if one not in expected:
                container = self._project.client.containers.get(one)
                raise EngineError(f"{container.name} has ended by itself: {tail(container)}")

    # -- the end ----------------------------------------------------------------------------------

    def _outcome(self, watch: Watch) -> Outcome:
        (origin,) = self._project.containers("origin")
        nodes = [self._node_outcome(node, watch.started_at) for node in self._nodes]
        return Outcome(
            self._case, self._size, len(self._hashes), self._case.bound_s(self._size), nodes,
            body_bytes(log_of(origin, stderr=False)), self._up_s,
        )  # fmt: skip

    def _node_outcome(self, node: ClusterNode, started_at: float) -> NodeOutcome:
        fault = node.fault
        outcome = NodeOutcome(
            node.name, fault.kind if fault else "", fault.came_at if fault else None,
            origin_bytes=node.past_origin_bytes, peer_bytes=node.past_peer_bytes,
        )  # fmt: skip
        if node.lost:
            outcome.origin_bytes += node.origin_bytes
            outcome.peer_bytes += node.peer_bytes
            return outcome
        report: dict[str, Any] = json.loads(run_in(node.container, "cat", REPORT))
        outcome.seconds = round(report["completed_at"] - started_at, 3)
        outcome.origin_bytes += report["origin_bytes"]
        outcome.peer_bytes += report["peer_bytes"]
        for name in ("served_bytes", "resumed_bytes", "duplicate_bytes"):
            setattr(outcome, name, report[name])
        outcome.cpu_s = report["cpu_seconds"]
        outcome.verified = self._copy(node.container) == self._hashes
        return outcome

    def _copy(self, container: Container) -> dict[str, str]:
        """SHA-256 of every file that a node has published, computed in its container."""
        words = ("sh", "-c", f"cd {MODEL} && find . -type f -exec sha256sum {{}} +")
        rows = (line.split("  ./", 1) for line in run_in(container, *words).decode().splitlines())
        return {name: digest for digest, name in rows}


def body_bytes(log: str) -> int:
    """What nginx sent in bodies, by the lines that deploy/nginx.conf lets it write."""
    rows = [line.split(" ", 3) for line in log.splitlines()]
    return sum(int(row[2]) for row in rows if len(row) == 4 and row[0] == "GET")


# -- the whole ------------------------------------------------------------------------------------


def settings_of(case: ClusterCase, folder: Path, source: Path) -> dict[str, str]:
    """What deploy/compose.yaml is told. The token is a file: no command line, no environment holds
    it. Its mode is that of the secret in the containers, whose user is not ours; nobody else gets
    into the folder."""
    token = folder / "token"
    token.write_text(secrets.token_hex(TOKEN_BYTES))
    token.chmod(0o444)
    return {
        "SHOAL_MODEL_DIR": str(source), "SHOAL_TOKEN_FILE": str(token),
        "SHOAL_START_WITH": str(case.nodes), "SHOAL_CHUNK_SIZE": str(case.chunk_bytes),
        "SHOAL_BLOCK_SIZE": str(case.block_bytes), "SHOAL_WORKERS": str(case.workers),
        "SHOAL_MTU": str(MTU),
    }  # fmt: skip


def source_of(case: ClusterCase, folder: Path) -> Path:
    """The folder of the model: the user's, or one that is made now.

    Raises:
      UsageError: nginx, another user, could not read it.
    """
    if case.model is None:
        source = folder / "model"
        source.mkdir(mode=0o755)
        source.chmod(0o755)
        write_random(source / "model.bin", case.size)
        (source / "model.bin").chmod(0o644)
        return source
    source = case.model.resolve()
    for path in (source, *source.rglob("*")):
        wanted = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & wanted != wanted:
            raise UsageError(f"{path} is not readable for others, as nginx is: chmod -R o+rX")
    return source


def _run(case: ClusterCase) -> tuple[Outcome, str]:
    """One run; with the command that removes what was to be kept, if anything."""
    client = connect()
    check_images(client)
    if case.mbit is not None and (text := why_not()):
        raise UsageError(text)
    interrupt_once()
    folder, kept = Path(tempfile.mkdtemp(prefix="shoal-cluster-")), False
    project: Project | None = None
    try:
        try:
            source = source_of(case, folder)
            settings = settings_of(case, folder, source)
            project = Project(client, f"shoal{os.getpid()}", settings, folder / "compose.log")
            outcome = Run(project, case, source).go()
            kept = case.keep
            return outcome, f"{project.down_command} && rm -r {folder}" if kept else ""
        finally:
            ignore_interrupts()
    finally:
        if not kept:
            if project is not None:
                say(f"project {project.name}: removing it")
                project.remove()
            shutil.rmtree(folder, ignore_errors=True)


def measure(case: ClusterCase, command: str, json_file: Path | None) -> int:
    """Run it, and print what came of it; returns the exit code: 2 where there is no engine."""
    result = {"bench": "cluster", **machine(), "command": command}
    try:
        outcome, down = _run(case)
    except NoEngine as error:
        print(error, file=sys.stderr)
        return 2
    except (EngineError, NetError, UsageError) as error:
        print(error, file=sys.stderr)
        return 1
    except (DockerException, requests.RequestException) as error:
        print(f"the Docker engine failed: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    outcome.show()
    show_machine(result)
    write_json({**result, **outcome.as_json()}, json_file)
    if down:
        say(f"kept; this removes it:\n{down}")
    return 0 if outcome.good else 1
