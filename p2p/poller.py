"""Readiness of many sockets, as calls instead of tasks.

A task that waits for its socket costs trio two changes of its epoll set, a cancel scope and a walk
through all its frames each time: 50 us and more, and with 50 peers a node spent most of its time on
that. Here one task waits for a set of sockets of its own (an epoll descriptor can be waited for
itself), and calls what is ready: 5 us each.

Callbacks never wait, and move a few MiB at most: what they leave is ready again in the next round.
"""

import select
from collections.abc import Callable
from time import monotonic

import trio

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
TURN_S = 0.01  # before other tasks get a turn: a few callbacks may move 4 MiB each, 3 ms of work

Ready = Callable[[int], None]


class Poller:
    """Calls back when descriptors are ready. Each must be removed before it is closed."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}

    def add(self, descriptor: int, ready: Ready, events: int = READABLE) -> None:
        """Call `ready` with the events that have come, now and whenever there are any. It must not
        raise, and may be called for nothing."""
        self._ready[descriptor] = ready
        self._epoll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Other events from now on; 0: none but the end of the connection."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """No more calls."""
        del self._ready[descriptor]
        self._epoll.unregister(descriptor)

    def _call_next(self) -> bool:
        """Call one that is ready, if there is one: the kernel gives them in turn."""
        for descriptor, events in self._epoll.poll(0, 1):
            self._ready[descriptor](events)
            return True
        return False

    async def run(self) -> None:
        """Call until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                until = monotonic() + TURN_S
                while self._call_next() and monotonic() < until:
                    pass
        finally:
            trio.lowlevel.notify_closing(self._epoll.fileno())
