"""The readers' side of a swarm: their needs, and the room for what they read. Pure.

`Swarm.handle` passes every event through `take` before it looks at it, lets `work` go before
prefetch, and shows `note` the commands that came of it. A chunk that goes:

    Evictor says so --> not held, no request for it --Drop--> ChunkDropped --> RELEASED, room again

RELEASED is missing, but not prefetched again: only readers bring it back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from p2p import events as ev
from p2p.backlog import Backlog
from p2p.bitfield import Bitfield
from p2p.events import Command, Source
from p2p.evictor import Evictor, Situation, Urge
from p2p.ids import Chunk, NodeId
from p2p.manifest import Manifest
from p2p.needs import SOON, Needs
from p2p.peerbook import PeerBook
from p2p.picker import MISSING, RELEASED, Picker
from p2p.urgent import Urgent

REFUSED_S, FAILED_S, CORRUPT_S = 0.05, 0.2, 60.0
PREPARED = 8  # peers with connections for needs: others get theirs with the first need
AGAIN_S = 0.1  # after no room could be made for what is read soon
SOON_AT_ONCE = 4  # chunks of windows that room is made for together


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node is to hold.

    Attributes:
      prefetch: everything; else only what is read.
      cache_bytes: the most that the cache may hold; None: no limit.
      expire_s: what was read goes so long after its last use, if the cache is bounded.
      kept: chunks that never go.
    """

    prefetch: bool = True
    cache_bytes: int | None = None
    expire_s: float | None = None
    kept: tuple[Chunk, ...] = ()


class Reading:
    """What readers have to do with a swarm.

    Args:
      blame: called for a peer that sent a wrong chunk.
      rehashing: whether a chunk is being hashed.
    """

    def __init__(
        self,
        manifest: Manifest,
        holding: Holding,
        held: Bitfield,
        suspects: dict[Chunk, bytes],
        pins: dict[Chunk, bytes],
        picker: Picker,
        book: PeerBook,
        backlog: Backlog,
        fetching: Callable[[Chunk], bool],
        rehashing: Callable[[Chunk], bool],
        number: Callable[[], int],
        blame: Callable[[NodeId, Chunk], None],
        rng: Random,
    ) -> None:
        self.prefetch = holding.prefetch
        self.needs = Needs(manifest)
        self.room = Evictor(manifest, holding.cache_bytes, holding.expire_s)
        self.room.kept = dict.fromkeys(holding.kept)
        self.urgent = Urgent(
            self.needs, self.room, picker, book, pins, fetching,
            lambda chunk: chunk in suspects, number, manifest.block_bytes, rng,
        )  # fmt: skip
        self._held, self._suspects = held, suspects
        self._picker, self._book, self._backlog = picker, book, backlog
        self._rehashing, self._blame = rehashing, blame
        self._open: dict[int, Chunk] = {}
        self._fetches: dict[Chunk, None] = {}
        self._prepared: dict[NodeId, None] = {}
        self._again_at = 0.0
        self._crowded = self.room.evicts
        """the cache may be fuller than it may be: it was larger at its last use"""
        for chunk in (*held, *suspects):
            self.room.came(chunk, 0.0)

    @property
    def on_demand(self) -> bool:
        """This node does not end up with the whole model."""
        return not self.prefetch or self.room.evicts

    # -- events -----------------------------------------------------------------------------------

    def take(self, event: ev.Event, now: float) -> tuple[bool, list[Command]]:
        """Look at an event first.

        Returns:
          Whether it is dealt with, and what is to be done.
        """
        self._end_transfer(event)
        match event:
            case ev.BlocksVerified(request):
                return True, self.urgent.answered(request, now)
            case ev.ChunkVerified(chunk, _, _, request):
                self.room.came(chunk, now)
                self.needs.came(chunk)
                return False, self.urgent.answered(request, now)
            case ev.AskRefused(request, retry_after_s) if self.urgent.owns(request):
                peer = self.urgent.peer_of(request)
                part = self.urgent.failed(request, retry_after_s or REFUSED_S, now)
                if retry_after_s is None:
                    self._picker.lacks(peer, part.chunk)
            case ev.AskFailed(request, _) if self.urgent.owns(request):
                self.urgent.failed(request, FAILED_S, now)
            case ev.ChunkCorrupt(request) if self.urgent.owns(request):
                peer = self.urgent.peer_of(request)
                self._blame(peer, self.urgent.failed(request, CORRUPT_S, now).chunk)
            case ev.FetchedElsewhere(chunks):
                self.urgent.parts.allow(chunks)
            case ev.PartFailed(request, _, fatal, retry_after_s) if self.urgent.parts.owns(request):
                self.urgent.parts.failed(request, retry_after_s, now, fatal=fatal)
            case ev.ChunkDropped(chunk):
                self.room.dropped(chunk)
                self.urgent.forget(chunk)
                self.needs.forget(chunk)
                self._picker.dropped(chunk, RELEASED)
            case ev.PeerLost(peer) | ev.PeerLeaves(peer):
                self.urgent.lost(peer)
                self._prepared.pop(peer, None)
                return False, []
            case ev.TrackerFound():
                self.urgent.tracker_found()
                return False, []
            case _:
                return self._take_reader(event, now), []
        return True, []

    def _take_reader(self, event: ev.Event, now: float) -> bool:
        match event:
            case ev.ReaderNeeds(reader, file, start, end):
                self.needs.need(reader, file, start, end, now)
            case ev.ReaderSatisfied(reader):
                self.needs.satisfied(reader, now)
            case ev.ReaderWindow(reader, file, start, end):
                self.needs.window(reader, file, start, end)
            case ev.ReaderPlans(reader, ranges):
                self.needs.will_need(reader, ranges, self._held)
            case ev.ReaderRead(reader, file, start, end):
                self.needs.read(reader, file, start, end, now)
            case ev.ReaderClosed(reader):
                self.needs.closed(reader)
            case _:
                return False
        return True

    def _end_transfer(self, event: ev.Event) -> None:
        """Nothing more is written for what the event answers."""
        match event:
            case (
                ev.BlocksVerified(request) | ev.AskRefused(request, _) | ev.AskFailed(request, _)
                | ev.ChunkCorrupt(request) | ev.ChunkVerified(_, _, _, request)
                | ev.SpaceExhausted(_, request) | ev.PartFailed(request)
            ) if request in self._open:  # fmt: skip
                self.room.ended(self._open.pop(request))
            case (
                ev.ChunkVerified(chunk, Source.ORIGIN)
                | ev.FetchFailed(chunk)
                | (ev.SpaceExhausted(chunk, 0))
            ) if chunk in self._fetches:
                del self._fetches[chunk]
                self.room.ended(chunk)

    def note(self, commands: list[Command]) -> None:
        """These commands are carried out: some begin transfers."""
        for command in commands if self.room.evicts else ():
            match command:
                case ev.Ask(request, _, chunk) | ev.FetchPart(request, chunk):
                    self._open[request] = chunk
                    self.room.began(chunk)
                case ev.Fetch(chunk) if chunk not in self._fetches:
                    self._fetches[chunk] = None
                    self.room.began(chunk)

    # -- work -------------------------------------------------------------------------------------

    def work(self, now: float, *, tracker: bool) -> list[Command]:
        """What readers and the cache's limit ask for, before prefetch."""
        out = self._prepare() + self.urgent.work(now, tracker=tracker)
        if self.room.evicts:
            going = self._make_room(now) + self.room.expired(self._situation(now), now)
            if going:
                out += self._drop(going, now)
        return out

    def _prepare(self) -> list[Command]:
        """Readers are here: a need is not to wait for a connection."""
        if not self.needs.attended or len(self._prepared) >= PREPARED:
            return []
        new = [p.node for p in self._book.ready() if p.node not in self._prepared]
        new = new[: PREPARED - len(self._prepared)]
        self._prepared.update(dict.fromkeys(new))
        return [ev.Prepare(node) for node in new]

    def _make_room(self, now: float) -> list[Chunk]:
        if self._crowded:
            self._crowded = False
            return self.room.make_room((), Urge.NEED, self._situation(now))
        if self.urgent.short:
            return self.room.make_room(self.urgent.short, Urge.NEED, self._situation(now))
        if now < self._again_at or not (missing := self.soon()[:SOON_AT_ONCE]):
            return []
        near = [chunk for chunk in self.needs.near() if chunk in missing]
        urge = Urge.SOON if near else Urge.PLAN
        going = self.room.make_room(near or missing, urge, self._situation(now))
        if not going:  # to look costs as much as the cache is large
            self._again_at = now + AGAIN_S
        return going

    def _situation(self, now: float) -> Situation:
        return Situation(
            self.needs.guarded(now), self.needs.soon(), self.needs.read_at,
            lambda chunk: chunk in self._held, self._picker.is_held_by_any, self._rehashing,
        )  # fmt: skip

    def _drop(self, chunks: list[Chunk], now: float) -> list[Command]:
        lost = tuple(chunk for chunk in chunks if chunk in self._held)
        for chunk in chunks:
            self._held.discard(chunk)
            self._suspects.pop(chunk, None)
            self._backlog.passed(chunk, now)
            self._picker.reserve(chunk)
        out: list[Command] = [ev.Drop(chunk) for chunk in chunks]
        if lost:
            peers = tuple(peer.node for peer in self._book.ready())
            out += [ev.SendLost(peers, lost), ev.ReportLost(lost)]
        return out

    def next_deadline(self) -> float:
        """When `work` is due."""
        return min(self.urgent.next_deadline(), self.room.next_deadline())

    # -- what prefetch does -----------------------------------------------------------------------

    def soon(self) -> list[Chunk]:
        """Missing chunks that readers will read soon."""
        state = self._picker.state
        return [chunk for chunk in self.needs.soon() if state(chunk) in (MISSING, RELEASED)]

    def to_hash(self) -> list[Chunk]:
        """Chunks on disk that readers wait for: they are hashed before others."""
        needed = (part.chunk for part in self.needs.parts())
        return [c for c in needed if c in self._suspects and not self._rehashing(c)]

    def lone(self) -> list[Chunk]:
        """Chunks that this node reads from the origin by itself when no tracker answers: what
        readers are blocked on, and read soon."""
        missing = (MISSING, RELEASED)
        needed = [part.chunk for part in self.needs.parts()]
        return [c for c in needed if self._picker.state(c) in missing] + self.soon()

    def wanted(self, window: list[Chunk]) -> list[Chunk]:
        """What to ask peers for, after what is read soon: the model from the readers' places on,
        then `window`."""
        if not self.prefetch:
            return []
        if cursors := self.needs.cursors():
            window = list(dict.fromkeys((*self._picker.ahead(cursors, SOON), *window)))
        # a small cache must not be filled with the rarest chunks from all over the model
        return window[: self.room.free_chunks] if self.room.evicts else window

    def most_leases(self, limit: int) -> int:
        """How many leases prefetch may hold, of so many."""
        if not self.prefetch:
            return 0
        return min(limit, self.room.free_chunks) if self.room.evicts else limit

    def may_come(self, chunk: Chunk, urge: Urge) -> bool:
        """There is room for a chunk; it is taken."""
        return self.room.reserve(chunk, urge)
