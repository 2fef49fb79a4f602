"""What the two ends of a data connection share: callbacks of a poller, and one task that waits for
the end, and for leave where a limit is in force.
"""

import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from node.chunks import ChunkMismatch
from p2p.errors import RemoteProtocolError, StoreError
from p2p.poller import READABLE, WRITABLE, Poller

FAILURES = (OSError, trio.TooSlowError, RemoteProtocolError, ChunkMismatch, StoreError)
"""How a data connection ends."""


class Polled(ABC):
    """One data connection: `run` lasts as long as it does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poller: Poller | None = None
        self._failure: BaseException | None = None
        self._called = trio.Event()
        self._events = READABLE
        self._paced = False
        """the task is to go on, with leave"""

    async def run(self, poller: Poller) -> None:
        """Work until the connection ends.

        Raises:
          one of FAILURES
        """
        self._poller = poller
        poller.add(self._sock.fileno(), self._ready)
        try:
            while True:
                await self._called.wait()
                self._called = trio.Event()
                if self._failure is not None:
                    raise self._failure
                if self._paced:
                    await self._pace()
                    self._paced = False
                    self._watch(self._wanted())
        finally:
            self._leave()

    def _guard(self, work: Callable[[], None]) -> None:
        """Do something; if it fails, so does the connection."""
        try:
            work()
        except FAILURES as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self._leave()
            self._called.set()

    def _leave(self) -> None:
        if self._poller is not None:
            self._poller.remove(self._sock.fileno())
            self._poller = None

    def _watch(self, events: int) -> None:
        if self._poller is not None and events != self._events:
            self._poller.change(self._sock.fileno(), events)
            self._events = events

    def _let_pace(self) -> None:
        """Nothing is read or sent until the task has leave."""
        self._watch(0)
        self._paced = True
        self._called.set()

    def _ready(self, events: int) -> None:
        if self._paced:
            self._fail(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            return
        if events & ~WRITABLE:
            self._guard(self._readable)
        if events & WRITABLE and self._failure is None and not self._paced:
            self._guard(self._writable)

    @abstractmethod
    def _readable(self) -> None:
        """Bytes have come, or the connection has ended."""

    @abstractmethod
    def _writable(self) -> None:
        """There is room for bytes."""

    @abstractmethod
    async def _pace(self) -> None:
        """Wait for leave to move something, and move it.

        Raises:
          one of FAILURES
        """

    @abstractmethod
    def _wanted(self) -> int:
        """The events that this end waits for now."""

    @abstractmethod
    def check(self, now: float) -> None:
        """Called now and then: is the other side still there?"""
