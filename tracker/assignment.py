"""Whom to introduce to whom.

Up to 65 nodes a full mesh (2,450 connections at 50 nodes held in the probe). Beyond, a newcomer
meets 32 nodes by chance that have fewer than 96 peers: any two nodes are a few steps apart, a node
has 64 peers on average, and the first ones, whom all others could have met, never more than 96.
"""

from random import Random

from p2p.ids import NodeId

PEERS = 64  # of each node, on average
FEW = PEERS // 2  # each pair counts for both
MOST = PEERS * 3 // 2


class Roster:
    """The nodes that have announced, and who was told of whom."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._nodes: list[NodeId] = []
        self._place: dict[NodeId, int] = {}
        self._known: dict[NodeId, dict[NodeId, None]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def peers(self, node: NodeId) -> int:
        """Of how many others a node was told."""
        return len(self._known.get(node, ()))

    def lonely(self, node: NodeId) -> bool:
        """It has so few peers that it is to meet others."""
        return len(self._known[node]) < min(FEW, len(self._nodes) - 1)

    def meet(self, node: NodeId) -> list[NodeId]:
        """A node came, or has become lonely; returns whom it is to meet from here on.

        Each of them is to hear of it, too.
        """
        if node not in self._place:
            self._place[node] = len(self._nodes)
            self._nodes.append(node)
        known = self._known.setdefault(node, {})
        if len(self._nodes) <= PEERS + 1:
            met = [other for other in self._nodes if other != node and other not in known]
        else:
            met = self._some(known, node)
        for other in met:
            known[other] = self._known[other][node] = None
        return met

    def _some(self, known: dict[NodeId, None], node: NodeId) -> list[NodeId]:
        """By chance; fewer than wanted when most nodes have all the peers that they may have."""
        met: dict[NodeId, None] = {}
        for _ in range(8 * FEW):  # in a large swarm most draws are good ones
            if len(known) + len(met) >= FEW:
                break
            other = self._rng.choice(self._nodes)
            if other != node and other not in known and len(self._known[other]) < MOST:
                met[other] = None
        return list(met)

    def retire(self, node: NodeId) -> None:
        """Nobody is to meet it from here on; who was told of it stays so."""
        place = self._place.pop(node, None)
        if place is not None:
            last = self._nodes.pop()
            if last != node:
                self._nodes[place], self._place[last] = last, place

    def leave(self, node: NodeId) -> list[NodeId]:
        """A node is gone; returns who was told of it."""
        self.retire(node)
        told = list(self._known.pop(node, ()))
        for other in told:
            del self._known[other][node]
        return told
