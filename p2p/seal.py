"""Which files were read as the store has them: its own checksum of the object, compared. Pure.

Each origin fetch computes the store's checksum of its chunk. Put together in order (`checksum`),
those of all chunks of a file must make what the store says of the whole object:

    PENDING --every chunk's checksum came--> SEALED, or BROKEN
       '-------- trust(), condemn() -------> SEALED, BROKEN

Files of which the store tells no checksum take no part. The tracker keeps a seal for the swarm; a
node that lost its tracker keeps one for itself.
"""

from dataclasses import dataclass

from p2p.checksum import combine, expected, written
from p2p.ids import Chunk
from p2p.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Broken:
    """What was read of a file is not what the store has: both checksums, as in the manifest."""

    file: int
    stored: str
    read: str


class Seal:
    """The seals of all files of a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._crcs: dict[Chunk, int] = {}
        self._known: dict[int, tuple[Chunk, int]] = {}
        self.pending: dict[int, None] = {}
        self.sealed: dict[int, None] = {}
        self.broken: dict[int, Broken] = {}
        for file, entry in enumerate(manifest.files):
            if entry.checksum:
                self.pending[file] = None
                self._known[file] = (manifest.chunks_of(file).start, 0)
        for file in [file for file in self.pending if not manifest.files[file].size_bytes]:
            self._advance(file)

    @property
    def unchecked(self) -> int:
        """Files of which the store tells no checksum."""
        known = len(self.pending) + len(self.sealed) + len(self.broken)
        return len(self._manifest.files) - known

    @property
    def word(self) -> str:
        """For status: none (the store tells no checksums), pending, sealed or broken."""
        if self.broken:
            return "broken"
        if self.pending:
            return "pending"
        return "sealed" if self.sealed else "none"

    def vouches(self, file: int) -> bool:
        """The file may be delivered: it is sealed, or there is nothing to compare it with."""
        return file not in self.pending and file not in self.broken

    def take(self, chunk: Chunk, crc: int) -> int | None:
        """A chunk's checksum came; the first one counts.

        Returns:
          The file that it decides: look into `sealed` and `broken`.
        """
        file = self._manifest.extent(chunk).file
        if file not in self.pending or chunk in self._crcs or chunk < self._known[file][0]:
            return None
        self._crcs[chunk] = crc
        self._advance(file)
        return None if file in self.pending else file

    def trust(self, file: int) -> bool:
        """Somebody compared it before; true if that is news."""
        if file not in self.pending:
            return False
        self._settle(file)
        self.sealed[file] = None
        return True

    def condemn(self, file: int, stored: str, read: str) -> None:
        """Somebody compared it, and it does not match."""
        if file in self.pending:
            self._settle(file)
        self.sealed.pop(file, None)
        self.broken[file] = Broken(file, stored, read)

    def wanted(self, file: int) -> list[Chunk]:
        """Chunks of a pending file whose checksums have not come."""
        following = self._known[file][0]
        chunks = self._manifest.chunks_of(file)
        return [chunk for chunk in range(following, chunks.stop) if chunk not in self._crcs]

    def _advance(self, file: int) -> None:
        """Take in what follows the part that is known without a gap, and compare at the end."""
        kind, stored = expected(self._manifest.files[file].checksum)
        following, total = self._known[file]
        end = self._manifest.chunks_of(file).stop
        while following < end and following in self._crcs:
            part = (self._crcs.pop(following), self._manifest.extent(following).length)
            total = combine(kind, [(total, 0), part]) if part[1] else total
            following += 1
        self._known[file] = (following, total)
        if following < end:
            return
        self._settle(file)
        if total == stored:
            self.sealed[file] = None
        else:
            self.broken[file] = Broken(file, written(kind, stored), written(kind, total))

    def _settle(self, file: int) -> None:
        del self.pending[file], self._known[file]
        for chunk in self._manifest.chunks_of(file):
            self._crcs.pop(chunk, None)
