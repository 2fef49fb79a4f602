"""Who may read what from the origin, and until when.

    QUEUED --grant()--> LEASED --fetched()--> FETCHED
       ^                  |                      |
       '-- expire, fail --'---- lost() ----------'

Chunks are granted in the manifest's order. A lease lives 2 s after its owner's last reported
progress; what comes later still counts.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from p2p.deadlines import Deadlines
from p2p.ids import Chunk, NodeId

QUEUED, LEASED, FETCHED = 0, 1, 2
LEASE_S = 2.0  # four heartbeats of 0.5 s


@dataclass(slots=True)
class Lease:
    """One chunk at one node."""

    node: NodeId
    received: int = 0
    for_reader: bool = False
    beside: NodeId | None = None
    """who reads a part of it meanwhile, without a lease"""


class Leases:
    """All chunks of one model.

    Args:
      order: all chunks, the most wanted first.
    """

    def __init__(self, order: list[Chunk]) -> None:
        self._order = order
        self._rank = [0] * len(order)
        for rank, chunk in enumerate(order):
            self._rank[chunk] = rank
        self._heap = list(range(len(order)))
        self._state = bytearray(len(order))
        self._leases: dict[Chunk, Lease] = {}
        self._deadlines: Deadlines[Chunk] = Deadlines()
        self._by_node: dict[NodeId, dict[Chunk, None]] = {}
        self._changed: dict[Chunk, None] = {}

    def count(self, node: NodeId) -> int:
        """Leases that a node holds."""
        return len(self._by_node.get(node, ()))

    def holder(self, chunk: Chunk) -> NodeId | None:
        """The node that holds the lease of a chunk, if one does."""
        lease = self._leases.get(chunk)
        return lease.node if lease is not None else None

    def state(self, chunk: Chunk) -> int:
        """QUEUED, LEASED or FETCHED."""
        return self._state[chunk]

    def is_fetched(self, chunk: Chunk) -> bool:
        """The swarm has got it, as far as is known."""
        return self._state[chunk] == FETCHED

    @property
    def in_flight(self) -> int:
        """Leases of all nodes."""
        return len(self._leases)

    @property
    def any_queued(self) -> bool:
        """A chunk waits to be granted."""
        while self._heap and self._state[self._order[self._heap[0]]] != QUEUED:
            heapq.heappop(self._heap)
        return bool(self._heap)

    @property
    def next_queued(self) -> Chunk | None:
        """The chunk that `grant` would give."""
        return self._order[self._heap[0]] if self.any_queued else None

    def grant(self, node: NodeId, now: float) -> Chunk | None:
        """Lease the most wanted chunk to a node; None if none is queued."""
        if not self.any_queued:
            return None
        chunk = self._order[heapq.heappop(self._heap)]
        self._lease(chunk, node, now)
        return chunk

    def grant_wanted(self, chunk: Chunk, node: NodeId, now: float) -> None:
        """Lease a queued chunk before its turn."""
        if self._state[chunk] == QUEUED:
            self._lease(chunk, node, now)
            self._leases[chunk].for_reader = True

    def read_beside(self, chunk: Chunk, nodes: Iterable[NodeId]) -> NodeId | None:
        """Which of these nodes may read a part of a chunk that another one prefetches: one for each
        lease, so that what many nodes need is read twice at most."""
        lease = self._leases.get(chunk)
        if lease is None or lease.for_reader:
            return None
        able = [node for node in nodes if node != lease.node]
        if lease.beside is None:
            lease.beside = next(iter(able), None)
        return lease.beside if lease.beside in able else None

    def _lease(self, chunk: Chunk, node: NodeId, now: float) -> None:
        self._state[chunk] = LEASED
        self._leases[chunk] = Lease(node)
        self._deadlines.set(chunk, now + LEASE_S)
        self._by_node.setdefault(node, {})[chunk] = None

    def progress(self, node: NodeId, chunk: Chunk, received: int, now: float) -> None:
        """The node is fetching the chunk and has so many bytes. Adopts what nobody holds."""
        lease = self._leases.get(chunk)
        if lease is None:
            if self._state[chunk] == QUEUED:
                self._lease(chunk, node, now)
                self._leases[chunk].received = received
        elif lease.node == node and received > lease.received:
            lease.received = received
            self._deadlines.set(chunk, now + LEASE_S)

    def extend(self, node: NodeId, chunk: Chunk, now: float) -> None:
        """The node waits for us: its lease, if it has it still, lives from now."""
        lease = self._leases.get(chunk)
        if lease is not None and lease.node == node:
            self._deadlines.set(chunk, now + LEASE_S)

    def fetched(self, chunk: Chunk) -> None:
        """The chunk is in the swarm, whoever brought it."""
        self._drop(chunk)
        self._state[chunk] = FETCHED
        self._changed[chunk] = None

    def failed(self, node: NodeId, chunk: Chunk) -> None:
        """The node gives the lease back."""
        lease = self._leases.get(chunk)
        if lease is not None and lease.node == node:
            self._requeue(chunk)

    def lost(self, chunk: Chunk) -> None:
        """No live node holds the chunk any more."""
        if self._state[chunk] == FETCHED:
            self._requeue(chunk)

    def release(self, node: NodeId) -> None:
        """The node is gone: all its leases are queued again."""
        for chunk in list(self._by_node.get(node, ())):
            self._requeue(chunk)
        self._by_node.pop(node, None)

    def expire(self, now: float) -> list[tuple[Chunk, NodeId]]:
        """Queue again what made no progress in time; returns what that was."""
        late = [(chunk, self._leases[chunk].node) for chunk in self._deadlines.pop_due(now)]
        for chunk, _ in late:
            self._requeue(chunk)
        return late

    def changed(self) -> list[Chunk]:
        """Chunks that were fetched, or queued again, since this was asked last."""
        changed, self._changed = list(self._changed), {}
        return changed

    def next_deadline(self) -> float:
        """When the next lease ends."""
        return self._deadlines.next()

    def _drop(self, chunk: Chunk) -> None:
        lease = self._leases.pop(chunk, None)
        if lease is not None:
            self._deadlines.discard(chunk)
            self._by_node[lease.node].pop(chunk, None)

    def _requeue(self, chunk: Chunk) -> None:
        self._drop(chunk)
        self._state[chunk] = QUEUED
        self._changed[chunk] = None
        heapq.heappush(self._heap, self._rank[chunk])
