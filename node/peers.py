"""Control sessions with peers, and the listener for both kinds of connection. Decides nothing:
every message becomes an event for the swarm, every command of the swarm a message.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

import trio

from node.config import Timeouts
from node.dial import Dialler, plain_ip
from node.fields import check_chunks, split_pins
from node.links import Links
from node.pairs import Pair, Pairs
from node.sockets import set_interactive
from p2p import connection, events, messages
from p2p.connection import FrameStream
from p2p.errors import P2PError, ProtocolError, Refused, RemoteProtocolError
from p2p.exposure import check_exposure
from p2p.handshake import NONCE_BYTES
from p2p.ids import ManifestId, NodeId, short
from p2p.liveness import LOOK_S, Liveness, Look
from p2p.messages import VERSION_HIGHEST, VERSION_LOWEST, Hello, Message
from p2p.outbox import Outbox
from p2p.poller import Poller
from p2p.units import format_address, parse_address

log = logging.getLogger(__name__)

MAX_ADDRESSES = 16  # of one node: the field's limit
HANDSHAKES_AT_ONCE = 256  # connections nobody has vouched for yet

FAILURES = (
    OSError,
    ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


@dataclass(frozen=True, slots=True)
class Session:
    """A control session: its messages, and how to end it."""

    frames: FrameStream
    outbox: Outbox
    scope: trio.CancelScope
    liveness: Liveness = field(default_factory=Liveness)


class Peers:
    """All control sessions of this node.

    Args:
      source_ips: addresses of ours to dial from; none: the kernel chooses.
    """

    def __init__(
        self,
        node: NodeId,
        token: bytes,
        timeouts: Timeouts,
        source_ips: tuple[str, ...] = (),
        dialler: Dialler | None = None,
    ) -> None:
        self._source_ips = source_ips
        self._dialler = dialler or Dialler()
        self._node = node
        self._token = token
        self._timeouts = timeouts
        self._manifest_id: ManifestId | None = None
        self._chunk_count = 0
        self._on_demand = False
        self._bitfield: Callable[[NodeId], bytes] = lambda _peer: b""
        self._feed: Callable[[events.Event], None] = lambda _event: None
        self._handshakes = trio.CapacityLimiter(HANDSHAKES_AT_ONCE)
        self._sessions: dict[NodeId, Session] = {}
        self._addresses: dict[NodeId, tuple[tuple[tuple[str, ...], str], Pairs]] = {}
        self._nursery: trio.Nursery | None = None
        self._poller = Poller()
        self.links: Links | None = None
        self._given: tuple[tuple[str, int], ...] = ()
        self._bound: list[tuple[str, int]] = []
        self.advertised: list[str] = []

    async def listen(
        self, listen: Iterable[tuple[str, int]], advertise: Iterable[tuple[str, int]]
    ) -> list[trio.SocketListener]:
        """Listen for peers, and decide what they are told to dial.

        Raises:
          P2PError: an address is in use or not ours.
          UsageError: an address is not loopback, and there is no token.
        """
        found: list[trio.SocketListener] = []
        for host, port in listen:
            try:
                found += await trio.open_tcp_listeners(port, host=host, backlog=1024)
            except OSError as error:
                text = error.strerror or str(error)
                raise P2PError(f"cannot listen on {format_address(host, port)}: {text}") from error
        self._given = tuple(advertise)
        self._bound = [listener.socket.getsockname()[:2] for listener in found]
        check_exposure([host for host, _ in (*self._bound, *self._given)], self._token)
        self._advertise(self._source_ips)
        return found

    def reached_from(self, ip: str) -> list[str]:
        """What peers are told to dial, now that a tracker is reached from this address of ours: it
        stands for a wildcard if no source address does. It may be another one each time, in a
        container that is connected again."""
        self._advertise(self._source_ips or (ip,))
        return self.advertised

    def _advertise(self, ips: Iterable[str]) -> None:
        found = to_advertise(self._given, self._bound, ips)
        self.advertised = [format_address(*address) for address in found]

    def attach(
        self,
        manifest_id: ManifestId,
        chunk_count: int,
        bitfield: Callable[[NodeId], bytes],
        feed: Callable[[events.Event], None],
        links: Links,
        *,
        on_demand: bool = False,
    ) -> None:
        """The manifest is known: from here on peers are let in.

        Args:
          bitfield: gives what this node holds now, in wire form, for a peer.
          feed: takes events for the swarm.
          on_demand: this node gets only what is read here.
        """
        self._on_demand = on_demand
        self._manifest_id, self._chunk_count = manifest_id, chunk_count
        self._bitfield, self._feed, self.links = bitfield, feed, links

    async def serve(
        self, listeners: list[trio.SocketListener], task_status: trio.TaskStatus[None]
    ) -> None:
        """Accept connections until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._poller.run)
            self._nursery.start_soon(self._look_after_sessions)
            task_status.started()
            try:
                await trio.serve_listeners(self._accept, listeners, handler_nursery=self._nursery)
            finally:
                self._nursery = None

    def _hello(self, role: str) -> Hello:
        return Hello(
            role, VERSION_LOWEST, VERSION_HIGHEST, self._node, os.urandom(NONCE_BYTES),
            self._manifest_id or b"", self.advertised,
        )  # fmt: skip

    def _answer(self, theirs: Hello) -> Hello:
        if theirs.role not in ("control", "data"):
            raise Refused("role", f"this is a node: it has no answer to role {theirs.role!r}")
        if self._manifest_id is None:
            raise Refused("busy", "this node does not know its manifest yet")
        if theirs.manifest != self._manifest_id:
            raise Refused("manifest", f"this node shares revision {short(self._manifest_id)}")
        if theirs.node == self._node:
            raise Refused("itself", "this node dialled itself")
        return self._hello(theirs.role)

    async def _accept(self, stream: trio.SocketStream) -> None:
        frames, name = FrameStream(stream), "?"
        try:
            name = stream.socket.getpeername()[0]
            async with self._handshakes:
                hello = await connection.listen(frames, self._token, self._answer)
            peer = NodeId(hello.node)
            if hello.role == "data":
                assert self.links is not None
                self.links.accept(peer, stream)
                return
            self._know(peer, tuple(hello.addresses), plain_ip(name))
            await self._session(peer, frames)
        except FAILURES as error:
            level = logging.WARNING if isinstance(error, ProtocolError) else logging.DEBUG
            if isinstance(error, Refused) and error.code in ("busy", "manifest", "itself"):
                level = logging.DEBUG
            log.log(level, "connection refused from=%s error=%s", name, error)
            await frames.aclose()

    def _know(self, peer: NodeId, addresses: tuple[str, ...], seen_ip: str = "") -> None:
        """Keep a peer's addresses, and what is known of their pairs while they stay the same."""
        told = addresses, seen_ip
        if self._addresses.get(peer, (None,))[0] != told:
            self._addresses[peer] = told, Pairs.between(self._source_ips, addresses, seen_ip)

    def pairs(self, peer: NodeId) -> Pairs:
        """The pairs of our addresses and a peer's."""
        known = self._addresses.get(peer)
        return known[1] if known else Pairs([])

    async def _dial(self, peer: NodeId, role: str, pair: Pair) -> FrameStream:
        """Dial a peer and shake hands; raises one of FAILURES."""
        source_ip, address = pair
        host, port = parse_address(address)
        stream = await self._dialler.connect(host, port, source_ip, self._timeouts.connect_s)
        frames = FrameStream(stream)
        try:
            hello = await connection.dial(frames, self._token, self._hello(role))
            if hello.node != peer:
                raise Refused("role", f"another node answers at {address}")
        except BaseException:
            await frames.aclose()
            raise
        return frames

    async def _dial_any(self, peer: NodeId) -> FrameStream:
        """A control session on the first pair that works; raises one of FAILURES, of the last."""
        failure: BaseException = OSError("the peer has no address")
        pairs = self.pairs(peer)
        for pair in pairs.tries(trio.current_time()):
            try:
                return await self._dial(peer, "control", pair)
            except FAILURES as error:
                failure = error
                pairs.failed(pair, trio.current_time())
        raise failure

    async def dial_data(self, peer: NodeId, pair: Pair) -> trio.SocketStream:
        """An authenticated data connection to a peer; raises one of FAILURES."""
        return (await self._dial(peer, "data", pair)).stream

    def connect(self, peer: NodeId, addresses: tuple[str, ...]) -> None:
        """Make a control session; PeerReady or PeerLost follows, unless this node is leaving."""
        if self._nursery is None:
            return
        self._know(peer, addresses)
        self._nursery.start_soon(self._connect, peer)

    async def _connect(self, peer: NodeId) -> None:
        try:
            frames = await self._dial_any(peer)
        except FAILURES as error:
            log.debug("no session peer=%s error=%s", short(peer), error)
            self._feed(events.PeerLost(peer))
            return
        await self._session(peer, frames)

    async def _session(self, peer: NodeId, frames: FrameStream) -> None:
        """Run a control session to its end. A newer session with the same peer replaces it."""
        if peer in self._sessions:
            self._sessions[peer].scope.cancel()
        frames.unbounded()
        set_interactive(frames.stream.socket)
        outbox = Outbox()
        outbox.put(messages.BitfieldMessage(self._bitfield(peer), self._on_demand))
        reason = "closed"
        with trio.CancelScope() as scope:
            session = self._sessions[peer] = Session(frames, outbox, scope)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outbox.run, frames)
                    await self._read(peer, frames)
                    nursery.cancel_scope.cancel()
            except* FAILURES as group:
                reason = str(group.exceptions[0])
                if isinstance(group.exceptions[0], ProtocolError):
                    log.warning("session closed peer=%s error=%s", short(peer), reason)
            finally:
                with trio.CancelScope(shield=True):
                    await frames.aclose()
        if self._sessions.get(peer) is session:
            del self._sessions[peer]
            log.debug("session ended peer=%s reason=%s", short(peer), reason)
            self._feed(events.PeerLost(peer))

    async def _look_after_sessions(self) -> None:
        """Ask peers that are silent whether they live, and end sessions with those that do not. One
        look for all: with 50 peers a timer for each cost 4 % of what a node had to do."""
        while True:
            await trio.sleep(LOOK_S)
            now, links = trio.current_time(), self.links
            for peer, session in self._sessions.items():
                heard_at, needed = session.frames.heard_at, False
                if links is not None:
                    heard_at, needed = max(heard_at, links.heard_at(peer)), links.needs(peer)
                look = session.liveness.look(heard_at, now, needed=needed)
                if look is Look.GIVE_UP:
                    log.debug("session is silent peer=%s", short(peer))
                    session.scope.cancel()
                elif look is Look.ASK:
                    session.outbox.put(messages.Ping())

    async def _read(self, peer: NodeId, frames: FrameStream) -> None:
        first = await frames.receive()
        if first is None:
            return
        if not isinstance(first, messages.BitfieldMessage):
            raise RemoteProtocolError(f"a session starts with bitfield, not {first.TYPE}")
        if len(first.bits) != (self._chunk_count + 7) // 8:
            raise RemoteProtocolError(f"a bitfield of {len(first.bits)} bytes")
        self._feed(events.PeerReady(peer, first.bits, first.on_demand))

        def take(message: Message) -> None:
            if (event := self._event(peer, message)) is not None:
                self._feed(event)

        await frames.each(self._poller, take)

    def _event(self, peer: NodeId, message: Message) -> events.Event | None:
        count = self._chunk_count
        match message:
            case messages.Have(chunks, pins):
                return events.PeerHas(peer, split_pins(chunks, pins, count))
            case messages.Lost(chunks):
                return events.PeerLostChunks(peer, check_chunks(chunks, count))
            case messages.Fetching(chunks):
                return events.PeerFetches(peer, check_chunks(chunks, count))
            case messages.Coming(chunks):
                return events.PeerOwns(peer, check_chunks(chunks, count))
            case messages.PinsQuery(chunks):
                return events.PeerAsksPins(peer, check_chunks(chunks, count))
            case messages.PinsKnown(chunks, pins):
                return events.PinsLearned(split_pins(chunks, pins, count), peer)
            case messages.Corrupt(chunk):
                return events.CorruptionReported(peer, check_chunks([chunk], count)[0])
            case messages.Bye():
                return events.PeerLeaves(peer)
            case messages.Ping():
                self.send(peer, messages.Pong())
                return None
            case messages.Pong():
                return None
        raise RemoteProtocolError(f"{message.TYPE} does not belong between peers")

    def send(self, peer: NodeId, message: Message) -> None:
        """Queue a message; a peer without a session is skipped."""
        if (session := self._sessions.get(peer)) is not None:
            session.outbox.put(message)

    def disconnect(self, peer: NodeId) -> None:
        """End the session and all data connections with a peer."""
        if peer in self._sessions:
            self._sessions[peer].scope.cancel()
        if self.links is not None:
            self.links.close_peer(peer)

    def say_bye(self) -> None:
        """Tell every peer that we leave."""
        for peer in sorted(self._sessions):
            self.send(peer, messages.Bye())


def to_advertise(
    given: Iterable[tuple[str, int]],
    bound: Iterable[tuple[str, int]],
    ips: Iterable[str],
) -> list[tuple[str, int]]:
    """What peers are told to dial: what was given, else what is listened on.

    Of a wildcard the addresses in `ips` of its family are told, if there are any.
    """
    found = list(given)
    if not found:
        for host, port in bound:
            wild = ip_address(host).is_unspecified
            same = [ip for ip in ips if (":" in ip) == (":" in host)]
            found += [(ip, port) for ip in same] if wild and same else [(host, port)]
    return list(dict.fromkeys(found))[:MAX_ADDRESSES]


def bound_text(listeners: list[trio.SocketListener]) -> str:
    """Where they listen, as people read it."""
    return " ".join(format_address(*one.socket.getsockname()[:2]) for one in listeners)
