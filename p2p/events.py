"""What goes into a swarm (events, past tense) and what comes out of it (commands, imperative).

`Swarm.handle(event, now) -> list[Command]`. Events come from the tracker session, from peers'
control sessions and from the data workers; commands go back to the same three. Payload is never
part of either: one chunk is one event.
"""

from dataclasses import dataclass
from enum import Enum

from p2p.ids import Chunk, NodeId


class Source(Enum):
    """Where a chunk's bytes came from; also the metric label."""

    ORIGIN = "origin"
    PEER = "peer"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Ask:
    """Command: request a chunk from a peer. `request` is unique in this process.

    With an `end`: just the blocks of these bytes, for a reader that is blocked on them; answered by
    BlocksVerified, or, if that made the chunk whole, by ChunkVerified.
    """

    request: int
    peer: NodeId
    chunk: Chunk
    pin: bytes
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class AskAhead:
    """Command: request chunks that the peer is going to have: (request, chunk, pin or nothing).

    Each is answered as an `Ask` is, when the peer has the chunk, which may be never.
    """

    peer: NodeId
    asks: tuple[tuple[int, Chunk, bytes], ...]


# -- events: tracker ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrackerFound:
    """The session with the tracker stands and the swarm is joined."""


@dataclass(frozen=True, slots=True)
class TrackerLost:
    """No session with any tracker from now on."""


@dataclass(frozen=True, slots=True)
class PeersOffered:
    """Nodes of this swarm and their addresses. Known ones are repeated without harm."""

    peers: tuple[tuple[NodeId, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class PeersWithdrawn:
    """The tracker says that these nodes left or expired."""

    peers: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class LeasesGranted:
    """This node may fetch these chunks from the origin."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class FetchedElsewhere:
    """Another node prefetches these chunks, which readers here are blocked on: this node may read
    what they need of them from the origin."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class PinsLearned:
    """Pins from the tracker (`peer` None: they overrule) or from a peer (the first one is kept)."""

    pins: tuple[tuple[Chunk, bytes], ...]
    peer: NodeId | None = None


# -- events: peers --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerReady:
    """A control session stands; `bits` is the peer's bitfield in wire form."""

    peer: NodeId
    bits: bytes
    on_demand: bool = False
    """it holds only what is read there: nothing need be kept or sent for its sake"""


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The control session ended, or could not be made."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class PeerHas:
    """The peer now holds these chunks."""

    peer: NodeId
    pins: tuple[tuple[Chunk, bytes], ...]


@dataclass(frozen=True, slots=True)
class PeerLostChunks:
    """The peer no longer holds these chunks."""

    peer: NodeId
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class PeerFetches:
    """The peer is reading these chunks from the origin (told while no tracker answers)."""

    peer: NodeId
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class PeerOwns:
    """The peer is reading these chunks from the origin, and this node is to pass them on."""

    peer: NodeId
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class PeerAsksPins:
    """The peer wants to know the pins of these chunks."""

    peer: NodeId
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class PeerLeaves:
    """The peer said bye: it answers nothing more."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class CorruptionReported:
    """A peer got bytes of this chunk from us that do not match the pin."""

    peer: NodeId
    chunk: Chunk


# -- events: workers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChunkVerified:
    """The chunk is whole in the store and matches its pin. From the origin the pin is new."""

    chunk: Chunk
    source: Source
    pin: bytes
    request: int = 0
    """The `Ask` that it answers, or the `FetchPart` that brought the last blocks; 0: neither."""


@dataclass(frozen=True, slots=True)
class ChunkCorrupt:
    """A peer's bytes did not match; nothing of them was kept."""

    request: int


@dataclass(frozen=True, slots=True)
class AskRefused:
    """The peer is busy (`retry_after_s`), or has not got the chunk (None)."""

    request: int
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class AskFailed:
    """The data connection failed, stalled, or ended; verified blocks are kept."""

    request: int
    text: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """An origin fetch ended early. `fatal`: asking again from this node cannot help.

    `changed`: the object is not the one of the manifest any more.
    """

    chunk: Chunk
    text: str
    fatal: bool
    retry_after_s: float | None = None
    changed: bool = False


@dataclass(frozen=True, slots=True)
class PartFailed:
    """A part's fetch ended early; verified blocks are kept. `fatal` as in `FetchFailed`."""

    request: int
    text: str
    fatal: bool
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class SpaceExhausted:
    """The store could not allocate `chunk`; whatever was under way for it has ended."""

    chunk: Chunk
    request: int = 0


@dataclass(frozen=True, slots=True)
class ChunkDamaged:
    """A held chunk was hashed again and does not match: it is dropped."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class BlocksVerified:
    """The blocks that an `Ask` for a reader, or a `FetchPart`, asked for are in the store;
    the chunk is not whole."""

    request: int


@dataclass(frozen=True, slots=True)
class ChunkDropped:
    """A chunk that was to go has gone: its space is free."""

    chunk: Chunk


# -- events: readers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReaderNeeds:
    """A reader is blocked on bytes of a file of the manifest; replaces its former need."""

    reader: int
    file: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ReaderSatisfied:
    """It is blocked no more."""

    reader: int


@dataclass(frozen=True, slots=True)
class ReaderWindow:
    """It will read these bytes soon; replaces the former window."""

    reader: int
    file: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ReaderPlans:
    """It will read these ranges, (file, start, end), some time; adds to its plan."""

    reader: int
    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ReaderRead:
    """It was served these bytes."""

    reader: int
    file: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ReaderClosed:
    """It is gone."""

    reader: int


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """`next_deadline()` has come."""


# -- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Make a control session with the peer; answered by PeerReady or PeerLost."""

    peer: NodeId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close all connections with the peer."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class CancelAsk:
    """Nobody waits for this request any more; answered by AskFailed or the chunk.

    `idle`: only if nothing of its answer has come yet.
    """

    request: int
    peer: NodeId
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch a chunk from the origin; answered by ChunkVerified, FetchFailed or SpaceExhausted.

    With an `end`: the blocks of these bytes first, because a reader is blocked on them.
    """

    chunk: Chunk
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class FetchPart:
    """Fetch just the blocks of these bytes from the origin, without a lease; answered by
    BlocksVerified, PartFailed or, if they made the chunk whole, by ChunkVerified."""

    request: int
    chunk: Chunk
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hurry:
    """A reader is blocked on these bytes of a chunk that is being fetched: they come next."""

    chunk: Chunk
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make connections with the peer for what readers here will be blocked on."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Drop:
    """Take a chunk out of the cache; answered by ChunkDropped."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class ReportLost:
    """Tell the tracker that we no longer hold these chunks."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class SendWants:
    """Tell the tracker which chunks readers here are blocked on, and which they will read soon, of
    those that no peer is known to hold; replaces what was told before."""

    needed: tuple[Chunk, ...]
    soon: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Rehash:
    """Hash a held chunk again; answered by ChunkVerified(source=DISK) or ChunkDamaged."""

    chunk: Chunk
    pin: bytes


@dataclass(frozen=True, slots=True)
class SendHave:
    """Tell these peers of new chunks."""

    peers: tuple[NodeId, ...]
    pins: tuple[tuple[Chunk, bytes], ...]


@dataclass(frozen=True, slots=True)
class SendLost:
    """Tell these peers that we no longer hold a chunk."""

    peers: tuple[NodeId, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class SendFetching:
    """Tell these peers what we read from the origin."""

    peers: tuple[NodeId, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class SendComing:
    """Tell the root of the chunk's tree that we read it from the origin."""

    peer: NodeId
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class SendPins:
    """Answer a peer's question."""

    peer: NodeId
    pins: tuple[tuple[Chunk, bytes], ...]


@dataclass(frozen=True, slots=True)
class AskPins:
    """Ask a peer, or with None the tracker, for pins."""

    peer: NodeId | None
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class ReportCorruption:
    """Tell the peer and the tracker that its bytes of this chunk are bad."""

    peer: NodeId
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class ReportFetched:
    """Tell the tracker about chunks that we read from the origin, with their pins."""

    pins: tuple[tuple[Chunk, bytes], ...]


@dataclass(frozen=True, slots=True)
class ReturnLease:
    """Give a lease back to the tracker."""

    chunk: Chunk
    text: str
    fatal: bool
    retry_after_s: float
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Complete:
    """Every chunk is verified. Given once each time the swarm becomes complete."""


Event = (
    TrackerFound
    | TrackerLost
    | PeersOffered
    | PeersWithdrawn
    | LeasesGranted
    | FetchedElsewhere
    | PinsLearned
    | PeerReady
    | PeerLost
    | PeerHas
    | PeerLostChunks
    | PeerFetches
    | PeerOwns
    | PeerAsksPins
    | PeerLeaves
    | CorruptionReported
    | ChunkVerified
    | ChunkCorrupt
    | AskRefused
    | AskFailed
    | FetchFailed
    | PartFailed
    | SpaceExhausted
    | ChunkDamaged
    | BlocksVerified
    | ChunkDropped
    | ReaderNeeds
    | ReaderSatisfied
    | ReaderWindow
    | ReaderPlans
    | ReaderRead
    | ReaderClosed
    | DeadlinePassed
)

Command = (
    Ask
    | AskAhead
    | Connect
    | Disconnect
    | CancelAsk
    | Fetch
    | FetchPart
    | Hurry
    | Prepare
    | Drop
    | ReportLost
    | SendWants
    | Rehash
    | SendHave
    | SendLost
    | SendFetching
    | SendComing
    | SendPins
    | AskPins
    | ReportCorruption
    | ReportFetched
    | ReturnLease
    | Complete
)
