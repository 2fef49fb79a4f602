"""What survives a restart: verified chunks with pins, digests and checksums, and files' stamps.

An append-only file of records: 4 bytes length, 8 bytes check (the head of the record's digest), the
msgpack of a list. A torn or damaged tail ends it. The last record about a chunk or a file counts.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgpack

from p2p.digest import block_digest
from p2p.ids import Chunk

log = logging.getLogger(__name__)

CHECK_BYTES = 8
MAX_RECORD = 64 * 1024  # a chunk has at most 1024 digests of 16 bytes


def boot_id() -> str:
    """This boot of this machine: the page cache outlives a process, not a boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(slots=True)
class Contents:
    """What a journal says."""

    boot_id: str = ""
    pins: dict[Chunk, bytes] = field(default_factory=dict)
    digests: dict[Chunk, bytes] = field(default_factory=dict)
    checksums: dict[Chunk, bytes] = field(default_factory=dict)
    stamps: dict[int, tuple[int, int]] = field(default_factory=dict)
    """size and mtime_ns of a cache file when nothing more was to be written to it"""
    sealed: dict[int, None] = field(default_factory=dict)
    """files that were compared with the store's own checksum, and matched"""
    kept: dict[int, None] = field(default_factory=dict)
    """files that a bounded cache must not drop"""

    def take(self, record: list[Any]) -> None:
        """Apply one record; unknown kinds are skipped."""
        match record:
            case ["boot", str(name)]:
                self.boot_id = name
            case ["chunk", int(chunk), bytes(pin), bytes(digests), bytes(checksum)]:
                self.pins[chunk], self.digests[chunk] = pin, digests
                self.checksums[chunk] = checksum
            case ["drop", int(chunk)]:
                for table in (self.pins, self.digests, self.checksums):
                    table.pop(chunk, None)
            case ["stamp", int(file), int(size), int(mtime_ns)]:
                self.stamps[file] = (size, mtime_ns)
            case ["sealed", int(file)]:
                self.sealed[file] = None
            case ["keep", int(file)]:
                self.kept[file] = None
            case ["unkeep", int(file)]:
                self.kept.pop(file, None)
            case ["broken", int(file)]:
                self.sealed.pop(file, None)
            case ["checksum", int(chunk), bytes(checksum)] if chunk in self.pins:
                self.checksums[chunk] = checksum


def pack_record(record: list[Any]) -> bytes:
    """The bytes of one record."""
    body: bytes = msgpack.packb(record)
    return len(body).to_bytes(4, "little") + block_digest(body)[:CHECK_BYTES] + body


def parse(data: bytes) -> Contents:
    """Everything up to the first torn or damaged record."""
    contents, at = Contents(), 0
    while at + 4 + CHECK_BYTES <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        start = at + 4 + CHECK_BYTES
        body = data[start : start + length]
        check = data[at + 4 : start]
        if length > MAX_RECORD or len(body) < length or block_digest(body)[:CHECK_BYTES] != check:
            break
        contents.take(msgpack.unpackb(body))
        at = start + length
    return contents


def read_journal(path: Path) -> Contents:
    """The contents of a journal; empty if there is none."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return Contents()


class Journal:
    """The open end of a journal. A record that finds no space waits in memory for the next try."""

    def __init__(self, path: Path, contents: Contents) -> None:
        """Rewrite the journal with just `contents`, under this boot, and append from there on."""
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(pack_record(["boot", boot_id()]))
            for chunk, pin in contents.pins.items():
                digests, checksum = contents.digests[chunk], contents.checksums[chunk]
                file.write(pack_record(["chunk", chunk, pin, digests, checksum]))
            for number, (size, mtime_ns) in contents.stamps.items():
                file.write(pack_record(["stamp", number, size, mtime_ns]))
            for number in contents.sealed:
                file.write(pack_record(["sealed", number]))
            for number in contents.kept:
                file.write(pack_record(["keep", number]))
        temporary.replace(path)
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._end = self._file.tell()
        self._waiting = bytearray()

    def append(self, *records: list[Any]) -> None:
        """Write records; whole or, for lack of space, later."""
        self._waiting += b"".join(map(pack_record, records))
        try:
            written = self._file.write(self._waiting) or 0
        except OSError as error:
            log.warning("journal cannot be written error=%s: kept in memory", error.strerror)
            written = 0
        if written < len(self._waiting):
            self._file.truncate(self._end)  # never leave half a record before a whole one
        else:
            self._end += written
            self._waiting.clear()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
