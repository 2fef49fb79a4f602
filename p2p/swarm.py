"""One model's download and upload: what to ask of whom, what to fetch, what to tell whom.

`handle(event, now)` returns commands and never waits; `next_deadline()` says when to send it
`DeadlinePassed`. A chunk's way:

    LeasesGranted -> Fetch -> ChunkVerified(ORIGIN) -> ReportFetched, SendHave to its tree's root
    PeerHas -> Ask -> ChunkVerified(PEER)
    AskAhead, to the parent in its tree -> ChunkVerified(PEER)
    in batches: SendHave to all

Rules:
 1. A chunk is asked of one peer at a time, and only with a pin that was learned before, or ahead:
    then its digests make the pin, if none was learned meanwhile.
 2. The first pin is kept; only the tracker overrules it, and then the chunk is hashed again.
 3. What a peer sent wrong is not asked of it again until it announces the chunk anew.
 4. An answer to a request that is not ours, or no longer ours, changes nothing.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf
from random import Random

from p2p import events as ev
from p2p.ahead import Ahead, Waiting
from p2p.backlog import Backlog
from p2p.backoff import full_jitter
from p2p.bitfield import Bitfield
from p2p.digest import rendezvous_weight
from p2p.errors import RemoteProtocolError
from p2p.events import Command, Source
from p2p.evictor import Urge
from p2p.ids import Chunk, NodeId
from p2p.limits import Limits
from p2p.manifest import Manifest
from p2p.peerbook import Peer, PeerBook
from p2p.picker import IN_FLIGHT, MISSING, RELEASED, Picker
from p2p.rates import Average
from p2p.reading import Holding, Reading

ENDING = 256  # missing chunks at most, so that looking at them is cheap
PINS_AT_ONCE = 4096  # asked of the tracker: 64 KiB of answer


@dataclass(frozen=True, slots=True)
class SwarmStatistics:
    """A swarm at one moment."""

    held: int
    complete: bool
    peers: int
    asks: int
    fetches: int
    suspects: int
    corrupt_chunks: int
    quarantined: int
    waiting_for_space: bool


@dataclass(slots=True)
class _Fetch:
    """An origin fetch: under way, or waiting for its next try (`again_at`)."""

    tries: int = 0
    again_at: float = inf
    leased: bool = True


class Swarm:
    """The state of one model at one node.

    Args:
      held: chunks that are verified and may be served. Owned by the swarm from here on.
      suspects: chunks on disk, with their pins, that must be hashed before they count.
      pins: every pin that is known already.
      holding: default: everything.
      begun: False: the tracker waits for more nodes, and no lease is granted yet.
    """

    def __init__(
        self,
        manifest: Manifest,
        node: NodeId,
        held: Bitfield,
        suspects: dict[Chunk, bytes],
        pins: dict[Chunk, bytes],
        rng: Random,
        limits: Limits,
        holding: Holding | None = None,
        *,
        begun: bool = True,
    ) -> None:
        self._manifest = manifest
        self._node = node
        self.held = held
        self.suspects = suspects
        self.pins = pins
        self._rng = rng
        self._limits = limits
        self._picker = Picker(manifest.order, held, limits.window, limits.asks_per_peer, rng)
        self._book = PeerBook(node, rng)
        self._asks: dict[int, tuple[ev.Ask, float]] = {}
        self._late: dict[int, float] = {}
        """when a request is to be looked at because it takes long"""
        self._ask_s = Average(weight=0.1)
        self._next_request = 1
        self._ahead = Ahead(node)
        self._ask_ahead_in = 0
        """chunks that have to come before more are asked ahead"""
        self._fetches: dict[Chunk, _Fetch] = {}
        self._waiting_leases: dict[Chunk, None] = {}
        self._rehashing: dict[Chunk, float] = {}
        self._to_rehash = sorted(suspects, reverse=True)
        for chunk in suspects:
            self._picker.reserve(chunk)
        self._news: list[Chunk] = []
        """what came since the start, in order; each peer has heard a part of it"""
        self._news_told = 0
        self._backlog = Backlog()
        self._news_at = inf
        self._tracker_lost_at: float = inf
        self._peer_fetches: dict[NodeId, tuple[Chunk, ...]] = {}
        self._space_at: float | None = None
        self._pin_asked_at: dict[Chunk, float] = {}
        self._corrupt_chunks = 0
        self._completed = False
        self._unconfirmed: dict[Chunk, NodeId | None] = {}
        """chunks whose pin nobody but their sender has told yet, with the sender"""
        self._confirm_at, self._confirm_left = -inf, limits.confirm_tries
        self._begun, self._together = begun, not begun
        self._now = 0.0
        self._out: list[Command] = []
        self.reading = Reading(
            manifest, holding or Holding(), held, suspects, pins, self._picker, self._book,
            self._backlog, self._fetches.__contains__, self._rehashing.__contains__,
            self._new_request, self._blame, rng,
        )  # fmt: skip

    # -- what others read -------------------------------------------------------------------------

    @property
    def fetching(self) -> tuple[Chunk, ...]:
        """Leases that this node holds."""
        return (*self._fetches, *self._waiting_leases)

    @property
    def wanted_leases(self) -> int:
        """How many leases this node can hold at once in all."""
        if self._space_at is not None or (self._backlog.full and self._anyone_lacks):
            return 0
        return self.reading.most_leases(self._limits.origin_fetches)

    @property
    def _anyone_lacks(self) -> bool:
        return any(not (peer.complete or peer.on_demand) for peer in self._book.ready())

    def bitfield_for(self, node: NodeId) -> bytes:
        """What this node holds, for a peer that is told of more from now on."""
        self._book[node].told = len(self._news)
        return bytes(self.held)

    def statistics(self) -> SwarmStatistics:
        """Figures for status, metrics and tests."""
        return SwarmStatistics(
            held=len(self.held),
            complete=self._completed,
            peers=len(self._book.ready()),
            asks=len(self._asks),
            fetches=len(self._fetches),
            suspects=len(self.suspects),
            corrupt_chunks=self._corrupt_chunks,
            quarantined=sum(p.quarantined_until > self._now for p in self._book.everyone()),
            waiting_for_space=self._space_at is not None,
        )

    def next_deadline(self) -> float:
        """When `DeadlinePassed` is due; infinity when nothing is."""
        times = [self._news_at, self._book.next_deadline(), self._ahead.next_deadline()]
        times.append(self.reading.next_deadline())
        if self._confirm_at > self._now:
            times.append(self._confirm_at)
        times += [fetch.again_at for fetch in self._fetches.values()]
        times += self._late.values()
        if self._space_at is not None:
            times.append(self._space_at)
        if self._tracker_lost_at < inf and not self.held.complete:
            ready = self._tracker_lost_at + self._limits.lease_grace_s
            times.append(ready if ready > self._now else self._now + 0.5)
        if self._pins_missing:
            times.append(self._now + self._limits.pins_again_s)
        return min(times)

    def handle(self, event: ev.Event, now: float) -> list[Command]:
        """Take an event; returns what is to be done, in order."""
        self._now, self._out = now, []
        taken, said = self.reading.take(event, now)
        self._out += said
        if not taken:
            self._take(event)
        self._wake(now)
        self._rehash_more()
        self._out += self.reading.work(now, tracker=self._tracker_lost_at == inf)
        self._ask_more()
        self._ask_ahead()
        self._fetch_alone()
        self._out += self._book.dial(now)
        self._check_complete()
        self.reading.note(self._out)
        return self._out

    def _take(self, event: ev.Event) -> None:
        match event:
            case ev.ChunkVerified():
                self._verified(event)
            case ev.PeerHas(peer, pins):
                self._peer_has(peer, pins)
            case ev.AskRefused(request, retry_after_s):
                self._refused(request, retry_after_s)
            case ev.AskFailed(request, _):
                self._ask_failed(request)
            case ev.ChunkCorrupt(request):
                self._corrupt(request)
            case ev.LeasesGranted(chunks):
                self._begin()
                for chunk in chunks:
                    self._leased(chunk)
            case ev.FetchFailed():
                self._fetch_failed(event)
            case ev.PinsLearned(pins, peer):
                before = len(self._unconfirmed)
                for chunk, pin in pins:
                    self._learn(chunk, pin, peer)
                if len(self._unconfirmed) < before:
                    self._confirm_at, self._confirm_left = -inf, self._limits.confirm_tries
            case ev.SpaceExhausted(chunk):
                self._no_space(chunk)
            case ev.ChunkDamaged(chunk):
                self._damaged(chunk)
            case ev.DeadlinePassed():
                pass
            case _:
                self._take_of_others(event)

    def _take_of_others(self, event: ev.Event) -> None:
        match event:
            case ev.TrackerFound():
                self._tracker_lost_at = inf
                self._peer_fetches.clear()
            case ev.TrackerLost():
                self._begin()
                self._tracker_lost_at = min(self._tracker_lost_at, self._now)
                self._tell_fetching()
            case ev.PeersOffered(peers):
                for node, addresses in peers:
                    self._book.offer(node, addresses, self._now, begun=self._begun)
                self._ahead.offered(self._now)
            case ev.PeersWithdrawn(peers):
                for node in peers:
                    self._book.withdraw(node)
            case ev.PeerReady(peer, bits, on_demand):
                self._book[peer].on_demand = on_demand
                self._peer_ready(peer, bits)
            case ev.PeerLost(peer) | ev.PeerLeaves(peer):
                self._peer_lost(peer)
            case ev.PeerLostChunks(peer, chunks):
                self._book[peer].complete = False
                for chunk in chunks:
                    self._picker.lacks(peer, chunk)
            case ev.PeerFetches(peer, chunks):
                self._peer_fetches[peer] = chunks
            case ev.PeerOwns(peer, chunks):
                self._peer_owns(peer, chunks)
            case ev.PeerAsksPins(peer, chunks):
                known = tuple((c, self.pins[c]) for c in chunks if c in self.pins)
                self._out.append(ev.SendPins(peer, known))
            case ev.CorruptionReported(_, chunk):
                self._suspect(chunk)

    def _begin(self) -> None:
        """Chunks are to come from now on."""
        if not self._begun:
            self._begun = True
            self._ahead.begin(self._now)

    # -- peers ------------------------------------------------------------------------------------

    def _peer_ready(self, node: NodeId, bits: bytes) -> None:
        try:
            held = Bitfield.from_bytes(bits, self._manifest.chunk_count)
        except ValueError as error:
            self._out.append(ev.Disconnect(node, str(RemoteProtocolError(str(error)))))
            return
        peer = self._book.met(node)
        peer.complete = held.complete
        for chunk in held:
            self._backlog.passed(chunk, self._now)
            self._ahead.heard(chunk, self._now)
        self._ahead.changed(self._now, last=self._book.all_ready)
        if node in self._ahead.near:
            self._ask_ahead_in = 0
        self._picker.join(node, held)
        self._picker.set_ready(node, peer.waits_until <= self._now)
        for chunk in [chunk for chunk in self._fetches if self._ahead.root(chunk) == node]:
            self._out.append(ev.SendComing(node, chunk))
        if peer.told < len(self._news):  # what came after it was sent our bitfield
            self._news_at = self._now

    def _peer_lost(self, node: NodeId) -> None:
        for request, (ask, _) in list(self._asks.items()):
            if ask.peer == node:
                self._end_ask(request)
        for waiting in self._ahead.all(node):
            self._ahead.take(waiting.chunk)
        self._ahead.changed(self._now)
        self._ask_ahead_in = 0
        self._picker.leave(node)
        self._peer_fetches.pop(node, None)
        self._book.lost(node, self._now)

    def _peer_has(self, node: NodeId, pins: tuple[tuple[Chunk, bytes], ...]) -> None:
        self._picker.has(node, *(chunk for chunk, _ in pins))
        for chunk, pin in pins:  # most are known: 50 nodes hear of each chunk 49 times
            if self.pins.get(chunk) != pin or chunk in self._unconfirmed:
                self._learn(chunk, pin, node)
            if chunk not in self.held:
                self._ahead.heard(chunk, self._now)
            else:
                self._backlog.passed(chunk, self._now)
        fetches = self._peer_fetches.get(node)
        if fetches:
            got = {chunk for chunk, _ in pins}
            self._peer_fetches[node] = tuple(c for c in fetches if c not in got)

    def _learn(self, chunk: Chunk, pin: bytes, peer: NodeId | None) -> None:
        known = self.pins.get(chunk)
        if known == pin and chunk in self._unconfirmed and self._unconfirmed[chunk] != peer:
            del self._unconfirmed[chunk]
        if known is None or len(known) != len(pin):
            self.pins[chunk] = pin
            self._pin_asked_at.pop(chunk, None)
        elif known != pin and peer is None:
            self.pins[chunk] = pin
            self._suspect(chunk)
        elif known != pin:
            self._out.append(ev.AskPins(None, (chunk,)))

    def _wait(self, peer: Peer, seconds: float) -> None:
        """Ask the peer nothing for a while."""
        self._book.wait(peer, self._now + seconds)
        self._picker.set_ready(peer.node, False)

    # -- requests ---------------------------------------------------------------------------------

    def _end_ask(self, request: int) -> ev.Ask | None:
        """The request is over; its chunk is missing unless it came. None: it was not ours."""
        entry = self._asks.pop(request, None)
        if entry is None:
            return None
        del self._late[request]
        ask = entry[0]
        self._picker.answered(ask.peer)
        self._picker.release(ask.chunk)
        if ask.chunk in self._waiting_leases and self._picker.state(ask.chunk) == MISSING:
            del self._waiting_leases[ask.chunk]
            self._start_fetch(ask.chunk)
        return ask

    def _refused(self, request: int, retry_after_s: float | None) -> None:
        ask = self._end_ask(request)
        if ask is None:
            if (waiting := self._ahead_ended(request)) is not None:  # it cannot wait there
                self._ahead.deny(waiting.peer, waiting.chunk)
            return
        if retry_after_s is None:
            self._picker.lacks(ask.peer, ask.chunk)
        else:
            wait_s = min(retry_after_s, self._limits.busy_cap_s) * (0.5 + self._rng.random())
            self._wait(self._book[ask.peer], wait_s)

    def _ask_failed(self, request: int) -> None:
        ask = self._end_ask(request) or self._ahead_ended(request)
        if ask is None:
            return
        peer = self._book.get(ask.peer)
        if peer is not None and peer.ready and peer.waits_until <= self._now:
            first, cap = self._limits.failure_first_s, self._limits.failure_cap_s
            self._wait(peer, full_jitter(peer.failures, first, cap, self._rng))
            peer.failures += 1

    def _corrupt(self, request: int) -> None:
        ask = self._end_ask(request) or self._ahead.ended(request)
        if ask is None:
            return
        self._blame(ask.peer, ask.chunk)

    def _blame(self, node: NodeId, chunk: Chunk) -> None:
        """The peer sent the chunk wrong."""
        self._corrupt_chunks += 1
        self._picker.lacks(node, chunk)
        self._ahead.deny(node, chunk)
        self._ask_ahead_in = 0
        self._out.append(ev.ReportCorruption(node, chunk))
        peer = self._book[node]
        peer.strikes += 1
        if peer.strikes >= self._limits.strikes:
            peer.strikes = 0
            peer.quarantined_until = self._now + self._limits.quarantine_s
            self._wait(peer, self._limits.quarantine_s)

    def _ask_more(self) -> None:
        """Fill the pipelines: what is read soon, then rarest first."""
        if self._space_at is not None or self.held.complete:
            self._pins_missing = False
            return
        if len(self._asks) >= self._limits.asks_total:
            return
        soon = self._askable(self.reading.soon())
        wanted = [c for c in self._askable(self._prefetched()) if self._ahead.free(c)]
        if self._young:
            left = {c for c in wanted if c not in self._ahead and self._comes_down(c)}
            if left:  # nothing else would see to them
                wanted, self._ask_ahead_in = [c for c in wanted if c not in left], 0
        unpinned = [chunk for chunk in (*soon, *wanted) if chunk not in self.pins]
        if unpinned:
            wanted = [chunk for chunk in wanted if chunk in self.pins]
        self._pins_missing = bool(unpinned)
        if unpinned:
            self._ask_for_pins(unpinned)
        for chunk in soon:
            if chunk in self.pins and (picked := self._picker.pick([chunk])) is not None:
                if len(self._asks) >= self._limits.asks_total:
                    return
                self._ask(*picked, Urge.SOON)
        wanted = [chunk for chunk in wanted if self._picker.state(chunk) != IN_FLIGHT]
        while len(self._asks) < self._limits.asks_total:
            picked = self._picker.pick(wanted)
            if picked is None or not self._ask(*picked, Urge.PREFETCH):
                return
            wanted.remove(picked[0])

    def _askable(self, chunks: list[Chunk]) -> list[Chunk]:
        return [chunk for chunk in chunks if self._picker.is_held_by_any(chunk)]

    def _prefetched(self) -> list[Chunk]:
        """What prefetch may begin now."""
        if self.reading.urgent.holds_back(self._now):
            return []
        return self.reading.wanted(self._picker.window())

    @property
    def _late_s(self) -> float:
        usual_s = self._ask_s.value
        part = self._limits.late_ending if self._ending else 1.0
        late_s = part * max(self._limits.late_factor * usual_s, self._limits.late_least_s)
        return min(late_s, self._limits.ask_timeout_s) if usual_s else self._limits.ask_timeout_s

    def _look_at_late(self) -> None:
        """Take requests that are late away from their peers, where another one could serve them."""
        for request in [request for request, at in self._late.items() if at <= self._now]:
            ask, asked = self._asks[request]
            others = [node for node in self._picker.able(ask.chunk) if node != ask.peer]
            if others or asked + self._limits.ask_timeout_s <= self._now:
                self._out.append(ev.CancelAsk(request, ask.peer))
                self._ask_failed(request)
            else:
                net = asked + self._limits.ask_timeout_s
                self._late[request] = min(self._now + self._late_s, net)

    def _new_request(self) -> int:
        self._next_request += 1
        return self._next_request - 1

    def _ask(self, chunk: Chunk, peer: NodeId, urge: Urge) -> bool:
        """Request a chunk; False: there is no room for it."""
        if not self.reading.may_come(chunk, urge):
            return False
        self._wait_no_more(chunk)
        ask = ev.Ask(self._new_request(), peer, chunk, self.pins[chunk])
        self._asks[ask.request] = (ask, self._now)
        self._late[ask.request] = self._now + self._late_s
        self._picker.reserve(chunk, peer)
        self._out.append(ask)
        return True

    # -- requests ahead ---------------------------------------------------------------------------

    def _able(self, node: NodeId) -> bool:
        peer = self._book.get(node)
        return peer is not None and peer.ready and peer.waits_until <= self._now

    def _parent(self, chunk: Chunk) -> NodeId | None:
        return self._ahead.parent(chunk, self._able, partial(self._book.coming, now=self._now))

    def _ask_ahead(self) -> None:
        """Ask parents for chunks of the window that nobody holds yet."""
        if self._ask_ahead_in > 0 or self._space_at is not None or self.held.complete:
            return
        if self.reading.on_demand or not self._begun:
            return
        young, limits = self._young, self._limits
        self._ask_ahead_in = limits.ahead_batch_first if young else limits.ahead_batch
        places: list[tuple[Chunk, NodeId]] = []
        window = min(limits.ahead, limits.ahead_first + 4 * len(self.held))
        for chunk in self._picker.window(window):
            if chunk in self._ahead or (not young and self._picker.is_held_by_any(chunk)):
                continue
            parent = self._parent(chunk)
            if parent is not None:
                places.append((chunk, parent))
        self._wait_at(places)
        for chunk, _ in places:
            if self._picker.is_held_by_any(chunk):
                self._ahead.heard(chunk, self._now)

    @property
    def _young(self) -> bool:
        """All began together, and so little is here that what is announced is on its way here."""
        return self._together and self._begun and len(self.held) < self._limits.window

    def _comes_down(self, chunk: Chunk) -> bool:
        """A parent is there, or is about to come: whoever pulls it instead burdens the few who have
        it, and the trees wait (570 of the first 800 copies in a swarm of 50 nodes)."""
        coming = partial(self._book.coming, now=self._now)
        return self._ahead.parent(chunk, lambda one: self._able(one) or coming(one)) is not None

    def _wait_at(self, places: list[tuple[Chunk, NodeId]]) -> None:
        """Ask for chunks at peers that are going to have them."""
        asks: dict[NodeId, list[tuple[int, Chunk, bytes]]] = {}
        for chunk, peer in places:
            request = self._new_request()
            self._ahead.add(Waiting(request, peer, chunk))
            self._picker.met(peer)
            asks.setdefault(peer, []).append((request, chunk, self.pins.get(chunk, b"")))
        self._out += [ev.AskAhead(peer, tuple(some)) for peer, some in asks.items()]

    def _peer_owns(self, node: NodeId, chunks: tuple[Chunk, ...]) -> None:
        """The owner of chunks gives them to us first."""
        if self._space_at is not None or self.reading.on_demand or not self._able(node):
            return
        wanted = [chunk for chunk in chunks if self._picker.state(chunk) == MISSING]
        for chunk in wanted:
            self._wait_no_more(chunk)
        self._wait_at([(chunk, node) for chunk in wanted])

    def _ahead_ended(self, request: int) -> Waiting | None:
        """Its chunk did not come. None: it is none of ours, or was called back."""
        waiting = self._ahead.get(request)
        if waiting is None:
            return None
        recalled = self._ahead.recalled(waiting.chunk)
        self._ahead.take(waiting.chunk)
        self._ask_ahead_in = 0
        return None if recalled else waiting

    def _wait_no_more(self, chunk: Chunk) -> None:
        """The chunk comes from elsewhere."""
        if (waiting := self._ahead.take(chunk)) is not None:
            self._out.append(ev.CancelAsk(waiting.request, waiting.peer))

    def _recall(self, late: list[Waiting]) -> None:
        """Call requests back of which nothing has come."""
        for one in late:
            self._out.append(ev.CancelAsk(one.request, one.peer, idle=True))

    @property
    def _ending(self) -> bool:
        """Whatever is missing here is held by a peer."""
        if self._ahead.all_heard and self._manifest.chunk_count - len(self.held) <= ENDING:
            return all(map(self._picker.is_held_by_any, self._picker.window(ENDING)))
        return False

    def _draw_trees(self) -> None:
        """Peers have come or gone. A young swarm asks its new parents at once."""
        peers = [peer.node for peer in self._book.expected(self._now) if not peer.on_demand]
        self._ahead.draw(sorted([self._node, *peers]), self._book.coming_until(self._now))
        self._book.dial_first(self._ahead.near, self._ahead.roots, self._now)
        self._ask_ahead_in = 0
        if len(self.held) < self._limits.window:
            for waiting in self._ahead.all():
                if self._parent(waiting.chunk) != waiting.peer:
                    self._wait_no_more(waiting.chunk)

    _pins_missing = False

    def _ask_for_pins(self, chunks: list[Chunk]) -> None:
        """Ask the holders of chunks whose pins never came."""
        by_peer: dict[NodeId, list[Chunk]] = {}
        before = self._now - self._limits.pins_again_s
        for chunk in [one for one in chunks if self._pin_asked_at.get(one, -inf) <= before]:
            by_peer.setdefault(self._rng.choice(self._picker.holders(chunk)), []).append(chunk)
        for node, unknown in by_peer.items():
            peer = self._book[node]
            if peer.pins_asked_at <= before:
                peer.pins_asked_at = self._now
                self._pin_asked_at.update(dict.fromkeys(unknown, self._now))
                self._out.append(ev.AskPins(node, tuple(unknown)))

    # -- the origin -------------------------------------------------------------------------------

    def _leased(self, chunk: Chunk) -> None:
        state = self._picker.state(chunk)
        if chunk in self._fetches:
            self._fetches[chunk].leased = True
        elif chunk in self.held:
            self._out.append(ev.ReportFetched(((chunk, self.pins[chunk]),)))
        elif state in (MISSING, RELEASED):
            if self.reading.may_come(chunk, Urge.PREFETCH):
                self._start_fetch(chunk)
            else:
                self._out.append(ev.ReturnLease(chunk, "no room in the cache", False, 0.5))
        else:  # under way from a peer, or being hashed: fetched if that fails
            self._waiting_leases[chunk] = None

    def _start_fetch(self, chunk: Chunk, *, leased: bool = True) -> None:
        self._wait_no_more(chunk)
        self._fetches[chunk] = _Fetch(leased=leased)
        self._picker.reserve(chunk)
        self._out.append(self._fetch(chunk))
        root = self._ahead.root(chunk)
        if root is not None and not self._picker.holds(root, chunk):
            self._out.append(ev.SendComing(root, chunk))

    def _fetch(self, chunk: Chunk) -> ev.Fetch:
        first = self.reading.urgent.first_of(chunk)
        return ev.Fetch(*first) if first else ev.Fetch(chunk)

    def _fetch_failed(self, event: ev.FetchFailed) -> None:
        fetch = self._fetches.get(event.chunk)
        if fetch is None:
            return
        fetch.tries += 1
        if event.fatal or fetch.tries >= self._limits.origin_tries:
            retry_after_s = event.retry_after_s or 0.0
            self._return_lease(event.chunk, event.text, event.fatal, retry_after_s, event.changed)
        else:
            wait_s = full_jitter(fetch.tries, 0.2, 2.0, self._rng)
            fetch.again_at = self._now + max(wait_s, event.retry_after_s or 0.0)

    def _return_lease(
        self, chunk: Chunk, text: str, fatal: bool, retry_after_s: float, changed: bool = False
    ) -> None:
        del self._fetches[chunk]
        self._picker.release(chunk)
        self._out.append(ev.ReturnLease(chunk, text, fatal, retry_after_s, changed))

    def _fetch_alone(self) -> None:
        """No tracker: the rendezvous hash over live peers says who may fetch what."""
        if (
            self._now < self._tracker_lost_at + self._limits.lease_grace_s
            or self._space_at is not None
            or len(self._fetches) >= self._limits.origin_fetches
        ):
            return
        nodes = [self._node, *(peer.node for peer in self._book.ready())]
        taken = {chunk for chunks in self._peer_fetches.values() for chunk in chunks}
        started = False
        urgent = self.reading.lone()
        for chunk in (*urgent, *self._prefetched()):
            if chunk in taken or self._picker.is_held_by_any(chunk) or chunk in self._fetches:
                continue
            owner = max(nodes, key=lambda node: (rendezvous_weight(chunk, node), node))
            if chunk in urgent or owner == self._node:
                if not self.reading.may_come(
                    chunk, Urge.SOON if chunk in urgent else Urge.PREFETCH
                ):
                    continue
                self._start_fetch(chunk, leased=False)
                started = True
                if len(self._fetches) >= self._limits.origin_fetches:
                    break
        if started:
            self._tell_fetching()

    def _tell_fetching(self) -> None:
        peers = tuple(peer.node for peer in self._book.ready())
        if peers:
            self._out.append(ev.SendFetching(peers, self.fetching))

    # -- chunks -----------------------------------------------------------------------------------

    def _verified(self, event: ev.ChunkVerified) -> None:
        chunk = event.chunk
        if event.request and (entry := self._asks.pop(event.request, None)) is not None:
            ask, asked = entry
            del self._late[event.request]
            self._ask_s.add(self._now - asked)
            self._picker.answered(ask.peer)
            if (peer := self._book.get(ask.peer)) is not None:
                peer.failures = 0
        self._ahead.came(chunk, self._now)
        waiting = self._ahead.ended(event.request) if event.request else None
        if waiting is None:
            self._wait_no_more(chunk)
        if chunk not in self.pins and event.source is Source.PEER:
            self._unconfirmed[chunk] = waiting.peer if waiting is not None else None
        if self.pins.setdefault(chunk, event.pin) != event.pin:
            self._suspect(chunk, held=True)
            return
        self._rehashing.pop(chunk, None)
        self.suspects.pop(chunk, None)
        self._space_at = None
        fresh = chunk not in self.held
        self.held.add(chunk)
        self._picker.held(chunk)
        leased = self._fetches.pop(chunk, None) is not None or chunk in self._waiting_leases
        self._waiting_leases.pop(chunk, None)
        if leased or event.source is Source.ORIGIN:
            self._out.append(ev.ReportFetched(((chunk, event.pin),)))
        if event.source is Source.ORIGIN and not self._picker.is_held_by_any(chunk):
            self._backlog.add(chunk)
        if fresh:
            self._ask_ahead_in -= 1
            root = self._ahead.root(chunk) if event.source is Source.ORIGIN else None
            if root is not None and not self._picker.holds(root, chunk):
                self._out.append(ev.SendHave((root,), ((chunk, self.pins[chunk]),)))
            self._news.append(chunk)
            self._news_at = min(self._news_at, self._now + self._limits.have_delay_s)
            few = len(self._book.ready()) <= self._limits.have_peers
            batch = self._limits.have_batch
            if self.held.complete or (few and len(self._news) - self._news_told >= batch):
                self._tell_news()

    def _tell_news(self) -> None:
        count = len(self._news)
        peers = [p for p in self._book.ready() if not p.complete and p.told < count]
        if not self.held.complete and len(peers) > self._limits.have_peers:
            peers = sorted(peers, key=lambda peer: peer.told_at)[: self._limits.have_peers]
            self._news_at = self._now + self._limits.have_delay_s
        else:
            self._news_at = inf
        alike: dict[int, list[NodeId]] = {}
        for peer in peers:
            alike.setdefault(peer.told, []).append(peer.node)
            peer.told, peer.told_at = count, self._now
        for told, nodes in alike.items():
            new = dict.fromkeys(self._news[told:])
            if pins := tuple((chunk, self.pins[chunk]) for chunk in new if chunk in self.held):
                self._out.append(ev.SendHave(tuple(nodes), pins))
        self._news_told = count

    def _suspect(self, chunk: Chunk, *, held: bool = False) -> None:
        """A held chunk may be wrong: hash it again, at most once a second."""
        if chunk not in self.held and not held:
            return
        last = self._rehashing.get(chunk, -inf)
        if last + self._limits.rehash_again_s <= self._now:
            self._rehashing[chunk] = self._now
            self._out.append(ev.Rehash(chunk, self.pins[chunk]))

    def _damaged(self, chunk: Chunk) -> None:
        self._rehashing.pop(chunk, None)
        was_held = chunk in self.held
        self.suspects.pop(chunk, None)
        self.held.discard(chunk)
        self._backlog.passed(chunk, self._now)
        self._completed = False
        self._unconfirmed.pop(chunk, None)
        self._fetches.pop(chunk, None)
        self._picker.dropped(chunk)
        self._corrupt_chunks += 1
        if was_held and (peers := tuple(peer.node for peer in self._book.ready())):
            self._out.append(ev.SendLost(peers, (chunk,)))
        if chunk in self._waiting_leases:
            del self._waiting_leases[chunk]
            self._start_fetch(chunk)

    def _no_space(self, chunk: Chunk) -> None:
        for request, (ask, _) in list(self._asks.items()):
            if ask.chunk == chunk:
                self._end_ask(request)
        for waiting in self._ahead.all():
            self._wait_no_more(waiting.chunk)
        self._ask_ahead_in = 0
        self._space_at = self._now + self._limits.space_retry_s
        for leased in (chunk, *self._fetches):
            fetch = self._fetches.get(leased)
            if fetch is not None and (leased == chunk or fetch.again_at < inf):
                self._return_lease(leased, "no space in the cache dir", False, 2.0)

    def _rehash_more(self) -> None:
        for chunk in self.reading.to_hash():
            self._rehashing[chunk] = self._now
            self._out.append(ev.Rehash(chunk, self.suspects[chunk]))
        while self._to_rehash and len(self._rehashing) < self._limits.rehashes:
            chunk = self._to_rehash.pop()
            if chunk in self.suspects and chunk not in self._rehashing:
                self._rehashing[chunk] = self._now
                self._out.append(ev.Rehash(chunk, self.suspects[chunk]))

    # -- time -------------------------------------------------------------------------------------

    def _wake(self, now: float) -> None:
        """Do what has become due."""
        if self._news_at <= now:
            self._tell_news()
        if self._space_at is not None and self._space_at <= now:
            self._space_at = None
        for node in self._book.woken(now):
            self._picker.set_ready(node, True)
            self._ask_ahead_in = 0
        if self._ending:
            self._ahead.ending(now)
        self._recall(self._ahead.expire(now))
        if self._ahead.settled(now):
            self._draw_trees()
        for chunk, fetch in self._fetches.items():
            if fetch.again_at <= now:
                fetch.again_at = inf
                self._out.append(self._fetch(chunk))
        self._look_at_late()

    def _check_complete(self) -> None:
        if self._completed or not self.held.complete or self.suspects:
            return
        if self._unconfirmed and self._tracker_lost_at == inf:
            if self._confirm_at > self._now:
                return
            if self._confirm_left:
                self._confirm_at = self._now + self._limits.pins_again_s
                self._confirm_left -= 1
                some = tuple(islice(self._unconfirmed, PINS_AT_ONCE))
                self._out.append(ev.AskPins(None, some))
                return
        self._completed = True
        self._out.append(ev.Complete())
