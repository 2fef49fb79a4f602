"""An origin for the demo: a folder over HTTP, listed as JSON like nginx does. Not for bulk."""

from email.utils import formatdate
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send


class CountingFile(FileResponse):
    """A file response that counts the body bytes it sends into `counter`."""

    counter: list[int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the file or a range of it."""

        async def counting(message: Message) -> None:
            self.counter[0] += len(message.get("body", b""))
            await send(message)

        await super().__call__(scope, receive, counting)


class DemoOrigin:
    """One folder; `body_bytes` is what went out in bodies of files."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._counter = [0]

    @property
    def body_bytes(self) -> int:
        """Body bytes of files sent so far."""
        return self._counter[0]

    async def answer(self, request: Request) -> Response:
        """A listing for a folder, a file or a range of it for a file."""
        path = (self._root / request.path_params["path"]).resolve()
        if not path.is_relative_to(self._root) or not path.exists():
            return PlainTextResponse("not found\n", 404)
        if path.is_dir():
            return JSONResponse([_entry(child) for child in sorted(path.iterdir())])
        response = CountingFile(path)
        response.counter = self._counter
        response.set_stat_headers(path.stat())
        wanted = request.headers.get("if-match")
        if wanted not in (None, "*", response.headers["etag"]):
            return PlainTextResponse("the file has changed\n", 412)
        return response

    async def serve(self, task_status: trio.TaskStatus[list[str]]) -> None:
        """Serve on a free loopback port; starts with the URLs."""
        config = Config()
        config.bind = ["127.0.0.1:0"]
        config.errorlog = None
        config.graceful_timeout = 0.5
        app: Any = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "HEAD"])])
        await serve(app, config, shutdown_trigger=trio.sleep_forever, task_status=task_status)


def _entry(path: Path) -> dict[str, object]:
    status = path.stat()
    entry: dict[str, object] = {
        "name": path.name,
        "type": "directory" if path.is_dir() else "file",
        "mtime": formatdate(status.st_mtime, usegmt=True),
    }
    if path.is_file():
        entry["size"] = status.st_size
    return entry
