"""One attachment of a reader to the node of its host: what is here, and waiting for what is not.

    look at the state map --all verified--> read
       ^         |
       |         '--> tell the node once, sleep on the chunk's wake counter (futex)
       '-----------------'

Looking costs no system call. A thread takes what the node says: the seal's decisions, and the end.
Rule: whoever waits looks again after each wake, and every `NET_S` for what cannot wake it.
"""

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

from node.local import connect
from node.reader import wire
from node.statemap import StateMap
from p2p.errors import RemoteProtocolError
from p2p.framing import MAX_FRAME, StructReader, pack_struct
from p2p.manifest import Manifest

NET_S = 0.25  # a wake that was missed, and a waiter that was cancelled, cost no more than this
RECEIVE_BYTES = 65_536
SEND_S = 10.0  # a node that takes nothing for so long has stopped


def failure(text: str, number: int = errno.EIO) -> OSError:
    """An OSError with a text of ours."""
    return OSError(number, text)


def _never() -> bool:
    return False


class Session:
    """Attached from the constructor on, until the node ends or `close`.

    Args:
      path: the node's socket.
      manifest_id: the revision that is wanted; empty: any.
      timeout_s: how long to wait for the node to know the manifest; None: for ever.

    Attributes:
      lost: why the attachment has ended; empty while it stands.

    Raises:
      OSError: no node listens there, it moved to another revision, or the time is over.
    """

    def __init__(self, path: Path, manifest_id: bytes, timeout_s: float | None) -> None:
        self.path = path
        self.lost = ""
        self.manifest: Manifest
        self.directory: Path
        self.evicts = self.require_seal = False
        self.tick: Callable[[], float | None] = lambda: None
        """called by the thread; returns in how many seconds it wants to be called again"""
        self.ended: Callable[[], None] = lambda: None
        """called when the attachment has ended, perhaps by the thread"""
        self.refused: Callable[[int], None] = lambda file: None
        """called by the thread with each file that is refused from now on"""
        self._refused: dict[int, str] = {}
        self._vouched: set[int] = set()
        self._failures = 0
        self._failed = ""
        self._streams = count(1)
        # a file that is collected while its thread is in here says so in here
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._frames = StructReader(wire.CODEC, MAX_FRAME)
        try:
            self._socket = connect(path, timeout_s)
            self._begin(manifest_id, timeout_s)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"the node at {path} knows no manifest yet") from None
            text = error.strerror or str(error)
            raise failure(f"no node serves readers at {path}: {text}", error.errno or errno.EIO) \
                from None  # fmt: skip
        self.map = StateMap(self.directory / "state")
        self._nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        threading.Thread(target=self._listen, name="shoal-reader", daemon=True).start()

    def __repr__(self) -> str:
        return f"<Session {str(self.path)!r} {self.lost or 'attached'}>"

    def _begin(self, manifest_id: bytes, timeout_s: float | None) -> None:
        try:
            self._socket.sendall(pack_struct(wire.CODEC, wire.Attach(wire.VERSION, manifest_id)))
            while True:
                message = self._frames.next_message()
                match message:
                    case wire.Attached(manifest, directory, evicts, require_seal):
                        break
                    case wire.Denied(text):
                        raise failure(text, errno.ESTALE)
                    case None:
                        data = self._socket.recv(RECEIVE_BYTES)
                        if not data:
                            raise failure("the node has ended")
                        self._frames.receive_data(data)
                    case _:
                        self._take(message)
        except BaseException:
            self._socket.close()
            raise
        self.manifest, self.directory = Manifest.decode(manifest), Path(directory)
        self.evicts, self.require_seal = evicts, require_seal
        self._socket.settimeout(SEND_S)

    # -- what the node says -----------------------------------------------------------------------

    def _hear(self, timeout_s: float | None) -> bool:
        """Take what the node says, at most so long; False at the end. Called by the thread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._nudge, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)]
        if self._nudge in ready:
            os.eventfd_read(self._nudge)
        if self._socket.fileno() not in ready:
            return True
        try:
            data = self._socket.recv(RECEIVE_BYTES)
            self._frames.receive_data(data)
            while (message := self._frames.next_message()) is not None:
                self._take(message)
        except (OSError, RemoteProtocolError) as error:
            self._lose(f"the node at {self.path} is lost: {error}")
            return False
        if not data:
            self._lose(f"the node at {self.path} has ended")
        return bool(data)

    def _take(self, message: wire.ReaderMessage) -> None:
        match message:
            case wire.Vouched(files):
                self._vouched.update(files)
            case wire.Refused(file, text):
                self._refused[file] = text
                self.refused(file)
            case wire.Failed(text):
                self._failures, self._failed = self._failures + 1, text
        self._wake()

    def _lose(self, text: str) -> None:
        self.lost = self.lost or text
        self._wake()
        self.ended()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
        if hasattr(self, "map"):
            self.map.wake_all()

    # -- reading ----------------------------------------------------------------------------------

    def check(self, file: int) -> None:
        """The file may be read now, if it is here.

        Raises:
          OSError: it was refused, or the node has ended.
        """
        if self.lost or self.map.retired:
            raise failure(self.lost or f"the node at {self.path} has ended")
        if file in self._refused:
            raise failure(self._refused[file])

    def missing(self, file: int, start: int, end: int) -> int:
        """Where the first missing byte of the range is, at the earliest; `end` if none is.

        Without a required seal only.
        """
        if start >= end:
            return end
        manifest = self.manifest
        block_bytes = manifest.block_bytes
        # a file's chunks follow each other in the map, and only its last one has fewer blocks
        base = manifest.chunks_of(file).start * manifest.blocks_per_chunk
        first = base + start // block_bytes
        at = self.map.find_missing(first, base + (end - 1) // block_bytes + 1)
        return end if at < 0 else max(start, (at - base) * block_bytes)

    def here(self, file: int, start: int, end: int) -> int:
        """The end of what can be read from `start` on without waiting.

        Raises:
          OSError: as `check`.
        """
        self.check(file)
        if self.require_seal and file not in self._vouched:
            return start
        return self.missing(file, start, end)

    def wait(
        self, stream: int, file: int, start: int, end: int, stop: Callable[[], bool] = _never
    ) -> int:
        """Wait until something can be read at `start`; as `here`. `stop`: give up, asked often.

        Raises:
          OSError: as `check`; or nobody can give it.
        """
        failures, told = self._failures, False
        try:
            while (at := self.here(file, start, end)) == start < end and not stop():
                if self._failures != failures:
                    raise failure(
                        f"{self.manifest.files[file].path}: bytes {start} to {end} cannot be had: "
                        f"{self._failed}"
                    )
                if not told:
                    told = True
                    self.tell(wire.Need(stream, file, start, end))
                if self.require_seal and file not in self._vouched:
                    with self._changed:
                        self._changed.wait(NET_S)
                    continue
                chunk = self.manifest.chunks_of(file).start + start // self.manifest.chunk_bytes
                seen = self.map.counter(chunk)
                if self.missing(file, start, end) == start:
                    self.map.wait(chunk, seen, NET_S)
            return at
        finally:
            if told:
                self.tell(wire.Satisfied(stream))

    def new_stream(self) -> int:
        """A number for one place that is read at."""
        return next(self._streams)

    def tell(self, message: wire.ReaderMessage) -> None:
        """Send a message; a node that does not take it is lost, and `check` says so."""
        frame = pack_struct(wire.CODEC, message)
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError as error:  # perhaps in mid-frame
            self._lose(f"the node at {self.path} is lost: {error.strerror or error}")

    def close(self) -> None:
        """Part with the node; who waits gets an error."""
        self._lose("the model is closed")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the thread sees the end

    def nudge(self) -> None:
        """Let the thread call `tick` now."""
        with self._lock:
            if self._socket.fileno() >= 0:
                os.eventfd_write(self._nudge, 1)

    def forked(self) -> None:
        """This is a child process: the attachment is the parent's, and its thread is not here."""
        self.lost = "this process was forked from the one that attached"
        self._lock, self._changed = threading.RLock(), threading.Condition()
        self._release()

    def _listen(self) -> None:
        while self._hear(self.tick()):
            pass
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()
            os.close(self._nudge)
