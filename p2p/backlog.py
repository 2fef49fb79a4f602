"""Chunks that no other node has yet: a node that cannot pass them on should fetch no more. Pure.

Leases go to whoever asks, and a node may receive faster than it sends: what it alone holds waits
behind its uplink, and at the end all others wait for it (1.69 x the bound with one node of 8 at a
quarter of the rate, on the shaped cluster).
"""

from p2p.ids import Chunk

LEAST = 8  # on their way at any moment, however slow: two leases and what follows them
AHEAD_S = 0.5  # a heartbeat: leases are asked for so often
SPAN_S = 1.0


class Backlog:
    """Counts them, and how fast they find a second holder."""

    def __init__(self) -> None:
        self._alone: dict[Chunk, None] = {}
        self._passed = 0
        self._since = 0.0
        self._rate = 0.0

    def __len__(self) -> int:
        return len(self._alone)

    def add(self, chunk: Chunk) -> None:
        """This node brought it into the swarm."""
        self._alone[chunk] = None

    def passed(self, chunk: Chunk, now: float) -> None:
        """Another node holds it, or nobody does any more."""
        if chunk not in self._alone:
            return
        del self._alone[chunk]
        self._passed += 1
        if (elapsed_s := now - self._since) >= SPAN_S:
            self._rate, self._passed, self._since = self._passed / elapsed_s, 0, now

    @property
    def full(self) -> bool:
        """More are here than leave within a heartbeat."""
        return len(self._alone) > LEAST + self._rate * AHEAD_S
