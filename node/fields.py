"""Fields of messages from chunks and pins, and back."""

from collections.abc import Iterable

from p2p.digest import DIGEST_BYTES
from p2p.errors import RemoteProtocolError
from p2p.ids import Chunk


def join_pins(pairs: Iterable[tuple[Chunk, bytes]]) -> tuple[list[int], bytes]:
    """Two fields of a message from chunks and pins."""
    listed = list(pairs)
    return [chunk for chunk, _ in listed], b"".join(pin for _, pin in listed)


def split_pins(chunks: list[int], pins: bytes, chunk_count: int) -> tuple[tuple[Chunk, bytes], ...]:
    """The inverse of `join_pins`.

    Raises:
      RemoteProtocolError: not 16 bytes a chunk, or no such chunk.
    """
    if len(pins) != len(chunks) * DIGEST_BYTES:
        raise RemoteProtocolError(f"{len(pins)} bytes of pins for {len(chunks)} chunks")
    return tuple(
        (chunk, pins[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES])
        for i, chunk in enumerate(check_chunks(chunks, chunk_count))
    )


def check_chunks(chunks: list[int], chunk_count: int) -> tuple[Chunk, ...]:
    """`chunks` as a tuple.

    Raises:
      RemoteProtocolError: the model has no such chunk.
    """
    if chunks and max(chunks) >= chunk_count:
        raise RemoteProtocolError(f"chunk {max(chunks)} of {chunk_count}")
    return tuple(chunks)
