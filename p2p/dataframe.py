"""Frames of data connections: a fixed binary header, then raw payload.

One way: the side that dialled sends REQUEST and CANCEL and receives DATA, BUSY, NOT_HAVE and END.
The answer to a REQUEST is either one BUSY or NOT_HAVE, or one DATA frame for each block of the
range in order, the last of them with flag LAST; one that stops sooner is ended by END. The first
DATA frame of a chunk of several blocks carries the digests of *all* blocks of the chunk ahead of
its payload (flag DIGESTS): they are checked against the chunk's pin, so each block is verified by
itself as it arrives.

A REQUEST with flag WAIT is answered when the first block of the range is there: block by block as
the chunk comes in, with frames of other answers between; or by BUSY, if the sender has more to send
by then than its uplink carries. Its first DATA frame carries the digests of all blocks (flag
DIGESTS) if they are known by then; else each frame carries that of its own block (flag OWN), as an
origin's chunk has no pin before it is whole. Together they make the pin if the asking side knows
none.

Header, 40 bytes, big-endian:

    offset size field
         0    4 magic        "SHL1"
         4    1 version      1
         5    1 type         1 REQUEST 2 CANCEL 3 DATA 4 BUSY 5 NOT_HAVE 6 END
         6    2 flags        1 DIGESTS; 2 DEMAND (a blocked read: may use the reserved slot);
                        4 LAST (the answer is whole with this frame);
                        8 WAIT (answer when the chunk comes in); 16 OWN (the digest is that of
                        this block alone)
         8    4 request      chosen by the dialling side
        12    4 chunk
        16    8 offset       in the chunk, a multiple of the block size
        24    8 length       REQUEST: of the range; DATA: of the payload; others 0
        32    4 digests      bytes of digests between header and payload
        36    4 status       BUSY: retry after so many ms; END: 0 done, 1 cancelled, 2 read error,
                        3 no longer held
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from p2p.digest import DIGEST_BYTES
from p2p.errors import RemoteProtocolError
from p2p.manifest import MAX_CHUNK_BYTES, MAX_CHUNKS

MAGIC = b"SHL1"
VERSION = 1
_STRUCT = struct.Struct(">4sBBHIIQQII")
HEADER_BYTES = _STRUCT.size
MAX_DIGESTS_BYTES = 1024 * DIGEST_BYTES  # a chunk has at most 1024 blocks
MAX_RETRY_MS = 60_000


class Kind(IntEnum):
    """The frame's type."""

    REQUEST = 1
    CANCEL = 2
    DATA = 3
    BUSY = 4
    NOT_HAVE = 5
    END = 6


class Flag:
    """Bits of the flags field; unknown ones are ignored. Plain numbers: each `&` of an enum takes
    1 us, and a block needs six."""

    NONE: Final = 0
    DIGESTS: Final = 1
    DEMAND: Final = 2
    LAST: Final = 4
    WAIT: Final = 8
    OWN: Final = 16


class EndStatus(IntEnum):
    """Why an answer ended."""

    DONE = 0
    CANCELLED = 1
    READ_ERROR = 2
    DROPPED = 3


_KINDS = {int(kind): kind for kind in Kind}
UPWARD = frozenset({Kind.REQUEST, Kind.CANCEL})
DOWNWARD = frozenset({Kind.DATA, Kind.BUSY, Kind.NOT_HAVE, Kind.END})


class Header(NamedTuple):
    """One header; fields as in the module's table."""

    kind: Kind
    request: int
    chunk: int
    offset: int = 0
    length: int = 0
    flags: int = 0
    digests: int = 0
    status: int = 0

    def encode(self) -> bytes:
        """40 bytes."""
        return _STRUCT.pack(
            MAGIC, VERSION, self.kind, self.flags, self.request, self.chunk,
            self.offset, self.length, self.digests, self.status,
        )  # fmt: skip


def decode(data: bytes | bytearray | memoryview, allowed: frozenset[Kind]) -> Header:
    """Read a header of exactly 40 bytes whose kind is one of `allowed`.

    Raises:
      RemoteProtocolError: wrong magic or version, a kind of the other direction, or a bound.
    """
    magic, version, kind, flags, request, chunk, offset, length, digests, status = _STRUCT.unpack(
        data
    )
    if magic != MAGIC:
        raise RemoteProtocolError(f"a data frame starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise RemoteProtocolError(f"a data frame is of version {version}, not {VERSION}")
    if kind not in allowed:
        raise RemoteProtocolError(f"a data frame of type {kind} does not belong here")
    if chunk >= MAX_CHUNKS or offset + length > MAX_CHUNK_BYTES:
        raise RemoteProtocolError(f"a data frame names bytes {offset}+{length} of chunk {chunk}")
    if digests > MAX_DIGESTS_BYTES or digests % DIGEST_BYTES:
        raise RemoteProtocolError(f"a data frame announces {digests} bytes of digests")
    if kind == Kind.BUSY and status > MAX_RETRY_MS:
        raise RemoteProtocolError(f"a busy asks to wait {status} ms, more than {MAX_RETRY_MS}")
    return Header(_KINDS[kind], request, chunk, offset, length, flags, digests, status)
