"""What a run in containers is: nodes, links, faults. Pure."""

from dataclasses import dataclass
from pathlib import Path

from p2p.errors import UsageError
from p2p.units import KIB, MIB
from simulations.case import bound_s


@dataclass(frozen=True, slots=True)
class ClusterCase:
    """One run.

    Attributes:
      model: a folder to serve; None: one file of `size` random bytes.
      mbit: of every node's link and of the origin's, both ways, headers included; None: unshaped.
      kills, pauses, disconnects: so many nodes each, never the same one twice, the last ones first.
      at: of the model a node holds when its fault comes, and of the swarm when the tracker's does.
      restart: killed nodes come back.
      away_s: how long a node is paused or disconnected. Peers give up a silent one after 8 s, the
        tracker forgets it after 10 s.
      keep: leave everything running at the end.
    """

    nodes: int = 8
    size: int = 256 * MIB
    model: Path | None = None
    mbit: float | None = None
    kills: int = 0
    at: float = 0.5
    restart: bool = False
    pauses: int = 0
    disconnects: int = 0
    restart_tracker: bool = False
    away_s: float = 12.0
    keep: bool = False
    chunk_bytes: int = 256 * KIB
    block_bytes: int = 256 * KIB
    workers: int = 0

    def __post_init__(self) -> None:
        if self.faulty >= self.nodes:
            raise UsageError(
                f"{self.faulty} faults need more than {self.nodes} nodes: one is left alone"
            )
        if self.restart and not self.kills:
            raise UsageError("--restart is of killed nodes: say how many with --kill")

    @property
    def faulty(self) -> int:
        """Nodes to which something happens."""
        return self.kills + self.pauses + self.disconnects

    @property
    def victims(self) -> dict[int, str]:
        """What happens to which node (from 1 on), the last nodes first."""
        kinds = ["kill"] * self.kills + ["pause"] * self.pauses
        kinds += ["disconnect"] * self.disconnects
        return {self.nodes - i: kind for i, kind in enumerate(kinds)}

    @property
    def survivors(self) -> list[int]:
        """Nodes that are to end with the whole model."""
        lost = set() if self.restart else {n for n, kind in self.victims.items() if kind == "kill"}
        return [number for number in range(1, self.nodes + 1) if number not in lost]

    def bound_s(self, size: int) -> float | None:
        """The least time for all survivors together, as for netlab; None without a rate."""
        if self.mbit is None:
            return None
        links = [self.mbit] * len(self.survivors)
        return bound_s(size, self.mbit, links, links)


def parse_percent(text: str) -> float:
    """The part of one that `50%` (or `50`) is.

    Raises:
      UsageError: not between 0 and 100.
    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(f"{text!r} is not a percentage like 50%")
    return value / 100
