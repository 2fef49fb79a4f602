"""Unix sockets in a cache dir: only this user may connect, however long the path is."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio


def _short_path(descriptor: int, name: str) -> str:
    """A Unix socket's path has at most 107 bytes: name it through its folder's descriptor."""
    return f"/proc/self/fd/{descriptor}/{name}"


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _protect(path: Path) -> None:
    path.chmod(0o600)


@asynccontextmanager
async def listening(path: Path, backlog: int) -> AsyncIterator[trio.SocketListener]:
    """A listener of mode 0600 on `path`, which is removed at the end; a stale one is replaced."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove(path)
        await listener.bind(_short_path(directory, path.name))
        _protect(path)
        listener.listen(backlog)
        yield trio.SocketListener(listener)
    finally:
        listener.close()
        _remove(path)
        os.close(directory)


def connect(path: Path, timeout_s: float | None) -> socket.socket:
    """A connection to the socket on `path`; `timeout_s` is of each operation on it.

    Raises:
      OSError: nobody listens there.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_s)
        connection.connect(_short_path(directory, path.name))
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection
