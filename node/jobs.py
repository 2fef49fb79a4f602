"""What the control process says to a data worker, and what it hears back.

With `--workers 0` the objects themselves pass through a trio memory channel; otherwise each is one
msgpack datagram on a SOCK_SEQPACKET pair, `[type name, field, field, ...]`, and a job that hands a
socket over carries its descriptor as SCM_RIGHTS. Both ends are ours and of one version, so there is
no negotiation here.
"""

from dataclasses import astuple, dataclass, field, fields

import msgpack


@dataclass(frozen=True, slots=True)
class OpenModel:
    """First job: attach to the chunk store. `directory` is CACHE/<manifest id>."""

    directory: str


@dataclass(frozen=True, slots=True)
class AddDownlink:
    """An authenticated data connection that we dialled comes with this job: send requests on it."""

    link: int
    peer: bytes


@dataclass(frozen=True, slots=True)
class AddUplink:
    """An authenticated data connection that a peer dialled comes with this job: serve it."""

    link: int
    peer: bytes


@dataclass(frozen=True, slots=True)
class CloseLinks:
    """Close all data connections with a peer."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class AskJob:
    """Request the missing blocks of a chunk on downlink `link`.

    With an `end`: just those of these bytes, for a reader; answered by `GotBlocks`, or by `Got` if
    the chunk is whole then.
    """

    request: int
    link: int
    chunk: int
    pin: bytes
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class AskAheadJob:
    """Request chunks on downlink `link` that the peer is going to have: `[request, chunk, pin]`
    each; the pin is empty where it is not known. Each is answered as an `AskJob` is."""

    link: int
    asks: list[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Cancel a request; `idle`: only if nothing of its answer has come yet."""

    request: int
    idle: bool = False


@dataclass(frozen=True, slots=True)
class FetchJob:
    """Fetch the missing blocks of a chunk from the origin.

    `url` is absolute, `headers` are sent as they are (signed by the control process; they may hold
    secrets and are never logged) but for Range and Host, which the worker adds. `etag` is the exact
    validator that a 206 must carry (empty: Last-Modified must equal `modified`). `total` is the
    size of the whole object. For `file://` URLs `etag` is "size-mtime_ns". `checksum` names the
    store's own checksum to compute along the way ("crc64xz", "crc64nvme" or nothing), and
    `object` is the object's public URL, for the audit log. With an `end`: the blocks of bytes
    `start` to `end` of the chunk come first, and do not wait for a connection. With a `request`:
    they alone are wanted; answered by `GotBlocks`, or by `Got` if the chunk is whole then.
    """

    chunk: int
    url: str
    headers: list[list[str]]
    etag: str
    modified: str
    total: int
    checksum: str = ""
    object: str = ""
    start: int = 0
    end: int = 0
    request: int = 0


@dataclass(frozen=True, slots=True)
class HurryJob:
    """A reader is blocked on these bytes of a chunk that is being fetched: they come next."""

    chunk: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DropJob:
    """The chunk is marked as missing, and its bytes will be gone once all workers have answered
    with `Dropped`: do not read them any more."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """Another worker of this node has brought a chunk: whoever waits for it may have it."""

    chunk: int


@dataclass(frozen=True, slots=True)
class RehashJob:
    """Hash a chunk that is said to be in the store, against `pin`; unverified until then."""

    chunk: int
    pin: bytes


@dataclass(frozen=True, slots=True)
class ChecksumJob:
    """Compute the store's checksum (`kind`) of a held chunk from the cache."""

    chunk: int
    kind: str


@dataclass(frozen=True, slots=True)
class SetLimits:
    """From now on all workers together move at most so many payload bytes a second; None: all they
    can. May come before `OpenModel`."""

    upload_bytes_s: int | None
    download_bytes_s: int | None


@dataclass(frozen=True, slots=True)
class SetBudget:
    """From now on requests to the origin need leave (`AllowanceWanted`)."""

    limited: bool


@dataclass(frozen=True, slots=True)
class Allowed:
    """The answer to `AllowanceWanted` of that number: `bytes` after `wait_s`, or not at all."""

    number: int
    bytes: int
    granted: bool
    wait_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish: close all connections and exit."""


Job = (
    OpenModel
    | AddDownlink
    | AddUplink
    | CloseLinks
    | AskJob
    | AskAheadJob
    | Arrived
    | CancelJob
    | FetchJob
    | HurryJob
    | DropJob
    | RehashJob
    | ChecksumJob
    | SetLimits
    | SetBudget
    | Allowed
    | Stop
)


@dataclass(frozen=True, slots=True)
class Opened:
    """The worker is attached and takes work."""

    pid: int


@dataclass(frozen=True, slots=True)
class OpenFailed:
    """The worker could not attach to the store."""

    text: str


@dataclass(frozen=True, slots=True)
class Got:
    """A chunk is whole and verified. `source` is p2p.events.Source's value; `request` or 0.

    `digests` are those of its blocks, joined; `checksum` is the store's own (8 bytes) or empty.
    """

    chunk: int
    source: str
    request: int
    pin: bytes
    digests: bytes
    checksum: bytes


@dataclass(frozen=True, slots=True)
class GotBlocks:
    """The blocks that a request with an `end` asked for are verified; the chunk is not whole. Of an
    `AskJob`, or of a `FetchJob` with a number."""

    request: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nobody in this worker reads the chunk any more."""

    chunk: int


@dataclass(frozen=True, slots=True)
class AskEnded:
    """A request ended without its chunk: `why` is corrupt, busy, not_have, failed or no_space."""

    request: int
    chunk: int
    why: str
    retry_after_s: float
    text: str


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """An origin fetch ended without its chunk; `no_space` says that allocation failed.

    `status` is the HTTP status that ended it (0: none came), `code` the store's own error code,
    `date` the server's Date header, and `location` where a redirect points (it may hold a secret).
    """

    chunk: int
    text: str
    fatal: bool
    retry_after_s: float
    no_space: bool
    status: int = 0
    code: str = ""
    date: str = ""
    location: str = ""
    request: int = 0
    """of the `FetchJob`"""


@dataclass(frozen=True, slots=True)
class AllowanceWanted:
    """A request for `bytes` of `chunk` is about to be sent. `spare`: only if nobody waits."""

    number: int
    chunk: int
    bytes: int
    spare: bool


@dataclass(frozen=True, slots=True)
class Unused:
    """So much was allowed, and not used."""

    bytes: int
    requests: int


@dataclass(frozen=True, slots=True)
class Throttled:
    """The origin refused a request with 429 or 503: its hint (0: none) and its own word."""

    status: int
    retry_after_s: float
    code: str


@dataclass(frozen=True, slots=True)
class Requested:
    """One request to the origin has ended: bytes `start` to `end` (not included) of `object`.

    `status` is 0 when no head came; `kind` is first, resume, retry, hedge or
    steal (the end of a range that another NIC had begun).
    """

    object: str
    start: int
    end: int
    status: int
    bytes: int
    seconds: float
    request_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """A rehash did not match; the blocks are marked missing."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Checksummed:
    """A `ChecksumJob` is done: 8 bytes, or nothing where this node lacks the function."""

    chunk: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """A data connection ended. Requests on it have been answered with AskEnded before this."""

    link: int
    peer: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Totals of this worker since it started, and the leases under way; every 0.25 s if changed."""

    origin_bytes: int
    """body bytes received, discarded ones too"""
    peer_bytes: int
    """payload bytes received from peers, discarded ones too"""
    served_bytes: int
    duplicate_bytes: int
    """received for blocks that were here already, or thrown away unverified"""
    busy_count: int
    cpu_s: float
    fetching: list[list[int]]
    """[chunk, bytes received so far] of each origin fetch under way"""
    nics: dict[str, list[int]] = field(default_factory=dict)
    """source address: payload bytes in and out"""


Report = (
    Opened
    | OpenFailed
    | Got
    | GotBlocks
    | Dropped
    | AskEnded
    | FetchEnded
    | AllowanceWanted
    | Unused
    | Throttled
    | Requested
    | Damaged
    | Checksummed
    | LinkClosed
    | Figures
)

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (*Job.__args__, *Report.__args__)}


def encode(item: Job | Report) -> bytes:
    """One datagram."""
    data: bytes = msgpack.packb([type(item).__name__, *astuple(item)])
    return data


def decode(data: bytes) -> Job | Report:
    """The inverse of `encode`.

    Raises:
      ValueError: not a datagram of this version.
    """
    name, *values = msgpack.unpackb(data)
    kind = _KINDS.get(name)
    if kind is None or len(values) != len(fields(kind)):
        raise ValueError(f"worker datagram {name!r} is of another version")
    item: Job | Report = kind(*values)
    return item
