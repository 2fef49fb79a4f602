"""Serves what readers are blocked on: from the peer that answers first, else from the origin. Pure.

    need --a peer holds the chunk--> Ask with a range --slow--> one more; the loser is cancelled
      |--this node fetches it------> Hurry: its blocks first
      '--nobody does---------------> the tracker is told (SendWants): it leases the chunk to this
                                     node at once, or names the holders as soon as there are some,
                                     or says that another node prefetches it: FetchPart

A request for a need may be the second one for its bytes: prefetch may have asked for the whole
chunk already. There is never a third, but after one of the two has failed.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random

from p2p import events as ev
from p2p.events import Command
from p2p.evictor import Evictor, Urge
from p2p.ids import Chunk, NodeId
from p2p.needs import Needs, Part
from p2p.parts import Parts
from p2p.peerbook import PeerBook
from p2p.picker import HELD, IN_FLIGHT, Picker
from p2p.rates import Average

SAMPLES, SAMPLES_NEEDED = 256, 16
HEDGE_FIRST_S, HEDGE_LEAST_S, HEDGE_MOST_S = 0.1, 0.005, 1.0
CAME_S = 1.0  # a reader that still waits for what has come is served again
WANTS_AGAIN_S = 2.0  # a tracker that forgot is told again
WANTS_APART_S = 0.02  # a holder that lost its chunk makes us ask anew, but not in a tight circle
HOLD_S = 0.25  # prefetch begins nothing new for so long after a need; then it goes on
MOST_WANTS = 64


@dataclass(frozen=True, slots=True)
class _Try:
    """A request under way."""

    part: Part
    peer: NodeId
    asked_at: float


class Urgent:
    """The requests of needs.

    Args:
      pins: of all chunks, as far as they are known.
      fetching: whether this node reads a chunk from the origin.
      hashing: whether a chunk is here, and is being hashed.
      number: gives the next request's number.
    """

    def __init__(
        self,
        needs: Needs,
        room: Evictor,
        picker: Picker,
        book: PeerBook,
        pins: dict[Chunk, bytes],
        fetching: Callable[[Chunk], bool],
        hashing: Callable[[Chunk], bool],
        number: Callable[[], int],
        block_bytes: int,
        rng: Random,
    ) -> None:
        self._block_bytes = block_bytes
        self._needs, self._room, self._picker, self._book = needs, room, picker, book
        self._pins, self._fetching, self._hashing = pins, fetching, hashing
        self._number, self._rng = number, rng
        self.parts = Parts(number, rng)
        self._tries: dict[int, _Try] = {}
        self._came: dict[Part, float] = {}
        self._hurried: dict[Part, None] = {}
        self._answer_s: dict[NodeId, Average] = {}
        self._seconds: deque[float] = deque(maxlen=SAMPLES)
        self._refused: dict[tuple[NodeId, Chunk], float] = {}
        """who is not asked for a chunk again before then"""
        self._wants: tuple[tuple[Chunk, ...], tuple[Chunk, ...]] = ((), ())
        self._wants_at = -inf
        self._first_at = -inf
        self._impatient = False
        """somebody waits for more than what comes in order anyway"""
        self._look_at = inf
        self.hedges = 0
        self.short: list[Chunk] = []
        """chunks that are needed, and have no room yet"""

    def __repr__(self) -> str:
        return f"<Urgent tries={len(self._tries)} hedges={self.hedges}>"

    @property
    def hedge_s(self) -> float:
        """After how long a request for a need is slow: the 99th percentile of answers."""
        if len(self._seconds) < SAMPLES_NEEDED:
            return HEDGE_FIRST_S
        slow = sorted(self._seconds)[len(self._seconds) * 99 // 100]
        return min(max(slow, HEDGE_LEAST_S), HEDGE_MOST_S)

    def holds_back(self, now: float) -> bool:
        """Prefetch is to begin nothing new."""
        return self._impatient and now < self._first_at + HOLD_S

    def next_deadline(self) -> float:
        """When `work` is due."""
        return self._look_at

    # -- answers ----------------------------------------------------------------------------------

    def owns(self, request: int) -> bool:
        """The request is one of these."""
        return request in self._tries

    def peer_of(self, request: int) -> NodeId:
        """Who was asked."""
        return self._tries[request].peer

    def lost(self, peer: NodeId) -> None:
        """Its session has ended: what was asked of it fails."""
        self._tries = {n: one for n, one in self._tries.items() if one.peer != peer}
        self._answer_s.pop(peer, None)

    def failed(self, request: int, again_s: float, now: float) -> Part:
        """A request ended without its bytes; the peer is asked again after so long at the least."""
        one = self._tries.pop(request)
        self._refused[(one.peer, one.part.chunk)] = now + again_s
        self._answer_s.setdefault(one.peer, Average(0.2)).add(now - one.asked_at + again_s)
        return one.part

    def answered(self, request: int, now: float) -> list[Command]:
        """The bytes are here; other requests for them are cancelled."""
        if self.parts.owns(request):
            self._came[self.parts.came(request)] = now
            return []
        one = self._tries.pop(request, None)
        if one is None:
            return []
        seconds = now - one.asked_at
        self._seconds.append(seconds)
        self._answer_s.setdefault(one.peer, Average(0.2)).add(seconds)
        self._came[one.part] = now
        losers = [n for n, other in self._tries.items() if one.part.covers(other.part)]
        cancelled: list[Command] = [ev.CancelAsk(n, self._tries[n].peer) for n in losers]
        for number in losers:
            del self._tries[number]
        return cancelled

    def forget(self, chunk: Chunk) -> None:
        """The chunk was dropped: what came of it is gone."""
        for known in (self._came, self._hurried):
            for part in [part for part in known if part.chunk == chunk]:
                del known[part]

    # -- work -------------------------------------------------------------------------------------

    def work(self, now: float, *, tracker: bool) -> list[Command]:
        """What is to be done for readers now; `short` says for what there is no room."""
        self.short, self._look_at, self._impatient = [], inf, False
        if not self._needs.blocked:
            self._first_at = -inf
            self._hurried.clear()
            self._came.clear()
            self._refused.clear()
            self.parts.keep(())
            return self._tell_wants((), now) if tracker else []
        if self._first_at == -inf:
            self._first_at = now
        self._look_at = now + CAME_S
        out: list[Command] = []
        nowhere: list[Chunk] = []
        parts = self._needs.parts()
        self.parts.keep([part.chunk for part in parts])
        for part in parts:
            pieces = [piece for piece in self._pieces(part) if not self._here(piece, now)]
            if self._picker.state(part.chunk) == HELD or not pieces:
                continue
            if self._hashing(part.chunk):
                continue
            until = self._needs.patient_until(part.chunk)
            if self._picker.state(part.chunk) == IN_FLIGHT and now < until:
                self._look_at = min(self._look_at, until)
                continue
            self._impatient = True
            fetching = self._fetching(part.chunk)
            if fetching and not any(hurried.covers(part) for hurried in self._hurried):
                self._hurried[part] = None
                out.append(ev.Hurry(*part))
            if fetching and not self._picker.is_held_by_any(part.chunk):
                continue
            if not self._room.reserve(part.chunk, Urge.NEED):
                self.short.append(part.chunk)
                self._look_at = min(self._look_at, now + HEDGE_FIRST_S)
            elif not self._picker.is_held_by_any(part.chunk):
                nowhere.append(part.chunk)
                begun, again_at = self.parts.begin(part, until, now)
                self._look_at = min(self._look_at, again_at)
                out += begun
            else:
                for piece in pieces:
                    out += self._ask(piece, now)
        if tracker:
            out += self._tell_wants(tuple(nowhere), now)
        return out

    def _pieces(self, part: Part) -> list[Part]:
        """Those that were asked for before, and what lies between: a reader's need gets smaller as
        it reads, and cut anew its pieces would be others, and be asked for once more."""
        asked = (one.part for one in self._tries.values())
        known = {one for one in (*asked, *self._came) if one.chunk == part.chunk}
        found, at = list[Part](), part.start
        for one in sorted(known):
            if at < one.end and one.start < part.end:
                if at < one.start:
                    found += Part(part.chunk, at, one.start).pieces(self._block_bytes)
                found.append(one)
                at = one.end
        if at < part.end:
            found += Part(part.chunk, at, part.end).pieces(self._block_bytes)
        return found

    def _here(self, part: Part, now: float) -> bool:
        return any(seen.covers(part) and at + CAME_S > now for seen, at in self._came.items())

    def _ask(self, part: Part, now: float) -> list[Command]:
        tries = [one for one in self._tries.values() if one.part.covers(part)]
        if len(tries) >= 2:
            return []
        if tries:
            slow_at = tries[0].asked_at + self.hedge_s
            if now < slow_at:
                self._look_at = min(self._look_at, slow_at)
                return []
        if part.chunk not in self._pins:
            self._look_at = min(self._look_at, now + HEDGE_FIRST_S)
            return [] if tries else self._ask_pins(part.chunk, now)
        peer = self._choose(part.chunk, [one.peer for one in tries], now)
        if peer is None:
            return []
        self.hedges += bool(tries)
        number = self._number()
        self._tries[number] = _Try(part, peer, now)
        self._look_at = min(self._look_at, now + self.hedge_s)
        pin = self._pins[part.chunk]
        return [ev.Ask(number, peer, part.chunk, pin, part.start, part.end)]

    def _ask_pins(self, chunk: Chunk, now: float) -> list[Command]:
        peer = self._rng.choice(self._picker.holders(chunk))
        if self._refused.get((peer, chunk), -inf) > now:
            return []
        self._refused[(peer, chunk)] = now + HEDGE_FIRST_S
        return [ev.AskPins(peer, (chunk,)), ev.AskPins(None, (chunk,))]

    def _choose(self, chunk: Chunk, tried: list[NodeId], now: float) -> NodeId | None:
        """Who is expected to answer first: a peer that was never asked is tried before others."""
        able = []
        for node in self._picker.holders(chunk):
            peer = self._book.get(node)
            again_at = self._refused.get((node, chunk), -inf)
            if again_at > now:
                self._look_at = min(self._look_at, again_at)
            elif peer is not None and peer.quarantined_until <= now and node not in tried:
                busy = sum(one.peer == node for one in self._tries.values())
                average = self._answer_s.get(node)
                expected_s = (average.value if average else 0.0) * (1 + busy)
                able.append((expected_s, self._rng.random(), node))
        return min(able)[2] if able else None

    # -- the tracker ------------------------------------------------------------------------------

    def _tell_wants(self, needed: tuple[Chunk, ...], now: float) -> list[Command]:
        soon = tuple(
            chunk
            for chunk in self._needs.soon()[:MOST_WANTS]
            if self._picker.state(chunk) not in (HELD, IN_FLIGHT)
            and not self._picker.is_held_by_any(chunk)
            and not self._fetching(chunk)
            and self._room.reserve(chunk, Urge.SOON)
        )
        wants = (needed[:MOST_WANTS], soon)
        if wants != ((), ()):
            self._look_at = min(self._look_at, max(now, self._wants_at) + WANTS_AGAIN_S)
        if wants == self._wants and (wants == ((), ()) or now < self._wants_at + WANTS_AGAIN_S):
            return []
        if now < self._wants_at + WANTS_APART_S:
            self._look_at = min(self._look_at, self._wants_at + WANTS_APART_S)
            return []
        self._wants, self._wants_at = wants, now
        return [ev.SendWants(*wants)]

    def first_of(self, chunk: Chunk) -> Part | None:
        """What of a chunk is to come first when it is fetched."""
        part = next((part for part in self._needs.parts() if part.chunk == chunk), None)
        if part is not None:
            self._hurried[part] = None
        return part

    def tracker_found(self) -> None:
        """A session with a tracker stands: it is to hear all."""
        self._wants, self._wants_at = ((), ()), -inf
