"""What a run on the shaped cluster is, and the least time that physics allows for it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from p2p.errors import UsageError
from p2p.units import MIB

BURST_S = 0.005  # of a link's rate may pass at once after a pause
BURST_LEAST, BURST_MOST = 40 * 1024, 128 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One run. Rates are Mbit/s on the wire, headers included.

    Attributes:
      origin_mbit: of the origin's link.
      workers: of each node; None: the node's default.
      slow, slow_factor: so many nodes, the first ones, send at this part of the rate.
      stagger_s: nodes start one after the other over so long; 0: all are released together.
      kills: a node each is killed when it holds this part of the model; the last nodes.
      queue_bytes: what a port of the switch holds; more is dropped.
      mtu: jumbo frames, as clusters use them: headers take 0.8 % instead of 4 %.
    """

    nodes: int = 8
    mbit: float = 100.0
    size: int = 256 * MIB
    origin_mbit: float = 100.0
    chunk_bytes: int = 256 * 1024
    block_bytes: int = 64 * 1024
    workers: int | None = None
    slow: int = 0
    slow_factor: float = 1.0
    stagger_s: float = 0.0
    kills: tuple[float, ...] = ()
    mtu: int = 9000
    congestion: str = "cubic"
    queue_bytes: int = 640 * 1024

    def __post_init__(self) -> None:
        if self.slow > self.nodes or len(self.kills) >= self.nodes - self.slow:
            raise UsageError(
                f"{self.nodes} nodes cannot be {self.slow} slow ones and {len(self.kills)} killed"
            )

    def up_mbit(self, node: int) -> float:
        """What a node may send."""
        return self.mbit * (self.slow_factor if node < self.slow else 1.0)

    @property
    def victims(self) -> dict[int, float]:
        """Nodes that are killed, with the progress at which."""
        return {self.nodes - 1 - i: part for i, part in enumerate(self.kills)}

    @property
    def survivors(self) -> range:
        """Nodes that are to end with the whole model."""
        return range(self.nodes - len(self.kills))

    @property
    def bound_s(self) -> float:
        """The least time for all survivors together."""
        ups = [self.up_mbit(node) for node in self.survivors]
        return bound_s(self.size, self.origin_mbit, [self.mbit] * len(ups), ups)


def bound_s(size: int, origin_mbit: float, downs: Sequence[float], ups: Sequence[float]) -> float:
    """max(F/U, F/d_min, N*F/(U + sum u_i)), the fluid bound (Kumar and Ross, Peer-assisted file
    distribution: the minimum distribution time, 2006)."""
    bits = size * 8 / 1e6
    return max(bits / origin_mbit, bits / min(downs), len(downs) * bits / (origin_mbit + sum(ups)))


def default_block(chunk_bytes: int) -> int:
    """Small enough to be passed on early, and large enough to cost little."""
    return min(chunk_bytes, MIB, max(32 * 1024, chunk_bytes // 16))


def burst_bytes(mbit: float) -> int:
    """The bucket of a link's shaper."""
    return int(min(max(mbit * 1e6 / 8 * BURST_S, BURST_LEAST), BURST_MOST))


def parse_share(text: str, of: int) -> int:
    """How many of so many: `3`, or `10%` (at least one).

    Raises:
      UsageError: neither.
    """
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if value < 0 or (not percent and value != int(value)):
        raise UsageError(f"{text!r} is neither a number of nodes nor a percentage like 10%")
    return ceil(of * value / 100) if percent else int(value)


def reader_stall_s(samples: Iterable[tuple[float, int]], size: int, bytes_s: float) -> float:
    """How long a reader waits that starts at time 0 and reads in order, at most `bytes_s`.

    Args:
      samples: times, and how many bytes from the front on could be read then; growing.
    """
    done_s, before = 0.0, 0
    for at_s, front in samples:
        if front > before:
            done_s = max(done_s, at_s) + (front - before) / bytes_s
            before = front
    return done_s - size / bytes_s
