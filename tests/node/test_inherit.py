"""A new revision in a cache takes over what it shares with older ones, and nothing else.

Goal: what is the same object is not fetched again, not copied and, on the same boot, not hashed
again; nothing of another object ever counts; and an older revision loses nothing by it.
"""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.chunks import Chunks
from node.inherit import inherit, older_revisions, remove_older
from node.store import Cache, ChunkStore
from p2p.digest import block_digest, chunk_pin
from p2p.manifest import File, Manifest

BLOCK, CHUNK = 4096, 8192
KEPT = File("d/kept", 2 * CHUNK + 5000, "k", "v1", "crc64xz:" + "1" * 16)
OLDER = Manifest(
    "m", "", (KEPT, File("e/changed", CHUNK, "e1"), File("z/empty", 0, "z")), CHUNK, BLOCK
)
NEWER = Manifest(
    "m",
    "",
    (File("a/new", CHUNK + 1, "n"), KEPT, File("e/changed", CHUNK, "e2"), File("z/empty", 0, "z")),
    CHUNK,
    BLOCK,
)
KEPT_IN_OLDER, KEPT_IN_NEWER = [0, 1, 2], [2, 3, 4]


def data(manifest: Manifest, chunk: int) -> bytes:
    """An object's bytes depend on its name, its tag and the place in it."""
    extent = manifest.extent(chunk)
    file = manifest.files[extent.file]
    word = f"{file.path} {file.etag} {extent.offset};".encode()
    return (word * (extent.length // len(word) + 1))[: extent.length]


def pin_of(manifest: Manifest, chunk: int) -> tuple[bytes, bytes]:
    """Pin and joined digests of what `data` says."""
    whole = data(manifest, chunk)
    digests = [block_digest(whole[at : at + BLOCK]) for at in range(0, len(whole), BLOCK)]
    return chunk_pin(digests), b"".join(digests)


def fill(store: ChunkStore, *chunks: int) -> None:
    """Put chunks into the cache, as a worker would, and record them."""
    for chunk in chunks:
        extent = store.manifest.extent(chunk)
        with store.file_path(extent.file).open("r+b") as file:
            file.seek(extent.offset)
            file.write(data(store.manifest, chunk))
        store.record(chunk, *pin_of(store.manifest, chunk), bytes([chunk]) * 8)


def crash(store: ChunkStore) -> None:
    """Leave a store as a killed process would."""
    store._journal.close()
    store._map.close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """An empty cache, locked."""
    cache = Cache.open(tmp_path / "c")
    yield cache
    cache.close()


@pytest.fixture
def opened(cache: Cache) -> Iterator[Callable[[Manifest], ChunkStore]]:
    """Opens revisions, and lets go of them at the end."""
    stores = []

    def open_store(manifest: Manifest) -> ChunkStore:
        stores.append(ChunkStore.open(cache, manifest))
        return stores[-1]

    yield open_store
    for store in stores:
        crash(store)


def older(opened, *chunks: int, manifest: Manifest = OLDER) -> ChunkStore:
    """An older revision that holds these chunks (default: all) and was ended in order."""
    store = opened(manifest)
    fill(store, *(chunks or range(manifest.chunk_count)))
    store.close()
    return store


# -- what is taken over ---------------------------------------------------------------------------


def test_an_unchanged_file_is_the_same_file_and_its_chunks_are_held_under_new_numbers(
    cache, opened
):
    before = older(opened)
    assert inherit(cache.path, NEWER) == KEPT.size_bytes
    after = opened(NEWER)
    assert after.file_path(1).samefile(before.file_path(0))
    assert list(after.held) == KEPT_IN_NEWER, "nothing is hashed"
    assert not after.suspects
    assert after.file_complete(1)
    assert after.pins == {chunk: pin_of(NEWER, chunk)[0] for chunk in KEPT_IN_NEWER}


def test_readers_and_peers_find_what_was_taken_over_as_verified(cache, opened):
    older(opened)
    inherit(cache.path, NEWER)
    chunks = Chunks(opened(NEWER).directory)
    for chunk in KEPT_IN_NEWER:
        assert chunks.verified(chunk, 0, NEWER.extent(chunk).length)
        assert chunks.digests(chunk) == pin_of(NEWER, chunk)[1]
        assert chunks.check(chunk, 0) == pin_of(NEWER, chunk)[1][:16]
    assert not chunks.verified(0, 0, 1)
    chunks.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"size_bytes": KEPT.size_bytes + 1},
        {"etag": "k2"},
        {"version": "v2"},
        {"checksum": "crc64xz:" + "2" * 16},
        {"checksum": ""},
        {"attempt": 1},
        {"path": "d/kept2"},
    ],
    ids=str,
)
def test_a_file_that_differs_in_one_word_is_another_file_and_starts_empty(cache, opened, changed):
    before = older(opened, *KEPT_IN_OLDER)
    files = tuple(sorted([replace(KEPT, **changed), *OLDER.files[1:]], key=lambda f: f.path))
    manifest = replace(OLDER, files=files)
    assert inherit(cache.path, manifest) == 0
    after = opened(manifest)
    assert not list(after.held)
    assert not after.suspects
    assert not after.file_path(0).samefile(before.file_path(0))


def test_what_a_new_revision_writes_into_a_changed_file_does_not_reach_the_older_one(cache, opened):
    before = older(opened)
    inherit(cache.path, NEWER)
    fill(opened(NEWER), 5)
    assert before.file_path(1).read_bytes() == data(OLDER, 3)
    assert data(OLDER, 3) != data(NEWER, 5)


def test_of_a_partial_file_only_what_was_verified_counts(cache, opened):
    older(opened, 0, 2)
    last = OLDER.extent(2).length
    assert inherit(cache.path, NEWER) == CHUNK + last
    after = opened(NEWER)
    assert list(after.held) == [2, 4]
    assert not after.file_complete(1)


def test_a_file_of_which_nothing_was_verified_is_not_shared(cache, opened):
    before = older(opened, 3)
    assert inherit(cache.path, NEWER) == 0
    assert not opened(NEWER).file_path(1).samefile(before.file_path(0))


def test_a_chunk_that_was_dropped_is_not_taken_over(cache, opened):
    store = opened(OLDER)
    fill(store, 0, 1, 2)
    store.forget(1)
    store.close()
    inherit(cache.path, NEWER)
    assert list(opened(NEWER).held) == [2, 4]


def test_seals_and_checksums_come_along_under_new_numbers(cache, opened):
    store = opened(OLDER)
    fill(store, *KEPT_IN_OLDER)
    store.record_seal(0)
    store.record_seal(2)
    store.record_checksum(1, b"computed")
    store.close()
    inherit(cache.path, NEWER)
    after = opened(NEWER)
    assert after.sealed == {1, 3}
    assert after.checksums == {2: bytes(8), 3: b"computed", 4: b"\2" * 8}


def test_the_seal_of_a_changed_file_does_not_come_along(cache, opened):
    store = opened(OLDER)
    fill(store, *range(4))
    store.record_seal(1)
    store.close()
    inherit(cache.path, NEWER)
    after = opened(NEWER)
    assert after.sealed == set()
    assert sorted(after.checksums) == KEPT_IN_NEWER


def test_several_older_revisions_each_give_what_they_have(cache, opened):
    older(opened, *KEPT_IN_OLDER)
    newer = opened(replace(NEWER, files=NEWER.files[::2]))  # a/new, e/changed
    fill(newer, 0, 1, 2)
    newer.close()
    assert inherit(cache.path, NEWER) == NEWER.total_bytes
    after = opened(NEWER)
    assert after.held.complete
    for chunk in range(NEWER.chunk_count):
        extent = NEWER.extent(chunk)
        content = after.file_path(extent.file).read_bytes()
        assert content[extent.offset :][: extent.length] == data(NEWER, chunk)


def test_what_was_taken_over_is_taken_over_again_by_the_next(cache, opened):
    older(opened, *KEPT_IN_OLDER)
    inherit(cache.path, NEWER)
    opened(NEWER).close()
    remove_older(cache.path, NEWER)
    third = replace(NEWER, files=NEWER.files[1:2])
    assert inherit(cache.path, third) == KEPT.size_bytes
    assert list(opened(third).held) == [0, 1, 2]


# -- trust ----------------------------------------------------------------------------------------


def test_after_another_boot_everything_is_hashed_before_it_counts(cache, opened, monkeypatch):
    older(opened)
    for module in ("inherit", "journal", "store"):
        monkeypatch.setattr(f"node.{module}.boot_id", lambda: "another boot")
    assert inherit(cache.path, NEWER) == KEPT.size_bytes
    after = opened(NEWER)
    assert not list(after.held)
    assert after.suspects == {chunk: pin_of(NEWER, chunk)[0] for chunk in KEPT_IN_NEWER}


def test_of_a_revision_that_crashed_complete_files_are_trusted_and_partial_ones_hashed(
    cache, opened
):
    manifest = replace(OLDER, files=(KEPT, File("d/same", CHUNK, "e")))
    store = opened(manifest)
    fill(store, 0, 1, 3)
    store.stamp(1)
    crash(store)
    after_manifest = replace(manifest, files=(File("a", CHUNK, "a"), *manifest.files))
    inherit(cache.path, after_manifest)
    after = opened(after_manifest)
    assert list(after.held) == [4]
    assert sorted(after.suspects) == [1, 2]


def test_a_file_touched_since_its_revision_ended_is_hashed_again(cache, opened):
    path = older(opened).file_path(0)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    inherit(cache.path, NEWER)
    after = opened(NEWER)
    assert not list(after.held)
    assert sorted(after.suspects) == KEPT_IN_NEWER


# -- what is left alone ---------------------------------------------------------------------------


def test_a_revision_that_is_there_already_is_left_as_it_is(cache, opened):
    older(opened)
    there = opened(NEWER)
    fill(there, 0)
    there.close()
    there.file_path(1).unlink()
    assert inherit(cache.path, NEWER) == 0
    after = opened(NEWER)
    assert list(after.held) == [0]
    assert not after.file_path(1).samefile(cache.path / OLDER.id.hex() / "files" / KEPT.path)


@pytest.mark.parametrize(
    "manifest",
    [
        replace(OLDER, model="other"),
        replace(OLDER, chunk_bytes=2 * CHUNK),
        replace(OLDER, block_bytes=2 * BLOCK),
    ],
    ids=["another model", "other chunks", "other blocks"],
)
def test_nothing_is_taken_from_another_model_or_from_other_sizes(cache, opened, manifest):
    older(opened, *range(manifest.chunk_count), manifest=manifest)
    assert inherit(cache.path, NEWER) == 0
    after = opened(NEWER)
    assert not list(after.held)
    assert not after.suspects


def test_a_cache_without_older_revisions_gives_nothing_and_no_folder(cache):
    assert inherit(cache.path, NEWER) == 0
    assert not (cache.path / NEWER.id.hex()).exists()


def test_a_folder_whose_manifest_cannot_be_read_is_no_revision(cache, opened):
    older(opened)
    (cache.path / "00").mkdir()
    (cache.path / "00" / "manifest").write_bytes(b"garbage")
    (cache.path / "01" / "manifest").mkdir(parents=True)
    found = older_revisions(cache.path, NEWER)
    assert found == [(cache.path / OLDER.id.hex(), OLDER)]
    assert inherit(cache.path, NEWER) == KEPT.size_bytes


def test_a_revision_is_not_older_than_itself(cache, opened):
    older(opened)
    assert older_revisions(cache.path, OLDER) == []


# -- removing -------------------------------------------------------------------------------------


def test_only_older_revisions_of_the_same_model_are_removed(cache, opened):
    older(opened)
    middle = replace(OLDER, files=OLDER.files[1:])
    other = replace(OLDER, model="other")
    for manifest in (middle, other):
        opened(manifest).close()
    inherit(cache.path, NEWER)
    after = opened(NEWER)
    remove_older(cache.path, NEWER)
    names = {path.name for path in cache.path.iterdir()}
    assert names == {"format-version", "lock", NEWER.id.hex(), other.id.hex()}
    kept = b"".join(data(NEWER, chunk) for chunk in KEPT_IN_NEWER)
    assert after.file_path(1).read_bytes() == kept, "its bytes were shared, and stay"
    assert after.file_path(1).stat().st_nlink == 1


# -- known traps ----------------------------------------------------------------------------------


def in_order_of_ids() -> tuple[Manifest, Manifest]:
    """Two older revisions that share a file, as they are found in a cache: by their ids."""
    one, other = OLDER, replace(OLDER, files=OLDER.files[:2])
    return (one, other) if one.id.hex() < other.id.hex() else (other, one)


def test_a_revision_with_a_part_of_a_file_does_not_hide_one_that_has_it_whole(cache, opened):
    first, second = in_order_of_ids()
    older(opened, 0, manifest=first)
    inherit(cache.path, second)
    store = opened(second)
    fill(store, 1, 2)
    store.close()
    assert inherit(cache.path, NEWER) == KEPT.size_bytes
    after = opened(NEWER)
    assert sorted({*after.held, *after.suspects}) == KEPT_IN_NEWER


def test_a_chunk_is_never_held_by_the_word_of_a_revision_whose_bytes_were_not_taken(cache, opened):
    """Two revisions with files of their own, as after a crash while one was being filled."""
    first, second = in_order_of_ids()
    older(opened, 1, manifest=first)
    store = opened(second)
    fill(store, 0)
    crash(store)
    inherit(cache.path, NEWER)
    after = opened(NEWER)
    content = after.file_path(1).read_bytes()
    for chunk in after.held:
        extent = NEWER.extent(chunk)
        assert content[extent.offset :][: extent.length] == data(NEWER, chunk), chunk


def test_an_older_revision_that_was_removed_by_half_gives_what_it_has(cache, opened):
    both = replace(OLDER, files=(KEPT, File("e/same", CHUNK, "e")))
    older(opened, manifest=both).file_path(0).unlink()
    manifest = replace(both, files=(*both.files, File("f", 1, "f")))
    assert inherit(cache.path, manifest) == CHUNK
    assert list(opened(manifest).held) == [3]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_filesystem_without_hard_links_takes_nothing_over_and_is_no_error(
    cache, opened, monkeypatch, error
):
    """`publish` copies there; a new revision is read anew."""
    older(opened)

    def link(source: Path, target: Path) -> None:
        raise OSError(error, os.strerror(error), source, None, target)

    monkeypatch.setattr(os, "link", link)
    assert inherit(cache.path, NEWER) == 0
    after = opened(NEWER)
    assert not list(after.held)
    assert not after.suspects
