"""Receive windows of data connections on a slow link: together little more than it can drain.

A node's peers send to it at once, and TCP lets each of them fill the queue in front of its link.
What overflows there is sent again, by the origin too: 2.5 % of all bytes on the shaped cluster (8
nodes, 100 Mbit/s, queues of 20 to 50 ms), and each request waits behind a full queue. So a slow
link's connections get windows that hold `DRAIN_S` of its rate together. Fast links never need that,
and far peers (round trips above `NEAR_S`) would starve: both are left to the kernel, whose own
tuning an explicit buffer ends for good.

The sender's side is alike: what the kernel has taken from one connection and not sent yet waits
among what it took from all others, and a chunk that could go on down its tree waits behind it. So a
slow link's connections hand over `AHEAD_S` of its rate at once (8 nodes, 100 Mbit/s: 1.039 x the
bound with 16 KiB, 1.052 without a limit). It is also what a blocked reader waits behind: 1 MiB from
a peer at 1 Gbit/s took 0.52 of a GET with 1.3 ms of the rate, and 0.48 with half a millisecond.
"""

import contextlib
import socket
import struct
from collections.abc import Iterable

DRAIN_S = 0.035
LEAST_BYTES = 48 * 1024  # a few jumbo frames: a smaller window stops and goes
MOST_BYTES = 192 * 1024  # `net.core.rmem_max` is 208 KiB where nobody changed it
NEAR_S = 0.005
SPAN_S = 0.25

AHEAD_S = 0.0005
UNSENT_LEAST_BYTES = 16 * 1024
_NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT (linux/tcp.h); the socket module has no name for it

_MIN_RTT_AT = 148  # of struct tcp_info, in microseconds (linux/tcp.h)
_U32 = struct.Struct("=I")


def window_bytes(rate: float, connections: int) -> int | None:
    """What each of so many connections gets at `rate` bytes a second; None: no limit."""
    share = rate * DRAIN_S / max(1, connections)
    return None if share > MOST_BYTES else max(LEAST_BYTES, int(share))


def round_trip_s(sock: socket.socket) -> float:
    """The shortest that the kernel has seen on this connection."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_AT + _U32.size)
    return float(_U32.unpack_from(info, _MIN_RTT_AT)[0]) / 1e6


class _Rate:
    """Bytes a second, from a total that is looked at now and then."""

    def __init__(self) -> None:
        self._bytes = 0
        self._at: float | None = None
        self.bytes_s = 0.0

    def seen(self, total: int, now: float) -> float | None:
        """Look at the total; what it grew by a second since the last look. None: it is too soon."""
        if self._at is None or total < self._bytes:
            self._bytes, self._at = total, now
        if (elapsed_s := now - self._at) < SPAN_S * 0.8:
            return None
        rate = (total - self._bytes) / elapsed_s
        self.bytes_s = max(rate, self.bytes_s * 0.8)  # a pause says nothing about the link
        self._bytes, self._at = total, now
        return rate


class Windows:
    """Fits the windows of a worker's connections to what comes in."""

    def __init__(self) -> None:
        self._rate = _Rate()
        self._count = 0.0
        self._set: dict[socket.socket, int] = {}

    @property
    def rate_bytes_s(self) -> float:
        """What came in a second, at its best of late."""
        return self._rate.bytes_s

    def fit(self, socks: Iterable[socket.socket], received: int, now: float) -> None:
        """Look at the rate, and set windows that have changed by a quarter.

        Args:
          socks: connections on which something is asked.
          received: bytes that came in so far, from peers and origin.
        """
        if (rate := self._rate.seen(received, now)) is None:
            return
        busy = [sock for sock in socks if sock.fileno() >= 0]
        self._count = max(float(len(busy)), self._count * 0.9)
        size = window_bytes(self._rate.bytes_s, round(self._count))
        if (size is None and not self._set) or not rate:
            return
        size = size or MOST_BYTES
        for sock in busy:
            before = self._set.get(sock, 0)
            if abs(size - before) * 4 < before:
                continue
            with contextlib.suppress(OSError):
                if before or round_trip_s(sock) < NEAR_S:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
                    self._set[sock] = size
        self._set = {sock: size for sock, size in self._set.items() if sock.fileno() >= 0}


class Unsent:
    """Fits what a worker's uplinks hand to the kernel ahead of the wire to what they send."""

    def __init__(self) -> None:
        self._rate = _Rate()
        self._set: dict[socket.socket, int] = {}

    @property
    def rate_bytes_s(self) -> float:
        """What went out a second, at its best of late."""
        return self._rate.bytes_s

    def fit(self, socks: Iterable[socket.socket], sent: int, now: float) -> None:
        """Look at the rate, and set limits that have changed by half.

        Args:
          socks: the connections that we send on.
          sent: bytes that went out so far.
        """
        if self._rate.seen(sent, now) is None:
            return
        rate = self._rate.bytes_s
        size = max(UNSENT_LEAST_BYTES, int(rate * AHEAD_S))
        before = self._set
        self._set = {}
        for sock in socks:
            if sock.fileno() < 0 or not rate:
                continue
            self._set[sock] = old = before.get(sock, 0)
            if abs(size - old) * 2 > old:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, size)
                self._set[sock] = size
