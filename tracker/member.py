"""What the tracker remembers of one node of one model. Pure."""

from dataclasses import dataclass

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.ids import NodeId


@dataclass(slots=True)
class Node:
    """A node with a session."""

    node: NodeId
    join: m.Join
    bits: Bitfield | None = None
    wanted: int = 0
    on_demand: bool = False
    """it holds what is read there, and no more"""
    leaving: bool = False
    barred_until: float = 0.0
    fatal_text: str = ""
    origin_bytes: int = 0
    origin_requests: int = 0
    peer_bytes: int = 0
    corrupt_chunks: int = 0
    reported: int = 0
    listing_failed: str = ""
    outdated: bool = False
    """it was told of another revision, and speaks of the old one until it joins anew"""

    @property
    def complete(self) -> bool:
        """It holds all chunks."""
        return self.bits is not None and self.bits.complete
