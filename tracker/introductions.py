"""Who is to hear of whom. Pure.

Nodes that come together are told of each other together: of 50 nodes that came within half a
second each heard 25 times of others, woke each time, and drew trees that were wrong a moment later.
"""

from collections.abc import Iterable
from math import inf

from p2p.ids import NodeId

EVERY_S = 0.1  # a node hears of newcomers so often at most


class Introductions:
    """Pairs of nodes that do not know each other yet."""

    def __init__(self) -> None:
        self._unmet: dict[NodeId, dict[NodeId, None]] = {}
        self._told_at = -inf
        self.at = inf
        """when they are due"""

    def add(self, node: NodeId, met: Iterable[NodeId], now: float) -> None:
        """A node is to meet others, and they it: at once, if nobody has met for a while."""
        for other in met:
            self._unmet.setdefault(node, {})[other] = None
            self._unmet.setdefault(other, {})[node] = None
        if self._unmet:
            self.at = max(now, self._told_at + EVERY_S)

    def hurry(self, now: float) -> None:
        """All are there: nobody else is waited for."""
        if self._unmet:
            self.at = now

    def forget(self, node: NodeId) -> None:
        """Nobody is to meet it any more."""
        for other in self._unmet.pop(node, ()):
            self._unmet[other].pop(node)
            if not self._unmet[other]:
                del self._unmet[other]
        if not self._unmet:
            self.at = inf

    def take(self, now: float) -> dict[NodeId, list[NodeId]]:
        """What is due: whom each node is to be told of."""
        if self.at > now:
            return {}
        unmet, self._unmet = self._unmet, {}
        self._told_at, self.at = now, inf
        return {node: list(others) for node, others in unmet.items()}
