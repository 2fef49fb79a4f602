"""The cluster while it runs: what the tracker and the nodes say of themselves, as a live table.

The tracker's status tells all nodes' progress with one request. Only a node whose fault is still to
come is asked itself, and often: the tracker hears of its progress twice a second.
"""

from dataclasses import dataclass
from typing import Any

import httpx
from docker.models.containers import Container
from rich.table import Table

from p2p.units import format_size
from simulations.cluster.engine import ip_of, port_of
from simulations.cluster.faults import Fault

HTTP_PORT = 7071  # in every container
ANSWER_S = 1.0
PATIENCE_S = 2.0  # so often a node is asked for its end that the tracker does not tell


@dataclass(slots=True)
class ClusterNode:
    """One node, and what was last heard of it.

    Attributes:
      past_origin_bytes, past_peer_bytes: of runs that were killed, as far as they were heard of.
      done: it holds everything and has published it.
    """

    number: int
    container: Container
    fault: Fault | None = None
    progress: float = 0.0
    origin_bytes: int = 0
    peer_bytes: int = 0
    past_origin_bytes: int = 0
    past_peer_bytes: int = 0
    leases: int = 0
    done: bool = False
    asked_at: float = 0.0

    @property
    def name(self) -> str:
        """As people call it."""
        return f"node-{self.number}"

    @property
    def away(self) -> bool:
        """Its fault goes on."""
        return self.fault is not None and self.fault.away

    @property
    def lost(self) -> bool:
        """It was killed for good."""
        return self.away and self.fault is not None and self.fault.settled

    @property
    def state(self) -> str:
        """For the table."""
        if self.away and self.fault is not None:
            return {"kill": "killed", "pause": "paused"}.get(self.fault.kind, "disconnected")
        return "complete" if self.done else f"{self.leases} leases"

    def restarted(self) -> None:
        """A new run of it begins: what it says counts from zero again."""
        self.past_origin_bytes += self.origin_bytes
        self.past_peer_bytes += self.peer_bytes
        self.origin_bytes = self.peer_bytes = 0
        self.done = False


class Watch:
    """Asks the containers of one project over HTTP."""

    def __init__(self, tracker: Container, nodes: list[ClusterNode]) -> None:
        self.tracker, self.nodes = tracker, nodes
        self.started_at = 0.0
        """of the first lease, in unix seconds; a tracker that was restarted has another one"""
        self._client = httpx.Client(timeout=ANSWER_S, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def progress(self) -> float:
        """Of the swarm: the mean of its nodes."""
        return sum(node.progress for node in self.nodes) / len(self.nodes)

    def look(self, now: float) -> None:
        """Bring everything up to date."""
        self._ask_tracker()
        for node in self.nodes:
            if node.away or node.done:
                continue
            if node.fault is not None and node.fault.came_at is None:
                self._ask_node(node)
            if node.progress >= 1 or now >= node.asked_at + PATIENCE_S:
                node.asked_at = now
                node.done = self._ask(node.container, "readyz") is not None

    def _ask_tracker(self) -> None:
        answer = self._ask(self.tracker, "status")
        models = answer.json()["models"] if answer is not None else []
        if not models:
            return
        self.started_at = self.started_at or models[0]["started_at"]
        # of two with one address the last is the live one: the other has not been forgotten yet
        told = {one["addresses"][0].rpartition(":")[0]: one for one in models[0]["nodes"]}
        for node in self.nodes:
            one = told.get(ip_of(node.container))
            if one is not None and not node.away:
                self._heard(node, one["progress"], one)

    def _ask_node(self, node: ClusterNode) -> None:
        answer = self._ask(node.container, "status")
        one = answer.json() if answer is not None else {"bytes": 0}
        if one["bytes"]:
            self._heard(node, one["held_bytes"] / one["bytes"], one)

    @staticmethod
    def _heard(node: ClusterNode, progress: float, told: dict[str, Any]) -> None:
        node.progress = progress
        node.leases = told.get("leases", node.leases)
        # the tracker's view lags behind a node's own
        node.origin_bytes = max(node.origin_bytes, told["origin_bytes"])
        node.peer_bytes = max(node.peer_bytes, told["peer_bytes"])

    def _ask(self, container: Container, page: str) -> httpx.Response | None:
        """A page of a container; None while it does not answer with a success.

        Where it is published may change with every start and every connection: what does not answer
        is looked up anew.
        """
        port = port_of(container, HTTP_PORT)
        try:
            if port is not None:
                answer = self._client.get(f"http://127.0.0.1:{port}/{page}")
                return answer if answer.is_success else None
        except httpx.HTTPError:
            pass
        container.reload()
        return None

    def table(self) -> Table:
        """A row a node."""
        table = Table("node", "address", "progress", "from origin", "from peers", "state")
        for node in self.nodes:
            table.add_row(
                node.name, ip_of(node.container), f"{node.progress:7.1%}",
                format_size(node.past_origin_bytes + node.origin_bytes),
                format_size(node.past_peer_bytes + node.peer_bytes), node.state,
            )  # fmt: skip
        return table
