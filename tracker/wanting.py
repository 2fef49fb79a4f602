"""What readers wait for: leases before their turn, or the names of holders. Pure.

    queued        leased at once to the node that wants it, as many as the pace allows or not
    leased        the node that has the lease brings it, once for all: the others wait; but beside
                  one that only prefetches, one node may read what a reader there is blocked on
    fetched       whoever wants it hears who holds it; if nobody does, it is queued again

What is read soon comes after what is needed, and only while the pace allows.
"""

from collections.abc import Iterable, Mapping
from random import Random

from p2p import messages as m
from p2p.errors import RemoteProtocolError
from p2p.ids import Chunk, NodeId
from tracker.leases import FETCHED, LEASED, QUEUED, Leases
from tracker.member import Node

MOST_LEASES = 16  # of one node for its readers
HOLDERS = 8  # named for a chunk: the others are told by the next haves


class Wanting:
    """The wants of all nodes of a model. Looks only at chunks whose wants or state have changed."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._wants: dict[NodeId, tuple[Chunk, ...]] = {}
        self._by_chunk: dict[Chunk, dict[NodeId, bool]] = {}
        """who waits for an answer, and whether a reader is blocked there"""
        self._look: dict[Chunk, None] = {}

    def __repr__(self) -> str:
        return f"<Wanting nodes={len(self._wants)} chunks={len(self._by_chunk)}>"

    def take(self, node: NodeId, wants: m.Wants, chunk_count: int) -> None:
        """A node wants this from now on.

        Raises:
          RemoteProtocolError: there is no such chunk.
        """
        chunks = (*wants.needed, *wants.soon)
        if chunks and max(chunks) >= chunk_count:
            raise RemoteProtocolError(f"chunk {max(chunks)} of {chunk_count}")
        self.forget(node)
        self._wants[node] = chunks
        for group, needed in ((wants.soon, False), (wants.needed, True)):
            for chunk in group:
                self._by_chunk.setdefault(chunk, {})[node] = needed
        self._look.update(dict.fromkeys(chunks))

    def forget(self, node: NodeId) -> None:
        """It wants nothing any more."""
        for chunk in self._wants.pop(node, ()):
            self._answered(chunk, node)

    def _answered(self, chunk: Chunk, node: NodeId) -> None:
        waiting = self._by_chunk.get(chunk)
        if waiting is not None:
            waiting.pop(node, None)
            if not waiting:
                del self._by_chunk[chunk]
                self._look.pop(chunk, None)

    def changed(self, chunks: Iterable[Chunk]) -> None:
        """These chunks were fetched, or are queued again."""
        for chunk in chunks:
            if chunk in self._by_chunk:
                self._look[chunk] = None

    def holders(
        self, leases: Leases, nodes: Mapping[NodeId, Node], pins: Mapping[Chunk, bytes]
    ) -> tuple[list[tuple[NodeId, m.Message]], list[Chunk]]:
        """What to tell those who want what was fetched, and what nobody holds any more."""
        named: dict[NodeId, list[tuple[Chunk, NodeId]]] = {}
        gone: list[Chunk] = []
        for chunk in [c for c in self._look if leases.state(c) == FETCHED and c in pins]:
            having = [
                one.node for one in nodes.values()
                if one.bits is not None and not one.outdated and chunk in one.bits
            ]  # fmt: skip
            if not having:
                gone.append(chunk)
                continue
            for node in list(self._by_chunk[chunk]):
                others = [other for other in having if other != node]
                some = self._rng.sample(others, min(HOLDERS, len(others)))
                named.setdefault(node, []).extend((chunk, holder) for holder in some)
                self._answered(chunk, node)
        out: list[tuple[NodeId, m.Message]] = []
        for node, pairs in ((node, pairs) for node, pairs in named.items() if pairs):
            chunks = [chunk for chunk, _ in pairs]
            joined = b"".join(pins[chunk] for chunk in chunks)
            out.append((node, m.Holders(chunks, joined, [holder for _, holder in pairs])))
        return out, gone

    def elsewhere(
        self, leases: Leases, nodes: Mapping[NodeId, Node], now: float
    ) -> dict[NodeId, list[Chunk]]:
        """Who may read what its readers need of chunks that other nodes prefetch."""
        found: dict[NodeId, list[Chunk]] = {}
        for chunk in [c for c in self._look if leases.state(c) == LEASED]:
            blocked = [
                node
                for node, needed in self._by_chunk[chunk].items()
                if needed and node in nodes and nodes[node].barred_until <= now
            ]
            if (node := leases.read_beside(chunk, blocked)) is not None:
                found.setdefault(node, []).append(chunk)
        return found

    def queued(
        self, leases: Leases, nodes: Mapping[NodeId, Node], most: int, now: float
    ) -> list[tuple[NodeId, Chunk]]:
        """What is to be leased now, in order; soon wants make no more than `most` leases in all."""
        counts: dict[NodeId, int] = {}
        needed, soon = list[tuple[NodeId, Chunk]](), list[tuple[NodeId, Chunk]]()
        for chunk in list(self._look):
            if leases.state(chunk) != QUEUED:
                self._look.pop(chunk)  # leased: whoever has it brings it
                continue
            waiting = self._by_chunk[chunk]
            for node in sorted(waiting, key=lambda node: not waiting[node]):
                one = nodes.get(node)
                count = counts.get(node, leases.count(node))
                if one is None or one.bits is None or one.leaving or one.barred_until > now:
                    continue
                if count < MOST_LEASES:
                    counts[node] = count + 1
                    (needed if waiting[node] else soon).append((node, chunk))
                    break
        room = max(0, most - leases.in_flight - len(needed))
        return needed + soon[:room]
