"""The chunk store across restarts: what is trusted, what is hashed again, what is refused."""

import os
import resource
from contextlib import closing
from pathlib import Path

import pytest

from node import journal
from node.chunks import Chunks
from node.journal import Contents, Journal, pack_record, parse
from node.store import Cache, ChunkStore
from p2p.digest import block_digest, chunk_pin
from p2p.errors import StoreError
from p2p.manifest import File, Manifest

SIZES = (10_000, 0, 4096)
MANIFEST = Manifest(
    "m", "", tuple(File(f"d/f{i}", size, "e") for i, size in enumerate(SIZES)), 8192, 4096
)


def write(store: ChunkStore, chunk: int, checksum: bytes = b"") -> None:
    """Put a chunk's bytes into the cache, as a worker would, and record it."""
    extent = MANIFEST.extent(chunk)
    data = bytes([chunk + 1]) * extent.length
    with store.file_path(extent.file).open("r+b") as file:
        file.seek(extent.offset)
        file.write(data)
    blocks = [block_digest(data[at : at + 4096]) for at in range(0, len(data), 4096)]
    store.record(chunk, chunk_pin(blocks), b"".join(blocks), checksum)


class Opener:
    """Opens one cache again and again; `crash` leaves it as a killed process would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache: Cache | None = None
        self.store: ChunkStore | None = None

    def open(self) -> ChunkStore:
        self.cache = Cache.open(self.path)
        self.store = ChunkStore.open(self.cache, MANIFEST)
        return self.store

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
        self.crash()

    def crash(self) -> None:
        if self.store is not None and self.cache is not None:
            self.store._journal.close()
            self.store._map.close()
            self.cache.close()
        self.cache = self.store = None


@pytest.fixture
def opener(tmp_path):
    """A cache that is released at the end of the test."""
    opener = Opener(tmp_path / "c")
    yield opener
    opener.crash()


def test_a_clean_restart_trusts_what_was_verified(opener):
    write(opener.open(), 0)
    opener.close()
    store = opener.open()
    assert list(store.held) == [0]
    assert not store.suspects
    chunks = Chunks(store.directory)
    assert chunks.verified(0, 0, 8192)
    assert not chunks.verified(1, 0, 4)
    assert chunk_pin(chunks.digests(0)) == store.pins[0]
    chunks.close()


def test_after_a_crash_a_complete_file_is_trusted_and_a_partial_one_is_hashed(opener):
    store = opener.open()
    write(store, 0)
    write(store, 2)
    assert store.file_complete(2)
    store.stamp(2)
    opener.crash()
    store = opener.open()
    assert list(store.held) == [2]
    assert list(store.suspects) == [0]
    with closing(Chunks(store.directory)) as chunks:
        assert chunks.verified(2, 0, 4096)
        assert not chunks.verified(0, 0, 4096), "nobody is served a suspect"


def test_what_was_stamped_once_is_trusted_after_one_crash_after_another(opener):
    store = opener.open()
    write(store, 2)
    store.stamp(2)
    for _ in range(3):
        opener.crash()
        assert list(opener.open().held) == [2]


def test_a_suspect_that_was_hashed_or_dropped_is_none_any_more(opener, monkeypatch):
    store = opener.open()
    for chunk in range(3):
        write(store, chunk)
    opener.close()
    monkeypatch.setattr("node.store.boot_id", lambda: "another boot")
    store = opener.open()
    write(store, 0)
    store.forget(1)
    store.forget(2)
    assert not store.suspects
    write(store, 2)
    assert [store.file_complete(file) for file in range(3)] == [False, True, True]


def test_a_file_touched_between_two_runs_is_hashed_again(opener):
    store = opener.open()
    write(store, 2)
    path = store.file_path(2)
    opener.close()
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    store = opener.open()
    assert list(store.suspects) == [2]
    assert not list(store.held)


def test_another_boot_trusts_nothing(opener, monkeypatch):
    store = opener.open()
    for chunk in range(3):
        write(store, chunk)
    opener.close()
    monkeypatch.setattr("node.store.boot_id", lambda: "another boot")
    store = opener.open()
    assert sorted(store.suspects) == [0, 1, 2]
    assert not list(store.held)


def test_a_dropped_chunk_stays_dropped(opener):
    store = opener.open()
    write(store, 0)
    write(store, 1)
    assert store.file_complete(0)
    store.forget(0)
    assert not store.file_complete(0)
    store.forget(1)
    opener.close()
    store = opener.open()
    assert not list(store.held)
    assert not store.suspects


def test_a_record_that_does_not_fit_the_manifest_or_itself_is_left_out(opener):
    store = opener.open()
    write(store, 0)
    digests = bytes(32)
    store._journal.append(["chunk", 1, bytes(16), digests[:16], b""])  # its digest is not its pin
    store._journal.append(["chunk", 2, chunk_pin(digests), digests, b""])  # a block too many
    store._journal.append(["chunk", 99, chunk_pin(digests), digests, b""])  # there is none
    opener.close()
    store = opener.open()
    assert list(store.held) == [0]
    assert not store.suspects


def test_no_file_takes_space_before_its_chunks_come(tmp_path):
    cache = Cache.open(tmp_path / "c")
    manifest = Manifest("m", "", (File("big", 512 * 1024**2, "e"),), 16 * 1024**2, 1024**2)
    with closing(cache), closing(ChunkStore.open(cache, manifest)) as store:
        status = store.file_path(0).stat()
        assert status.st_size == 512 * 1024**2
        assert status.st_blocks * 512 <= 64 * 1024
        for name in ("state", "digests"):  # mapped or written unasked: their lack is found now
            status = (store.directory / name).stat()
            assert status.st_blocks * 512 >= status.st_size > 0
        with closing(Chunks(store.directory)) as chunks:
            chunks.allocate(3)
        assert 16 * 1024**2 <= store.file_path(0).stat().st_blocks * 512 <= 17 * 1024**2


def test_a_journal_without_space_keeps_whole_records_and_writes_the_rest_later(tmp_path):
    """A limit on files' size is the full disk: the kernel takes a part of a record, then none."""
    path = tmp_path / "journal"
    records = [["chunk", i, bytes([i]) * 16, bytes([i]) * 32, b""] for i in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Journal(path, Contents())) as journal:
        journal.append(records[0])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
            journal.append(records[1])
            assert sorted(parse(path.read_bytes()).pins) == [0], "and no half of a record behind it"
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
            journal.append(records[2])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(parse(path.read_bytes()).pins) == [0]
        journal.append(["drop", 0])
        assert sorted(parse(path.read_bytes()).pins) == [1, 2]


def test_a_journal_torn_at_any_byte_keeps_every_whole_record():
    records = [["chunk", i, bytes([i]) * 16, bytes([i]) * 32, b""] for i in range(3)]
    packed = [pack_record(record) for record in records]
    data = b"".join(packed)
    for cut in range(len(data) + 1):
        whole = sum(cut >= sum(map(len, packed[: i + 1])) for i in range(3))
        assert sorted(parse(data[:cut]).pins) == list(range(whole))
    damaged = bytearray(data)
    damaged[len(packed[0]) + 14] ^= 1
    assert sorted(parse(bytes(damaged)).pins) == [0]


# -- seals and checksums --------------------------------------------------------------------------


def parsed(*records: list) -> Contents:
    return parse(b"".join(map(pack_record, records)))


CHUNK_3 = ["chunk", 3, b"p" * 16, b"d" * 32, b"checksum"]


def test_the_last_word_about_a_chunks_checksum_counts():
    assert parsed(CHUNK_3).checksums == {3: b"checksum"}
    assert parsed(CHUNK_3, ["checksum", 3, b"computed"]).checksums == {3: b"computed"}
    again = parsed(CHUNK_3, ["checksum", 3, b"computed"], CHUNK_3)
    assert again.checksums == {3: b"checksum"}
    assert again.pins == {3: b"p" * 16}


@pytest.mark.parametrize("records", [[], [CHUNK_3, ["drop", 3]], [["chunk", 4, *CHUNK_3[2:]]]])
def test_a_checksum_of_a_chunk_that_is_not_held_says_nothing(records):
    contents = parsed(*records, ["checksum", 3, b"computed"])
    assert 3 not in contents.checksums
    assert set(contents.checksums) == set(contents.pins)


def test_a_dropped_chunk_leaves_no_checksum_behind():
    assert parsed(CHUNK_3, ["drop", 3]).checksums == {}
    assert parsed(CHUNK_3, ["drop", 3], [*CHUNK_3[:4], b""]).checksums == {3: b""}


def test_a_seal_is_of_a_file_and_outlives_its_chunks():
    contents = parsed(["sealed", 2], ["sealed", 0], ["sealed", 2], CHUNK_3, ["drop", 3])
    assert list(contents.sealed) == [2, 0]


def test_the_last_word_about_a_files_seal_counts():
    assert parsed(["sealed", 0], ["sealed", 1], ["broken", 0]).sealed == {1: None}
    assert parsed(["broken", 0], ["sealed", 0]).sealed == {0: None}


@pytest.mark.parametrize(
    "record",
    [["sealed"], ["sealed", "0"], ["sealed", 0, 1], ["checksum", 3], ["checksum", 3, "text"], []],
    ids=str,
)
def test_a_record_of_another_shape_is_skipped_and_those_after_it_count(record):
    contents = parsed(CHUNK_3, record, ["sealed", 1])
    assert contents.checksums == {3: b"checksum"}
    assert list(contents.sealed) == [1]


def test_seals_and_checksums_survive_one_restart_after_another(opener):
    store = opener.open()
    write(store, 0)
    write(store, 2)
    store.record_checksum(0, b"checksum")
    store.record_seal(2)
    store.record_seal(1)
    for end in (opener.crash, opener.close, opener.crash):
        end()
        store = opener.open()
        assert store.checksums == {0: b"checksum"}, "none is told of chunk 2"
        assert store.sealed == {1, 2}


def test_a_file_that_was_found_broken_is_not_sealed_by_an_older_word(opener):
    store = opener.open()
    store.record_seal(0)
    store.record_seal(2)
    store.record_broken(0)
    assert store.sealed == {2}
    opener.crash()
    assert opener.open().sealed == {2}


def test_the_seal_of_a_file_that_the_manifest_has_not_is_forgotten(opener):
    opener.open().record_seal(len(SIZES))
    opener.store.record_seal(len(SIZES) - 1)
    opener.crash()
    assert opener.open().sealed == {len(SIZES) - 1}


def test_a_checksum_that_came_from_the_origin_survives_a_rehash_that_tells_none(opener):
    store = opener.open()
    write(store, 2, b"original")
    write(store, 2, b"")
    assert store.checksums == {2: b"original"}
    opener.crash()
    assert opener.open().checksums == {2: b"original"}


def test_the_checksum_of_dropped_bytes_is_not_that_of_the_bytes_that_replace_them(opener):
    """As when the tracker's pin overrules ours: the chunk is dropped, and comes from a peer."""
    store = opener.open()
    store.record(2, b"another pin.....", bytes(16), b"of old ones")
    store.forget(2)
    write(store, 2, b"")
    assert store.checksums == {}
    opener.crash()
    assert opener.open().checksums == {}


def test_a_file_that_is_gone_is_not_trusted(opener):
    store = opener.open()
    write(store, 0)
    opener.crash()
    store.file_path(0).unlink()
    assert list(opener.open().held) == []


def test_a_cache_has_one_owner_and_an_unknown_version_is_left_alone(tmp_path):
    cache = Cache.open(tmp_path / "c")
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        Cache.open(tmp_path / "c")
    cache.close()
    (tmp_path / "c" / "format-version").write_text("7\n")
    with pytest.raises(StoreError, match="version 7"):
        Cache.open(tmp_path / "c")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("not ours")
    with pytest.raises(StoreError, match="unknown"):
        Cache.open(tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "not ours"


def test_the_boot_id_is_this_machines(tmp_path):
    assert len(journal.boot_id()) == 36
