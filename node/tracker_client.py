"""The session with the tracker: dial, join, listen, dial again. Knows nothing about chunks."""

import logging
import os
import socket
from collections.abc import Callable
from typing import Protocol

import trio

from node.config import Timeouts
from node.dial import local_ip
from node.peers import FAILURES
from p2p import connection, messages
from p2p.connection import FrameStream
from p2p.errors import Refused, RemoteProtocolError
from p2p.handshake import NONCE_BYTES
from p2p.ids import NodeId
from p2p.messages import VERSION_HIGHEST, VERSION_LOWEST, Hello, Message
from p2p.outbox import Outbox
from p2p.units import format_address

log = logging.getLogger(__name__)

FATAL_REFUSALS = frozenset({"token", "version", "role", "model"})
EARLIER = "an earlier tracker of the list answers again"
BACKOFF_S = (0.1, 0.2, 0.4, 0.8)  # a restarted tracker is to hear of us within a second


class Handler(Protocol):
    """Who listens to the tracker."""

    def tracker_message(self, message: Message) -> None:
        """A message came."""

    def tracker_lost(self) -> None:
        """The session ended; another attempt follows."""


class TrackerClient:
    """One session at a time, with the first tracker of the list that answers.

    Args:
      join: builds the `Join` that starts a session, given our address as the tracker is reached
        from it.
    """

    def __init__(
        self,
        trackers: tuple[tuple[str, int], ...],
        node: NodeId,
        token: bytes,
        join: Callable[[str], Message],
        handler: Handler,
        timeouts: Timeouts,
    ) -> None:
        self._trackers = trackers
        self._node = node
        self._token = token
        self._join = join
        self._handler = handler
        self._timeouts = timeouts
        self._outbox: Outbox | None = None
        self._leaving = False

    @property
    def connected(self) -> bool:
        """A session stands."""
        return self._outbox is not None

    def send(self, *batch: Message) -> None:
        """Queue messages; without a session they are dropped (a new one starts with the facts)."""
        if self._outbox is not None:
            self._outbox.put(*batch)

    async def run(self) -> None:
        """Keep a session until cancelled.

        Raises:
          Refused: the token, the protocol version or the model is wrong; waiting cannot help.
        """
        attempt = 0
        while True:
            for rank, (host, port) in enumerate(self._trackers):
                name = format_address(host, port)
                try:
                    joined = await self._session(rank)
                    attempt = 0
                    level = logging.DEBUG if self._leaving else logging.WARNING
                    log.log(level, "tracker session ended tracker=%s reason=%s", name, joined)
                    if joined == EARLIER:
                        break
                    continue
                except Refused as refusal:
                    if refusal.code in FATAL_REFUSALS:
                        raise Refused(refusal.code, f"tracker {name}: {refusal.text}") from None
                    reason: object = refusal
                except FAILURES as error:
                    reason = getattr(error, "strerror", None) or error or type(error).__name__
                if attempt % 10 == 0:
                    log.warning("tracker %s does not answer (%s): trying again", name, reason)
            await trio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1

    async def _dial(self, rank: int) -> FrameStream:
        """An authenticated connection with one tracker of the list."""
        with trio.fail_after(self._timeouts.tracker_connect_s):
            frames = FrameStream(await trio.open_tcp_stream(*self._trackers[rank]))
        # Heartbeats go out all the time: when none is confirmed for so long, the tracker's host or
        # the way to it is gone, and the kernel by itself would try for a quarter of an hour.
        limit_ms = int(self._timeouts.tracker_silence_s * 1000)
        frames.stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        hello = Hello("node", VERSION_LOWEST, VERSION_HIGHEST, self._node, os.urandom(NONCE_BYTES))
        try:
            answer = await connection.dial(frames, self._token, hello)
            if answer.role != "tracker":
                raise Refused("role", "this is not a tracker (give the tracker's --listen address)")
        except BaseException:
            with trio.CancelScope(shield=True):
                await frames.aclose()
            raise
        return frames

    async def _watch_earlier(self, rank: int) -> None:
        """Return when a tracker before ours answers: one swarm must not stay on two trackers."""
        while True:
            await trio.sleep(self._timeouts.earlier_tracker_s)
            for earlier in range(rank):
                try:
                    frames = await self._dial(earlier)
                except (*FAILURES, Refused):
                    continue
                await frames.aclose()
                return

    async def _session(self, rank: int) -> str:
        """Hold one session to its end; returns the reason. Raises before it stands."""
        frames = await self._dial(rank)
        reason = "closed"
        try:
            frames.unbounded()
            self._outbox = Outbox()
            ip = local_ip(frames.stream.socket)
            self._outbox.put(self._join(ip))
            log.info("joined tracker=%s from=%s", format_address(*self._trackers[rank]), ip)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._outbox.run, frames)
                    nursery.start_soon(self._read_to_end, frames, nursery.cancel_scope)
                    if rank:
                        await self._watch_earlier(rank)
                        reason = EARLIER
                        nursery.cancel_scope.cancel()
            except* FAILURES as group:
                fatal = group.subgroup(Refused)
                if fatal is not None:
                    raise fatal.exceptions[0] from None
                reason = str(group.exceptions[0])
        finally:
            was_connected, self._outbox = self._outbox is not None, None
            with trio.CancelScope(shield=True):
                await frames.aclose()
            if was_connected:
                self._handler.tracker_lost()
        return reason

    async def _read_to_end(self, frames: FrameStream, scope: trio.CancelScope) -> None:
        await self._read(frames)
        scope.cancel()

    async def _read(self, frames: FrameStream) -> None:
        while (message := await frames.receive()) is not None:
            if isinstance(message, messages.Refuse):
                raise Refused(message.code, message.text)
            if isinstance(message, messages.Hello):
                raise RemoteProtocolError("a second hello")
            self._handler.tracker_message(message)

    async def say_bye(self, timeout_s: float) -> None:
        """Send a bye, and give it so long to leave."""
        outbox, self._leaving = self._outbox, True
        if outbox is not None:
            outbox.put(messages.Bye())
            with trio.move_on_after(timeout_s):
                await outbox.drained()
