"""`p2p-node verify DIR`: hash what is there against the journal's pins, without a running swarm."""

from dataclasses import dataclass, field
from pathlib import Path

from node.config import default_cache_dir
from node.journal import read_journal
from p2p.digest import block_digest, chunk_pin
from p2p.errors import P2PError
from p2p.manifest import Manifest


@dataclass(slots=True)
class Verified:
    """What was found; `problems` has one line for each damaged or missing file."""

    good_chunks: int = 0
    missing_chunks: int = 0
    problems: list[str] = field(default_factory=list)


def _revisions(cache_dir: Path) -> list[Path]:
    found = [path.parent for path in cache_dir.glob("*/manifest")]
    return sorted(found, key=lambda path: (path / "manifest").stat().st_mtime, reverse=True)


def _check_file(
    path: Path, manifest: Manifest, file: int, pins: dict[int, bytes], result: Verified
) -> None:
    entry = manifest.files[file]
    try:
        stream = path.open("rb")
    except OSError as error:
        result.problems.append(f"{path}: {error.strerror}")
        return
    with stream:
        size = path.stat().st_size
        if size != entry.size_bytes:
            result.problems.append(f"{path}: {size} bytes, not {entry.size_bytes}")
            return
        for chunk in manifest.chunks_of(file):
            extent = manifest.extent(chunk)
            if chunk not in pins:
                result.missing_chunks += 1
                continue
            stream.seek(extent.offset)
            digests, left = [], extent.length
            while left:
                block = stream.read(min(left, manifest.block_bytes))
                digests.append(block_digest(block))
                left -= len(block)
            if chunk_pin(digests) == pins[chunk]:
                result.good_chunks += 1
            else:
                end = extent.offset + extent.length
                result.problems.append(f"{path}: damaged in bytes {extent.offset} to {end}")


def verify_directory(directory: Path, cache_dir: Path | None = None) -> Verified:
    """Hash a model dir, or the newest revision of a cache dir.

    Raises:
      P2PError: no cache with pins belongs to the folder.
    """
    if (directory / "format-version").exists():
        cache_dir = directory
    cache_dir = cache_dir or default_cache_dir(directory)
    revisions = _revisions(cache_dir)
    if not revisions:
        raise P2PError(f"no pins to check {directory} against: there is no model in {cache_dir}")
    revision = revisions[0]
    manifest = Manifest.decode((revision / "manifest").read_bytes())
    pins = read_journal(revision / "journal").pins
    files = revision / "files" if cache_dir == directory else directory
    result = Verified()
    for file, entry in enumerate(manifest.files):
        _check_file(files / entry.path, manifest, file, pins, result)
    return result
