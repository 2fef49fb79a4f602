"""A new revision takes over what it shares with older ones in the same cache.

Files that are the same objects (path, size, ETag, version, checksum, attempt) are hard-linked, and
their verified chunks copied from journal to journal. So a revision in which one file changed is
fetched by that file alone.
"""

import logging
import os
import shutil
from pathlib import Path

from node.journal import Contents, Journal, boot_id, read_journal
from p2p.errors import ManifestError
from p2p.manifest import Manifest

log = logging.getLogger(__name__)


def older_revisions(cache_dir: Path, manifest: Manifest) -> list[tuple[Path, Manifest]]:
    """Other revisions of the same model in a cache, with their folders."""
    found = []
    for path in sorted(cache_dir.glob("*/manifest")):
        try:
            older = Manifest.decode(path.read_bytes())
        except (OSError, ManifestError):
            continue
        if older.model == manifest.model and older.id != manifest.id:
            found.append((path.parent, older))
    return found


def inherit(cache_dir: Path, manifest: Manifest) -> int:
    """Fill the folder of a revision that is not there yet; returns the bytes taken over.

    Raises:
      OSError: the folder cannot be written.
    """
    directory = cache_dir / manifest.id.hex()
    if directory.exists():
        return 0
    older = [
        (folder, one, {entry: number for number, entry in enumerate(one.files)},
         read_journal(folder / "journal"))
        for folder, one in older_revisions(cache_dir, manifest)
        if (one.chunk_bytes, one.block_bytes) == (manifest.chunk_bytes, manifest.block_bytes)
    ]  # fmt: skip
    contents = Contents(boot_id=boot_id())
    for file, entry in enumerate(manifest.files):
        having = [
            (sum(c in known.pins for c in one.chunks_of(numbers[entry])), folder, one, known,
             numbers[entry])
            for folder, one, numbers, known in older
            if entry in numbers
        ]  # fmt: skip
        # bytes and the word for them come from one revision: the one that has most of the file
        for count, folder, one, known, number in sorted(having, key=lambda have: -have[0]):
            source, target = folder / "files" / entry.path, directory / "files" / entry.path
            if not entry.size_bytes or (count and _link(source, target)):
                _take_over(known, one, number, manifest, file, contents)
                break
    if contents.pins:
        Journal(directory / "journal", contents).close()
    total = sum(manifest.extent(chunk).length for chunk in contents.pins)
    if total:
        log.info("taken over from older revisions bytes=%d", total)
    return total


def _link(source: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a revision that was removed by half, or a filesystem without hard links
        return False
    return True


def _take_over(
    known: Contents, older: Manifest, number: int, manifest: Manifest, file: int, contents: Contents
) -> None:
    for ours, theirs in zip(manifest.chunks_of(file), older.chunks_of(number), strict=True):
        if theirs in known.pins:
            contents.pins[ours] = known.pins[theirs]
            contents.digests[ours] = known.digests[theirs]
            contents.checksums[ours] = known.checksums.get(theirs, b"")
    if known.boot_id == boot_id() and number in known.stamps:
        contents.stamps[file] = known.stamps[number]
    if number in known.sealed:
        contents.sealed[file] = None


def remove_older(cache_dir: Path, manifest: Manifest) -> None:
    """Free the space of revisions that this one has replaced."""
    for directory, _ in older_revisions(cache_dir, manifest):
        log.info("removing older revision=%s", directory.name[:8])
        shutil.rmtree(directory, ignore_errors=True)
