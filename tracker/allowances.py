"""One model's dealings with the budget of its account: who was told, and who waits. Pure.

Requests of chunks that are leased already come first, in the order they were asked for; their
leases live meanwhile. New leases get what is left.
"""

from collections import deque
from math import inf

from p2p import messages as m
from p2p.errors import RemoteProtocolError
from p2p.ids import Chunk, NodeId
from p2p.manifest import Manifest
from tracker.budget import Budget, requests_for
from tracker.leases import Leases

MAX_REQUESTS = 1024  # in one allowance: a chunk has no more blocks

Message = m.Throttled | m.AllowanceWanted | m.AllowanceBack


class Allowances:
    """What nodes of one model ask of the budget.

    Args:
      budget: of the origin's account; other models may share it.
      who: this model's name, for its turn among them.
    """

    def __init__(self, budget: Budget, who: str) -> None:
        self.budget = budget
        self.at = inf
        """when there is room for what found none"""
        self._who = who
        self._untold: dict[NodeId, None] = {}
        self._wants: deque[tuple[NodeId, m.AllowanceWanted]] = deque()

    def needs(self, manifest: Manifest, chunks: list[Chunk]) -> tuple[int, int]:
        """Bytes and requests that whole chunks take."""
        sizes = [manifest.extent(chunk).length for chunk in chunks]
        return sum(sizes), sum(requests_for(size) for size in sizes)

    def take(self, size_bytes: int, requests: int, now: float) -> bool:
        """Take from the budget; false: come again at `at`."""
        if self.budget.take(size_bytes, requests, now, self._who):
            return True
        self.at = self.budget.next_deadline(size_bytes, requests, now)
        return False

    def handle(self, node: NodeId, message: Message, manifest: Manifest | None, now: float) -> None:
        """What a node says of the origin, or wants of it.

        Raises:
          RemoteProtocolError: it wants what no chunk needs.
        """
        match message:
            case m.Throttled(_, retry_after_s, code):
                self.budget.throttled(retry_after_s, now, code)
            case m.AllowanceBack(size_bytes, requests):
                self.budget.back(size_bytes, requests, now)
            case m.AllowanceWanted(chunk, size_bytes, requests):
                if manifest is None:
                    raise RemoteProtocolError(f"{message.TYPE} before the manifest is known")
                if chunk >= manifest.chunk_count:
                    raise RemoteProtocolError(f"chunk {chunk} of {manifest.chunk_count}")
                if size_bytes > manifest.chunk_bytes or requests > MAX_REQUESTS:
                    raise RemoteProtocolError("an allowance for more than a chunk")
                self._wants.append((node, message))

    def came(self, node: NodeId) -> None:
        """It is to hear when a limit is in force."""
        self._untold[node] = None

    def news(self) -> list[NodeId]:
        """Nodes that have not been told that a limit is in force; they are now."""
        if not self._untold or not self.budget.limited:
            return []
        untold, self._untold = list(self._untold), {}
        return untold

    def keep_leases(self, leases: Leases, now: float) -> None:
        """Who waits for us makes no progress; that is not its fault."""
        for node, want in self._wants:
            leases.extend(node, want.chunk, now)

    def serve(self, leases: Leases, now: float) -> list[tuple[NodeId, m.Allowance]]:
        """Answers to who waited, as far as there is room (`waiting` says whether some still do)."""
        self.at, served = inf, []
        while self._wants:
            node, want = self._wants[0]
            if not self.take(want.bytes, want.requests, now):
                break
            leases.extend(node, want.chunk, now)
            served.append((node, m.Allowance(want.chunk, want.bytes, want.requests)))
            self._wants.popleft()
        return served

    @property
    def waiting(self) -> bool:
        """Requests of leased chunks wait: there is nothing left for new leases."""
        return bool(self._wants)

    def forget(self, node: NodeId) -> None:
        """The node is gone."""
        self._untold.pop(node, None)
        self._wants = deque(entry for entry in self._wants if entry[0] != node)
