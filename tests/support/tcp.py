"""Two ends of a real TCP connection on loopback."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connected, both non-blocking, closed at the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other
