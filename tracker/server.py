"""`tracker serve`, whole: sessions with nodes, HTTP for people, one clock for everything due."""

import logging
import os
import signal
import sys
import time
from functools import partial
from itertools import islice
from math import inf
from random import Random

import trio

from p2p import connection, messages
from p2p.connection import FrameStream
from p2p.errors import P2PError, ProtocolError, Refused, RemoteProtocolError
from p2p.exposure import check_exposure
from p2p.handshake import NONCE_BYTES
from p2p.ids import NodeId, short
from p2p.messages import VERSION_HIGHEST, VERSION_LOWEST, Hello, Message
from p2p.outbox import Outbox
from p2p.units import format_address
from p2p.web import serve_web
from tracker.config import ServeConfig
from tracker.directory import Directory
from tracker.metrics import TrackerCollector
from tracker.model import Model, Sends

log = logging.getLogger(__name__)

HANDSHAKES_AT_ONCE = 256
# A message to each of 1,000 nodes would keep the loop for 100 ms. More than so many at once are
# written a slice at a time, and leases are answered in between.
SLICE = 32
URGENT = (messages.Leases, messages.Allowance)

FAILURES = (
    OSError,
    P2PError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


class Server:
    """All sessions of this tracker."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._node = NodeId(os.urandom(16))
        wall = time.time() - trio.current_time()
        self.directory = Directory(
            config.origin, config.start_with, wall, Random(self._node),
            config.origin_rate_bytes_s, config.origin_requests_s,
        )  # fmt: skip
        self._outboxes: dict[NodeId, Outbox] = {}
        self._scopes: dict[NodeId, trio.CancelScope] = {}
        self._handshakes = trio.CapacityLimiter(HANDSHAKES_AT_ONCE)
        self._changed = trio.Event()
        self._later: dict[NodeId, list[Message]] = {}
        self._postponed = trio.Event()

    async def run(self) -> None:
        """Serve until a signal comes.

        Raises:
          P2PError: an address is in use or not ours.
        """
        host, port = self._config.listen
        check_exposure([host], self._config.token)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=1024)
        except OSError as error:
            raise P2PError(
                f"cannot listen on {format_address(host, port)}: {error.strerror or error}"
            ) from error
        bound = listeners[0].socket.getsockname()
        ready = f"tracker: nodes at {format_address(bound[0], bound[1])}"
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            if self._config.http is not None:
                urls = await nursery.start(
                    partial(
                        serve_web,
                        self._config.http,
                        self.directory.status,
                        lambda: True,
                        TrackerCollector(self.directory),
                    )
                )
                ready += f", people at {urls[0].rstrip('/')}/status"
            nursery.start_soon(self._tick)
            nursery.start_soon(self._spread)
            nursery.start_soon(
                partial(trio.serve_listeners, self._accept, listeners, handler_nursery=nursery)
            )
            sys.stdout.write(ready + "\n")
            sys.stdout.flush()

    async def _watch_signals(
        self, scope: trio.CancelScope, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            task_status.started()
            async for number in received:
                log.info("signal %d: ending", number)
                scope.cancel()

    async def _tick(self) -> None:
        while True:
            self._changed = trio.Event()
            deadline = self.directory.next_deadline()
            with trio.move_on_at(deadline) if deadline < inf else trio.CancelScope():
                await self._changed.wait()
            if self.directory.next_deadline() <= trio.current_time():
                self._deliver(self.directory.tick(trio.current_time()))
            await trio.sleep(0.005)  # deadlines are seconds: a burst of messages costs one look

    async def _spread(self) -> None:
        while True:
            for node in list(islice(self._later, SLICE)):
                self._put(node)
            if self._later:
                await trio.lowlevel.checkpoint()
            else:
                self._postponed = trio.Event()
                await self._postponed.wait()

    def _deliver(self, sends: Sends) -> None:
        for node, message in sends:
            if message is None:
                if node in self._scopes:
                    self._scopes[node].cancel()
            elif len(sends) > SLICE and not isinstance(message, URGENT):
                self._later.setdefault(node, []).append(message)
            else:
                self._put(node, message)
        self._changed.set()
        if self._later:
            self._postponed.set()

    def _put(self, node: NodeId, *batch: Message) -> None:
        """After what was postponed: a node hears everything in order."""
        postponed = self._later.pop(node, ())
        if node in self._outboxes:
            self._outboxes[node].put(*postponed, *batch)

    def _answer(self, theirs: Hello) -> Hello:
        if theirs.role != "node":
            raise Refused("role", f"this is a tracker: it has no answer to role {theirs.role!r}")
        return Hello(
            "tracker", VERSION_LOWEST, VERSION_HIGHEST, self._node, os.urandom(NONCE_BYTES)
        )

    async def _accept(self, stream: trio.SocketStream) -> None:
        """One connection, from its first byte to its end; it takes nothing else with it."""
        frames, peer = FrameStream(stream), "?"
        try:
            peer = stream.socket.getpeername()[0]
            async with self._handshakes:
                hello = await connection.listen(frames, self._config.token, self._answer)
            frames.unbounded()
            await self._session(NodeId(hello.node), frames)
        except FAILURES as error:
            level = logging.WARNING if isinstance(error, P2PError) else logging.DEBUG
            log.log(level, "session ended from=%s error=%s", peer, error)
        finally:
            await trio.aclose_forcefully(stream)

    async def _session(self, node: NodeId, frames: FrameStream) -> None:
        with trio.fail_after(10):
            first = await frames.receive()
        if not isinstance(first, messages.Join):
            raise RemoteProtocolError("a session starts with join")
        if node in self._scopes:
            self._scopes[node].cancel()
        outbox, failure = Outbox(), None
        with trio.CancelScope() as scope:
            self._outboxes[node], self._scopes[node] = outbox, scope
            self._later.pop(node, None)
            model: Model | None = None
            try:
                model = await self._join(node, first, frames)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outbox.run, frames)
                    await self._read(model, node, frames)
                    nursery.cancel_scope.cancel()
            except* FAILURES as group:
                failure = group.exceptions[0]
            finally:
                if self._scopes.get(node) is scope:
                    del self._scopes[node], self._outboxes[node]
                    self._later.pop(node, None)
                    if model is not None:
                        self._deliver(model.gone(node, trio.current_time()))
        if isinstance(failure, ProtocolError):
            log.warning("session closed node=%s error=%s", short(node), failure)

    async def _join(self, node: NodeId, join: messages.Join, frames: FrameStream) -> Model:
        try:
            model, sends = self.directory.join(node, join, trio.current_time())
        except Refused as refusal:
            await frames.send(messages.Refuse(refusal.code, refusal.text))
            raise
        log.info("joined node=%s model=%s", short(node), model.name)
        self._deliver(sends)
        return model

    async def _read(self, model: Model, node: NodeId, frames: FrameStream) -> None:
        while (message := await frames.receive()) is not None:
            if node not in model.nodes:
                return
            self._deliver(self._handle(model, node, message))

    def _handle(self, model: Model, node: NodeId, message: Message) -> Sends:
        return model.handle(node, message, trio.current_time())
