"""Bytes over time, as an observer sees them who is late himself now and then."""

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """`looks` are (when, bytes that came since the look before)."""

    looks: list[tuple[float, int]] = field(default_factory=list)

    def add(self, count: int) -> None:
        """A look is over."""
        self.looks.append((time.monotonic(), count))

    def since(self, begin: float) -> "Seen":
        """Only what was seen after a moment."""
        return Seen([look for look in self.looks if look[0] >= begin])

    def most(self, window_s: float = 1.0) -> int:
        """The most bytes that came for certain within any window: those between two looks that are
        not further apart. A late observer sees less, never too much."""
        most = total = 0
        first = 1
        for index in range(1, len(self.looks)):
            total += self.looks[index][1]
            while self.looks[index][0] - self.looks[first - 1][0] > window_s and first <= index:
                total -= self.looks[first][1]
                first += 1
            most = max(most, total)
        return most

    @property
    def mean(self) -> float:
        """Bytes a second."""
        count = sum(size for _, size in self.looks[1:])
        return count / (self.looks[-1][0] - self.looks[0][0])


def watch(socks: list[socket.socket], until: float, came: Callable[[int, bytes], None]) -> Seen:
    """Read all that comes on non-blocking sockets; `came` takes index and bytes."""
    seen = Seen()
    seen.add(0)
    while time.monotonic() < until:
        select.select(socks, [], [], 0.05)
        count = 0
        for index, sock in enumerate(socks):
            try:
                while data := sock.recv(1 << 18):
                    count += len(data)
                    came(index, data)
            except BlockingIOError:
                continue
        seen.add(count)
    return seen
