"""Reads from the origin what readers need of chunks that another node prefetches. Pure.

Such a chunk is whole there at the pace of all that is prefetched beside it, and none of its blocks
is passed on before its pin is known. So the tracker lets one node read a part of it twice.

    allow --> begin: FetchPart --> came
                ^                    | failed
                '---- again_at <-----'
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import inf
from random import Random

from p2p import events as ev
from p2p.backoff import full_jitter
from p2p.events import Command
from p2p.ids import Chunk
from p2p.needs import Part

MOST = 8  # at once: as many chunks as one need is asked for together
RETRY_FIRST_S, RETRY_CAP_S = 0.2, 2.0


@dataclass(slots=True)
class _Allowed:
    """A chunk of which parts may be read."""

    tries: int = 0
    again_at: float = -inf


class Parts:
    """The parts that this node reads beside other nodes' leases.

    Args:
      number: gives the next request's number.
    """

    def __init__(self, number: Callable[[], int], rng: Random) -> None:
        self._number, self._rng = number, rng
        self._allowed: dict[Chunk, _Allowed] = {}
        self._going: dict[int, Part] = {}

    def __repr__(self) -> str:
        return f"<Parts allowed={len(self._allowed)} going={len(self._going)}>"

    def allow(self, chunks: Iterable[Chunk]) -> None:
        """Another node prefetches these chunks."""
        for chunk in chunks:
            self._allowed.setdefault(chunk, _Allowed())

    def keep(self, needed: Collection[Chunk]) -> None:
        """Only these are needed still: a later need asks the tracker anew."""
        self._allowed = {c: one for c, one in self._allowed.items() if c in needed}

    def owns(self, request: int) -> bool:
        """The request is one of these."""
        return request in self._going

    def begin(self, part: Part, not_before: float, now: float) -> tuple[list[Command], float]:
        """Read a part, if that is allowed, and not before a time; returns when to try again."""
        allowed = self._allowed.get(part.chunk)
        going = any(one.chunk == part.chunk for one in self._going.values())
        if allowed is None or going or len(self._going) >= MOST:
            return [], inf
        at = max(allowed.again_at, not_before)
        if at > now:
            return [], at
        number = self._number()
        self._going[number] = part
        return [ev.FetchPart(number, *part)], inf

    def came(self, request: int) -> Part:
        """The part is here."""
        return self._going.pop(request)

    def failed(self, request: int, retry_after_s: float | None, now: float, *, fatal: bool) -> None:
        """It did not come: it is tried again while it is needed, unless that cannot help."""
        chunk = self._going.pop(request).chunk
        allowed = self._allowed.get(chunk)
        if fatal:
            self._allowed.pop(chunk, None)
        elif allowed is not None:
            wait_s = full_jitter(allowed.tries, RETRY_FIRST_S, RETRY_CAP_S, self._rng)
            allowed.tries += 1
            allowed.again_at = now + max(wait_s, retry_after_s or 0.0)
