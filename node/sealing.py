"""This node's part in the seal: answers for the tracker, and a seal of its own without one.

Checksums of chunks that this node read from the origin are in its journal. Those of others are
computed by a worker, from bytes that match their pins.
"""

import logging
from collections.abc import Callable, Iterable
from math import inf

import trio

from node import jobs
from node.store import ChunkStore
from node.tracker_client import TrackerClient
from node.workers import WorkerPool
from p2p import messages
from p2p.checksum import expected
from p2p.ids import Chunk
from p2p.seal import Seal

log = logging.getLogger(__name__)

AT_ONCE = 4  # chunks read at a time: the application and the peers read too
ALONE_AFTER_S = 5.0  # a tracker that is restarted is back before


class NodeSeal:
    """Which files may be delivered.

    Args:
      on_change: called with each file that was sealed or broken.
    """

    def __init__(
        self,
        store: ChunkStore,
        pool: WorkerPool,
        tracker: TrackerClient,
        on_change: Callable[[int], None],
    ) -> None:
        self.seal = Seal(store.manifest)
        self._store = store
        self._pool = pool
        self._tracker = tracker
        self._on_change = on_change
        self._waiting: dict[Chunk, None] = {}
        self._computing: set[Chunk] = set()
        for file in sorted(store.sealed):
            self.seal.trust(file)
        if self.seal.unchecked:
            log.info("the store tells no checksum of %d files", self.seal.unchecked)

    def joined(self) -> None:
        """A session with a tracker stands: it may have forgotten what was sealed."""
        files = list(self.seal.sealed)
        for start in range(0, len(files), messages.MAX_BATCH):
            self._tracker.send(messages.Sealed(files[start : start + messages.MAX_BATCH]))

    def sealed(self, files: Iterable[int]) -> None:
        """The tracker has compared these files."""
        for file in files:
            if file < len(self._store.manifest.files) and self.seal.trust(file):
                self._settled(file)

    def _settled(self, file: int) -> None:
        if file in self.seal.sealed:
            self._store.record_seal(file)
        else:
            self._store.record_broken(file)
            log.error("%s", self.broken_text(file))
        self._on_change(file)

    def broken(self, file: int, stored: str, read: str) -> None:
        """The tracker says that a file is not what the store has."""
        if file < len(self._store.manifest.files):
            self.seal.condemn(file, stored, read)
            self._settled(file)

    def broken_text(self, file: int) -> str:
        """The line for people about a file that is broken."""
        manifest, broken = self._store.manifest, self.seal.broken[file]
        name = f"{manifest.origin.rstrip('/')}/{manifest.files[file].path}"
        return (
            f"{name}: what was read does not match the store's checksum "
            f"(store {broken.stored}, read {broken.read}): not delivered"
        )

    # -- checksums --------------------------------------------------------------------------------

    def wanted(self, chunks: list[Chunk]) -> None:
        """The tracker lacks the checksums of these chunks."""
        held = [c for c in chunks if c < self._store.held.size and c in self._store.held]
        known = [c for c in held if self._store.checksums.get(c)]
        if known:
            joined = b"".join(self._store.checksums[chunk] for chunk in known)
            self._tracker.send(messages.Checksums(known, joined))
        self._compute(chunk for chunk in held if not self._store.checksums.get(chunk))

    def _compute(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            if chunk not in self._computing:
                self._waiting[chunk] = None
        self._submit()

    def _submit(self) -> None:
        while self._waiting and len(self._computing) < AT_ONCE:
            chunk = next(iter(self._waiting))
            del self._waiting[chunk]
            checksum = self._store.manifest.files[self._store.manifest.extent(chunk).file].checksum
            if checksum:
                self._computing.add(chunk)
                kind = expected(checksum)[0]
                self._pool.submit(chunk % self._pool.count, jobs.ChecksumJob(chunk, kind))

    def computed(self, chunk: Chunk, checksum: bytes) -> None:
        """A worker has read a chunk; empty: it could not."""
        self._computing.discard(chunk)
        if checksum and chunk in self._store.held:
            self._store.record_checksum(chunk, checksum)
            self._tracker.send(messages.Checksums([chunk], checksum))
        self._submit()

    # -- without a tracker ------------------------------------------------------------------------

    async def run(self) -> None:
        """Seal complete files alone while no tracker answers."""
        lost_at = inf
        while self.seal.pending:
            await trio.sleep(1.0)
            if self._tracker.connected:
                lost_at = inf
                continue
            lost_at = min(lost_at, trio.current_time())
            if trio.current_time() - lost_at >= ALONE_AFTER_S:
                self._seal_alone()

    def _seal_alone(self) -> None:
        for file in list(self.seal.pending):
            if not self._store.file_complete(file):
                continue
            wanted = self.seal.wanted(file)
            for chunk in wanted:
                if checksum := self._store.checksums.get(chunk):
                    self.seal.take(chunk, int.from_bytes(checksum, "big"))
            if file not in self.seal.pending:
                self._settled(file)
            else:
                self._compute(self.seal.wanted(file))
