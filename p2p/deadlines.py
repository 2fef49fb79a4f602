"""Many deadlines, also such as are put off again and again: leases by progress, nodes by
heartbeats. Pure.

A heap that is lazy: putting a deadline off writes one number, and the heap learns of it when the
old one comes to its top. So an entry is touched once for each time that its old deadline passes,
however many messages put it off, and the earliest one is exact at every moment.
"""

import heapq
from math import inf
from typing import Generic, TypeVar

from p2p.ids import Chunk, NodeId

Key = TypeVar("Key", Chunk, NodeId)


class Deadlines(Generic[Key]):
    """One deadline for each key."""

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._queued: dict[Key, float] = {}
        """where a key stands in the heap; other entries of it are left-overs"""
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def set(self, key: Key, at: float) -> None:
        """From now on this is its deadline."""
        self._at[key] = at
        if at < self._queued.get(key, inf):
            self._push(key, at)

    def discard(self, key: Key) -> None:
        """It has none any more."""
        self._at.pop(key, None)

    def next(self) -> float:
        """The earliest one; infinity when there is none."""
        while self._heap:
            queued, key = self._heap[0]
            at = self._at.get(key)
            if at == queued and self._queued.get(key) == queued:
                return queued
            heapq.heappop(self._heap)
            if self._queued.get(key) != queued:
                continue
            if at is None:
                del self._queued[key]
            else:
                self._push(key, at)
        return inf

    def pop_due(self, now: float) -> list[Key]:
        """The keys whose deadlines have come, which have none from here on."""
        due = []
        while self.next() <= now:
            key = self._heap[0][1]
            self.discard(key)
            due.append(key)
        return due

    def _push(self, key: Key, at: float) -> None:
        self._queued[key] = at
        heapq.heappush(self._heap, (at, key))
