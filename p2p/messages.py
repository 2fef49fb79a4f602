"""Every msgpack message on the wire, as a frozen dataclass with a bound on each field.

A message is a msgpack map: `t` names its type, the other keys are the fields below. Unknown keys
are ignored (a newer peer may send more); an unknown type, a missing field or a value out of bounds
is a `RemoteProtocolError` that names it. Bulk data never travels in messages: see `dataframe`.

The annotations are the codec: see `codec`.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from p2p.codec import Codec, Struct
from p2p.manifest import MAX_CHUNKS

VERSION_LOWEST = 1
VERSION_HIGHEST = 1

MAX_BATCH = 65_536  # chunks named in one message: 1 MiB of pins
MAX_MANIFEST_BYTES = 15 * 1024**2  # 100,000 files at 150 bytes

U16 = Annotated[int, 0xFFFF]
U32 = Annotated[int, 0xFFFF_FFFF]
U63 = Annotated[int, 2**63 - 1]
Id = Annotated[bytes, 16]
Hash = Annotated[bytes, 32]
Name = Annotated[str, 1024]
Text = Annotated[str, 4096]
ChunkIndex = Annotated[int, MAX_CHUNKS - 1]
Chunks = Annotated[list[ChunkIndex], MAX_BATCH]
Pins = Annotated[bytes, MAX_BATCH * 16]
Bits = Annotated[bytes, MAX_CHUNKS // 8]
Addresses = Annotated[list[Name], 16]
Blob = Annotated[bytes, MAX_MANIFEST_BYTES]
Seconds = Annotated[float, 10**10]


@dataclass(frozen=True, slots=True)
class Message(Struct):
    """Base of all messages."""


# -- the handshake, on every connection -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First message of both sides. `proof` is empty from the side that dials (it sends `Proof`).

    `role` is `node` (to a tracker), `control` or `data` (between nodes), `tracker` in a tracker's
    answer. `manifest` is empty to and from a tracker.
    """

    TYPE: ClassVar[str] = "hello"
    role: Name
    low: U16
    high: U16
    node: Id
    nonce: Hash
    manifest: Hash = b""
    addresses: Addresses = ()  # type: ignore[assignment]
    proof: Hash = b""


@dataclass(frozen=True, slots=True)
class Proof(Message):
    """Third message: the dialling side's HMAC."""

    TYPE: ClassVar[str] = "proof"
    proof: Hash


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Fourth message: both sides are known, and `version` is spoken from here on."""

    TYPE: ClassVar[str] = "welcome"
    version: U16


@dataclass(frozen=True, slots=True)
class Refuse(Message):
    """No, and why; the connection closes. `code` as in `p2p.errors.Refused`."""

    TYPE: ClassVar[str] = "refuse"
    code: Name
    text: Text


# -- node to tracker ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Join(Message):
    """Which model this node wants, and what it knows of it already.

    `model` and `origin` may be empty (the tracker's default is meant). `origin` carries no
    credentials and no query. `manifest` is the manifest the node has on disk or runs with, whole,
    or empty; `confirmed` says that the origin was asked in this process's swarm whether it holds.
    `follow`: when the objects change at the origin, this node wants the new revision. `account`:
    whose limits at the origin count (like `oss://endpoint`); models of one account share a budget.
    """

    TYPE: ClassVar[str] = "join"
    model: Name
    origin: Text
    addresses: Addresses
    manifest: Blob = b""
    confirmed: bool = False
    chunk_bytes: U32 = 0
    block_bytes: U32 = 0
    follow: bool = False
    account: Name = ""


@dataclass(frozen=True, slots=True)
class Listing(Message):
    """The holder of the listing lease has listed the origin."""

    TYPE: ClassVar[str] = "listing"
    manifest: Blob


@dataclass(frozen=True, slots=True)
class ListingFailed(Message):
    """The holder of the listing lease could not list the origin; another node may try."""

    TYPE: ClassVar[str] = "listing_failed"
    text: Text


@dataclass(frozen=True, slots=True)
class Announce(Message):
    """The node's heartbeat (every 0.5 s) and all that it holds.

    `bitfield` replaces the bytes from byte `offset` on: all of them in the first announce of a
    session, later what has changed since the last one, or nothing. `fetching` and `received` (bytes
    so far of each) are the leases under way. `wanted` is how many leases the node could hold at
    once in all (0: it cannot fetch).
    `manifest` is the id of the revision that all this is about: a node that keeps an older one than
    the swarm's must not be taken for a holder of the new.
    `origin_requests` counts the ranges that the origin granted. `on_demand`: this node holds only
    what is read there, and asks for leases by `Wants`; nobody waits until it is complete.
    """

    TYPE: ClassVar[str] = "announce"
    bitfield: Bits
    fetching: Chunks
    received: Annotated[list[U63], MAX_BATCH]
    wanted: U16
    origin_bytes: U63
    peer_bytes: U63
    corrupt_chunks: U32
    suspect_chunks: U32 = 0
    manifest: Hash = b""
    origin_requests: U63 = 0
    offset: U32 = 0
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class Fetched(Message):
    """Chunks that this node read from the origin, with the pins it computed (16 bytes each).

    `checksums` holds the store's own checksum of each chunk (8 bytes each), or nothing.
    """

    TYPE: ClassVar[str] = "fetched"
    chunks: Chunks
    pins: Pins
    checksums: Annotated[bytes, MAX_BATCH * 8] = b""


@dataclass(frozen=True, slots=True)
class LeaseFailed(Message):
    """The node gives a lease back. `fatal`: asking the origin again from this node cannot help.

    `changed`: the object is not the manifest's any more; the origin should be listed again.
    """

    TYPE: ClassVar[str] = "lease_failed"
    chunk: ChunkIndex
    text: Text
    fatal: bool
    retry_after_s: Seconds = 0.0
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Throttled(Message):
    """The origin refused a request: `status` is 429 or 503, `retry_after_s` its hint (0: none),
    `code` the store's own word. Sent at once."""

    TYPE: ClassVar[str] = "throttled"
    status: U16
    retry_after_s: Seconds
    code: Name = ""


@dataclass(frozen=True, slots=True)
class AllowanceWanted(Message):
    """The node wants to send requests for `chunk` beyond what came with its lease: it is answered
    with `Allowance` when the account's budget has room, and its lease lives meanwhile."""

    TYPE: ClassVar[str] = "allowance_wanted"
    chunk: ChunkIndex
    bytes: U63
    requests: U32


@dataclass(frozen=True, slots=True)
class AllowanceBack(Message):
    """So much of an allowance was not used, and will not be: others may."""

    TYPE: ClassVar[str] = "allowance_back"
    bytes: U63
    requests: U32


@dataclass(frozen=True, slots=True)
class Wants(Message):
    """Chunks that readers at this node are blocked on (`needed`) or will read `soon`, of those that
    it knows no holder of; replaces what it wanted before. Answered, now or later, by a lease before
    all others (`Leases`), by `Holders`, or by `Leases.elsewhere`."""

    TYPE: ClassVar[str] = "wants"
    needed: Annotated[list[ChunkIndex], 64]
    soon: Annotated[list[ChunkIndex], 64]


@dataclass(frozen=True, slots=True)
class PinsReport(Message):
    """Pins that the node knows, for a tracker that asked (`PinsWanted`), or in doubt."""

    TYPE: ClassVar[str] = "pins_report"
    chunks: Chunks
    pins: Pins


@dataclass(frozen=True, slots=True)
class Checksums(Message):
    """The store's checksums (8 bytes each) of chunks that this node holds, for a tracker's question
    (`ChecksumsWanted`)."""

    TYPE: ClassVar[str] = "checksums"
    chunks: Chunks
    checksums: Annotated[bytes, MAX_BATCH * 8]


@dataclass(frozen=True, slots=True)
class Sealed(Message):
    """Files (indexes into the manifest) whose bytes are what the store has, by its own checksum.

    From a tracker when it has compared them; from a node that was told so before a restart.
    """

    TYPE: ClassVar[str] = "sealed"
    files: Annotated[list[U32], MAX_BATCH]


@dataclass(frozen=True, slots=True)
class PinsQuery(Message):
    """Ask for the pins of these chunks; the answer is `PinsKnown` (also between peers)."""

    TYPE: ClassVar[str] = "pins_query"
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class PeerReported(Message):
    """`peer` sent bytes of `chunk` that do not match its pin."""

    TYPE: ClassVar[str] = "peer_reported"
    peer: Id
    chunk: ChunkIndex


@dataclass(frozen=True, slots=True)
class Leaving(Message):
    """The node will go: no more leases to it. The answer is `OnlyCopies`."""

    TYPE: ClassVar[str] = "leaving"


@dataclass(frozen=True, slots=True)
class Bye(Message):
    """The sender leaves now (to a tracker: return its leases; to a peer: ask it nothing more)."""

    TYPE: ClassVar[str] = "bye"


# -- tracker to node ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListOrigin(Message):
    """You hold the listing lease of `model`: list `origin` (empty: your own) and send `Listing`."""

    TYPE: ClassVar[str] = "list_origin"
    model: Name
    origin: Text


@dataclass(frozen=True, slots=True)
class Joined(Message):
    """The swarm is known. `manifest` is empty when the node already has the one of that id.

    `confirmed` says that the origin still has this revision (or that it cannot be reached while
    the swarm holds everything). Answered with `Announce`. It comes a second time, with another
    manifest, when the swarm moves on: the objects changed (and a node asked to follow), or a file
    did not match the store's checksum and is begun anew. `waiting`: no lease is granted before more
    nodes have joined (`tracker serve --start-with`).
    """

    TYPE: ClassVar[str] = "joined"
    model: Name
    manifest_id: Hash
    manifest: Blob
    confirmed: bool
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Peers(Message):
    """Nodes to meet: ids and, for each, its addresses. Repeated whenever it grows."""

    TYPE: ClassVar[str] = "peers"
    nodes: Annotated[list[Id], 4096]
    addresses: Annotated[list[Addresses], 4096]


@dataclass(frozen=True, slots=True)
class PeersGone(Message):
    """Nodes that left or expired."""

    TYPE: ClassVar[str] = "peers_gone"
    nodes: Annotated[list[Id], 4096]


@dataclass(frozen=True, slots=True)
class Leases(Message):
    """You may fetch these chunks from the origin. `started_at`: unix time of the first grant.

    `limited`: a budget is in force: from now on each request needs an allowance. `bytes` and
    `requests` come with these leases; they are to be used, or given back, within a tenth of a
    second. `elsewhere`: another node prefetches these chunks; this one may read what its readers
    need of them, and no more, without a lease.
    """

    TYPE: ClassVar[str] = "leases"
    chunks: Chunks
    started_at: Seconds
    limited: bool = False
    bytes: U63 = 0
    requests: U32 = 0
    elsewhere: Annotated[list[ChunkIndex], 64] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Allowance(Message):
    """Now you may send what you wanted for `chunk` (`AllowanceWanted`)."""

    TYPE: ClassVar[str] = "allowance"
    chunk: ChunkIndex
    bytes: U63
    requests: U32


@dataclass(frozen=True, slots=True)
class PinsKnown(Message):
    """Pins, 16 bytes for each chunk. From a tracker they overrule what a node heard elsewhere."""

    TYPE: ClassVar[str] = "pins_known"
    chunks: Chunks
    pins: Pins


@dataclass(frozen=True, slots=True)
class Holders(Message):
    """Who holds what the node wants (`Wants`): `nodes` and `pins` (16 bytes each) beside `chunks`;
    a chunk is named once for each of a few holders."""

    TYPE: ClassVar[str] = "holders"
    chunks: Annotated[list[ChunkIndex], 1024]
    pins: Annotated[bytes, 1024 * 16]
    nodes: Annotated[list[Id], 1024]


@dataclass(frozen=True, slots=True)
class PinsWanted(Message):
    """The tracker lacks pins of chunks that this node announced."""

    TYPE: ClassVar[str] = "pins_wanted"
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class ChecksumsWanted(Message):
    """The tracker lacks the store's checksums of chunks that this node holds."""

    TYPE: ClassVar[str] = "checksums_wanted"
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class SealBroken(Message):
    """A file was read twice and is not what the store has: the checksums of the store and of what
    was read, as in the manifest. It must not be delivered."""

    TYPE: ClassVar[str] = "seal_broken"
    file: U32
    stored: Name
    read: Name


@dataclass(frozen=True, slots=True)
class OnlyCopies(Message):
    """How many chunks no other live node holds, and whether any live node is incomplete."""

    TYPE: ClassVar[str] = "only_copies"
    chunk_count: U32
    incomplete_nodes: U32


@dataclass(frozen=True, slots=True)
class OriginFailed(Message):
    """No live node can fetch what is missing; `text` is the last reason."""

    TYPE: ClassVar[str] = "origin_failed"
    text: Text


# -- between peers, on control connections --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BitfieldMessage(Message):
    """What the sender holds: the first message of a control session, from both sides.

    `on_demand`: it gets only what is read there.
    """

    TYPE: ClassVar[str] = "bitfield"
    bits: Bits
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class Have(Message):
    """Chunks that the sender now holds, with their pins (16 bytes each), forwarded unchanged."""

    TYPE: ClassVar[str] = "have"
    chunks: Chunks
    pins: Pins


@dataclass(frozen=True, slots=True)
class Lost(Message):
    """Chunks that the sender announced and no longer holds (to a tracker, too)."""

    TYPE: ClassVar[str] = "lost"
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class Fetching(Message):
    """Chunks that the sender is reading from the origin (sent while no tracker answers)."""

    TYPE: ClassVar[str] = "fetching"
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class Coming(Message):
    """The sender reads these chunks from the origin. You are the root of their trees: ask for them
    now, they come as they come there."""

    TYPE: ClassVar[str] = "coming"
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class Corrupt(Message):
    """Your bytes of this chunk did not match its pin: hash it again."""

    TYPE: ClassVar[str] = "corrupt"
    chunk: ChunkIndex


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """The sender heard nothing for a while: say that you live, with pong."""

    TYPE: ClassVar[str] = "ping"


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to ping."""

    TYPE: ClassVar[str] = "pong"


CODEC = Codec(Message)
TYPES = CODEC.types
encode, decode = CODEC.encode, CODEC.decode
