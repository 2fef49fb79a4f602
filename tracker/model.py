"""One model at the tracker: its nodes, its manifest, its leases and pins. Pure.

`handle(node, message, now)` returns what to send to whom; `None` instead of a message closes that
node's session. The manifest comes from the node that holds the listing lease, or, after a restart
of the tracker, from a node that runs with it.
"""

from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.digest import DIGEST_BYTES
from p2p.errors import ManifestError, RemoteProtocolError
from p2p.ids import Chunk, NodeId
from p2p.manifest import Manifest
from tracker.assignment import introduce
from tracker.leases import FETCHED, QUEUED, Leases

EXPIRY_S = 10.0  # without an announce: twenty heartbeats
LISTING_S = 60.0
SETTLE_S = 2.5  # after a restart: nodes come back within a second, and say what they hold
LOST_GRACE_S = 1.5  # three heartbeats: another node may hold the chunk and not have said so
FATAL_S = 30.0

Sends = list[tuple[NodeId, m.Message | None]]


@dataclass(slots=True)
class Node:
    """A node with a session."""

    node: NodeId
    join: m.Join
    bits: Bitfield | None = None
    heard_at: float = 0.0
    wanted: int = 0
    leaving: bool = False
    barred_until: float = 0.0
    fatal_text: str = ""
    origin_bytes: int = 0
    peer_bytes: int = 0
    corrupt_chunks: int = 0
    reported: int = 0
    listing_failed: str = ""
    known: dict[NodeId, None] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """It holds all chunks."""
        return self.bits is not None and self.bits.complete


class Model:
    """The state of one model.

    Args:
      start_with: grant no lease before so many nodes have joined.
      wall: unix time at `now` 0, for `started_at`.
    """

    def __init__(self, name: str, origin: str, start_with: int, wall: float, rng: Random) -> None:
        self.name = name
        self.origin = origin
        self.manifest: Manifest | None = None
        self.confirmed = False
        self.nodes: dict[NodeId, Node] = {}
        self.pins: dict[Chunk, bytes] = {}
        self.started_at = 0.0
        self._start_with = start_with
        self._wall = wall
        self._rng = rng
        self._seen: dict[NodeId, None] = {}
        self._listing: NodeId | None = None
        self._listing_until = inf
        self._leases: Leases | None = None
        self._settle_until = 0.0
        self._recount_at = inf
        self._hungry: dict[NodeId, None] = {}
        self._gone_origin_bytes = 0
        self._out: Sends = []

    # -- events -----------------------------------------------------------------------------------

    def joined(self, node: NodeId, join: m.Join, now: float) -> Sends:
        """A node wants this model; a node of the same id is replaced."""
        self._out = []
        if node in self.nodes:
            self._forget(node, now)
        self.nodes[node] = Node(node, join, heard_at=now)
        if self.manifest is None and join.manifest and join.confirmed:
            self._settle_until = now + SETTLE_S
            self._start_with = 1
            self._adopt(Manifest.decode(join.manifest), True)
        elif self.manifest is not None:
            self._send_joined(self.nodes[node])
        elif self._listing is None:
            self._assign_listing(now)
        return self._out

    def gone(self, node: NodeId, now: float) -> Sends:
        """The session ended."""
        self._out = []
        if node in self.nodes:
            self._forget(node, now)
            self._grant(now)
        return self._out

    def handle(self, node: NodeId, message: m.Message, now: float) -> Sends:
        """A message of a node that joined.

        Raises:
          RemoteProtocolError, ManifestError: close that session.
        """
        self._out = []
        sender = self.nodes[node]
        match message:
            case m.Announce():
                self._announce(sender, message, now)
            case m.Fetched(chunks, pins):
                self._fetched(sender, chunks, pins)
            case m.LeaseFailed():
                self._lease_failed(sender, message, now)
            case m.Listing(data):
                if node == self._listing:
                    self._adopt(Manifest.decode(data), True)
            case m.ListingFailed(text):
                self._listing_failed(sender, text, now)
            case m.PinsReport(chunks, pins):
                for chunk, pin in self._pairs(chunks, pins):
                    self.pins.setdefault(chunk, pin)
            case m.PinsQuery(chunks):
                self._send_pins(node, chunks)
            case m.PeerReported(peer, _):
                if (guilty := self.nodes.get(NodeId(peer))) is not None:
                    guilty.reported += 1
            case m.Leaving():
                sender.leaving = True
                self._out.append((node, self._only_copies(sender)))
            case m.Bye():
                self._forget(node, now)
                self._out.append((node, None))
            case _:
                raise RemoteProtocolError(f"{message.TYPE} does not belong to a tracker")
        self._grant(now)
        return self._out

    def tick(self, now: float) -> Sends:
        """Do what has become due."""
        self._out = []
        for node in [n for n in self.nodes.values() if self._expires(n) <= now]:
            self._forget(node.node, now)
            self._out.append((node.node, None))
        if self._listing is not None and self._listing_until <= now:
            self.nodes[self._listing].listing_failed = "the listing took too long"
            self._assign_listing(now)
        if self._leases is not None:
            for _, node_id in self._leases.expire(now):
                self._be_hungry(node_id, now)
        if self._recount_at <= now:
            self._recount()
        for node in self.nodes.values():
            self._be_hungry(node.node, now)
        self._grant(now)
        return self._out

    def next_deadline(self) -> float:
        """When `tick` is due."""
        times = [self._expires(node) for node in self.nodes.values()]
        times += [self._recount_at, self._listing_until if self._listing else inf]
        if self._leases is not None:
            times.append(self._leases.next_deadline())
        return min(times, default=inf)

    # -- the manifest -----------------------------------------------------------------------------

    def _assign_listing(self, now: float) -> None:
        self._listing = None
        for node in self.nodes.values():
            if not node.listing_failed:
                self._listing, self._listing_until = node.node, now + LISTING_S
                url = "" if node.join.origin else self.origin
                self._out.append((node.node, m.ListOrigin(self.name, url)))
                return
        offered = [node.join.manifest for node in self.nodes.values() if node.join.manifest]
        if offered:
            best = max(offered, key=lambda data: (offered.count(data), data))
            self._adopt(Manifest.decode(best), False)
            return
        for node in self.nodes.values():
            self._out.append((node.node, m.OriginFailed(node.listing_failed)))

    def _listing_failed(self, sender: Node, text: str, now: float) -> None:
        sender.listing_failed = text
        if sender.node == self._listing and self.manifest is None:
            self._assign_listing(now)

    def _adopt(self, manifest: Manifest, confirmed: bool) -> None:
        self._listing, self._listing_until = None, inf
        if self.manifest is not None:
            return
        if manifest.model != self.name:
            raise ManifestError(f"a manifest of {manifest.model!r} for model {self.name!r}")
        self.manifest, self.confirmed = manifest, confirmed
        self.origin = self.origin or manifest.origin
        self._leases = Leases(manifest.order)
        for node in self.nodes.values():
            self._send_joined(node)

    def _send_joined(self, node: Node) -> None:
        assert self.manifest is not None
        data = self.manifest.encode()
        sent = b"" if node.join.manifest == data else data
        self._out.append((node.node, m.Joined(self.name, self.manifest.id, sent, self.confirmed)))

    # -- announces --------------------------------------------------------------------------------

    def _announce(self, node: Node, message: m.Announce, now: float) -> None:
        if self.manifest is None or self._leases is None:
            raise RemoteProtocolError("an announce before the manifest is known")
        if len(message.fetching) != len(message.received):
            raise RemoteProtocolError("an announce with fetching and received of two lengths")
        if message.fetching and max(message.fetching) >= self.manifest.chunk_count:
            raise RemoteProtocolError(
                f"chunk {max(message.fetching)} of {self.manifest.chunk_count}"
            )
        first = node.bits is None
        if message.bitfield or self.manifest.chunk_count == 0:
            self._take_bits(node, message.bitfield, now)
        elif first:
            raise RemoteProtocolError("a first announce without a bitfield")
        node.heard_at, node.wanted = now, message.wanted
        node.origin_bytes, node.peer_bytes = message.origin_bytes, message.peer_bytes
        node.corrupt_chunks = message.corrupt_chunks
        for chunk, received in zip(message.fetching, message.received, strict=True):
            self._leases.progress(node.node, chunk, received, now)
        if first:
            self._welcome(node)
        self._be_hungry(node.node, now)

    def _take_bits(self, node: Node, data: bytes, now: float) -> None:
        assert self.manifest is not None
        assert self._leases is not None
        try:
            bits = Bitfield.from_bytes(data, self.manifest.chunk_count)
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from error
        before = int.from_bytes(bytes(node.bits), "big") if node.bits is not None else 0
        after = int.from_bytes(data, "big")
        node.bits = bits
        if before & ~after:
            self._recount_at = min(self._recount_at, now + LOST_GRACE_S)
        unpinned = []
        for chunk in self._chunks_of(after & ~before):
            if self._leases.state(chunk) != FETCHED:
                self._leases.fetched(chunk)
            if chunk not in self.pins:
                unpinned.append(chunk)
        for start in range(0, len(unpinned), m.MAX_BATCH):
            batch = unpinned[start : start + m.MAX_BATCH]
            self._out.append((node.node, m.PinsWanted(batch)))

    def _chunks_of(self, mask: int) -> list[Chunk]:
        assert self.manifest is not None
        size = self.manifest.chunk_count
        return list(Bitfield.from_bytes(mask.to_bytes((size + 7) // 8, "big"), size))

    def _welcome(self, node: Node) -> None:
        self._seen[node.node] = None
        self._send_pins(node.node, sorted(self.pins))
        live = [other.node for other in self.nodes.values() if other.bits is not None]
        pairs = introduce(node.node, live, {n: self.nodes[n].known for n in live}, self._rng)
        for one, other in pairs:
            self.nodes[one].known[other] = None
            self._out.append((one, m.Peers([other], [list(self.nodes[other].join.addresses)])))
        if self.started_at:
            self._out.append((node.node, m.Leases([], self.started_at)))

    def _send_pins(self, node: NodeId, chunks: list[Chunk]) -> None:
        known = [chunk for chunk in chunks if chunk in self.pins]
        for start in range(0, max(1, len(known)), m.MAX_BATCH):
            batch = known[start : start + m.MAX_BATCH]
            pins = b"".join(self.pins[chunk] for chunk in batch)
            self._out.append((node, m.PinsKnown(batch, pins)))

    def _pairs(self, chunks: list[Chunk], pins: bytes) -> list[tuple[Chunk, bytes]]:
        count = self.manifest.chunk_count if self.manifest else 0
        if len(pins) != len(chunks) * DIGEST_BYTES or (chunks and max(chunks) >= count):
            raise RemoteProtocolError("pins do not fit their chunks")
        size = DIGEST_BYTES
        return [(chunk, pins[i * size : (i + 1) * size]) for i, chunk in enumerate(chunks)]

    # -- leases -----------------------------------------------------------------------------------

    def _fetched(self, node: Node, chunks: list[Chunk], pins: bytes) -> None:
        if self._leases is None or node.bits is None:
            raise RemoteProtocolError("a fetched chunk before the first announce")
        conflicting = []
        for chunk, pin in self._pairs(chunks, pins):
            if self.pins.setdefault(chunk, pin) != pin:
                conflicting.append(chunk)
            else:
                node.bits.add(chunk)
            self._leases.fetched(chunk)
            node.fatal_text, node.barred_until = "", 0.0
        if conflicting:
            self._send_pins(node.node, conflicting)
        self._hungry[node.node] = None

    def _lease_failed(self, node: Node, message: m.LeaseFailed, now: float) -> None:
        if self._leases is None:
            raise RemoteProtocolError("a failed lease before the manifest is known")
        if self.manifest is not None and message.chunk >= self.manifest.chunk_count:
            raise RemoteProtocolError(f"chunk {message.chunk} of {self.manifest.chunk_count}")
        self._leases.failed(node.node, message.chunk)
        if message.fatal:
            node.fatal_text, node.barred_until = message.text, now + FATAL_S
        else:
            node.barred_until = max(node.barred_until, now + message.retry_after_s)
        live = [other for other in self.nodes.values() if other.bits is not None]
        helpless = all(other.fatal_text or not other.wanted for other in live)
        if helpless and self._leases.any_queued:
            for other in self.nodes.values():
                self._out.append((other.node, m.OriginFailed(message.text)))
        for other in self.nodes.values():
            self._be_hungry(other.node, now)

    def _be_hungry(self, node_id: NodeId, now: float) -> None:
        node = self.nodes.get(node_id)
        if node is not None and node.barred_until <= now:
            self._hungry[node_id] = None

    def _grant(self, now: float) -> None:
        """One lease at a time to each node that has room, in turn."""
        leases = self._leases
        if leases is None or len(self._seen) < self._start_with or now < self._settle_until:
            return
        granted: dict[NodeId, list[Chunk]] = {}
        while self._hungry and leases.any_queued:
            node_id = next(iter(self._hungry))
            del self._hungry[node_id]
            node = self.nodes.get(node_id)
            if node is None or node.leaving or node.bits is None or node.barred_until > now:
                continue
            if leases.count(node_id) < node.wanted:
                chunk = leases.grant(node_id, now)
                assert chunk is not None
                granted.setdefault(node_id, []).append(chunk)
                self._hungry[node_id] = None
        if granted and not self.started_at:
            self.started_at = self._wall + now
            for node in self.nodes.values():
                if node.node not in granted:
                    self._out.append((node.node, m.Leases([], self.started_at)))
        for node_id, chunks in granted.items():
            self._out.append((node_id, m.Leases(chunks, self.started_at)))

    def _recount(self) -> None:
        """Chunks that no live node holds are fetched again."""
        self._recount_at = inf
        if self._leases is None or self.manifest is None:
            return
        union = self._union(None)
        everything = (1 << self.manifest.chunk_count) - 1
        everything <<= -self.manifest.chunk_count % 8
        for chunk in self._chunks_of(everything & ~union):
            self._leases.lost(chunk)

    def _union(self, but: NodeId | None) -> int:
        union = 0
        for node in self.nodes.values():
            if node.bits is not None and node.node != but:
                union |= int.from_bytes(bytes(node.bits), "big")
        return union

    def _only_copies(self, node: Node) -> m.OnlyCopies:
        mine = int.from_bytes(bytes(node.bits or b""), "big")
        others = [n for n in self.nodes.values() if n.node != node.node]
        incomplete = sum(not other.complete for other in others)
        return m.OnlyCopies((mine & ~self._union(node.node)).bit_count(), incomplete)

    # -- membership -------------------------------------------------------------------------------

    def _expires(self, node: Node) -> float:
        """A node that has not announced yet is opening its store: its session speaks for it."""
        return node.heard_at + EXPIRY_S if node.bits is not None else inf

    def _forget(self, node_id: NodeId, now: float) -> None:
        node = self.nodes.pop(node_id)
        self._gone_origin_bytes += node.origin_bytes
        self._hungry.pop(node_id, None)
        if self._leases is not None:
            self._leases.release(node_id)
            if node.bits is not None and len(node.bits):
                self._recount_at = min(self._recount_at, now + LOST_GRACE_S)
        for other in self.nodes.values():
            if other.known.pop(node_id, 0) is None:
                self._out.append((other.node, m.PeersGone([node_id])))
            self._be_hungry(other.node, now)
        if self._listing == node_id:
            self._assign_listing(now)

    def status(self) -> dict[str, Any]:
        """What people see; it holds no secret."""
        total = self.manifest.total_bytes if self.manifest else 0
        chunks = self.manifest.chunk_count if self.manifest else 0
        origin_bytes = self._gone_origin_bytes + sum(n.origin_bytes for n in self.nodes.values())
        queued = sum(self._leases.state(c) == QUEUED for c in range(chunks)) if self._leases else 0
        return {
            "model": self.name,
            "origin": self.origin,
            "manifest_id": self.manifest.id.hex() if self.manifest else "",
            "confirmed": self.confirmed,
            "bytes": total,
            "chunks": chunks,
            "queued_chunks": queued,
            "leased_chunks": self._leases.in_flight if self._leases else 0,
            "origin_bytes": origin_bytes,
            "origin_ratio": origin_bytes / total if total else 0.0,
            "started_at": self.started_at,
            "complete_nodes": sum(node.complete for node in self.nodes.values()),
            "nodes": [
                {
                    "node": node.node.hex(),
                    "addresses": list(node.join.addresses),
                    "held_chunks": len(node.bits) if node.bits is not None else 0,
                    "progress": (len(node.bits) / chunks if chunks else 1.0) if node.bits else 0.0,
                    "complete": node.complete,
                    "origin_bytes": node.origin_bytes,
                    "peer_bytes": node.peer_bytes,
                    "corrupt_chunks": node.corrupt_chunks,
                    "reported": node.reported,
                    "leases": self._leases.count(node.node) if self._leases else 0,
                }
                for node in self.nodes.values()
            ],
        }
