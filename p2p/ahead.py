"""Requests that wait at a peer for chunks that nobody is known to hold yet. Pure.

Each chunk of the window is asked, long before it comes, of this node's parent in the chunk's tree
(`p2p.tree`), which sends it on block by block while it comes in there. So a chunk runs down its
tree without a word, and a node that dies or lags holds up nobody for long: what is announced
elsewhere and does not come within a grace time is asked for there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from p2p.ids import Chunk, NodeId
from p2p.rates import Average
from p2p.tree import Trees

SETTLE_S = 0.1  # peers come one by one: the trees follow when no other has come for so long
SETTLE_MOST_S = 1.0  # or after so long, if they keep coming
GRACE_CHUNKS = 96  # a chunk may begin so many chunks' time later than it came at others
ENDING_CHUNKS = 12  # and only so many when no other is to come
GRACE_USUAL = 4.0  # and so many times as late as chunks usually are
GRACE_LEAST_S, GRACE_MOST_S = 0.1, 6.0
FIRST_S, FIRST_GRACE_S = 3.0, 2.0  # so long after a start nobody knows how late chunks usually are
STUCK_S = 2.0  # and what has begun may take so long to come


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request that waits at `peer`."""

    request: int
    peer: NodeId
    chunk: Chunk


class Ahead:
    """What was asked ahead, of whom, and which of it is overdue."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._trees: Trees | None = None
        self._nodes: list[NodeId] = []
        self._settled_at = inf
        self._offered_at, self._unsettled_at = -inf, inf
        self._by_chunk: dict[Chunk, Waiting] = {}
        self._by_request: dict[int, Waiting] = {}
        self._due: dict[Chunk, float] = {}
        """until when announced chunks are waited for"""
        self._heard: dict[Chunk, float] = {}
        self._recalled: dict[Chunk, float] = {}
        """and then, until when, if they have begun to come"""
        self._overdue: dict[Chunk, None] = {}
        self._denied: dict[Chunk, set[NodeId]] = {}
        """who is not to be asked for chunks that have not come yet"""
        self._interval_s = Average(weight=0.05)
        self._late_s = Average(weight=0.1)
        """from being announced elsewhere to coming here by itself"""
        self._came_at = inf
        self._patient_until = -inf

    def __len__(self) -> int:
        return len(self._by_chunk)

    def __contains__(self, chunk: Chunk) -> bool:
        return chunk in self._by_chunk

    # -- trees ------------------------------------------------------------------------------------

    def offered(self, now: float) -> None:
        """There are more nodes than before."""
        self._offered_at = now
        self.changed(now)

    def changed(self, now: float, *, last: bool = False) -> None:
        """Peers have come or gone; `last`: nobody who was offered is to come yet."""
        self._unsettled_at = min(self._unsettled_at, now)
        settled_at = max(now, self._offered_at + SETTLE_S) if last else now + SETTLE_S
        self._settled_at = min(settled_at, self._unsettled_at + SETTLE_MOST_S)

    def begin(self, now: float) -> None:
        """All who begin together are there: nobody else is waited for."""
        self._patient_until = now + FIRST_S
        if self._settled_at < inf:
            self._settled_at = now

    def settled(self, now: float) -> bool:
        """The trees are to be drawn again."""
        return self._settled_at <= now

    def draw(self, nodes: Sequence[NodeId], again_at: float = inf) -> None:
        """Draw the trees over these nodes; this one is among them. They are looked at again when
        those that are waited for have come, or have not."""
        self._settled_at, self._unsettled_at = again_at, inf
        if list(nodes) != self._nodes:
            self._nodes = list(nodes)
            self._trees = Trees(self._me, nodes) if len(nodes) > 1 else None

    @property
    def near(self) -> frozenset[NodeId]:
        """The nodes with whom this one exchanges chunks all the time."""
        return self._trees.near if self._trees is not None else frozenset()

    @property
    def roots(self) -> frozenset[NodeId]:
        """And those with whom it does at times."""
        return self._trees.roots if self._trees is not None else frozenset()

    def root(self, chunk: Chunk) -> NodeId | None:
        """The root of the chunk's tree; None: it is this node, or there are no trees."""
        root = self._trees.root(chunk) if self._trees is not None else self._me
        return None if root == self._me else root

    def parent(
        self,
        chunk: Chunk,
        able: Callable[[NodeId], bool],
        coming: Callable[[NodeId], bool] = lambda _node: False,
    ) -> NodeId | None:
        """The nearest node above this one that can be asked, and did not deny this chunk; nobody,
        if such a one is about to come."""
        above = self._trees.above(chunk) if self._trees is not None else ()
        denied = self._denied.get(chunk, ())
        for node in above:
            if node not in denied:
                if able(node):
                    return node
                if coming(node):
                    break
        return None

    def deny(self, node: NodeId, chunk: Chunk) -> None:
        """It sent this chunk wrong, or has too much to send: it is not asked ahead for it again.
        Once it announces it, it may be pulled."""
        self._denied.setdefault(chunk, set()).add(node)

    # -- requests ---------------------------------------------------------------------------------

    def add(self, waiting: Waiting) -> None:
        """The request is sent."""
        self._by_chunk[waiting.chunk] = self._by_request[waiting.request] = waiting

    def take(self, chunk: Chunk) -> Waiting | None:
        """The request for this chunk, if there is one, is not ours any more."""
        waiting = self._by_chunk.pop(chunk, None)
        if waiting is not None:
            del self._by_request[waiting.request]
            for times in (self._due, self._heard, self._recalled, self._overdue):
                times.pop(chunk, None)
        return waiting

    def get(self, request: int) -> Waiting | None:
        """The request, if it is one of these."""
        return self._by_request.get(request)

    def ended(self, request: int) -> Waiting | None:
        """A request was answered; None: it is none of these."""
        waiting = self._by_request.get(request)
        return None if waiting is None else self.take(waiting.chunk)

    def all(self, peer: NodeId | None = None) -> list[Waiting]:
        """Those at a peer, or all."""
        return [one for one in self._by_chunk.values() if peer is None or one.peer == peer]

    # -- time -------------------------------------------------------------------------------------

    def came(self, chunk: Chunk, now: float) -> None:
        """A chunk has come, from wherever."""
        if self._came_at < inf:
            self._interval_s.add(now - self._came_at)
        self._came_at = now
        self._denied.pop(chunk, None)
        if chunk in self._by_chunk:
            self._late_s.add(now - self._heard.get(chunk, now))

    def _recall(self, chunk: Chunk, now: float) -> Waiting:
        self._due.pop(chunk, None)
        self._recalled.setdefault(chunk, now + STUCK_S)
        return self._by_chunk[chunk]

    @property
    def grace_s(self) -> float:
        """How long an announced chunk may take to come by itself."""
        grace_s = max(GRACE_CHUNKS * self._interval_s.value, GRACE_USUAL * self._late_s.value)
        return min(GRACE_MOST_S, max(GRACE_LEAST_S, grace_s))

    @property
    def all_heard(self) -> bool:
        """Of all that waits, a peer has announced that it has it."""
        return len(self._heard) == len(self._by_chunk)

    def ending(self, now: float) -> None:
        """Nothing is to come but what others hold, so nothing else is delayed by asking them: what
        is late is not waited for as long."""
        due = now + max(GRACE_LEAST_S, ENDING_CHUNKS * self._interval_s.value)
        for chunk, until in self._due.items():
            if until > due:
                self._due[chunk] = due

    def heard(self, chunk: Chunk, now: float) -> None:
        """A peer announces the chunk."""
        if chunk in self._by_chunk and chunk not in self._heard:
            first_s = FIRST_GRACE_S if now < self._patient_until else 0.0
            self._due[chunk] = now + max(self.grace_s, first_s)
            self._heard[chunk] = now

    def expire(self, now: float) -> list[Waiting]:
        """Give up waiting for what is due; returns what is to be recalled if it has not begun."""
        for chunk in [chunk for chunk, due in self._recalled.items() if due <= now]:
            del self._recalled[chunk]
            self._overdue[chunk] = None
        due = [chunk for chunk, due in self._due.items() if due <= now]
        return [self._recall(chunk, now) for chunk in due]

    def recalled(self, chunk: Chunk) -> bool:
        """The request was called back: that it ends is nobody's fault."""
        return chunk in self._recalled

    def free(self, chunk: Chunk) -> bool:
        """It may be asked of others: it is not waited for, or was for too long."""
        return chunk not in self._by_chunk or chunk in self._overdue

    def next_deadline(self) -> float:
        """When the trees settle, or the next chunk is overdue."""
        due = min(self._due.values(), default=inf)
        return min(self._settled_at, due, min(self._recalled.values(), default=inf))
