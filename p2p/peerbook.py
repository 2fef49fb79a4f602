"""What a swarm remembers of each peer: how to reach it, and how far to trust it.

    KNOWN --Connect--> DIALLING --PeerReady--> READY --PeerLost--> KNOWN (dialled again later)

Of a pair, the node with the smaller id dials, so there is one session a pair. In a swarm of many,
those that the trees need are dialled first, and the others one after another: 49 handshakes in one
go kept each of 50 nodes from its first chunks for a second and a half. Before the tracker lets the
swarm begin nobody is in a hurry, and all dials wait for the trees.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from random import Random

from p2p.backoff import full_jitter
from p2p.deadlines import Deadlines
from p2p.events import Command, Connect
from p2p.ids import NodeId

REDIAL_FIRST_S, REDIAL_CAP_S = 0.2, 2.0
FEW = 16  # so many are all dialled at once
ROOTS_S = 0.05  # those that some chunks need: one in so long
LATER_S, PACE_S = 1.0, 0.2  # the others: not before, and one in so long
COMING_S = 2.0  # who is dialled at once has a session by then
EXPECTED_S = 60.0  # who was offered and did not fail is counted on for so long


@dataclass(slots=True)
class Peer:
    """One other node of the swarm."""

    node: NodeId
    addresses: tuple[str, ...] = ()
    offered: bool = False
    offered_at: float = -inf
    ready: bool = False
    complete: bool = False
    on_demand: bool = False
    """it gets only what is read there"""
    dialling: bool = False
    dial_attempt: int = 0
    waits_until: float = 0.0
    """not asked before then: it was busy, failed, or is in quarantine"""
    failures: int = 0
    strikes: int = 0
    quarantined_until: float = 0.0
    pins_asked_at: float = -inf
    told: int = 0
    """how much of our news it has heard, its bitfield included"""
    told_at: float = -inf

    def to_come(self, now: float, within_s: float) -> bool:
        """There is no session yet; it was offered no longer ago than that, and no dial failed."""
        fresh = self.offered and not self.ready and not self.dial_attempt
        return fresh and now < self.offered_at + within_s


class PeerBook:
    """All peers that were ever offered or met, until they are withdrawn and gone."""

    def __init__(self, me: NodeId, rng: Random) -> None:
        self._me = me
        self._rng = rng
        self._peers: dict[NodeId, Peer] = {}
        self._dials: Deadlines[NodeId] = Deadlines()
        self._waits: Deadlines[NodeId] = Deadlines()

    def __getitem__(self, node: NodeId) -> Peer:
        if node not in self._peers:
            self._peers[node] = Peer(node)
        return self._peers[node]

    def get(self, node: NodeId) -> Peer | None:
        """A peer, if it is known."""
        return self._peers.get(node)

    def ready(self) -> list[Peer]:
        """The peers with a session."""
        return [peer for peer in self._peers.values() if peer.ready]

    def expected(self, now: float) -> list[Peer]:
        """Those with a session, and those that were offered and are likely to have one soon."""
        return [
            peer for peer in self._peers.values() if peer.ready or peer.to_come(now, EXPECTED_S)
        ]

    def coming(self, node: NodeId, now: float) -> bool:
        """There is to be a session with it in a moment: nobody else is asked meanwhile."""
        peer = self._peers.get(node)
        return peer is not None and peer.to_come(now, COMING_S)

    def coming_until(self, now: float) -> float:
        """When nobody is waited for any more; infinity if nobody is now."""
        coming = (peer for peer in self._peers.values() if peer.to_come(now, COMING_S))
        return max((peer.offered_at + COMING_S for peer in coming), default=inf)

    @property
    def all_ready(self) -> bool:
        """There is a session with every peer that was offered, of whom there are some."""
        offered = [peer for peer in self._peers.values() if peer.offered]
        return bool(offered) and all(peer.ready for peer in offered)

    def everyone(self) -> list[Peer]:
        """All of them."""
        return list(self._peers.values())

    def offer(
        self, node: NodeId, addresses: tuple[str, ...], now: float, *, begun: bool = True
    ) -> None:
        """The tracker says that this node lives."""
        if node == self._me:
            return
        peer = self[node]
        if not peer.offered:
            peer.offered_at = now
        peer.addresses, peer.offered = addresses, True
        if not peer.ready and not peer.dialling and node not in self._dials and self._me < node:
            at_once = begun and len(self._peers) <= FEW
            self._dials.set(node, now if at_once else now + LATER_S)

    def dial_first(self, near: Collection[NodeId], roots: Collection[NodeId], now: float) -> None:
        """Of those never dialled yet the near ones come at once, or all if they are few; the
        others later, one by one, the roots first.

        Their turns begin anew each time: while peers still come and the trees change, the others
        wait. Turns that stay once they are given cost 50 nodes 2 % (1.131, 1.144, 1.151 for 1.117,
        1.117, 1.125, 1.144).
        """
        fresh = [n for n, p in self._peers.items() if n in self._dials and not p.dial_attempt]
        few, at = len(self._peers) <= FEW, now
        for node in sorted(fresh, key=lambda node: node not in roots):  # stable
            if few or node in near:
                self._dials.set(node, now)
            else:
                at += ROOTS_S if node in roots else PACE_S
                self._dials.set(node, at)

    def withdraw(self, node: NodeId) -> None:
        """The tracker says that it left: it is not dialled again."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.offered = False
            self._dials.discard(node)
            self._forget_if_gone(peer)

    def met(self, node: NodeId) -> Peer:
        """There is a session."""
        peer = self[node]
        peer.ready, peer.dialling, peer.dial_attempt = True, False, 0
        self._dials.discard(node)
        return peer

    def wait(self, peer: Peer, until: float) -> None:
        """The peer is not to be asked before then."""
        peer.waits_until = max(peer.waits_until, until)
        self._waits.set(peer.node, peer.waits_until)

    def woken(self, now: float) -> list[NodeId]:
        """Peers that may be asked again."""
        return self._waits.pop_due(now)

    def lost(self, node: NodeId, now: float) -> None:
        """The session ended, or could not be made."""
        peer = self[node]
        peer.ready = peer.complete = peer.dialling = False
        if peer.offered and self._me < node:
            wait_s = full_jitter(peer.dial_attempt, REDIAL_FIRST_S, REDIAL_CAP_S, self._rng)
            self._dials.set(node, now + wait_s)
            peer.dial_attempt += 1
        self._forget_if_gone(peer)

    def _forget_if_gone(self, peer: Peer) -> None:
        if not (peer.offered or peer.ready or peer.dialling):
            del self._peers[peer.node]
            self._waits.discard(peer.node)

    def dial(self, now: float) -> list[Command]:
        """The sessions that are due to be made."""
        if self._dials.next() > now:
            return []
        commands: list[Command] = []
        for node in self._dials.pop_due(now):
            peer = self._peers[node]
            peer.dialling = True
            commands.append(Connect(node, peer.addresses))
        return commands

    def next_deadline(self) -> float:
        """When a peer is to be dialled, or may be asked again."""
        return min(self._dials.next(), self._waits.next())
