"""`p2p://MODEL/path` for fsspec: safetensors, torch, pandas and Hugging Face's tools open by URL.

MODEL is the model's name, or its last part. The node is the one of `P2P_SOCKET`, or as `open_model`
finds it; `fsspec.filesystem("p2p", socket=...)` names another one.
"""

import io
from typing import Any

from fsspec import AbstractFileSystem

from node.reader.model import Model, open_model

BUFFER_BYTES = 1024 * 1024  # for programs that read little by little


class ShoalFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec carries no type hints
    """Read-only. One instance attaches once; a forked process attaches by itself."""

    protocol = "p2p"
    root_marker = ""

    def __init__(
        self, socket: str | None = None, timeout_s: float | None = None, **options: Any
    ) -> None:
        super().__init__(socket=socket, timeout_s=timeout_s, **options)
        self._socket, self._timeout_s = socket, timeout_s
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The model of the node.

        Raises:
          OSError: no node is there.
        """
        if self._model is None:
            self._model = open_model(socket=self._socket, timeout_s=self._timeout_s)
        return self._model

    def _split(self, path: str) -> tuple[str, str]:
        """What the path has for the model's name, and the file's path in the model."""
        stripped: str = self._strip_protocol(path)
        model = self.model
        whole = model.name.strip("/")
        for name in (whole, whole.rpartition("/")[2]):
            if stripped == name or stripped.startswith(name + "/"):
                return name, stripped[len(name) + 1 :]
        raise FileNotFoundError(2, f"the node has the model {model.name!r}: p2p://{whole}/", path)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("p2p://").strip("/")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Size and kind of a file or folder."""
        name, inside = self._split(path)
        full = f"{name}/{inside}".rstrip("/")
        folder = inside + "/" if inside else ""
        for entry in self.model:
            if entry.path == inside:
                return {"name": full, "size": entry.size_bytes, "type": "file"}
            if entry.path.startswith(folder):
                return {"name": full, "size": 0, "type": "directory"}
        raise FileNotFoundError(2, "the model has no such file", path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What a folder holds, or the file itself."""
        own = self.info(path)
        found = {own["name"]: own}
        if own["type"] == "directory":
            name, inside = self._split(path)
            folder, found = inside + "/" if inside else "", {}
            for entry in self.model:
                if entry.path.startswith(folder):
                    part, slash, _ = entry.path[len(folder) :].partition("/")
                    full = f"{name}/{folder}{part}"
                    kind, size = ("directory", 0) if slash else ("file", entry.size_bytes)
                    found[full] = {"name": full, "size": size, "type": kind}
        return list(found.values()) if detail else sorted(found)

    def created(self, path: str) -> Any:
        """Not known: a model's files have no times."""
        raise NotImplementedError("a model's files have no times")

    modified = created

    def ukey(self, path: str) -> str:
        """Other bytes have another one."""
        return f"{self.model.revision}/{self._split(path)[1]}"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BufferedReader:
        if mode != "rb":
            raise OSError(30, "a model is read-only", path)
        return io.BufferedReader(self.model.open(self._split(path)[1]), BUFFER_BYTES)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """Bytes of a file; negative places count from its end."""
        inside = self._split(path)[1]
        size = self.model.size(inside)
        first, last = (
            place if place >= 0 else max(0, size + place)
            for place in (start or 0, size if end is None else end)
        )
        with self.model.open(inside) as stream:
            stream.seek(first)
            return stream.read(max(0, min(last, size) - first))
