"""The model of this host's node, for programs in Python: files that can be read while they arrive.

    with open_model() as model:
        for file in model:
            print(file.path, file.size_bytes)
        header = model.read("model.safetensors", 0, 8)      # a memoryview, not a copy
        with model.open("model.safetensors") as stream:     # an io.RawIOBase
            stream.readinto(buffer)

All of it waits for bytes that are not here yet, and raises OSError when they cannot come: the node
has ended, the file is not what the store has (its seal broke), or nobody has the bytes any more.
Nothing unverified is ever read. Threads may share a model, not a stream; forked processes attach
by themselves. Any number of processes share the one copy in the node's cache.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from node.config import reader_socket
from node.reader import wire
from node.reader.attachment import Attachment
from node.reader.session import Session
from node.reader.source import Source
from node.statemap import VERIFIED

OPEN_SOURCES = 256  # kept for `Model.read`, each with a descriptor; a model may have 100,000 files

Ranges = Iterable[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the model: `path` is relative, with `/`."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of the model is here, verified."""

    here_bytes: int
    total_bytes: int

    @property
    def complete(self) -> bool:
        """All of it is."""
        return self.here_bytes == self.total_bytes


def open_model(
    model: str | None = None,
    *,
    socket: Path | str | None = None,
    timeout_s: float | None = None,
) -> "Model":
    """Attach to the node of this host.

    Args:
      model: the name that the node's model must have; None: whatever it has.
      socket: the node's CACHE/reader.sock [default: `P2P_SOCKET`; else that of the cache dir in
        `P2P_CACHE_DIR`; else of the hidden folder beside `MODEL_DIR`].
      timeout_s: how long to wait until the node knows what the model consists of; None: for ever.

    Raises:
      OSError: no node is there, or the time is over.
      FileNotFoundError: its model has another name.
      UsageError: nothing says where the node is.
    """
    path = Path(socket) if socket is not None else reader_socket()
    opened = Model(Attachment(path, timeout_s))
    if model is not None and not opened.is_named(model):
        opened.close()
        raise FileNotFoundError(f"the node at {path} has the model {opened.name!r}, not {model!r}")
    return opened


class Model:
    """See the module. Made by `open_model`; a context manager."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._manifest = attachment.manifest
        self._index = {file.path: number for number, file in enumerate(self._manifest.files)}
        self._sources: OrderedDict[tuple[int, int], Source] = OrderedDict()
        self._watchers: list[Callable[[Progress], None]] = []
        self._told: Progress | None = None
        self._planned: Session | None = None
        self._plan = 0

    def __repr__(self) -> str:
        return f"<Model {self.name!r} revision={self.revision[:8]}>"

    @property
    def name(self) -> str:
        """What the swarm calls it."""
        return self._manifest.model

    @property
    def revision(self) -> str:
        """The manifest's id, in hex: other bytes have another one."""
        return self._manifest.id.hex()

    def is_named(self, name: str) -> bool:
        """`name` is the model's, or the last part of it (as of `oss://bucket/models/NAME`)."""
        whole = self.name.rstrip("/")
        return name.rstrip("/") in (whole, whole.rpartition("/")[2])

    def __iter__(self) -> Iterator[FileEntry]:
        """All files, by path."""
        return (FileEntry(file.path, file.size_bytes) for file in self._manifest.files)

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
          FileNotFoundError: the model has none of that path.
        """
        return self._manifest.files[self._number(path)].size_bytes

    def _number(self, path: str) -> int:
        if path not in self._index:
            raise FileNotFoundError(2, f"the model {self.name!r} has no such file", path)
        return self._index[path]

    def source(self, path: str) -> Source:
        """A place of its own to read a file at; the other ways of reading are made of it."""
        return Source(self._attachment, self._number(path))

    def open(self, path: str) -> "ModelFile":
        """A stream of a file's bytes.

        Raises:
          FileNotFoundError: there is no such file.
          OSError: it was refused, or the node is gone.
        """
        return ModelFile(self.source(path))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> memoryview:
        """Bytes of a file without a copy: the view shows the page cache that all share.

        Where the node may drop what was read (a bounded cache) it is a copy. Fewer than `length`
        at the file's end.

        Raises:
          FileNotFoundError, OSError, ValueError: as `open`; a negative place.
        """
        number = self._number(path)
        size = self._manifest.files[number].size_bytes
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"offset {offset} or length {length} is negative")
        start = min(offset, size)
        end = size if length is None else min(size, start + length)
        key = (threading.get_ident(), number)
        source = self._sources.pop(key, None) or Source(self._attachment, number)
        self._sources[key] = source
        if len(self._sources) > OPEN_SOURCES:
            self._sources.popitem(last=False)  # it is closed when nobody uses it any more
        return source.view(start, end)

    def will_need(self, ranges: Ranges) -> None:
        """Tell the node what will be read: these ranges (path, start, end) come before the rest.

        Raises:
          FileNotFoundError, OSError, ValueError: as `read`.
        """
        found = []
        for path, start, end in ranges:
            number = self._number(path)
            if not 0 <= start <= end <= self._manifest.files[number].size_bytes:
                raise ValueError(f"{path} has no bytes {start} to {end}")
            found.append((number, start, end))
        session = self._attachment.session
        if self._planned is not session:
            self._planned, self._plan = session, session.new_stream()
        for at in range(0, len(found), wire.MAX_PLAN):
            files, starts, ends = zip(*found[at : at + wire.MAX_PLAN], strict=True)
            session.tell(wire.WillNeed(self._plan, list(files), list(starts), list(ends)))

    # -- progress ---------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """How much is here now."""
        return Progress(held_bytes(self._attachment.standing), self._manifest.total_bytes)

    def on_progress(self, callback: Callable[[Progress], None], interval_s: float = 0.5) -> None:
        """Call `callback` now and then as long as more arrives, and last when all is here.

        It is called from the thread that listens to the node: it must not block.
        """
        self._watchers.append(callback)
        self._told = None

        def tick() -> float | None:
            now = self.progress()
            if now != self._told:
                self._told = now
                for watcher in self._watchers:
                    watcher(now)
            if now.complete:
                self._watchers.clear()
            return None if now.complete else interval_s

        session = self._attachment.session
        session.tick = tick
        session.nudge()

    def close(self) -> None:
        """Part with the node. Streams end with an error; views stay good."""
        self._sources.clear()
        self._attachment.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def held_bytes(session: Session) -> int:
    """Verified bytes of all files, counted in the state map."""
    manifest, total = session.manifest, 0
    size = manifest.block_bytes
    for number, file in enumerate(manifest.files):
        if not file.size_bytes:
            continue
        last = -(-file.size_bytes // size) - 1
        states = session.map.blocks(manifest.chunks_of(number).start, 0, last + 1)
        total += states.count(VERIFIED) * size
        if states[last] == VERIFIED:
            total += file.size_bytes - (last + 1) * size
    return total


class ModelFile(io.RawIOBase):
    """A stream of one file. A read gives all that was asked for, up to the file's end.

    It has no descriptor (`fileno`): nobody but this class knows which bytes of the cache file are
    there.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._position = 0
        self.name = source.path
        self.mode = "rb"

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go there; beyond the end nothing is read."""
        self._check_open()
        base = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._source.size_bytes,
        }[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        self._check_open()
        return self._position

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` straight from the cache file; gives the bytes read.

        Raises:
          OSError: the bytes cannot be had.
        """
        self._check_open()
        with memoryview(buffer) as whole, whole.cast("B") as view:
            count = max(0, min(len(view), self._source.size_bytes - self._position))
            if count:
                with view[:count] as part:
                    self._source.read_into(part, self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, or all to the end.

        Raises:
          OSError: they cannot be had.
        """
        self._check_open()
        left = max(0, self._source.size_bytes - self._position)
        count = left if size is None or size < 0 else min(size, left)
        data = self._source.read_bytes(self._position, self._position + count) if count else b""
        self._position += count
        return data

    def readall(self) -> bytes:
        """All to the end."""
        return self.read()

    def close(self) -> None:
        """Nothing more is read."""
        if not self.closed:
            self._source.close()
        super().close()
