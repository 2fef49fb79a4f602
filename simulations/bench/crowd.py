"""Many nodes' sessions with a tracker, from one process: the load of a large swarm, and its clock.

Each node speaks the real protocol over a TCP connection of its own, and has no store and no peers.
The origin is a clock that ends so many leases a second, the longest held first, as a link does that
all share; each is then reported with a pin and a checksum. A heartbeat tells of the chunks that the
whole swarm has got, as if peers had brought them.

A tenth of the leases are for chunks that readers are blocked on, anywhere in the second half of the
model. What is measured is the time from such a want to its lease, at the node: these are granted at
once. All others wait for their turn, as the tracker has only so many out as the origin needs.

One epoll loop and no tasks: 5,000 nodes must cost this process less than they cost the tracker.
"""

import heapq
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random

from p2p import messages as m
from p2p.bitfield import Bitfield, changed
from p2p.checksum import CHECKSUM_BYTES, combine
from p2p.digest import DIGEST_BYTES
from p2p.framing import MAX_FRAME, FrameReader, pack
from p2p.handshake import NONCE_BYTES, Dialler
from p2p.ids import Chunk, NodeId
from p2p.manifest import File, Manifest
from p2p.units import MIB

FILES = 64
KIND, CRC = "crc64xz", 0x1234_5678_9ABC_DEF0  # of every chunk
LEASES = 2  # of a node at once, as p2p.swarm.Limits has it
READERS = 0.1  # of all leases
HANDSHAKES_AT_ONCE = 64  # a handshake has 5 s; the tracker carries out 256 at once
JOIN_S = 120.0
RECEIVE_BYTES = 64 * 1024
CHUNK_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Load:
    """What the crowd does: nodes, leases a second of all, seconds between a node's heartbeats."""

    nodes: int
    leases_s: float
    heartbeat_s: float
    chunks: int


@dataclass(slots=True)
class Tally:
    """What happened since it was begun."""

    sent: int = 0
    received: int = 0
    reports: int = 0
    heartbeats: int = 0
    leases: int = 0
    sent_bytes: int = 0
    latencies_s: list[float] = field(default_factory=list)


def manifest_of(chunks: int) -> Manifest:
    """A model of so many chunks in up to 64 files, whose checksums hold when every chunk's is CRC.

    Raises:
      SystemExit: the files would not be equal.
    """
    files = min(FILES, chunks)
    each, rest = divmod(chunks, files)
    if rest:
        raise SystemExit(f"--chunks must be below {FILES}, or a multiple of it")
    total = combine(KIND, [(CRC, CHUNK_BYTES)] * each)
    entries = tuple(
        File(f"{i:05}.bin", each * CHUNK_BYTES, "e", checksum=f"{KIND}:{total:016x}")
        for i in range(files)
    )
    return Manifest("bench", "http://origin/", entries, CHUNK_BYTES)


class Member:
    """One node's session."""

    def __init__(self, address: tuple[str, int], number: int) -> None:
        self.node = NodeId(number.to_bytes(16, "big"))
        hello = m.Hello(
            "node", m.VERSION_LOWEST, m.VERSION_HIGHEST, self.node, os.urandom(NONCE_BYTES)
        )
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.dialler: Dialler | None = Dialler(b"", hello)
        self.reader = FrameReader()
        self.unsent = bytearray()
        self.blocked = False
        self.leases: dict[Chunk, float] = {}
        self.needed: dict[Chunk, float] = {}
        """since when readers are blocked on them"""
        self.announced = b""


class Crowd:
    """All nodes.

    Args:
      address: of the tracker.
    """

    def __init__(self, address: tuple[str, int], load: Load, rng: Random) -> None:
        self._address = address
        self._load = load
        self._rng = rng
        self._manifest = manifest_of(load.chunks)
        self._held = Bitfield(load.chunks)
        self._poll = select.epoll()
        self._members: dict[int, Member] = {}
        self._joined = self._welcomed = 0
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._turn = 0
        self._under_way: deque[tuple[Member, Chunk]] = deque()
        self._needs = list(range(load.chunks // 2, load.chunks))
        rng.shuffle(self._needs)
        self.tally = Tally()

    # -- the loop ---------------------------------------------------------------------------------

    def join(self) -> float:
        """All nodes join; returns when all have announced, with the seconds that it took.

        Raises:
          SystemExit: they did not within two minutes.
        """
        begin = time.monotonic()
        while self._joined < self._load.nodes:
            while (
                len(self._members) < self._load.nodes
                and len(self._members) - self._welcomed < HANDSHAKES_AT_ONCE
            ):
                member = Member(self._address, len(self._members) + 1)
                self._members[member.socket.fileno()] = member
                self._poll.register(member.socket, select.EPOLLIN)
                assert member.dialler is not None
                self._send(member, member.dialler.first)
            self._turn_once(time.monotonic() + 0.01)
            if time.monotonic() > begin + JOIN_S:
                raise SystemExit(f"{self._joined} of {self._load.nodes} nodes joined in {JOIN_S} s")
        now = time.monotonic()
        self._at(now, self._end_lease)
        self._at(now, self._need)
        return now - begin

    def run(self, seconds: float) -> None:
        """Go on for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._turn_once(end)

    def begin(self) -> Tally:
        """Count from here on."""
        self.tally = Tally()
        return self.tally

    def close(self) -> None:
        """End all sessions."""
        for member in self._members.values():
            member.socket.close()
        self._poll.close()

    def _turn_once(self, end: float) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            planned, _, action = heapq.heappop(self._due)
            action(planned)
        until = min(end, self._due[0][0]) if self._due else end
        for number, mask in self._poll.poll(max(0.0, until - time.monotonic())):
            member = self._members[number]
            if mask & select.EPOLLOUT:
                self._flush(member)
            if mask & ~select.EPOLLOUT:
                self._receive(member)

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        self._turn += 1
        heapq.heappush(self._due, (when, self._turn, action))

    # -- bytes ------------------------------------------------------------------------------------

    def _send(self, member: Member, message: m.Message) -> None:
        frame = pack(message)
        self.tally.sent += 1
        self.tally.sent_bytes += len(frame)
        member.unsent += frame
        self._flush(member)

    def _flush(self, member: Member) -> None:
        with suppress(BlockingIOError):
            del member.unsent[: member.socket.send(member.unsent)]
        if bool(member.unsent) != member.blocked:
            member.blocked = not member.blocked
            more = select.EPOLLOUT if member.blocked else 0
            self._poll.modify(member.socket, select.EPOLLIN | more)

    def _receive(self, member: Member) -> None:
        data = b""
        with suppress(ConnectionError):
            data = member.socket.recv(RECEIVE_BYTES)
        if not data:
            raise SystemExit(f"the tracker has closed a session ({self._joined} joined)")
        member.reader.receive_data(data)
        while (message := member.reader.next_message()) is not None:
            self.tally.received += 1
            self._take(member, message, time.monotonic())

    # -- a node's life ----------------------------------------------------------------------------

    def _take(self, member: Member, message: m.Message, now: float) -> None:
        if member.dialler is not None:
            answer = member.dialler.receive(message)
            if answer is not None:
                self._send(member, answer)
            if member.dialler.version is not None:
                member.dialler, member.reader.limit = None, MAX_FRAME
                self._welcomed += 1
                self._send(member, m.Join("bench", "http://origin/", ["127.0.0.1:1"]))
            return
        match message:
            case m.ListOrigin():
                self._send(member, m.Listing(self._manifest.encode()))
            case m.Joined():
                self._joined += 1
                self._announce(member, now)
                first = now + self._load.heartbeat_s * self._rng.random()
                self._at(first, partial(self._beat, member))
            case m.Leases(chunks):
                for chunk in chunks:
                    self._leased(member, chunk, now)
            case m.Holders(chunks):  # another node had the lease already
                for chunk in chunks:
                    member.needed.pop(chunk, None)
            case m.Refuse(_, text) | m.OriginFailed(text):
                raise SystemExit(f"the tracker says: {text}")
            case _:
                pass  # peers, seals: nothing that this node would answer

    def _leased(self, member: Member, chunk: Chunk, now: float) -> None:
        if chunk in member.leases:
            return  # it had expired before our progress was heard; the fetch goes on
        self.tally.leases += 1
        if chunk in member.needed:
            self.tally.latencies_s.append(now - member.needed.pop(chunk))
        member.leases[chunk] = now
        self._under_way.append((member, chunk))

    def _end_lease(self, planned: float) -> None:
        """The origin has sent one more chunk. One that it could not send, as there was no lease, is
        lost: the rate is below the planned one then."""
        if self._under_way:
            self._report(*self._under_way.popleft())
        self._at(planned + 1 / self._load.leases_s, self._end_lease)

    def _report(self, member: Member, chunk: Chunk) -> None:
        del member.leases[chunk]
        self._held.add(chunk)
        self.tally.reports += 1
        pin, crc = chunk.to_bytes(DIGEST_BYTES, "big"), CRC.to_bytes(CHECKSUM_BYTES, "big")
        self._send(member, m.Fetched([chunk], pin, crc))

    def _need(self, planned: float) -> None:
        """One more reader is blocked, at any node."""
        while self._needs and self._needs[-1] in self._held:  # the first of each file comes early
            self._needs.pop()
        if not self._needs:
            return
        member = self._rng.choice(list(self._members.values()))
        member.needed[self._needs.pop()] = time.monotonic()
        self._send(member, m.Wants(list(member.needed), []))
        self._at(planned + 1 / (READERS * self._load.leases_s), self._need)

    def _beat(self, member: Member, planned: float) -> None:
        self.tally.heartbeats += 1
        self._announce(member, time.monotonic())
        # from the plan, not from now: being late must not lower the rate
        self._at(planned + self._load.heartbeat_s, partial(self._beat, member))

    def _announce(self, member: Member, now: float) -> None:
        held = bytes(self._held)
        speed = CHUNK_BYTES * self._load.leases_s / max(1, len(self._under_way))
        received = [max(0, int((now - begin) * speed)) for begin in member.leases.values()]
        before = member.announced
        offset, part = changed(before, held) if before else (0, held)
        self._send(
            member,
            m.Announce(
                part, list(member.leases), received, LEASES, 0, self._held.count * CHUNK_BYTES,
                0, 0, self._manifest.id, 0, offset,
            ),
        )  # fmt: skip
        member.announced = held
