"""This node for people: JSON on a Unix socket in the cache dir, and optionally HTTP."""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from p2p.errors import P2PError

Status = Callable[[], dict[str, Any]]

SOCKET_NAME = "node.sock"


def _short_path(directory: Path, descriptor: int) -> str:
    """A Unix socket's path has at most 107 bytes: name it through the folder's descriptor."""
    return f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"


async def serve_status(cache_dir: Path, status: Status, task_status: trio.TaskStatus[None]) -> None:
    """Answer every connection with one JSON document. Only this user may connect."""
    directory = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (cache_dir / SOCKET_NAME).unlink(missing_ok=True)
        await listener.bind(_short_path(cache_dir, directory))
        (cache_dir / SOCKET_NAME).chmod(0o600)
        listener.listen(16)

        async def answer(stream: trio.SocketStream) -> None:
            with trio.move_on_after(5):
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(json.dumps(status()).encode())
            await trio.aclose_forcefully(stream)

        task_status.started()
        await trio.serve_listeners(answer, [trio.SocketListener(listener)])
    finally:
        listener.close()
        (cache_dir / SOCKET_NAME).unlink(missing_ok=True)
        os.close(directory)


def read_status(cache_dir: Path) -> dict[str, Any]:
    """Ask the node that runs on this cache dir.

    Raises:
      P2PError: none runs there.
    """
    try:
        directory = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise P2PError(f"no node runs on cache dir {cache_dir}: {error.strerror}") from error
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(_short_path(cache_dir, directory))
            data = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        raise P2PError(f"no node runs on cache dir {cache_dir}: {error.strerror}") from error
    finally:
        os.close(directory)
    status: dict[str, Any] = json.loads(data)
    return status
