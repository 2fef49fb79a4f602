"""Data connections: dialled and authenticated here, then handed over to a data worker.

The cluster token and the handshake stay in the control process; a worker gets a socket on which
the next byte is a data frame. One downlink a peer, opened at the first request.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from node.jobs import AddDownlink, AddUplink, AskJob, CancelJob, CloseLinks
from node.workers import WorkerPool
from p2p.errors import ProtocolError
from p2p.events import Ask, AskFailed, Event
from p2p.ids import NodeId, short

log = logging.getLogger(__name__)

Dial = Callable[[NodeId], Awaitable[trio.SocketStream]]


@dataclass(slots=True)
class Downlink:
    """A data connection that we dialled, or are dialling."""

    link: int
    worker: int
    ready: bool = False
    waiting: list[Ask] = field(default_factory=list)


def detach(stream: trio.SocketStream) -> socket.socket:
    """The plain, non-blocking socket of a stream, which must not be used any more."""
    plain = socket.socket(fileno=os.dup(stream.socket.fileno()))
    plain.setblocking(False)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.socket.close()
    return plain


class Links:
    """Which worker serves which data connection.

    Args:
      dial: opens an authenticated data connection to a peer; raises OSError, ProtocolError or
        trio's errors.
      feed: takes events for the swarm.
    """

    def __init__(
        self, pool: WorkerPool, dial: Dial, feed: Callable[[Event], None], nursery: trio.Nursery
    ) -> None:
        self._pool = pool
        self._dial = dial
        self._feed = feed
        self._nursery = nursery
        self._next_link = 1
        self._load = [0] * pool.count
        self._workers: dict[int, int] = {}
        self._down: dict[NodeId, Downlink] = {}
        self._asked: dict[int, int] = {}

    def _new_link(self) -> tuple[int, int]:
        link, self._next_link = self._next_link, self._next_link + 1
        worker = min(range(len(self._load)), key=lambda index: (self._load[index], index))
        self._load[worker] += 1
        self._workers[link] = worker
        return link, worker

    def accept(self, peer: NodeId, stream: trio.SocketStream) -> None:
        """A peer dialled a data connection to us: let a worker serve it."""
        link, worker = self._new_link()
        self._pool.submit(worker, AddUplink(link, peer), detach(stream))

    def ask(self, ask: Ask) -> None:
        """Send a request to a peer, dialling first if need be."""
        down = self._down.get(ask.peer)
        if down is None:
            link, worker = self._new_link()
            down = self._down[ask.peer] = Downlink(link, worker)
            self._nursery.start_soon(self._open, ask.peer, down)
        if down.ready:
            self._send(down, ask)
        else:
            down.waiting.append(ask)

    def _send(self, down: Downlink, ask: Ask) -> None:
        self._asked[ask.request] = down.worker
        self._pool.submit(down.worker, AskJob(ask.request, down.link, ask.chunk, ask.pin))

    async def _open(self, peer: NodeId, down: Downlink) -> None:
        try:
            stream = await self._dial(peer)
        except (OSError, ProtocolError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("no data connection peer=%s error=%s", short(peer), error)
            self.closed(down.link, peer)
            for ask in down.waiting:
                self._feed(AskFailed(ask.request, f"no data connection: {error}"))
            return
        self._pool.submit(down.worker, AddDownlink(down.link, peer), detach(stream))
        down.ready = True
        for ask in down.waiting:
            self._send(down, ask)
        down.waiting.clear()

    def cancel(self, request: int, peer: NodeId) -> None:
        """Nobody waits for this request any more."""
        down = self._down.get(peer)
        waiting = [ask for ask in down.waiting if ask.request == request] if down else []
        if down and waiting:
            down.waiting.remove(waiting[0])
            self._feed(AskFailed(request, "cancelled"))
        elif (worker := self._asked.get(request)) is not None:
            self._pool.submit(worker, CancelJob(request))

    def ended(self, request: int) -> None:
        """A request was answered."""
        self._asked.pop(request, None)

    def closed(self, link: int, peer: NodeId) -> None:
        """A data connection ended."""
        worker = self._workers.pop(link, None)
        if worker is not None:
            self._load[worker] -= 1
        down = self._down.get(peer)
        if down is not None and down.link == link:
            del self._down[peer]

    def close_peer(self, peer: NodeId) -> None:
        """Close all data connections with a peer."""
        for worker in range(self._pool.count):
            self._pool.submit(worker, CloseLinks(peer))
