"""Bytes to frames at any split: a 4-byte big-endian length, then that many bytes of msgpack.

The reader asks for exactly the bytes that the current frame still needs (`wanted`), so that a
connection can change hands after any frame without a byte lost: a data connection goes to a worker
right after its handshake.
"""

from typing import Generic

from p2p import messages
from p2p.codec import Codec, S
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.messages import Message

HEADER_BYTES = 4
MAX_HANDSHAKE_FRAME = 8 * 1024  # before authentication nobody makes us hold more than this
MAX_FRAME = 16 * 1024**2  # a manifest of 100,000 files, with room


def pack(message: Message) -> bytes:
    """One frame of the wire, ready to send.

    Raises:
      LocalProtocolError: the message is out of bounds.
    """
    return pack_struct(messages.CODEC, message)


def pack_struct(codec: Codec[S], message: S) -> bytes:
    """One frame of any codec.

    Raises:
      LocalProtocolError: the message is out of bounds.
    """
    body = codec.encode(message)
    if len(body) > MAX_FRAME:
        raise LocalProtocolError(f"{message.TYPE} of {len(body)} bytes is more than {MAX_FRAME}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class StructReader(Generic[S]):
    """Collects bytes and gives structs of one codec. `limit` is the longest frame, in bytes."""

    def __init__(self, codec: Codec[S], limit: int) -> None:
        self._codec = codec
        self.limit = limit
        self._buffer = bytearray()

    @property
    def wanted(self) -> int:
        """Bytes until the current frame is whole; 0 when `next_message` has one.

        Raises:
          RemoteProtocolError: the announced length is over the limit.
        """
        if len(self._buffer) < HEADER_BYTES:
            return HEADER_BYTES - len(self._buffer)
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length > self.limit:
            if self._buffer.startswith(b"HTTP"):
                raise RemoteProtocolError("an HTTP server is there: that is another port")
            raise RemoteProtocolError(f"a frame of {length} bytes is more than {self.limit}")
        return max(0, HEADER_BYTES + length - len(self._buffer))

    @property
    def mid_frame(self) -> bool:
        """An end of the stream now would cut a frame."""
        return bool(self._buffer)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes, as many as came."""
        self._buffer += data

    def next_message(self) -> S | None:
        """The next whole message, or None.

        Raises:
          RemoteProtocolError: the frame is too long or not a message.
        """
        if self.wanted:
            return None
        end = HEADER_BYTES + int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        body = bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        return self._codec.decode(body)


class FrameReader(StructReader[Message]):
    """Messages of the wire. Raise `limit` to `MAX_FRAME` once the peer is known."""

    def __init__(self, limit: int = MAX_HANDSHAKE_FRAME) -> None:
        super().__init__(messages.CODEC, limit)
