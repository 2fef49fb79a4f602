"""Choose which chunk to request, and from which peer.

Theory of operation
-------------------
A chunk is in exactly one of these states:

    MISSING --reserve()--> IN FLIGHT --held()--> HELD
       ^                       |                   |
       '------- release() -----'---- dropped() ----'

RELEASED is MISSING, but for `window` and `ahead`: a bounded cache had it, and let it go.

`pick` looks at a window: the first chunks in the manifest's order that are not here. Rarest first
over the whole model would make a streaming reader wait 1.7 times as long; and a window of places
from the earliest missing chunk on would let a few chunks, of which a frozen node has the only
copies, keep all behind them from coming. Inside the window it takes the chunk that the fewest peers
hold, and then the least loaded of its holders. Ties are broken by the caller's `Random`: if every
node broke them by index, a fresh swarm would ask the one owner for the same chunk in unison.

Peers sit in numbered slots, and `_holders[chunk]` is an int with a bit for each slot. So a holder
with room is one `&`, and availability is one `bit_count`, whatever the number of peers. Peers that
hold everything are kept apart, in one mask, so that a seeder costs nothing per chunk.
"""

from random import Random

from p2p.bitfield import Bitfield
from p2p.ids import Chunk, NodeId
from p2p.needs import ahead_of

MISSING, IN_FLIGHT, HELD, RELEASED = 0, 1, 2, 3
SLACK = 16  # chunks that have come are passed over, so many at most: then they are taken out


class Picker:
    """Who holds what, what is wanted, and who has room for a request.

    Args:
      order: all chunks, the most wanted first.
      held: chunks that need no request.
      window: how many of the chunks that are not here to look at.
      per_peer: requests outstanding to one peer.
    """

    def __init__(
        self, order: list[Chunk], held: Bitfield, window: int, per_peer: int, rng: Random
    ) -> None:
        self._order = order
        self._window = window
        self._per_peer = per_peer
        self._rng = rng
        self._state = bytearray(len(order))
        self._holders = [0] * len(order)
        self._complete_mask = 0
        self._slots: dict[NodeId, int] = {}
        self._peers: list[NodeId | None] = []
        self._load: list[int] = []
        self._ready_mask = 0
        self._met_mask = 0
        """peers that were asked before: there is a connection to them"""
        self._room_mask = 0
        """peers with fewer requests than they may have"""
        for chunk in held:
            self._state[chunk] = HELD
        self._left = [chunk for chunk in order if self._state[chunk] < HELD]
        """those that are not here, in order, and some that have come since"""
        self._place = [0] * len(order)
        for place, chunk in enumerate(order):
            self._place[chunk] = place
        self._let_go: set[Chunk] = set()
        """chunks that are not in `_left` although they are not here"""

    # -- peers ------------------------------------------------------------------------------------

    def join(self, peer: NodeId, held: Bitfield) -> None:
        """A peer is there; it may be asked at once."""
        if peer in self._slots:
            self.leave(peer)
        slot = self._peers.index(None) if None in self._peers else len(self._peers)
        if slot == len(self._peers):
            self._peers.append(None)
            self._load.append(0)
        self._slots[peer], self._peers[slot], self._load[slot] = slot, peer, 0
        bit = 1 << slot
        self._ready_mask |= bit
        self._room_mask |= bit
        if held.complete:
            self._complete_mask |= bit
        else:
            for chunk in held:
                self._holders[chunk] |= bit

    def leave(self, peer: NodeId) -> None:
        """A peer is gone; its requests are released by the caller."""
        slot = self._slots.pop(peer, None)
        if slot is None:
            return
        keep = ~(1 << slot)
        self._peers[slot] = None
        self._ready_mask &= keep
        self._room_mask &= keep
        self._met_mask &= keep
        if self._complete_mask & ~keep:
            self._complete_mask &= keep
        else:
            self._holders = [mask & keep for mask in self._holders]

    def has(self, peer: NodeId, *chunks: Chunk) -> None:
        """The peer holds these chunks."""
        slot = self._slots.get(peer)
        if slot is not None and not self._complete_mask >> slot & 1:
            bit, holders = 1 << slot, self._holders
            for chunk in chunks:
                holders[chunk] |= bit

    def lacks(self, peer: NodeId, chunk: Chunk) -> None:
        """The peer does not hold the chunk, or is not to be asked for it."""
        slot = self._slots.get(peer)
        if slot is None:
            return
        bit = 1 << slot
        if self._complete_mask & bit:
            self._complete_mask &= ~bit
            self._holders = [mask | bit for mask in self._holders]
        self._holders[chunk] &= ~bit

    def set_ready(self, peer: NodeId, ready: bool) -> None:
        """Whether the peer may be asked (it is not busy, stalled or in quarantine)."""
        if (slot := self._slots.get(peer)) is not None:
            if ready:
                self._ready_mask |= 1 << slot
            else:
                self._ready_mask &= ~(1 << slot)

    def met(self, peer: NodeId) -> None:
        """Something was asked of the peer."""
        if (slot := self._slots.get(peer)) is not None:
            self._met_mask |= 1 << slot

    def holders(self, chunk: Chunk) -> list[NodeId]:
        """The peers that hold a chunk, ready or not."""
        return self._named(self._holders[chunk] | self._complete_mask)

    def holds(self, peer: NodeId, chunk: Chunk) -> bool:
        """That peer holds it, as far as is known."""
        slot = self._slots.get(peer)
        return slot is not None and bool((self._holders[chunk] | self._complete_mask) >> slot & 1)

    def able(self, chunk: Chunk) -> list[NodeId]:
        """The peers that hold a chunk and have room for a request."""
        mask = (self._holders[chunk] | self._complete_mask) & self._room_mask & self._ready_mask
        return self._named(mask)

    def is_held_by_any(self, chunk: Chunk) -> bool:
        """At least one peer holds it."""
        return bool(self._holders[chunk] | self._complete_mask)

    def _named(self, mask: int) -> list[NodeId]:
        found = []
        while mask:
            bit = mask & -mask
            peer = self._peers[bit.bit_length() - 1]
            if peer is not None:
                found.append(peer)
            mask ^= bit
        return found

    # -- chunks -----------------------------------------------------------------------------------

    def state(self, chunk: Chunk) -> int:
        """MISSING, IN_FLIGHT or HELD."""
        return self._state[chunk]

    def reserve(self, chunk: Chunk, peer: NodeId | None = None) -> None:
        """The chunk is under way, from a peer or (None) from elsewhere."""
        self._state[chunk] = IN_FLIGHT
        if peer is not None:
            slot = self._slots[peer]
            self._met_mask |= 1 << slot
            self._load[slot] += 1
            if self._load[slot] >= self._per_peer:
                self._room_mask &= ~(1 << slot)

    def answered(self, peer: NodeId) -> None:
        """A request to the peer is answered, well or not: it has room for another."""
        if (slot := self._slots.get(peer)) is not None:
            self._load[slot] = max(0, self._load[slot] - 1)
            if self._load[slot] < self._per_peer:
                self._room_mask |= 1 << slot

    def release(self, chunk: Chunk) -> None:
        """The chunk did not come: it is missing again."""
        if self._state[chunk] == IN_FLIGHT:
            self._state[chunk] = MISSING
            if chunk in self._let_go:
                self._look_again()

    def held(self, chunk: Chunk) -> None:
        """The chunk is here."""
        self._state[chunk] = HELD

    def dropped(self, chunk: Chunk, state: int = MISSING) -> None:
        """The chunk was here and no longer is: MISSING or RELEASED."""
        self._state[chunk] = state
        if state == MISSING:
            self._look_again()
        else:
            self._let_go.add(chunk)

    def _look_again(self) -> None:
        self._left = [chunk for chunk in self._order if self._state[chunk] < HELD]
        self._let_go = {chunk for chunk in self._let_go if self._state[chunk] >= HELD}

    def window(self, size: int | None = None) -> list[Chunk]:
        """The missing chunks of the window, not those in flight, the most wanted first.

        Args:
          size: of another window than the usual one.
        """
        state, left = self._state, self._left
        size = size or self._window
        while True:
            head = left[: size + SLACK]
            alive = [chunk for chunk in head if state[chunk] < HELD]
            if len(head) - len(alive) <= SLACK:
                return [chunk for chunk in alive[:size] if not state[chunk]]
            left[: len(head)] = alive

    def ahead(self, cursors: list[Chunk], most: int) -> list[Chunk]:
        """Missing chunks from each of these places on."""
        return ahead_of(cursors, self._state, most)

    def pick(self, wanted: list[Chunk]) -> tuple[Chunk, NodeId] | None:
        """The rarest chunk of `wanted` that a ready peer holds, and the least loaded such peer;
        of those that follow the first missing one closely, if any of them can be had.

        The caller sends a request and calls `reserve`.
        """
        first = next((chunk for chunk in self._left if self._state[chunk] < HELD), None)
        end = self._window + (0 if first is None else self._place[first])
        near = [chunk for chunk in wanted if self._place[chunk] < end]
        if len(near) == len(wanted):
            return self._rarest(wanted)
        return self._rarest(near) or self._rarest(wanted)

    def _rarest(self, wanted: list[Chunk]) -> tuple[Chunk, NodeId] | None:
        ready = self._room_mask & self._ready_mask
        if not ready:
            return None
        holders, complete = self._holders, self._complete_mask
        rarest, best = 1 << 30, []
        for chunk in wanted:
            mask = holders[chunk] | complete
            if mask & ready:
                count = mask.bit_count()
                if count < rarest:
                    rarest, best = count, [chunk]
                elif count == rarest:
                    best.append(chunk)
        if not best:
            return None
        chunk = self._rng.choice(best)
        able = self.able(chunk)
        least = min(self._load[self._slots[peer]] for peer in able)
        idle = [peer for peer in able if self._load[self._slots[peer]] == least]
        met = [peer for peer in idle if self._met_mask >> self._slots[peer] & 1]
        return chunk, self._rng.choice(met or idle)
