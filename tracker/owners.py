"""Who fetches a chunk while the swarm is young. Pure.

Later every node in its turn does, and gives the chunk to the root of its tree. But at first a node
has sessions with its parents and children only, and the roots have better things to do than to
greet everybody: so roots fetch what they are to pass on by themselves, and their children.
"""

from collections.abc import Mapping, Sequence

from p2p.ids import Chunk, NodeId
from p2p.tree import Trees
from tracker.assignment import PEERS
from tracker.member import Node


class Owners:
    """The trees that nodes draw when all know all."""

    def __init__(self) -> None:
        self._nodes: list[NodeId] = []
        self._trees: Trees | None = None

    def first(self, chunk: Chunk, nodes: Mapping[NodeId, Node], came: int) -> Sequence[NodeId]:
        """Who is to fetch it, the best first, when so many chunks have come; empty: anybody."""
        if came >= len(nodes) or len(nodes) > PEERS + 1:
            return ()
        here = sorted(n.node for n in nodes.values() if n.bits is not None and not n.on_demand)
        if here != self._nodes:
            self._nodes = here
            self._trees = Trees(here[0], here) if len(here) > 1 else None
        return self._trees.top(chunk) if self._trees is not None else ()
