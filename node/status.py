"""This node for people: JSON on a Unix socket in the cache dir, and optionally HTTP.

One request a connection: a line of JSON with a `command`, and one JSON document as the answer.

    {"command": "status"}                              the status; an empty request means this too
    {"command": "limit"}                               the limits in force
    {"command": "limit", "upload_bytes_s": 2500000}    changes what is named; null: no limit

A request that is not understood is answered with `{"error": "why"}`. Only this user may connect.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from node.local import connect, listening
from p2p.errors import P2PError, UsageError

Command = Callable[[dict[str, Any]], dict[str, Any]]

SOCKET_NAME = "node.sock"
MAX_REQUEST_BYTES = 4096  # a command and a few numbers
REQUEST_S = 5.0


async def serve_status(
    cache_dir: Path, commands: Mapping[str, Command], task_status: trio.TaskStatus[None]
) -> None:
    """Answer one request of each connection.

    Args:
      commands: take the request's other fields, and give the answer or raise a P2PError.
    """

    async def serve(stream: trio.SocketStream) -> None:
        with trio.move_on_after(REQUEST_S), contextlib.suppress(trio.BrokenResourceError):
            document = answer(commands, await _request(stream))
            await stream.send_all(json.dumps(document).encode())
        await trio.aclose_forcefully(stream)

    async with listening(cache_dir / SOCKET_NAME, 16) as listener:
        task_status.started()
        await trio.serve_listeners(serve, [listener])


async def _request(stream: trio.SocketStream) -> bytes:
    """Everything up to the first newline or the end. Of what is too long one byte more than allowed
    is kept; the rest is read all the same, or the answer would be lost with the connection."""
    line, newline = b"", b""
    while not newline and (more := await stream.receive_some(MAX_REQUEST_BYTES)):
        head, newline, _ = more.partition(b"\n")
        line = (line + head)[: MAX_REQUEST_BYTES + 1]
    return line


def answer(commands: Mapping[str, Command], line: bytes) -> dict[str, Any]:
    """The document for one request line."""
    try:
        if len(line) > MAX_REQUEST_BYTES:
            raise UsageError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
        request = json.loads(line) if line.strip() else {"command": "status"}
        if not isinstance(request, dict):
            raise UsageError("a request is a JSON object")
        name = request.pop("command", None)
        if not isinstance(name, str) or name not in commands:
            raise UsageError(f"unknown command {name!r}: one of {', '.join(sorted(commands))}")
        return commands[name](request)
    except P2PError as error:
        return {"error": str(error)}
    except (ValueError, RecursionError):
        return {"error": "the request is not one line of JSON"}


def ask_node(cache_dir: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Send a command to the node that runs on this cache dir; returns its answer.

    Raises:
      P2PError: none runs there, or it refuses.
    """
    request = json.dumps({"command": command, **fields}).encode() + b"\n"
    try:
        with connect(cache_dir / SOCKET_NAME, REQUEST_S) as connection:
            connection.sendall(request)
            data = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        raise P2PError(f"no node runs on cache dir {cache_dir}: {error.strerror}") from error
    document: dict[str, Any] = json.loads(data)
    if "error" in document:
        raise P2PError(f"the node on cache dir {cache_dir} refuses: {document['error']}")
    return document


def read_status(cache_dir: Path) -> dict[str, Any]:
    """The status of the node that runs on this cache dir.

    Raises:
      P2PError: none runs there.
    """
    return ask_node(cache_dir, "status")
