"""What one run on the shaped cluster says: each node's time, the origin's bytes, CPU and stalls."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simulations.case import Case


@dataclass(slots=True)
class NodeResult:
    """One node's run; None for what a killed node did not live to say.

    Attributes:
      seconds: from its start to its last byte.
      cpu_s: of all its processes from the first lease on.
      stall_s: how long a reader waits that reads in file order at the link's rate.
    """

    ip: str
    up_mbit: float
    killed_at: float | None = None
    seconds: float | None = None
    cpu_s: float = 0.0
    start_cpu_s: float = 0.0
    stall_s: float | None = None
    origin_bytes: int = 0
    peer_bytes: int = 0
    served_bytes: int = 0
    duplicate_bytes: int = 0


@dataclass(slots=True)
class Result:
    """One run."""

    case: Case
    bound_s: float
    nodes: list[NodeResult]
    origin_bytes: int
    origin_busy: float
    """share of the time from its first to its last byte in which the origin's link was sending"""
    tail_s: float
    """from the origin's last byte to the slowest node's last byte"""
    tracker_cpu_s: float
    nginx_cpu_s: float

    @property
    def times(self) -> list[float]:
        """Of the nodes that were to end."""
        return [node.seconds for node in self.nodes if node.seconds is not None]

    def figures(self) -> dict[str, float]:
        """What is compared: times over the bound, the origin's ratio, CPU and stalls."""
        times, done = self.times, [node for node in self.nodes if node.seconds is not None]
        return {
            "mean": sum(times) / len(times) / self.bound_s,
            "slowest": max(times) / self.bound_s,
            "origin": self.origin_bytes / self.case.size,
            "origin_busy": self.origin_busy,
            "tail_s": self.tail_s,
            "cpu_s": sum(node.cpu_s for node in done) / len(done),
            "cpu_share": sum(node.cpu_s for node in self.nodes)
            / (max(times) * (os.cpu_count() or 1)),
            "stall_s": sum(node.stall_s or 0.0 for node in done) / len(done),
            "stall_most_s": max(node.stall_s or 0.0 for node in done),
        }

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {**asdict(self), "figures": self.figures()}


@dataclass(frozen=True, slots=True)
class OriginFigures:
    """What the origin's interface counted; `busy` is as in `Result`."""

    bytes: int
    busy: float
    last_at: float


def origin_figures(sent: Path, case: Case) -> OriginFigures:
    """Read a sampler's log. The first and last 20 kB are greetings and farewells."""
    rows = [line.split() for line in sent.read_text().splitlines()]
    samples = [(float(row[0]), int(row[1])) for row in rows if len(row) == 2]
    first, last = samples[0][1], samples[-1][1]
    begins = max(at for at, count in samples if count <= first + 20_000)
    ends = min(at for at, count in samples if count >= last - 20_000)
    busy = (last - first) * 8e-6 / case.origin_mbit / max(ends - begins, 1e-9)
    return OriginFigures(last - first, busy, ends)
