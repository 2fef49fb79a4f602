"""A client of the wire for tests, on a blocking socket: it can say what no honest node says."""

import os
import socket

from p2p.framing import MAX_FRAME, FrameReader, pack
from p2p.handshake import NONCE_BYTES, Dialler
from p2p.messages import VERSION_HIGHEST, VERSION_LOWEST, Hello, Message


def hello(role: str, manifest: bytes = b"", **changes: object) -> Hello:
    """A hello of a node that has just been born."""
    fields: dict[str, object] = {
        "role": role, "low": VERSION_LOWEST, "high": VERSION_HIGHEST, "node": os.urandom(16),
        "nonce": os.urandom(NONCE_BYTES), "manifest": manifest,
    }  # fmt: skip
    return Hello(**{**fields, **changes})


class Wire:
    """One connection to `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.sock = socket.create_connection((host, int(port)), timeout=15)
        self._reader = FrameReader()

    def send(self, message: Message) -> None:
        """One frame."""
        self.sock.sendall(pack(message))

    def receive(self) -> Message | None:
        """The next message; None at the end of the connection."""
        while (message := self._reader.next_message()) is None:
            try:
                data = self.sock.recv(self._reader.wanted)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._reader.receive_data(data)
        return message

    def handshake(self, first: Hello, token: bytes = b"") -> "Wire":
        """Become a known peer."""
        dialler = Dialler(token, first)
        self.send(dialler.first)
        while dialler.version is None:
            message = self.receive()
            assert message is not None, "the connection ended during the handshake"
            if (answer := dialler.receive(message)) is not None:
                self.send(answer)
        self._reader.limit = MAX_FRAME
        return self

    def ended(self) -> bool:
        """The other side closes; whatever it still says is read."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Close it."""
        self.sock.close()
