"""Raw non-blocking sockets under trio: no copy, no wake-up for every few kilobytes.

trio's own socket methods yield to the scheduler after every call; here a task yields when there is
nothing to read, and after a few MiB (`Turns`).

The kernel grows a connection's receive buffer with what it sees being read, which on a fast link
lags behind for long; `Window` opens it at once. It can then hold up to the last number of
`net.ipv4.tcp_rmem` (6 MiB by default), as it could before, and holds that much only while its
reader lags.
"""

import contextlib
import fcntl
import socket
import struct
import termios

import trio

from node.throttle import Throttle
from p2p.units import MIB

LOW_WATER_BYTES = 256 * 1024  # recv calls for 32 MiB fall from 2049 to 129 (measured)
TURN_BYTES = 4 * MIB  # about 3 ms of work; a checkpoint takes 20 us
WIDE_BYTES = 4 * MIB
# Slower links never need so much: it would only queue in the network, ahead of what is urgent.
FAST_BYTES_S, FAST_BYTES = 200e6, 4 * MIB


class EndOfStream(OSError):
    """The other side closed the connection."""

    def __init__(self) -> None:
        super().__init__(0, "connection closed by the other side")
        self.strerror = "connection closed by the other side"


class Turns:
    """Lets other tasks work now and then: one that always finds bytes would never wait."""

    def __init__(self) -> None:
        self._left = TURN_BYTES

    async def moved(self, count: int) -> None:
        """`count` bytes were moved since the last call."""
        self._left -= count
        if self._left <= 0:
            self._left = TURN_BYTES
            await trio.lowlevel.checkpoint()


class Window:
    """How much of a connection the kernel holds for us: more once it has shown to be fast."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.wide = False

    def came(self, count: int, seconds: float) -> None:
        """`count` bytes of one answer came in so long, from its first byte on."""
        if self.wide or count < FAST_BYTES or count < FAST_BYTES_S * seconds:
            return
        self.wide = True
        # the one way to grow the buffer that does not end the kernel's own tuning of it
        for mark in (WIDE_BYTES, 1):  # and never leave it high: a short tail would not wake us
            set_low_water(self._sock, mark)


INTERACTIVE = 6  # TC_PRIO_INTERACTIVE (linux/pkt_sched.h), the highest that needs no privilege


def set_interactive(sock: socket.socket | trio.socket.SocketType) -> None:
    """What this connection sends is small and urgent: requests, haves, acknowledgements. It leaves
    before bulk data where the NIC's queue keeps bands (pfifo_fast, mqprio, fq_codel's new flows);
    otherwise the node's own uploads delay what it downloads."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, INTERACTIVE)


def set_low_water(sock: socket.socket, count: int) -> None:
    """The socket is readable from so many bytes on (or at the end of the stream)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


async def wait_low_water(sock: socket.socket, remaining: int, timeout_s: float) -> None:
    """Wait until many bytes are there, or all that remain.

    Raises:
      trio.TooSlowError: not one byte came in time.
    """
    set_low_water(sock, min(LOW_WATER_BYTES, remaining))
    try:
        with trio.move_on_after(timeout_s):
            await trio.lowlevel.wait_readable(sock)
            return
    finally:
        with contextlib.suppress(OSError):  # the socket may be closed by now
            set_low_water(sock, 1)
    try:  # a slow link may have brought some, below the mark
        if not sock.recv(1, socket.MSG_PEEK):
            raise EndOfStream
    except BlockingIOError:
        raise trio.TooSlowError from None


async def receive_into(
    sock: socket.socket, view: memoryview, timeout_s: float, throttle: Throttle | None = None
) -> int:
    """At least one byte into `view`; returns how many. Waiting for a turn is no time-out.

    Raises:
      EndOfStream, OSError, trio.TooSlowError
    """
    if throttle is not None and throttle.pacer is not None:
        view = view[: await _receive_turn(sock, len(view), timeout_s, throttle)]
    while True:
        try:
            count = sock.recv_into(view)
        except BlockingIOError:
            await wait_low_water(sock, len(view), timeout_s)
            continue
        if not count:
            raise EndOfStream
        return count


async def _receive_turn(
    sock: socket.socket, size: int, timeout_s: float, throttle: Throttle
) -> int:
    """Wait for bytes, then for leave to read them: nothing is granted that does not move at once.

    What is not read fills the kernel's buffer, and TCP slows the sender down.
    """
    if throttle.pacer is not None:
        size = min(size, throttle.pacer.slice_bytes)
    if (there := readable_bytes(sock)) < size:
        await wait_low_water(sock, size, timeout_s)
        there = readable_bytes(sock)
    return await throttle.take(min(size, max(there, 1)))  # at the end of a stream there are none


def readable_bytes(sock: socket.socket) -> int:
    """What could be read now."""
    (count,) = struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return int(count)


async def receive_exactly(sock: socket.socket, size: int, timeout_s: float) -> bytes:
    """`size` bytes; the time-out is for each wait.

    Raises:
      EndOfStream, OSError, trio.TooSlowError
    """
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        view = view[await receive_into(sock, view, timeout_s) :]
    return bytes(buffer)


async def send_all(sock: socket.socket, data: bytes, timeout_s: float, flags: int = 0) -> None:
    """All of `data`.

    Raises:
      OSError, trio.TooSlowError: the other side takes nothing for so long.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view, flags) :]
        except BlockingIOError:
            with trio.fail_after(timeout_s):
                await trio.lowlevel.wait_writable(sock)
