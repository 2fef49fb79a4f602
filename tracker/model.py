"""One model at the tracker: its nodes, its manifest, its leases and pins. Pure.

`handle(node, message, now)` returns what to send to whom; `None` instead of a message closes that
node's session. The manifest comes from the node that holds the listing lease, or, after a restart
of the tracker, from a node that runs with it.
"""

from contextlib import suppress
from dataclasses import replace
from math import inf
from random import Random

from p2p import messages as m
from p2p.bitfield import Bitfield, indexes
from p2p.checksum import CHECKSUM_BYTES
from p2p.deadlines import Deadlines
from p2p.digest import DIGEST_BYTES
from p2p.errors import ManifestError, RemoteProtocolError
from p2p.ids import Chunk, NodeId
from p2p.manifest import Manifest
from p2p.seal import Broken
from tracker.allowances import Allowances
from tracker.assignment import Roster
from tracker.budget import Budget
from tracker.introductions import Introductions
from tracker.leases import Leases
from tracker.member import Node
from tracker.owners import Owners
from tracker.pace import Pace, beginning
from tracker.sealing import Sealing
from tracker.wanting import Wanting

EXPIRY_S = 10.0  # twenty heartbeats; before the first one the session speaks for the node
LISTING_S = 60.0
SETTLE_S = 2.5  # after a restart: nodes come back within a second, and say what they hold
LOST_GRACE_S = 1.5  # three heartbeats: another node may hold the chunk and not have said so
FATAL_S = 30.0

Sends = list[tuple[NodeId, m.Message | None]]


class Model:
    """The state of one model.

    Args:
      start_with: grant no lease before so many nodes have joined.
      wall: unix time at `now` 0, for `started_at`.
      budget: of the origin's account, which other models may share; None: no limit as yet.
    """

    def __init__(
        self,
        name: str,
        origin: str,
        start_with: int,
        wall: float,
        rng: Random,
        budget: Budget | None = None,
    ) -> None:
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
        self.leases: Leases | None = None
        self.sealing: Sealing | None = None
        self._relisting = ""
        """why the origin is listed again: some object has changed there"""
        self._settle_until = 0.0
        self._recount_at = inf
        self._hungry: dict[NodeId, None] = {}
        """every node with room for a lease, but those that have got room since their last word"""
        self._expiry: Deadlines[NodeId] = Deadlines()
        self._roster = Roster(rng)
        self._settled = Bitfield(0)
        """chunks that are fetched and whose pin is known: who else gets them is no news"""
        self._unpinned: dict[Chunk, None] = {}
        """those that are fetched, and whose pin is not known"""
        self._pace = Pace()
        self._came = 0
        """chunks that leases brought"""
        self._introductions = Introductions()
        self._owners = Owners()
        self._wanting = Wanting(rng)
        self._allowances = Allowances(budget or Budget(), name)
        self.gone_origin_bytes = 0
        self._out: Sends = []

    # -- events -----------------------------------------------------------------------------------

    def joined(self, node: NodeId, join: m.Join, now: float) -> Sends:
        """A node wants this model; a node of the same id is replaced."""
        self._out = []
        if node in self.nodes:
            self._forget(node, now)
        offered = Manifest.decode(join.manifest) if join.manifest and join.confirmed else None
        if offered is not None:
            self._check_name(offered)
        self.nodes[node] = Node(node, join)
        if self.manifest is None and offered is not None:
            self._settle_until = now + SETTLE_S
            self._start_with = 1
            self._adopt(offered, True)
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
        if sender.outdated and not isinstance(message, m.Bye):
            return self._out
        match message:
            case m.Announce():
                self._announce(sender, message, now)
            case m.Fetched():
                self._fetched(sender, message, now)
            case m.LeaseFailed():
                self._lease_failed(sender, message, now)
            case m.Throttled() | m.AllowanceWanted() | m.AllowanceBack():
                self._allowances.handle(node, message, self.manifest, now)
            case m.Wants() if self.manifest is not None:
                self._wanting.take(node, message, self.manifest.chunk_count)
            case m.Lost(chunks):
                self._lost(sender, chunks, now)
            case m.Listing(data):
                if node == self._listing:
                    self._listed(Manifest.decode(data), now)
            case m.ListingFailed(text):
                self._listing_failed(sender, text, now)
            case m.PinsReport(chunks, pins):
                self._take_pins(chunks, pins)
            case m.PinsQuery(chunks):
                self._send_pins(node, chunks)
            case m.Checksums() | m.Sealed():
                self._take_seals(message)
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
        for node in self._expiry.pop_due(now):
            self._forget(node, now)
            self._out.append((node, None))
        if self._listing is not None and self._listing_until <= now:
            self.nodes[self._listing].listing_failed = "the listing took too long"
            self._assign_listing(now)
        if self.leases is not None:
            self._allowances.keep_leases(self.leases, now)
            for _, node_id in self.leases.expire(now):
                self._be_hungry(node_id, now)
        if self._recount_at <= now:
            self._recount()
        self._introduce(now)
        if self.sealing is not None and self.leases is not None and self.sealing.ask_at <= now:
            holders = {n.node: n.bits for n in self._current() if n.bits is not None}
            self._out += self.sealing.ask(holders, self.leases.is_fetched, now)
        self._grant(now)
        return self._out

    def next_deadline(self) -> float:
        """When `tick` is due."""
        return min(
            self._expiry.next(),
            self._recount_at,
            self._introductions.at,
            self._allowances.at,
            self._listing_until if self._listing else inf,
            self.sealing.ask_at if self.sealing else inf,
            self.leases.next_deadline() if self.leases else inf,
        )

    # -- the manifest -----------------------------------------------------------------------------

    def _assign_listing(self, now: float) -> None:
        self._listing = None
        for node in self._current():
            if not node.listing_failed and (node.join.follow or not self._relisting):
                self._listing, self._listing_until = node.node, now + LISTING_S
                url = "" if node.join.origin else self.origin
                self._out.append((node.node, m.ListOrigin(self.name, url)))
                return
        if self._relisting:
            self._origin_failed(self._relisting)
            return
        offered = [node.join.manifest for node in self.nodes.values() if node.join.manifest]
        for data in sorted(set(offered), key=lambda data: (-offered.count(data), data)):
            with suppress(ManifestError):  # another model's, or not one at all
                self._adopt(Manifest.decode(data), False)
                return
        for node in self.nodes.values():
            self._out.append((node.node, m.OriginFailed(node.listing_failed)))

    def _listing_failed(self, sender: Node, text: str, now: float) -> None:
        sender.listing_failed = text
        if sender.node == self._listing:
            self._assign_listing(now)

    def _listed(self, manifest: Manifest, now: float) -> None:
        self._check_name(manifest)
        if self.manifest is None:
            self._adopt(manifest, True)
            return
        self._listing, self._listing_until = None, inf
        text, self._relisting = self._relisting, ""
        if manifest.same_objects(self.manifest):
            self._origin_failed(text)
        else:
            self._move_to(self.manifest.succeeded_by(manifest))

    def _origin_failed(self, text: str) -> None:
        self._relisting = ""
        for node in self._current():
            self._out.append((node.node, m.OriginFailed(text)))

    def _current(self) -> list[Node]:
        """The nodes that speak of the revision in force."""
        return [node for node in self.nodes.values() if not node.outdated]

    def _move_to(self, manifest: Manifest) -> None:
        """Another revision from here on: every node is told, and has to join anew."""
        self.pins.clear()
        self.manifest, self._recount_at, self._relisting = None, inf, ""
        self._wanting = Wanting(self._rng)
        told = self._current()
        for node in told:
            node.outdated, node.bits = True, None
            self._expiry.discard(node.node)
            self._roster.retire(node.node)
            self._introductions.forget(node.node)
        self._adopt(manifest, True)
        for node in told:
            self._send_joined(node)

    def _adopt(self, manifest: Manifest, confirmed: bool) -> None:
        self._listing, self._listing_until = None, inf
        if self.manifest is not None:
            return
        self._check_name(manifest)
        self.manifest, self.confirmed = manifest, confirmed
        self.origin = self.origin or manifest.origin
        self.leases = Leases(manifest.order)
        self._settled, self._unpinned = Bitfield(manifest.chunk_count), {}
        self.sealing = Sealing(manifest, self._rng)
        for node in self._current():
            self._send_joined(node)

    def _check_name(self, manifest: Manifest) -> None:
        if manifest.model != self.name:
            raise ManifestError(f"a manifest of {manifest.model!r} for model {self.name!r}")

    def _send_joined(self, node: Node) -> None:
        assert self.manifest is not None
        data = self.manifest.encode()
        # who runs with another revision decides by its text whether to follow
        sent = b"" if node.join.manifest == data and not node.outdated else data
        waiting = self._start_with > 1 and len(self._seen) < self._start_with
        joined = m.Joined(self.name, self.manifest.id, sent, self.confirmed, waiting)
        self._out.append((node.node, joined))

    # -- announces --------------------------------------------------------------------------------

    def _announce(self, node: Node, message: m.Announce, now: float) -> None:
        if self.manifest is None or self.leases is None:
            raise RemoteProtocolError("an announce before the manifest is known")
        if message.manifest and message.manifest != self.manifest.id:
            node.outdated = True  # it keeps another revision, and was told of this one
            return
        if len(message.fetching) != len(message.received):
            raise RemoteProtocolError("an announce with fetching and received of two lengths")
        if message.fetching and max(message.fetching) >= self.manifest.chunk_count:
            raise RemoteProtocolError(
                f"chunk {max(message.fetching)} of {self.manifest.chunk_count}"
            )
        first = node.bits is None
        if message.bitfield or first:
            self._take_bits(node, message.offset, message.bitfield, now)
        if not first:  # a node that comes back tells of all its past
            more = max(0, message.origin_bytes - node.origin_bytes)
            requests = max(0, message.origin_requests - node.origin_requests)
            self._allowances.budget.passed(more, requests, self.leases.in_flight, now)
        node.origin_requests = message.origin_requests
        self._expiry.set(node.node, now + EXPIRY_S)
        node.wanted, node.on_demand = message.wanted, message.on_demand
        node.origin_bytes, node.peer_bytes = message.origin_bytes, message.peer_bytes
        node.corrupt_chunks = message.corrupt_chunks
        for chunk, received in zip(message.fetching, message.received, strict=True):
            self.leases.progress(node.node, chunk, received, now)
        if first:
            self._welcome(node, now)
        elif self._roster.lonely(node.node):
            self._introductions.add(node.node, self._roster.meet(node.node), now)
            self._introduce(now)
        if self.sealing is not None and (first or message.bitfield):
            self.sealing.look_soon(now)
        self._be_hungry(node.node, now)

    def _take_bits(self, node: Node, at: int, data: bytes, now: float) -> None:
        """The part of its bitfield that a node announces: the whole, at first."""
        assert self.manifest is not None
        assert self.leases is not None
        bits = node.bits or Bitfield(self.manifest.chunk_count)
        if node.bits is None and len(data) != len(bytes(bits)):
            raise RemoteProtocolError("a first announce without the whole bitfield")
        try:
            gained, lost = bits.patch(at, data)
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from error
        node.bits = bits
        if lost:
            self._recount_at = min(self._recount_at, now + LOST_GRACE_S)
        # all nodes announce every chunk at some time: only who is first may cost more than a bit
        news = gained & ~self._settled.part(at, len(data))
        unpinned = []
        for chunk in indexes(news.to_bytes(len(data), "big"), at):
            self.leases.fetched(chunk)
            if chunk in self.pins:
                self._settled.add(chunk)
            else:
                unpinned.append(chunk)
                self._unpinned[chunk] = None
        for start in range(0, len(unpinned), m.MAX_BATCH):
            batch = unpinned[start : start + m.MAX_BATCH]
            self._out.append((node.node, m.PinsWanted(batch)))

    def _lost(self, node: Node, chunks: list[Chunk], now: float) -> None:
        """The node has dropped these chunks."""
        if self.manifest is None or node.bits is None:
            raise RemoteProtocolError("lost chunks before the first announce")
        if chunks and max(chunks) >= self.manifest.chunk_count:
            raise RemoteProtocolError(f"chunk {max(chunks)} of {self.manifest.chunk_count}")
        for chunk in chunks:
            node.bits.discard(chunk)
        self._recount_at = min(self._recount_at, now + LOST_GRACE_S)

    def _welcome(self, node: Node, now: float) -> None:
        self._seen[node.node] = None
        self._send_pins(node.node, sorted(self.pins))
        self._introductions.add(node.node, self._roster.meet(node.node), now)
        if len(self._seen) == self._start_with:
            self._introductions.hurry(now)
        self._introduce(now)
        self._allowances.came(node.node)
        if self.started_at:
            self._out.append((node.node, m.Leases([], self.started_at)))
        assert self.sealing is not None
        self._send_sealed(node, list(self.sealing.seal.sealed))
        for broken in self.sealing.seal.broken.values():
            self._out.append((node.node, m.SealBroken(broken.file, broken.stored, broken.read)))

    def _introduce(self, now: float) -> None:
        for node_id, others in self._introductions.take(now).items():
            addresses = [list(self.nodes[other].join.addresses) for other in others]
            self._out.append((node_id, m.Peers([*others], addresses)))

    def _send_sealed(self, node: Node, files: list[int]) -> None:
        for start in range(0, len(files), m.MAX_BATCH):
            self._out.append((node.node, m.Sealed(files[start : start + m.MAX_BATCH])))

    def _send_pins(self, node: NodeId, chunks: list[Chunk]) -> None:
        known = [chunk for chunk in chunks if chunk in self.pins]
        for start in range(0, max(1, len(known)), m.MAX_BATCH):
            batch = known[start : start + m.MAX_BATCH]
            pins = b"".join(self.pins[chunk] for chunk in batch)
            self._out.append((node, m.PinsKnown(batch, pins)))

    def _take_pins(self, chunks: list[Chunk], pins: bytes) -> None:
        for chunk, pin in self._pairs(chunks, pins):
            self.pins.setdefault(chunk, pin)
            if self.leases is not None and self.leases.is_fetched(chunk):
                self._settled.add(chunk)
                self._unpinned.pop(chunk, None)

    def _pairs(self, chunks: list[Chunk], pins: bytes) -> list[tuple[Chunk, bytes]]:
        count = self.manifest.chunk_count if self.manifest else 0
        if len(pins) != len(chunks) * DIGEST_BYTES or (chunks and max(chunks) >= count):
            raise RemoteProtocolError("pins do not fit their chunks")
        size = DIGEST_BYTES
        return [(chunk, pins[i * size : (i + 1) * size]) for i, chunk in enumerate(chunks)]

    # -- leases -----------------------------------------------------------------------------------

    def _fetched(self, node: Node, message: m.Fetched, now: float) -> None:
        if self.leases is None or self.manifest is None or node.bits is None:
            raise RemoteProtocolError("a fetched chunk before the first announce")
        if len(message.checksums) not in (0, CHECKSUM_BYTES * len(message.chunks)):
            raise RemoteProtocolError("checksums do not fit their chunks")
        conflicting = []
        for chunk, pin in self._pairs(message.chunks, message.pins):
            if self.pins.setdefault(chunk, pin) != pin:
                conflicting.append(chunk)
            else:
                node.bits.add(chunk)
            if node.node == self.leases.holder(chunk):
                length, out = self.manifest.extent(chunk).length, self.leases.in_flight
                self._pace.fetched(length, len(self.nodes), out, now)
                self._came += 1
            self.leases.fetched(chunk)
            self._settled.add(chunk)
            self._unpinned.pop(chunk, None)
            node.fatal_text, node.barred_until = "", 0.0
        if conflicting:
            self._send_pins(node.node, conflicting)
        elif message.checksums:
            self._take_seals(m.Checksums(message.chunks, message.checksums))
        self._hungry[node.node] = None

    def _take_seals(self, message: m.Checksums | m.Sealed) -> None:
        if self.sealing is None or self.manifest is None:
            raise RemoteProtocolError("checksums before the manifest is known")
        broken: list[Broken] = []
        if isinstance(message, m.Sealed):
            sealed = self.sealing.trust(message.files)
        else:
            sealed, broken = self.sealing.take(message.chunks, message.checksums)
        for node in self._current() if sealed else ():
            self._send_sealed(node, sealed)
        again = {b.file for b in broken if not self.manifest.files[b.file].attempt}
        if again:
            files = tuple(
                replace(entry, attempt=entry.attempt + (number in again))
                for number, entry in enumerate(self.manifest.files)
            )
            self._move_to(replace(self.manifest, files=files))
            return
        for one in broken:
            for node in self._current():
                self._out.append((node.node, m.SealBroken(one.file, one.stored, one.read)))

    def _lease_failed(self, node: Node, message: m.LeaseFailed, now: float) -> None:
        if self.leases is None:
            raise RemoteProtocolError("a failed lease before the manifest is known")
        if self.manifest is not None and message.chunk >= self.manifest.chunk_count:
            raise RemoteProtocolError(f"chunk {message.chunk} of {self.manifest.chunk_count}")
        self.leases.failed(node.node, message.chunk)
        if self._relisting:
            return
        if message.changed and any(other.join.follow for other in self._current()):
            self._relisting = message.text or "the origin's objects have changed"
            for other in self.nodes.values():
                other.listing_failed = ""
            self._assign_listing(now)
            return
        if message.fatal:
            node.fatal_text, node.barred_until = message.text, now + FATAL_S
        else:
            node.barred_until = max(node.barred_until, now + message.retry_after_s)
        live = (other for other in self.nodes.values() if other.bits is not None)
        helpless = all(o.fatal_text or not (o.wanted or o.on_demand) for o in live)
        if helpless and self.leases.any_queued:
            self._origin_failed(message.text)
        self._be_hungry(node.node, now)

    def _be_hungry(self, node_id: NodeId, now: float) -> None:
        node = self.nodes.get(node_id)
        if node is not None and node.barred_until <= now:
            self._hungry[node_id] = None

    def _grant(self, now: float) -> None:
        """One lease at a time to each node that has room, in turn."""
        leases = self.leases
        if leases is None or self.manifest is None:
            return
        for told in self._allowances.news():
            self._out.append((told, m.Leases([], self.started_at, True)))
        self._out += self._allowances.serve(leases, now)
        if self._allowances.waiting or now < self._settle_until or self._relisting:
            return
        count = len(self.nodes)
        limit = min(self._pace.limit(count), beginning(count, self._came))
        granted = self._serve_readers(leases, self.manifest, limit, now)
        while len(self._seen) >= self._start_with and (
            self._hungry and leases.in_flight < limit and (chunk := leases.next_queued) is not None
        ):
            node_id = self._next_owner(chunk, leases, now)
            if not self._has_room(node_id, leases, now):
                del self._hungry[node_id]
                continue
            if not self._allowances.take(*self._allowances.needs(self.manifest, [chunk]), now):
                break
            leases.grant(node_id, now)
            granted.setdefault(node_id, []).append(chunk)
            del self._hungry[node_id]
            self._hungry[node_id] = None
        if granted and not self.started_at:
            self.started_at = self._wall + now
            for node in self.nodes.values():
                if node.node not in granted:
                    self._out.append((node.node, m.Leases([], self.started_at)))
        limited = self._allowances.budget.limited
        for node_id, chunks in granted.items():
            needs = self._allowances.needs(self.manifest, chunks) if limited else (0, 0)
            self._out.append((node_id, m.Leases(chunks, self.started_at, limited, *needs)))

    def _has_room(self, node_id: NodeId, leases: Leases, now: float) -> bool:
        node = self.nodes.get(node_id)
        if node is None or node.leaving or node.bits is None or node.barred_until > now:
            return False
        return leases.count(node_id) < node.wanted

    def _next_owner(self, chunk: Chunk, leases: Leases, now: float) -> NodeId:
        for node_id in self._owners.first(chunk, self.nodes, self._came):
            if node_id in self._hungry and self._has_room(node_id, leases, now):
                return node_id
        return next(iter(self._hungry))

    def _serve_readers(
        self, leases: Leases, manifest: Manifest, limit: int, now: float
    ) -> dict[NodeId, list[Chunk]]:
        """Leases for what readers are blocked on, before all others; others hear of holders."""
        granted: dict[NodeId, list[Chunk]] = {}
        self._wanting.changed(leases.changed())
        told, gone = self._wanting.holders(leases, self.nodes, self.pins)
        self._out += told
        for chunk in gone:
            self._requeue(leases, manifest, chunk)
        self._wanting.changed(leases.changed())
        for node_id, chunks in self._wanting.elsewhere(leases, self.nodes, now).items():
            limited = self._allowances.budget.limited
            self._out.append((node_id, m.Leases([], self.started_at, limited, elsewhere=chunks)))
        for node_id, chunk in self._wanting.queued(leases, self.nodes, limit, now):
            if not self._allowances.take(*self._allowances.needs(manifest, [chunk]), now):
                break
            leases.grant_wanted(chunk, node_id, now)
            granted.setdefault(node_id, []).append(chunk)
        return granted

    def _requeue(self, leases: Leases, manifest: Manifest, chunk: Chunk) -> None:
        """Nobody holds the chunk: it is fetched again, but not of a file that is refused."""
        if self.sealing is None or manifest.extent(chunk).file not in self.sealing.seal.broken:
            leases.lost(chunk)
            self._settled.discard(chunk)
            self._unpinned.pop(chunk, None)

    def _recount(self) -> None:
        """Chunks that no live node holds are fetched again."""
        self._recount_at = inf
        if self.leases is None or self.manifest is None:
            return
        size = (self.manifest.chunk_count + 7) // 8
        fetched = self._settled.part(0, size)
        fetched |= Bitfield(self.manifest.chunk_count, self._unpinned).part(0, size)
        for chunk in indexes(self._held_by_no(fetched, None).to_bytes(size, "big")):
            self._requeue(self.leases, self.manifest, chunk)

    def _held_by_no(self, mask: int, but: NodeId | None) -> int:
        """What is left of the bits of `mask` when those that any other node holds are cleared."""
        for node in self.nodes.values():
            if not mask:
                break
            if node.bits is not None and node.node != but:
                mask &= ~int.from_bytes(bytes(node.bits), "big")
        return mask

    def _only_copies(self, node: Node) -> m.OnlyCopies:
        mine = int.from_bytes(bytes(node.bits or b""), "big")
        others = [other for other in self._current() if other.node != node.node]
        incomplete = sum(not (other.complete or other.on_demand) for other in others)
        return m.OnlyCopies(self._held_by_no(mine, node.node).bit_count(), incomplete)

    # -- membership -------------------------------------------------------------------------------

    def _forget(self, node_id: NodeId, now: float) -> None:
        node = self.nodes.pop(node_id)
        self.gone_origin_bytes += node.origin_bytes
        self._hungry.pop(node_id, None)
        self._expiry.discard(node_id)
        self._allowances.forget(node_id)
        self._wanting.forget(node_id)
        if self.leases is not None:
            self.leases.release(node_id)
            if node.bits is not None and len(node.bits):
                self._recount_at = min(self._recount_at, now + LOST_GRACE_S)
        self._introductions.forget(node_id)
        for other in self._roster.leave(node_id):
            self._out.append((other, m.PeersGone([node_id])))
        if self._listing == node_id:
            self._assign_listing(now)
