"""The chunk store, as the control process sees it: what is held, and what survives a restart.

    CACHE/format-version            "1"; another version is refused, never deleted
    CACHE/lock                      held (flock) by the node that runs here
    CACHE/<manifest id>/manifest    canonical manifest
    CACHE/<manifest id>/journal     see `journal`
    CACHE/<manifest id>/state       see `statemap`
    CACHE/<manifest id>/digests     16 bytes a block, at (chunk * stride + block) * 16
    CACHE/<manifest id>/files/...   the model's files, sparse until complete

Trust at open: a chunk of the journal is held if this is still the same boot and its file has the
size and modification time of its last stamp. A file is stamped when it is complete, and when the
node ends in order. All other chunks of the journal are suspects: hashed before they count.
"""

import fcntl
import logging
import os
import shutil
from pathlib import Path

from node.journal import Contents, Journal, boot_id, read_journal
from node.statemap import VERIFIED, StateMap
from p2p.bitfield import Bitfield
from p2p.digest import DIGEST_BYTES, chunk_pin
from p2p.errors import ManifestError, StoreError
from p2p.ids import Chunk
from p2p.manifest import Manifest

log = logging.getLogger(__name__)

FORMAT_VERSION = "1"


class Cache:
    """A cache dir that this process has locked."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> "Cache":
        """Make or open a cache dir and take its lock.

        Raises:
          StoreError: in use, of an unknown version, or not to be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            version = path / "format-version"
            found = version.read_text().strip() if version.exists() else None
            if found is None and not any(path.iterdir()):
                version.write_text(FORMAT_VERSION + "\n")
                found = FORMAT_VERSION
            if found != FORMAT_VERSION:
                raise StoreError(
                    f"cache dir {path} is of version {found or 'unknown'}, not {FORMAT_VERSION}: "
                    "give another --cache-dir (nothing was changed there)"
                )
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cache dir {path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise StoreError(f"cache dir {path} is in use by process {holder}") from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock)

    def manifests(self) -> list[Manifest]:
        """The revisions that are here, the last used first."""
        found = []
        for path in self.path.glob("*/manifest"):
            try:
                found.append((path.stat().st_mtime_ns, Manifest.decode(path.read_bytes())))
            except (OSError, ManifestError) as error:
                log.warning("unreadable manifest path=%s error=%s", path, error)
        found.sort(key=lambda pair: pair[0], reverse=True)
        return [manifest for _, manifest in found]

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)


class ChunkStore:
    """One revision in a cache."""

    def __init__(self, directory: Path, manifest: Manifest, contents: Contents) -> None:
        self.directory = directory
        self.manifest = manifest
        self.held = Bitfield(manifest.chunk_count)
        self.suspects: dict[Chunk, bytes] = {}
        self.pins: dict[Chunk, bytes] = dict(contents.pins)
        self.checksums: dict[Chunk, bytes] = {c: s for c, s in contents.checksums.items() if s}
        self.sealed = {file for file in contents.sealed if file < len(manifest.files)}
        self._verified = Bitfield(manifest.chunk_count)
        self._missing = [len(manifest.chunks_of(i)) for i in range(len(manifest.files))]
        same_boot = contents.boot_id == boot_id()
        trusted = {
            file
            for file in range(len(manifest.files))
            if same_boot and self._stamp_of(file) == contents.stamps.get(file, ())
        }
        self._make_files()
        self._map = StateMap.create(
            directory / "state", manifest.chunk_count, manifest.blocks_per_chunk
        )
        digests = os.open(directory / "digests", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        stride = manifest.blocks_per_chunk * DIGEST_BYTES
        os.posix_fallocate(digests, 0, max(1, manifest.chunk_count) * stride)
        for chunk, pin in contents.pins.items():
            if manifest.extent(chunk).file in trusted:
                self._mark(chunk)
                self.held.add(chunk)
                os.pwrite(digests, contents.digests[chunk], chunk * stride)
                self._map.set_chunk(chunk, manifest.block_count(chunk), VERIFIED)
            else:
                self.suspects[chunk] = pin
        os.close(digests)
        contents.stamps = {f: s for f, s in contents.stamps.items() if f in trusted}
        self._journal = Journal(directory / "journal", contents)

    @classmethod
    def open(cls, cache: Cache, manifest: Manifest) -> "ChunkStore":
        """Open a revision, making it if it is new.

        Raises:
          StoreError: the folder cannot be written.
        """
        directory = cache.path / manifest.id.hex()
        try:
            directory.mkdir(exist_ok=True)
            temporary = directory / "manifest.new"
            temporary.write_bytes(manifest.encode())
            temporary.replace(directory / "manifest")
            contents = read_journal(directory / "journal")
            known = range(manifest.chunk_count)
            for chunk, pin in list(contents.pins.items()):
                blocks = manifest.block_count(chunk) if chunk in known else 0
                digests = contents.digests[chunk]
                if len(digests) != blocks * DIGEST_BYTES or chunk_pin(digests) != pin:
                    contents.take(["drop", chunk])
            return cls(directory, manifest, contents)
        except OSError as error:
            raise StoreError(f"cache dir {directory}: {error.strerror}") from error

    def _make_files(self) -> None:
        """All files, at their full size and without a byte allocated."""
        for file, entry in enumerate(self.manifest.files):
            path = self.file_path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.stat().st_size != entry.size_bytes:
                with path.open("ab") as stream:
                    stream.truncate(entry.size_bytes)

    def file_path(self, file: int) -> Path:
        """The cache file of a file of the manifest."""
        return self.directory / "files" / self.manifest.files[file].path

    def file_complete(self, file: int) -> bool:
        """All its chunks are recorded as verified."""
        return self._missing[file] == 0

    def _mark(self, chunk: Chunk) -> None:
        if chunk not in self._verified:
            self._verified.add(chunk)
            self._missing[self.manifest.extent(chunk).file] -= 1

    def record(self, chunk: Chunk, pin: bytes, digests: bytes, checksum: bytes) -> None:
        """A chunk was verified: remember it."""
        self.pins[chunk] = pin
        if checksum:
            self.checksums[chunk] = checksum
        checksum = self.checksums.get(chunk, b"")  # a rehash or a peer's copy tells none
        self.suspects.pop(chunk, None)
        self._mark(chunk)
        self._journal.append(["chunk", chunk, pin, digests, checksum])

    def forget(self, chunk: Chunk) -> None:
        """A chunk was found damaged."""
        self.suspects.pop(chunk, None)
        self.checksums.pop(chunk, None)
        if chunk in self._verified:
            self._verified.discard(chunk)
            self._missing[self.manifest.extent(chunk).file] += 1
        self._journal.append(["drop", chunk])

    def record_checksum(self, chunk: Chunk, checksum: bytes) -> None:
        """The store's checksum of a held chunk is known."""
        self.checksums[chunk] = checksum
        self._journal.append(["checksum", chunk, checksum])

    def record_seal(self, file: int) -> None:
        """The file is what the store has, by its own checksum."""
        self.sealed.add(file)
        self._journal.append(["sealed", file])

    def record_broken(self, file: int) -> None:
        """The file is not what the store has, whatever was said before."""
        self.sealed.discard(file)
        self._journal.append(["broken", file])

    def _stamp_of(self, file: int) -> tuple[int, int] | None:
        try:
            status = self.file_path(file).stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def stamp(self, *files: int) -> None:
        """Nothing more is written to these files: trust them at the next start if they stay so."""
        stamps = [(file, self._stamp_of(file)) for file in files]
        self._journal.append(*(["stamp", file, *stamp] for file, stamp in stamps if stamp))

    def lacking_bytes(self) -> int:
        """How much the cache's filesystem lacks for all chunks that are not here; 0 if none."""
        chunks = range(self.manifest.chunk_count)
        missing = sum(self.manifest.extent(c).length for c in chunks if c not in self._verified)
        return max(0, missing - shutil.disk_usage(self.directory).free)

    def close(self) -> None:
        """Stamp all files, part with the readers and close. The workers must have stopped."""
        if not self.suspects:
            self.stamp(*range(len(self.manifest.files)))
        self._journal.close()
        self._map.retire()
        self._map.close()
