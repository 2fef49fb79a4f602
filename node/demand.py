"""What readers want, for the swarm to fetch first: a thin way from readers to `p2p.reading`.

A reader that finds bytes missing says `need` and waits on the state map; what it needs goes before
everything else, block by block. `window` makes the next bytes come before they are needed, which
only a sequential reader should ask for. Where `evicts`, the cache is smaller than the model: what a
reader is blocked on is not dropped until `satisfied`, and what it has read goes first, so it says
what it was served (`read`).
"""

from collections.abc import Callable, Sequence

from p2p import events


class Demand:
    """Of one model, in the control process. `reader` is a number, one for each open file.

    Ranges are bytes of a file, named by its index in the manifest; what is outside of the file is
    left out. In a bounded cache a need is served from its start, a few chunks at a time: whoever
    needs more moves the start on as it copies.

    Args:
      feed: takes events for the swarm.
      evicts: held chunks may be dropped while the node runs.
    """

    def __init__(self, feed: Callable[[events.Event], None], *, evicts: bool) -> None:
        self._feed = feed
        self._evicts = evicts

    def __repr__(self) -> str:
        return f"<Demand evicts={self._evicts}>"

    @property
    def evicts(self) -> bool:
        """Held chunks may be dropped while the node runs."""
        return self._evicts

    def need(self, reader: int, file: int, start: int, end: int) -> None:
        """A reader is blocked on these bytes of a file; replaces its former need."""
        self._feed(events.ReaderNeeds(reader, file, start, end))

    def satisfied(self, reader: int) -> None:
        """It is blocked no more."""
        self._feed(events.ReaderSatisfied(reader))

    def window(self, reader: int, file: int, start: int, end: int) -> None:
        """Bytes that it will read soon; replaces the former ones; start == end: none."""
        self._feed(events.ReaderWindow(reader, file, start, end))

    def will_need(self, reader: int, ranges: Sequence[tuple[int, int, int]]) -> None:
        """A plan of (file, start, end); adds."""
        self._feed(events.ReaderPlans(reader, tuple(ranges)))

    def read(self, reader: int, file: int, start: int, end: int) -> None:
        """It was served these bytes."""
        self._feed(events.ReaderRead(reader, file, start, end))

    def closed(self, reader: int) -> None:
        """Forget the reader."""
        self._feed(events.ReaderClosed(reader))
