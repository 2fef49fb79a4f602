"""One end of a pair of sockets for whole messages, each with a descriptor if need be.

Messages leave at once, and come as many as there are: where each waited for its turn among the
tasks of a busy worker, what was done was known to others two seconds later (measured: eight nodes
on two cores).
"""

import socket
import sys

import trio

MESSAGE_BYTES = 128 * 1024  # a Got of 1024 blocks has 16 KiB of digests
RIGHTS_BYTES = socket.CMSG_SPACE(4)
TURN = 64  # messages read at once


class Datagrams:
    """One end. Takes the socket over."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def send(self, data: bytes, passed: socket.socket | None = None) -> bool:
        """Send a message, with a copy of a descriptor; False: there is no room now.

        Raises:
          OSError: the other end is gone.
        """
        rights = []
        if passed is not None:
            number = passed.fileno().to_bytes(4, sys.byteorder)
            rights.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, number))
        try:
            self._sock.sendmsg([data], rights)
        except BlockingIOError:
            return False
        return True

    async def room(self) -> None:
        """Wait until there is room, or nobody there."""
        await trio.lowlevel.wait_writable(self._sock)

    async def receive(self) -> list[tuple[bytes, socket.socket | None]]:
        """Wait for messages; returns those that are there, none if the other end is gone."""
        messages: list[tuple[bytes, socket.socket | None]] = []
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                while len(messages) < TURN and (message := self._receive()) is not None:
                    messages.append(message)
            except BlockingIOError:
                if not messages:
                    continue
            return messages

    def _receive(self) -> tuple[bytes, socket.socket | None] | None:
        passed = None
        try:
            data, ancillary, _, _ = self._sock.recvmsg(MESSAGE_BYTES, RIGHTS_BYTES)
        except ConnectionError:
            return None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                passed = socket.socket(fileno=int.from_bytes(payload[:4], sys.byteorder))
                passed.setblocking(False)
        return (data, passed) if data else None

    def close(self) -> None:
        """The other end sees it."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
