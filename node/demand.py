"""What readers want, for the swarm to fetch first."""

from collections.abc import Sequence


class Demand:
    """Of one model, in the control process. `reader` is a number, one for each open file.

    The whole model is fetched in order, whatever is read: nothing has to be changed for a reader.
    """

    @property
    def evicts(self) -> bool:
        """Held chunks may be dropped while the node runs."""
        return False

    def need(self, reader: int, file: int, start: int, end: int) -> None:
        """A reader is blocked on these bytes of a file; replaces its former need."""

    def satisfied(self, reader: int) -> None:
        """It is blocked no more."""

    def window(self, reader: int, file: int, start: int, end: int) -> None:
        """Bytes that it will read soon; replaces the former ones; start == end: none."""

    def will_need(self, reader: int, ranges: Sequence[tuple[int, int, int]]) -> None:
        """A plan of (file, start, end); adds."""

    def read(self, reader: int, file: int, start: int, end: int) -> None:
        """It was served these bytes."""

    def closed(self, reader: int) -> None:
        """Forget the reader."""
