"""Names of things on the wire. A node id is fresh for every process: a restart is another node."""

from typing import NewType

NodeId = NewType("NodeId", bytes)
"""16 random bytes, drawn when the process starts."""

ManifestId = NewType("ManifestId", bytes)
"""32 bytes: SHA-256 of the canonical manifest; also the revision."""

Chunk = int
"""Index of a chunk in the manifest, from 0, file after file."""

NODE_ID_BYTES = 16
MANIFEST_ID_BYTES = 32
NO_MANIFEST = ManifestId(b"")


def short(identifier: bytes) -> str:
    """The first 8 hex digits: enough for a person to tell nodes and revisions apart."""
    return identifier.hex()[:8]
