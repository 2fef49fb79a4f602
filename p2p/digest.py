"""The only place that names a hash function.

A block's digest is xxh3-128 of its bytes. A chunk's *pin* is xxh3-128 of its blocks' digests, one
after the other: bytes are hashed once, and 16 bytes that a peer was told to trust authenticate the
digests of all blocks of the chunk, so a block can be verified (and read) before its chunk is whole.
xxHash is fast (13 GB/s a core here) and not collision resistant: it finds damage, not an enemy
inside the cluster.
"""

from collections.abc import Sequence

import xxhash

DIGEST_BYTES = 16


def block_digest(data: bytes | bytearray | memoryview) -> bytes:
    """16 bytes for one block. Releases the GIL for large blocks."""
    return xxhash.xxh3_128_digest(data)


def chunk_pin(digests: Sequence[bytes] | bytes) -> bytes:
    """The pin of a chunk from its blocks' digests, given in order, as a list or joined."""
    joined = digests if isinstance(digests, bytes) else b"".join(digests)
    return xxhash.xxh3_128_digest(joined)


def rendezvous_weight(chunk: int, node: bytes) -> int:
    """The weight of a node for a chunk in rendezvous hashing (Thaler, Ravishankar 1998)."""
    return xxhash.xxh3_64_intdigest(chunk.to_bytes(8, "big") + node)
