"""What is distributed: files, sizes and the origin's word for their revision. No hashes of ours.

Chunks are numbered through all files in the manifest's order (sorted by path). A chunk never spans
files, a file's last chunk may be shorter, an empty file has none. Because hashes are kept apart
(see `pins` in PROTOCOL.md), the manifest is known before the first byte was read.
"""

import hashlib
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import msgpack

from p2p.bitfield import Bitfield
from p2p.errors import ManifestError
from p2p.ids import Chunk, ManifestId
from p2p.units import GIB, KIB, MIB

FORMAT = 2
MAX_FILES = 100_000  # a model has tens to thousands; 100,000 make a manifest of about 10 MB
MAX_CHUNKS = 4_194_304  # 64 TiB in chunks of 16 MiB; a bitfield of 512 KiB
MAX_PATH_BYTES = 4096  # PATH_MAX on Linux
MAX_TAG_BYTES = 1024  # an ETag or version id
_CHECKSUM = re.compile(r"(crc64xz|crc64nvme):[0-9a-f]{16}")
MIN_BLOCK_BYTES = 4 * KIB
MAX_CHUNK_BYTES = GIB
DEFAULT_CHUNK_BYTES = 16 * MIB
DEFAULT_BLOCK_BYTES = MIB


@dataclass(frozen=True, slots=True)
class File:
    """One file: `path` relative to the model dir with `/`, `size_bytes`, and the origin's `etag`.

    `etag` is the strong validator as the origin wrote it (quotes included), or for `file://` and
    servers without ETag a word made of size and modification time; see `node.origins`. `version` is
    the store's version id of the object, or empty. `checksum` is the store's own checksum of the
    whole object as `crc64xz:` or `crc64nvme:` and 16 hex digits, or empty: the seal compares it
    with what was read. `attempt` counts how often the file was begun anew after it did not match.
    """

    path: str
    size_bytes: int
    etag: str
    version: str = ""
    checksum: str = ""
    attempt: int = 0


class Extent(NamedTuple):
    """Where a chunk lies: `file` is an index into `Manifest.files`; offset and length in bytes."""

    file: int
    offset: int
    length: int


def check_path(path: str) -> str:
    """Return `path` if it stays inside the model dir.

    Raises:
      ManifestError: absolute, with `..`, `.`, an empty part, NUL or a backslash at a part's start.
    """
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ManifestError(f"file name {path!r} would leave the model dir or cannot be a file")
    try:
        length = len(path.encode())
    except UnicodeEncodeError as error:
        raise ManifestError(f"file name {path!r} is not valid Unicode") from error
    if length > MAX_PATH_BYTES or any(len(part.encode()) > 255 for part in parts):
        raise ManifestError(f"file name {path[:60]!r}... is too long")
    return path


@dataclass(frozen=True)
class Manifest:
    """Files of one revision of one model, cut into chunks of blocks.

    Args:
      model: the model's name, by which nodes find each other.
      origin: the origin's URL without credentials and query; told to people only.
      files: sorted by path, without duplicates.
      chunk_bytes, block_bytes: sizes; a chunk is a whole number of blocks.

    Raises:
      ManifestError: a field is out of bounds, or there is no file at all.
    """

    model: str
    origin: str
    files: tuple[File, ...]
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    block_bytes: int = DEFAULT_BLOCK_BYTES

    def __post_init__(self) -> None:
        if not self.files:
            raise ManifestError(f"the origin of model {self.model!r} has no files")
        if len(self.files) > MAX_FILES:
            raise ManifestError(f"{len(self.files)} files are more than {MAX_FILES}")
        check_sizes(self.chunk_bytes, self.block_bytes)
        paths = [check_path(file.path) for file in self.files]
        if paths != sorted(set(paths)):
            raise ManifestError("files are not sorted by path, or one is named twice")
        folders = {path[: path.rfind("/")] for path in paths if "/" in path}
        if clash := sorted(folders.intersection(paths)):
            raise ManifestError(f"{clash[0]!r} is both a file and a folder")
        for file in self.files:
            tags = (file.etag, file.version, file.checksum)
            if file.size_bytes < 0 or max(map(len, tags)) > MAX_TAG_BYTES or file.attempt > 1:
                raise ManifestError("a file's size, ETag, version or checksum is out of bounds")
            if file.checksum and not _CHECKSUM.fullmatch(file.checksum):
                raise ManifestError(f"checksum {file.checksum!r:.60} of a file is of no known kind")
        if self.chunk_count > MAX_CHUNKS:
            raise ManifestError(
                f"{self.chunk_count} chunks are more than {MAX_CHUNKS}: use a larger --chunk-size"
            )

    @cached_property
    def _first_chunks(self) -> list[int]:
        firsts, total = [], 0
        for file in self.files:
            firsts.append(total)
            total += -(-file.size_bytes // self.chunk_bytes)
        firsts.append(total)
        return firsts

    @property
    def chunk_count(self) -> int:
        """Chunks of all files."""
        return self._first_chunks[-1]

    @cached_property
    def _short_chunks(self) -> list[tuple[Chunk, int]]:
        """The last chunk of each file that does not end at a chunk's end, and what it lacks."""
        firsts, size = self._first_chunks, self.chunk_bytes
        rests = (-file.size_bytes % size for file in self.files)
        return [
            (Chunk(after - 1), rest) for after, rest in zip(firsts[1:], rests, strict=True) if rest
        ]

    def bytes_of(self, held: Bitfield) -> int:
        """Bytes of these chunks: many small files have many short ones."""
        lacking = sum(rest for chunk, rest in self._short_chunks if chunk in held)
        return len(held) * self.chunk_bytes - lacking

    @property
    def blocks_per_chunk(self) -> int:
        """Blocks of a full chunk; also the stride of a chunk in the state map."""
        return self.chunk_bytes // self.block_bytes

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def chunks_of(self, file: int) -> range:
        """The chunks of one file; empty for an empty file."""
        return range(self._first_chunks[file], self._first_chunks[file + 1])

    def extent(self, chunk: Chunk) -> Extent:
        """Where `chunk` lies.

        Raises:
          IndexError: no such chunk.
        """
        if not 0 <= chunk < self.chunk_count:
            raise IndexError(f"chunk {chunk} of {self.chunk_count}")
        file = bisect_right(self._first_chunks, chunk) - 1
        offset = (chunk - self._first_chunks[file]) * self.chunk_bytes
        return Extent(file, offset, min(self.chunk_bytes, self.files[file].size_bytes - offset))

    def block_count(self, chunk: Chunk) -> int:
        """Blocks of `chunk`: fewer than `blocks_per_chunk` only at a file's end."""
        return -(-self.extent(chunk).length // self.block_bytes)

    @cached_property
    def order(self) -> list[Chunk]:
        """All chunks, most wanted first: small files and the head of every file, then file order.

        Engines read headers of all files before any body (GGUF splits, safetensors headers).
        """
        heads = [self._first_chunks[i] for i, file in enumerate(self.files) if file.size_bytes]
        is_head = bytearray(self.chunk_count)
        for head in heads:
            is_head[head] = 1
        return heads + [chunk for chunk in range(self.chunk_count) if not is_head[chunk]]

    def same_objects(self, other: "Manifest") -> bool:
        """Both name the same objects in the same revisions, however often they were begun anew."""
        return [replace(file, attempt=0) for file in self.files] == [
            replace(file, attempt=0) for file in other.files
        ]

    def succeeded_by(self, listed: "Manifest") -> "Manifest":
        """A new listing as the revision after this one: sizes, counts of second readings stay."""
        attempts = {replace(file, attempt=0): file.attempt for file in self.files}
        return replace(
            listed,
            files=tuple(replace(file, attempt=attempts.get(file, 0)) for file in listed.files),
            chunk_bytes=self.chunk_bytes,
            block_bytes=self.block_bytes,
        )

    def encode(self) -> bytes:
        """Canonical msgpack: keys in alphabetical order, smallest integers, UTF-8 strings."""
        tree = {
            "block_bytes": self.block_bytes,
            "chunk_bytes": self.chunk_bytes,
            "files": [
                [f.path, f.size_bytes, f.etag, f.version, f.checksum, f.attempt] for f in self.files
            ],
            "format": FORMAT,
            "model": self.model,
            "origin": self.origin,
        }
        encoded: bytes = msgpack.packb(tree)
        return encoded

    @cached_property
    def id(self) -> ManifestId:
        """SHA-256 of `encode()`."""
        return ManifestId(hashlib.sha256(self.encode()).digest())

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """The inverse of `encode`.

        Raises:
          ManifestError: not a canonical manifest of this format.
        """
        try:
            tree: Any = msgpack.unpackb(data, strict_map_key=True, max_array_len=MAX_FILES)
            if tree["format"] != FORMAT:
                raise ManifestError(f"manifest format {tree['format']!r} is not {FORMAT}")
            files = tuple(
                File(_text(p), _whole(s), _text(e), _text(v), _text(c), _whole(a))
                for p, s, e, v, c, a in tree["files"]
            )
            manifest = cls(
                _text(tree["model"]),
                _text(tree["origin"]),
                files,
                _whole(tree["chunk_bytes"]),
                _whole(tree["block_bytes"]),
            )
        except ManifestError:
            raise
        except Exception as error:  # msgpack and unpacking raise many types on garbage
            raise ManifestError(f"not a manifest: {type(error).__name__}: {error}") from error
        if manifest.encode() != data:
            raise ManifestError("not a canonical manifest: it does not encode to itself")
        return manifest


def check_sizes(chunk_bytes: int, block_bytes: int) -> None:
    """Check that a chunk is a whole number of blocks and both are in bounds.

    Raises:
      ManifestError: they are not.
    """
    if not MIN_BLOCK_BYTES <= block_bytes <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise ManifestError(
            f"chunk size {chunk_bytes} and block size {block_bytes}: "
            f"needed is {MIN_BLOCK_BYTES} <= block <= chunk <= {MAX_CHUNK_BYTES}"
        )
    if chunk_bytes % block_bytes or chunk_bytes // block_bytes > 1024 or block_bytes % 4096:
        raise ManifestError(
            f"chunk size {chunk_bytes} is not 1 to 1024 blocks of {block_bytes} bytes "
            "(a block is a multiple of 4096)"
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"a manifest field is {type(value).__name__}, not text")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ManifestError("a manifest field is not a whole number below 2**63")
    return value
