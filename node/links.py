"""Data connections: dialled and authenticated here, then handed over to a data worker.

The cluster token and the handshake stay in the control process; a worker gets a socket on which
the next byte is a data frame. A peer gets its first downlink at the first request, and more, up to
one for each NIC of the side that has more of them, when the ones there are have work.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf

import trio

from node.dial import local_ip
from node.jobs import AddDownlink, AddUplink, AskAheadJob, AskJob, CancelJob, CloseLinks
from node.pairs import Pair, Pairs, spare
from node.sockets import set_interactive
from node.workers import WorkerPool
from p2p.errors import ProtocolError
from p2p.events import Ask, AskAhead, AskFailed, Event
from p2p.ids import NodeId, short

log = logging.getLogger(__name__)

Dial = Callable[[NodeId, Pair], Awaitable[trio.SocketStream]]
URGENT = 4  # connections to a peer for what readers are blocked on, half a need's pieces
FAILURES = (OSError, ProtocolError, trio.BrokenResourceError, trio.TooSlowError)


@dataclass(slots=True, eq=False)
class Downlink:
    """A data connection that we dialled, or are dialling."""

    link: int
    worker: int
    peer: NodeId
    pair: Pair
    ready: bool = False
    urgent: bool = False
    """for what readers are blocked on: whole chunks never wait in front of it"""
    spare: bool = False
    """its addresses have other connections: it gets requests when those fail"""
    failing: bool = False
    """a request on it failed: it gets no more until another one succeeds"""
    waiting: list[Ask | AskAhead] = field(default_factory=list)
    asked: int = 0
    """requests under way"""

    @property
    def load(self) -> int:
        """Requests under way, or waiting for it to be made."""
        return self.asked + len(self.waiting)


@dataclass(slots=True)
class Asked:
    """A request under way: `once_more` may go to another connection if this one fails."""

    down: Downlink
    once_more: Ask | None = None


def detach(stream: trio.SocketStream) -> socket.socket:
    """The plain, non-blocking socket of a stream, which must not be used any more."""
    plain = socket.socket(fileno=os.dup(stream.socket.fileno()))
    plain.setblocking(False)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.socket.close()
    return plain


def _requests(ask: Ask | AskAhead) -> tuple[int, ...]:
    if isinstance(ask, Ask):
        return (ask.request,)
    return tuple(request for request, _, _ in ask.asks)


class Links:
    """Which worker serves which data connection.

    Args:
      dial: opens an authenticated data connection to a peer; raises OSError, ProtocolError or
        trio's errors.
      pairs: the pairs of addresses between us and a peer.
      feed: takes events for the swarm.
      homes: workers that are pinned near a local address: they get its connections.
    """

    def __init__(
        self,
        pool: WorkerPool,
        dial: Dial,
        pairs: Callable[[NodeId], Pairs],
        feed: Callable[[Event], None],
        nursery: trio.Nursery,
        homes: Mapping[str, int] | None = None,
    ) -> None:
        self._pool = pool
        self._dial = dial
        self._pairs = pairs
        self._feed = feed
        self._nursery = nursery
        self._homes = homes or {}
        self._next_link = 1
        self._load = [0] * pool.count
        self._workers: dict[int, int] = {}
        self._down: dict[NodeId, dict[int, Downlink]] = {}
        self._asked: dict[int, Asked] = {}
        self._heard: dict[NodeId, float] = {}

    def _new_link(self, ip: str) -> tuple[int, int]:
        link, self._next_link = self._next_link, self._next_link + 1
        worker = self._homes.get(ip)
        if worker is None:
            worker = min(range(len(self._load)), key=lambda index: (self._load[index], index))
        self._load[worker] += 1
        self._workers[link] = worker
        return link, worker

    def accept(self, peer: NodeId, stream: trio.SocketStream) -> None:
        """A peer dialled a data connection to us: let a worker serve it."""
        plain = detach(stream)
        link, worker = self._new_link(local_ip(plain))
        self._pool.submit(worker, AddUplink(link, peer), plain)

    def ask(self, ask: Ask | AskAhead) -> None:
        """Send requests to a peer on its least loaded connection, dialling one if need be."""
        links = self._down.setdefault(ask.peer, {})
        if isinstance(ask, Ask) and ask.end:
            self._ask_at_once(ask)
            return
        down = self._least(ask.peer)
        if down is None or down.asked:
            # an ask that a ready connection can take does not wait for a new one
            opened = self._open_more(ask.peer)
            dialled = [one for one in links.values() if not one.ready and not one.urgent]
            down = down or opened or min(dialled, key=lambda d: len(d.waiting), default=None)
        if down is None:
            self._fail(ask, "the peer has no address")
        elif down.ready:
            self._send(down, ask)
        else:
            down.waiting.append(ask)

    def _fail(self, ask: Ask | AskAhead, text: str) -> None:
        for request in _requests(ask):
            self._feed(AskFailed(request, text))

    def prepare(self, peer: NodeId) -> None:
        """Readers are here: make the connections that needs take."""
        links = self._down.setdefault(peer, {})
        for _ in range(URGENT - sum(one.urgent for one in links.values())):
            self._open_more(peer, urgent=True)

    def _ask_at_once(self, ask: Ask) -> None:
        """For a reader: on a connection of its own, or meanwhile on one that is idle."""
        urgent = [one for one in self._down[ask.peer].values() if one.urgent]
        down = min(urgent, key=lambda one: (not one.ready, one.load), default=None)
        if len(urgent) < URGENT and (down is None or down.load or not down.ready):
            opened = self._open_more(ask.peer, urgent=True)
            down = down if down is not None and down.ready else opened or down
        idle = self._least(ask.peer)
        if idle is not None and not idle.asked and (down is None or not down.ready):
            down = idle
        if down is None:
            self._fail(ask, "the peer has no address")
        elif down.ready:
            self._send(down, ask)
        else:
            down.waiting.append(ask)

    def _least(self, peer: NodeId, but: Downlink | None = None) -> Downlink | None:
        links = self._down.get(peer, {}).values()
        able = [one for one in links if one.ready and one is not but and not one.urgent]
        return min(able, key=lambda one: (one.failing, one.spare, one.asked), default=None)

    def _open_more(self, peer: NodeId, *, urgent: bool = False) -> Downlink | None:
        links = self._down[peer]
        pairs = self._pairs(peer)
        used = [one.pair for one in links.values() if not one.urgent and not one.spare]
        pair = pairs.pick([] if urgent else used, trio.current_time())
        if pair is None:
            return None
        link, worker = self._new_link(pair[0])
        down = links[link] = Downlink(link, worker, peer, pair, urgent=urgent)
        self._nursery.start_soon(self._open, down)
        return down

    def _send(self, down: Downlink, ask: Ask | AskAhead, *, once_more: bool = True) -> None:
        if isinstance(ask, AskAhead):
            for request, _, _ in ask.asks:
                self._asked[request] = Asked(down)
            down.asked += len(ask.asks)
            self._pool.submit(down.worker, AskAheadJob(down.link, list(ask.asks)))
        else:
            self._asked[ask.request] = Asked(down, ask if once_more else None)
            down.asked += 1
            job = AskJob(ask.request, down.link, ask.chunk, ask.pin, ask.start, ask.end)
            self._pool.submit(down.worker, job)

    async def _open(self, down: Downlink) -> None:
        peer = down.peer
        try:
            stream = await self._dial(peer, down.pair)
        except FAILURES as error:
            log.debug("no data connection peer=%s pair=%s error=%s", short(peer), down.pair, error)
            down.failing = True
            self.closed(down.link, peer)
            self._find_another(down, f"no data connection: {error}")
            return
        plain = detach(stream)
        set_interactive(plain)
        self._pool.submit(down.worker, AddDownlink(down.link, peer), plain)
        down.ready = True
        self._set_spare(peer)
        for ask in down.waiting:
            self._send(down, ask)
        down.waiting.clear()

    def _set_spare(self, peer: NodeId) -> None:
        """The connections of a peer have changed."""
        ready = [one for one in self._down.get(peer, {}).values() if one.ready and not one.urgent]
        spares = spare([one.pair for one in ready])
        for index, one in enumerate(ready):
            one.spare = index in spares

    def _find_another(self, down: Downlink, text: str) -> None:
        """A connection could not be made: what waits for it goes elsewhere, or fails."""
        now, pairs = trio.current_time(), self._pairs(down.peer)
        other = self._least(down.peer)
        untried = any(pairs.usable(pair, now) for pair in pairs.each)
        for ask in down.waiting:
            if other is not None:
                self._send(other, ask)
            elif untried:
                self.ask(ask)
            else:
                self._fail(ask, text)
        down.waiting.clear()

    def cancel(self, request: int, peer: NodeId, *, idle: bool = False) -> None:
        """Nobody waits for this request any more; `idle`: unless its answer has begun."""
        for down in self._down.get(peer, {}).values():
            for index, ask in enumerate(down.waiting):
                if request in _requests(ask):
                    asks = ask.asks if isinstance(ask, AskAhead) else ()
                    others = tuple(one for one in asks if one[0] != request)
                    down.waiting[index : index + 1] = [AskAhead(peer, others)] if others else []
                    self._feed(AskFailed(request, "cancelled"))
                    return
        if (asked := self._asked.get(request)) is not None:
            asked.once_more = None
            self._pool.submit(asked.down.worker, CancelJob(request, idle))

    def ended(self, request: int) -> None:
        """A request was answered."""
        asked = self._asked.pop(request, None)
        if asked is not None:
            self._heard[asked.down.peer] = trio.current_time()
            asked.down.asked -= 1
            asked.down.failing = False
            self._pairs(asked.down.peer).worked(asked.down.pair)

    def again(self, request: int) -> bool:
        """A request failed with its connection: send it on another one to the same peer, once.

        Returns:
          False: there is no other, or it was tried.
        """
        asked = self._asked.pop(request, None)
        if asked is None:
            return False
        asked.down.asked -= 1
        asked.down.failing = True
        other = self._least(asked.down.peer, but=asked.down)
        if other is None or other.failing or asked.once_more is None:
            return False
        self._send(other, asked.once_more, once_more=False)
        return True

    def closed(self, link: int, peer: NodeId) -> None:
        """A data connection ended."""
        worker = self._workers.pop(link, None)
        if worker is not None:
            self._load[worker] -= 1
        links = self._down.get(peer, {})
        down = links.pop(link, None)
        if down is not None and down.failing:
            self._pairs(peer).failed(down.pair, trio.current_time())
        self._set_spare(peer)
        if not links:
            self._down.pop(peer, None)
            self._heard.pop(peer, None)

    def needs(self, peer: NodeId) -> bool:
        """Requests are under way at a peer."""
        return any(down.load for down in self._down.get(peer, {}).values())

    def heard_at(self, peer: NodeId) -> float:
        """When the last answer came."""
        return self._heard.get(peer, -inf)

    def close_peer(self, peer: NodeId) -> None:
        """Close all data connections with a peer."""
        for worker in range(self._pool.count):
            self._pool.submit(worker, CloseLinks(peer))
