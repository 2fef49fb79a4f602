"""What one run in containers says: every node's time and bytes, the origin's, and the verdict."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from p2p.units import MIB, format_size
from simulations.bench.processes import console
from simulations.cluster.case import ClusterCase


@dataclass(slots=True)
class NodeOutcome:
    """One node. `seconds` runs from the swarm's first lease to this node's last byte, whatever
    happened to it in between; None if it was killed for good.

    Bytes are of all its runs; of a killed run what was last heard. `resumed_bytes` are those that
    the last run found on its disk; `fault` is empty where there was none.
    """

    name: str
    fault: str
    fault_at: float | None
    seconds: float | None = None
    origin_bytes: int = 0
    peer_bytes: int = 0
    served_bytes: int = 0
    resumed_bytes: int = 0
    duplicate_bytes: int = 0
    cpu_s: float = 0.0
    verified: bool = False


@dataclass(slots=True)
class Outcome:
    """One run. `nginx_bytes` are the body bytes that nginx says it sent, listings included."""

    case: ClusterCase
    size: int
    files: int
    bound_s: float | None
    nodes: list[NodeOutcome]
    nginx_bytes: int
    up_s: float
    """from the compose command's start to its end"""

    @property
    def times(self) -> list[float]:
        """Of the nodes that were to end."""
        return [node.seconds for node in self.nodes if node.seconds is not None]

    @property
    def good(self) -> bool:
        """Every copy that there should be is there, and equals the source."""
        return all(node.verified for node in self.nodes if node.seconds is not None) and (
            len(self.times) == len(self.case.survivors)
        )

    def figures(self) -> dict[str, float]:
        """What is compared."""
        times = self.times
        figures = {
            "mean_s": sum(times) / len(times),
            "slowest_s": max(times),
            "origin": sum(node.origin_bytes for node in self.nodes) / self.size,
            "origin_nginx": self.nginx_bytes / self.size,
        }
        if self.bound_s is not None:
            figures["mean"] = figures["mean_s"] / self.bound_s
            figures["slowest"] = figures["slowest_s"] / self.bound_s
        return figures

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        model = str(self.case.model) if self.case.model else None
        case = {**asdict(self.case), "model": model}
        figures = {"bound_s": self.bound_s, "figures": self.figures(), "verified": self.good}
        return {**asdict(self), "case": case, **figures}

    def show(self) -> None:
        """A row a node, and the figures."""
        table = Table("node", "seconds", "origin", "peers", "served", "resumed", "copy", "fault",
                      caption="bytes in MiB")  # fmt: skip
        for node in self.nodes:
            moved = [node.origin_bytes, node.peer_bytes, node.served_bytes, node.resumed_bytes]
            mib = [f"{count / MIB:.1f}" for count in moved]
            if node.seconds is None:
                table.add_row(node.name, "", *mib[:2], "", "", "", node.fault)
                continue
            table.add_row(
                node.name, f"{node.seconds:.2f}", *mib,
                "equal" if node.verified else "DIFFERS", node.fault,
            )  # fmt: skip
        console.print(table)
        one = self.figures()
        line = f"mean {one['mean_s']:.2f} s, slowest {one['slowest_s']:.2f} s"
        if self.bound_s is not None:
            line += (
                f", bound {self.bound_s:.2f} s: mean / bound {one['mean']:.3f}, "
                f"slowest / bound {one['slowest']:.3f}"
            )
        console.print(line, soft_wrap=True)
        console.print(
            f"model {format_size(self.size)}, {len(self.nodes)} nodes, origin ratio "
            f"{one['origin']:.3f} (counted at nginx: {one['origin_nginx']:.3f}); "
            + (
                f"all {len(self.times)} copies equal the source"
                if self.good
                else "NOT every copy is there and equals the source"
            ),
            soft_wrap=True,
        )
