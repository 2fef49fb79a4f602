"""The bytes of one file of the model, as they are verified: what every face reads through."""

import mmap
import os
import time
from collections.abc import Callable

from node.reader import wire
from node.reader.attachment import Attachment
from node.reader.session import Session

PIECE_BYTES = 4 * 1024**2  # read at once where chunks may be dropped meanwhile
WINDOW_LEAST, WINDOW_MOST = 4 * 1024**2, 64 * 1024**2
SEQUENTIAL = 2  # reads that follow each other, before more is read ahead
SERVED_S = 1.0  # a reader that stays in one chunk says so often that it reads there


def _never() -> bool:
    return False


class Source:
    """One place that a file is read at. Not for two threads at the same time.

    Args:
      file: index in the manifest.

    Raises:
      OSError: the file was refused, or the node is gone.
    """

    def __init__(self, attachment: Attachment, file: int) -> None:
        self._attachment = attachment
        self.file = file
        entry = attachment.manifest.files[file]
        self.path, self.size_bytes = entry.path, entry.size_bytes
        self._session = attachment.session
        self._session.check(file)
        self._stream = self._session.new_stream()
        self._descriptor = os.open(
            self._session.directory / "files" / entry.path, os.O_RDONLY | os.O_CLOEXEC
        )
        self._map: mmap.mmap | None = None
        self._next, self._run, self._run_bytes, self._window_end = 0, 0, 0, 0
        self._served = (-1, 0.0)

    def __repr__(self) -> str:
        return f"<Source {self.path!r}>"

    @property
    def session(self) -> Session:
        """The session that stands."""
        session = self._attachment.session
        if session is not self._session:
            self._session, self._stream = session, session.new_stream()
            self._window_end = 0
        return session

    def here(self, start: int, end: int) -> bool:
        """All of the range can be read without waiting.

        Raises:
          OSError: as the constructor.
        """
        return self.session.here(self.file, start, end) == end

    def wait(self, start: int, end: int, stop: Callable[[], bool] = _never) -> None:
        """Wait until all of the range can be read. `stop`: give up, asked often.

        Raises:
          OSError: as the constructor; or nobody can give it.
        """
        session = self.session
        while (at := session.here(self.file, start, end)) < end and not stop():
            session.wait(self._stream, self.file, at, end, stop)

    def wait_beside(self, start: int, end: int, stop: Callable[[], bool] = _never) -> None:
        """As `wait`, for one of several threads that wait at this place."""
        session = self.session
        stream = session.new_stream()
        try:
            while (at := session.here(self.file, start, end)) < end and not stop():
                session.wait(stream, self.file, at, end, stop)
        finally:
            session.tell(wire.Closed(stream))

    def try_read(self, start: int, end: int) -> bytes | memoryview | None:
        """The range if it can be read without waiting: without a copy where it stays.

        Raises:
          OSError: as the constructor.
        """
        session = self.session
        evictions = session.map.evictions
        if session.here(self.file, start, end) < end:
            return None
        if not session.evicts:
            return self.mapped(start, end)
        data = os.pread(self._descriptor, end - start, start)
        return data if session.map.evictions == evictions else None

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill `view` with the bytes from `start` on; waits for what is not here yet.

        Raises:
          OSError: as `wait`; nothing in `view` counts then.
        """
        at, end = start, start + len(view)
        session = self.session
        while at < end:
            evictions = session.map.evictions
            upto = session.here(self.file, at, end)
            if upto == at:
                session.wait(self._stream, self.file, at, end)
                continue
            if session.evicts:
                upto = min(upto, at + PIECE_BYTES)
            count = os.preadv(self._descriptor, [view[at - start : upto - start]], at)
            if session.evicts and session.map.evictions != evictions:
                continue  # perhaps it was dropped in mid-read: look again
            if not count:
                raise OSError(f"{self.path}: the cache file is shorter than the model's")
            at += count
        self.note(start, end)

    def read_bytes(self, start: int, end: int) -> bytes:
        """The range as bytes; as `read_into`, with one copy less where all is here."""
        session = self.session
        if not session.evicts and session.here(self.file, start, end) == end:
            data = os.pread(self._descriptor, end - start, start)
            if len(data) == end - start:  # the kernel gives 2 GiB at most
                self.note(start, end)
                return data
        buffer = bytearray(end - start)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def view(self, start: int, end: int) -> memoryview:
        """The range as it lies in the cache file, without a copy; where chunks may be dropped, a
        copy. Waits for what is not here yet.

        Raises:
          OSError: as `wait`.
        """
        if self.session.evicts:
            buffer = bytearray(end - start)
            self.read_into(memoryview(buffer), start)
            return memoryview(buffer).toreadonly()
        self.wait(start, end)
        self.note(start, end)
        return self.mapped(start, end)

    def mapped(self, start: int, end: int) -> memoryview:
        """The range as it lies in the cache file: the caller knows that it is here, and stays."""
        if start == end:
            return memoryview(b"")
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        return memoryview(self._map)[start:end]

    # -- what the node is told --------------------------------------------------------------------

    def note(self, start: int, end: int) -> None:
        """These bytes were read: a sequential reader is read ahead for, a random one is not."""
        session = self._session
        if start == self._next:
            self._run, self._run_bytes = self._run + 1, self._run_bytes + end - start
        else:
            self._run, self._run_bytes = 1, end - start
            if self._window_end:
                self._window_end = 0
                session.tell(wire.Window(self._stream, self.file, 0, 0))
        self._next = end
        if self._run >= SEQUENTIAL:
            self._read_ahead(session, end)
        if session.evicts:
            self._tell_served(session, start, end)

    def _read_ahead(self, session: Session, at: int) -> None:
        ahead = min(WINDOW_MOST, max(WINDOW_LEAST, 2 * self._run_bytes))
        if self._window_end - at >= ahead // 2:
            return
        end = min(self.size_bytes, at + ahead)
        if end > self._window_end and session.missing(self.file, at, end) < end:
            self._window_end = end
            session.tell(wire.Window(self._stream, self.file, at, end))

    def _tell_served(self, session: Session, start: int, end: int) -> None:
        chunk_bytes, now = self._attachment.manifest.chunk_bytes, time.monotonic()
        last = max(start, end - 1) // chunk_bytes
        one = start // chunk_bytes == last == self._served[0]
        if not one or now - self._served[1] >= SERVED_S:
            self._served = (last, now)
            session.tell(wire.Served(self._stream, self.file, start, end))

    def close(self) -> None:
        """Nothing more is read here. Views of it stay good."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._session.lost:
                self._session.tell(wire.Closed(self._stream))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # it was opened
            self.close()
