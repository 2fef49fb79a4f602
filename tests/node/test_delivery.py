"""The node's end of the seal: which files reach the model dir, and what is told to the tracker.

Goal: a file is delivered when it is complete and vouched for, and never before; questions of the
tracker are answered without reading more than needed; a node without a tracker seals by itself.
Method: a real store and a real model dir; pool and tracker only write down what they are given.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from fastcrc import crc64
from trio.testing import wait_all_tasks_blocked

from node import jobs
from node.delivery import Delivery
from node.publish import ModelDir
from node.sealing import ALONE_AFTER_S, AT_ONCE, NodeSeal
from node.store import Cache, ChunkStore
from p2p import messages as m
from p2p.digest import block_digest, chunk_pin
from p2p.errors import P2PError, StoreFull
from p2p.manifest import File, Manifest

CHUNK = 4096
RETRY_S = 7.0


def data(chunk: int) -> bytes:
    return bytes([chunk + 1]) * CHUNK


def crc(chunk: int) -> bytes:
    return crc64.xz(data(chunk)).to_bytes(8, "big")


def told(chunks: range) -> str:
    """A manifest's word for the checksum of these chunks, one after the other."""
    return f"crc64xz:{crc64.xz(b''.join(map(data, chunks))):016x}"


def manifest(**chunk_counts: int) -> Manifest:
    """Files of so many chunks, in order; the store tells no checksum of `plain` ones."""
    files, at = [], 0
    for name, count in chunk_counts.items():
        checksum = "" if name.startswith("plain") else told(range(at, at + count))
        files.append(File(name, count * CHUNK, "e", checksum=checksum))
        at += count
    return Manifest("m", "http://o/m/", tuple(files), CHUNK, CHUNK)


class Pool:
    """Writes down which worker gets which job."""

    count = 2

    def __init__(self) -> None:
        self.submitted: list[tuple[int, jobs.Job]] = []

    def submit(self, worker: int, job: jobs.Job) -> None:
        self.submitted.append((worker, job))

    @property
    def chunks(self) -> list[int]:
        """Chunks whose checksums are to be computed, in order."""
        return [job.chunk for _, job in self.submitted if isinstance(job, jobs.ChecksumJob)]


class Tracker:
    """Writes down what it is sent; without a session it gets nothing, as the real one."""

    def __init__(self) -> None:
        self.connected = True
        self.sent: list[m.Message] = []

    def send(self, *batch: m.Message) -> None:
        if self.connected:
            for message in batch:
                m.encode(message)
            self.sent += batch


class Bench:
    """One node: a store, its seal, and what it wants to be looked at."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.pool, self.tracker = Pool(), Tracker()
        self.changed: list[int] = []
        self.open()

    def open(self) -> None:
        self.cache = Cache.open(self.folder / "cache")
        self.store = ChunkStore.open(self.cache, self.manifest)
        self.seal = NodeSeal(self.store, self.pool, self.tracker, self.changed.append)

    def close(self) -> None:
        self.store._journal.close()
        self.store._map.close()
        self.cache.close()

    def reopen(self) -> None:
        """The process was killed, and runs again."""
        self.close()
        self.open()

    def hold(self, *chunks: int, checksums: bool = False) -> None:
        """Put chunks into the cache, as workers would; `checksums`: from the origin."""
        for chunk in chunks:
            extent = self.manifest.extent(chunk)
            with self.store.file_path(extent.file).open("r+b") as file:
                file.seek(extent.offset)
                file.write(data(chunk))
            digest = block_digest(data(chunk))
            checksum = crc(chunk) if checksums else b""
            self.store.record(chunk, chunk_pin([digest]), digest, checksum)
            self.store.held.add(chunk)

    def delivery(self, model_dir: ModelDir | None = None) -> Delivery:
        return Delivery(self.store, model_dir, self.seal.seal.vouches, RETRY_S)

    def model_dir(self) -> ModelDir:
        return ModelDir(self.folder / "model", self.manifest, replace=False)

    def published(self) -> list[str]:
        """What the application finds."""
        paths = (self.folder / "model").rglob("*")
        return sorted(path.name for path in paths if path.is_file())


async def has_delivered(delivery: Delivery, file: int) -> None:
    """Come back when a file is delivered: a matter of a thread, and of no clock."""
    while file not in delivery.delivered:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a node: `bench(a=2, plain=1)`, by files and their chunk counts."""
    made = []

    def make(**chunk_counts: int) -> Bench:
        made.append(Bench(tmp_path / f"n{len(made)}", manifest(**chunk_counts)))
        return made[-1]

    yield make
    for one in made:
        one.close()


# -- delivery -------------------------------------------------------------------------------------


async def test_a_file_is_delivered_when_it_is_complete_and_vouched_for_and_not_before(
    bench, nursery
):
    node = bench(a=2, b=1)
    delivery = node.delivery()
    nursery.start_soon(delivery.run)
    for act, delivered in (
        (lambda: node.hold(0), set()),
        (lambda: node.seal.sealed([1]), set()),
        (lambda: node.hold(1), set()),
        (lambda: node.seal.sealed([0]), {0}),
        (lambda: node.hold(2), {0, 1}),
    ):
        act()
        for file in (0, 1):
            delivery.look(file)
        await wait_all_tasks_blocked()
        assert delivery.delivered == delivered
    assert delivery.done.is_set()


async def test_files_that_are_ready_at_the_start_are_delivered_without_a_look(bench, nursery):
    node = bench(a=1, empty=0, plain=1, z=1)
    node.hold(0, 1, 2)
    node.seal.sealed([0])
    delivery = node.delivery()
    nursery.start_soon(delivery.run)
    await wait_all_tasks_blocked()
    assert delivery.delivered == {0, 1, 2}, "the last one is not sealed"
    assert not delivery.done.is_set()


async def test_it_is_done_with_the_last_file_of_all(bench, nursery):
    node = bench(plain1=1, plain2=1)
    node.hold(0)
    delivery = node.delivery()
    nursery.start_soon(delivery.run)
    await wait_all_tasks_blocked()
    assert not delivery.done.is_set()
    node.hold(1)
    delivery.look(1)
    await delivery.done.wait()
    assert delivery.delivered == {0, 1}


async def test_delivered_files_are_in_the_model_dir_under_their_names(bench, nursery):
    node = bench(a=1, b=2)
    node.hold(0, 1, 2)
    node.seal.sealed([1, 0])
    delivery = node.delivery(node.model_dir())
    nursery.start_soon(delivery.run)
    await delivery.done.wait()
    assert node.published() == ["a", "b"]
    assert (node.folder / "model" / "b").read_bytes() == data(1) + data(2)


async def test_a_file_that_is_broken_never_appears_whatever_comes_after_it(bench, nursery):
    node = bench(a=1, b=1)
    node.hold(0, 1)
    delivery = node.delivery(node.model_dir())
    node.seal._on_change = delivery.look
    nursery.start_soon(delivery.run)
    node.seal.broken(0, told(range(1)), "crc64xz:" + "0" * 16)
    node.seal.sealed([0])
    delivery.look(0)
    node.seal.sealed([1])  # queued behind whatever was queued before it
    await has_delivered(delivery, 1)
    assert node.published() == ["b"]
    assert not delivery.done.is_set()


class Full(ModelDir):
    """A model dir on a filesystem that is full for the first tries."""

    fails = 2

    def publish(self, file: int, cached: Path) -> None:
        self.tried.append((file, cached))
        if len(self.tried) <= self.fails:
            raise StoreFull("no space")
        super().publish(file, cached)


async def test_a_full_filesystem_is_tried_again_after_exactly_so_long_and_the_rest_waits(
    bench, nursery, autojump_clock, caplog
):
    node = bench(plain1=1, plain2=1)
    node.hold(0, 1)
    full = Full(node.folder / "model", node.manifest, replace=False)
    full.tried = []
    delivery = node.delivery(full)
    begin = trio.current_time()
    nursery.start_soon(delivery.run)
    await delivery.done.wait()
    assert trio.current_time() == begin + 2 * RETRY_S
    paths = [node.store.file_path(file) for file in (0, 1)]
    assert full.tried == [(0, paths[0])] * 3 + [(1, paths[1])]
    assert node.published() == ["plain1", "plain2"]
    assert caplog.text.count("no space: trying again") == 2


async def test_each_file_is_put_into_place_once_however_often_it_is_looked_at(bench, nursery):
    node = bench(plain1=1, plain2=1)
    calm = Full(node.folder / "model", node.manifest, replace=False)
    calm.fails, calm.tried = 0, []
    delivery = node.delivery(calm)
    node.hold(0)
    delivery.look(0)
    nursery.start_soon(delivery.run)
    delivery.look(0)
    await has_delivered(delivery, 0)
    delivery.look(0)
    node.hold(1)
    delivery.look(1)
    await delivery.done.wait()
    assert [file for file, _ in calm.tried] == [0, 1]


async def test_an_error_that_waiting_cannot_mend_ends_the_delivery(bench):
    node = bench(plain=1)
    node.hold(0)
    (node.folder / "model").mkdir()
    (node.folder / "model" / "plain").write_bytes(b"somebody else's")
    with pytest.raises(P2PError, match="differ from the model: plain"):
        await node.delivery(node.model_dir()).run()
    assert (node.folder / "model" / "plain").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("change", ["damaged", "broken"])
async def test_a_file_that_is_not_ready_any_more_when_its_turn_comes_is_not_delivered(
    bench, nursery, change
):
    node = bench(plain1=1, q=1, r=1)
    node.hold(0, 1, 2)
    node.seal.sealed([1, 2])
    delivery = node.delivery(node.model_dir())
    for file in (0, 1, 2):  # as they are queued when the filesystem is full for a while
        delivery.look(file)
    if change == "damaged":
        node.store.forget(1)
    else:
        node.seal.broken(1, told(range(1, 2)), "crc64xz:" + "0" * 16)
    nursery.start_soon(delivery.run)
    await has_delivered(delivery, 2)
    assert delivery.delivered == {0, 2}
    assert node.published() == ["plain1", "r"]


async def test_a_file_that_was_mended_while_others_were_delivered_is_delivered_then(bench, nursery):
    node = bench(plain1=1, plain2=1)
    node.hold(0, 1)
    delivery = node.delivery(node.model_dir())
    delivery.look(1)
    node.store.forget(1)
    delivery.look(0)
    nursery.start_soon(delivery.run)
    await has_delivered(delivery, 0)
    assert delivery.delivered == {0}
    node.hold(1)
    delivery.look(1)
    await delivery.done.wait()
    assert node.published() == ["plain1", "plain2"]


async def test_a_file_that_is_damaged_while_it_waits_for_space_is_not_tried_again(
    bench, nursery, autojump_clock
):
    node = bench(plain1=1, plain2=1)
    node.hold(0)
    full = Full(node.folder / "model", node.manifest, replace=False)
    full.fails, full.tried = 1, []
    delivery = node.delivery(full)
    nursery.start_soon(delivery.run)
    await trio.sleep(RETRY_S / 2)
    node.store.forget(0)
    node.hold(1)
    delivery.look(1)
    while 1 not in delivery.delivered:
        await trio.sleep(RETRY_S)
    assert [file for file, _ in full.tried] == [0, 1]
    assert delivery.delivered == {1}


# -- what the tracker says ------------------------------------------------------------------------


def test_what_the_tracker_has_sealed_is_vouched_for_told_on_and_kept(bench):
    node = bench(a=1, b=1, plain=1)
    assert [node.seal.seal.vouches(file) for file in range(3)] == [False, False, True]
    node.seal.sealed([1, 2, 1])
    assert [node.seal.seal.vouches(file) for file in range(3)] == [False, True, True]
    assert node.changed == [1], "once, and not for what was vouched for before"
    node.reopen()
    assert list(node.seal.seal.sealed) == [1]


def test_a_new_session_begins_with_what_was_sealed_before(bench):
    node = bench(a=1, b=1, empty=0, z=1)
    node.seal.sealed([3, 0])
    node.reopen()
    node.seal.joined()
    assert node.tracker.sent == [m.Sealed([2, 0, 3])]


def test_with_nothing_sealed_there_is_nothing_to_say(bench):
    node = bench(a=1, plain=1)
    node.seal.joined()
    assert node.tracker.sent == []


def test_a_sealed_file_that_the_manifest_has_not_is_ignored(bench):
    node = bench(a=1)
    node.seal.sealed([1, 0, 99])
    assert node.changed == [0]


@pytest.mark.parametrize("sealed_before", [False, True])
def test_a_broken_file_is_named_with_both_checksums_and_vouched_for_no_more(
    bench, caplog, sealed_before
):
    node = bench(a=1, b=1)
    if sealed_before:
        node.seal.sealed([1])
    stored, read = told(range(1, 2)), "crc64xz:" + "0" * 16
    node.seal.broken(1, stored, read)
    text = node.seal.broken_text(1)
    assert node.changed[-1] == 1
    assert text.startswith("http://o/m/b: ")
    assert f"store {stored}, read {read}" in text
    assert [record.getMessage() for record in caplog.records] == [text]
    assert not node.seal.seal.vouches(1)
    node.seal.sealed([1])
    assert not node.seal.seal.vouches(1)


def test_a_broken_file_that_the_manifest_has_not_is_ignored(bench):
    node = bench(a=1)
    node.seal.broken(1, "crc64xz:" + "0" * 16, "crc64xz:" + "1" * 16)
    assert list(node.seal.seal.pending) == [0]


def test_a_file_that_was_sealed_and_is_broken_is_not_sealed_after_a_restart(bench):
    node = bench(a=1)
    node.seal.sealed([0])
    node.seal.broken(0, told(range(1)), "crc64xz:" + "0" * 16)
    node.reopen()
    assert not node.seal.seal.vouches(0)


def test_more_sealed_files_than_a_message_may_name_are_told_in_several(bench, monkeypatch):
    monkeypatch.setattr(m, "MAX_BATCH", 2)
    node = bench(a=0, b=0, c=0, d=0, e=0)
    node.seal.joined()
    assert node.tracker.sent == [m.Sealed([0, 1]), m.Sealed([2, 3]), m.Sealed([4])]


def test_files_without_a_checksum_are_counted_in_the_log(bench, caplog):
    caplog.set_level(logging.INFO)
    bench(a=1)
    assert caplog.text == ""
    bench(a=1, plain1=1, plain2=1)
    assert "no checksum of 2 files" in caplog.text


# -- checksums for the tracker --------------------------------------------------------------------


def test_known_checksums_are_told_at_once_and_unknown_ones_computed(bench):
    node = bench(a=6)
    node.hold(0, 3, checksums=True)
    node.hold(1, 4)
    node.seal.wanted([4, 3, 2, 1, 0])
    assert node.tracker.sent == [m.Checksums([3, 0], crc(3) + crc(0))]
    assert node.pool.submitted == [
        (0, jobs.ChecksumJob(4, "crc64xz")),
        (1, jobs.ChecksumJob(1, "crc64xz")),
    ]


def test_what_is_not_held_is_not_told_although_its_checksum_is_known(bench):
    node = bench(a=2)
    node.hold(0, checksums=True)
    node.store.held.discard(0)
    node.seal.wanted([0, 1])
    assert node.tracker.sent == []
    assert node.pool.submitted == []


def test_chunks_that_the_manifest_has_not_are_not_told_and_not_read(bench):
    node = bench(a=1)
    node.hold(0, checksums=True)
    node.seal.wanted([0, 1, 99])
    assert node.tracker.sent == [m.Checksums([0], crc(0))]
    assert node.pool.submitted == []


def test_only_a_few_chunks_are_read_at_a_time(bench):
    node = bench(a=AT_ONCE + 3)
    node.hold(*range(AT_ONCE + 3))
    node.seal.wanted(list(range(AT_ONCE + 3)))
    assert node.pool.chunks == list(range(AT_ONCE))
    for done in range(AT_ONCE + 3):
        node.seal.computed(done, crc(done))
        assert node.pool.chunks == list(range(min(AT_ONCE + 3, AT_ONCE + 1 + done)))


def test_a_computed_checksum_is_told_and_kept(bench):
    node = bench(a=2)
    node.hold(0, 1)
    node.seal.wanted([1])
    node.seal.computed(1, crc(1))
    assert node.tracker.sent == [m.Checksums([1], crc(1))]
    node.reopen()
    assert node.store.checksums == {1: crc(1)}
    node.store.held.add(1)
    node.seal.wanted([1])
    assert node.tracker.sent == [m.Checksums([1], crc(1))] * 2
    assert node.pool.chunks == [1], "nothing is read twice"


def test_a_worker_without_the_function_is_an_answer_too(bench):
    node = bench(a=AT_ONCE + 1)
    node.hold(*range(AT_ONCE + 1))
    node.seal.wanted(list(range(AT_ONCE + 1)))
    node.seal.computed(0, b"")
    assert node.tracker.sent == []
    assert node.store.checksums == {}
    assert node.pool.chunks[-1] == AT_ONCE, "the next one has its turn"
    node.seal.wanted([0])
    for chunk in range(1, AT_ONCE):
        node.seal.computed(chunk, b"")
    assert node.pool.chunks[-1] == 0, "and it may be asked again"


def test_the_checksum_of_a_chunk_that_was_dropped_meanwhile_is_not_told(bench):
    node = bench(a=1)
    node.hold(0)
    node.seal.wanted([0])
    node.store.held.discard(0)
    node.store.forget(0)
    node.seal.computed(0, crc(0))
    assert node.tracker.sent == []
    assert node.store.checksums == {}


def test_a_chunk_that_is_being_read_is_not_read_again(bench):
    node = bench(a=2)
    node.hold(0, 1)
    node.seal.wanted([0])
    node.seal.wanted([0, 1])
    assert node.pool.chunks == [0, 1]


def test_a_chunk_that_waits_to_be_read_is_not_read_twice(bench):
    node = bench(a=AT_ONCE + 1)
    node.hold(*range(AT_ONCE + 1))
    node.seal.wanted(list(range(AT_ONCE + 1)))
    node.seal.wanted([AT_ONCE])
    for done in range(AT_ONCE + 1):
        node.seal.computed(done, crc(done))
    assert node.pool.chunks == list(range(AT_ONCE + 1))


def test_of_a_file_without_a_checksum_at_the_store_nothing_is_computed(bench):
    node = bench(a=1, plain=1)
    node.hold(0, 1)
    node.seal.wanted([1, 0])
    assert node.pool.chunks == [0]


# -- alone ----------------------------------------------------------------------------------------


def lose_tracker(node: Bench, nursery: trio.Nursery) -> None:
    """From now on there is no tracker; the first look finds that a second later."""
    node.tracker.connected = False
    nursery.start_soon(node.seal.run)


FOUND_S = 1.0  # the seal looks once a second


async def test_a_node_that_lost_its_tracker_seals_what_it_has_complete_exactly_in_time(
    bench, nursery, autojump_clock
):
    node = bench(a=2, b=2)
    node.hold(0, 1, 2, checksums=True)
    lose_tracker(node, nursery)
    await trio.sleep(FOUND_S + ALONE_AFTER_S - 0.001)
    assert node.changed == []
    await trio.sleep(0.002)
    assert node.changed == [0]
    assert list(node.seal.seal.sealed) == [0]
    assert node.pool.submitted == [], "the incomplete file is not touched"
    assert node.seal.seal.wanted(1) == [2, 3]
    node.reopen()
    assert list(node.seal.seal.sealed) == [0]


async def test_what_a_lone_node_does_not_know_it_reads_and_seals_with_the_next_look(
    bench, nursery, autojump_clock
):
    node = bench(a=3)
    node.hold(0, 2)
    node.hold(1, checksums=True)
    lose_tracker(node, nursery)
    await trio.sleep(FOUND_S + ALONE_AFTER_S + 0.5)
    assert node.pool.submitted == [
        (0, jobs.ChecksumJob(0, "crc64xz")),
        (0, jobs.ChecksumJob(2, "crc64xz")),
    ]
    await trio.sleep(3.0)
    assert node.pool.chunks == [0, 2], "it waits for the worker"
    node.seal.computed(2, crc(2))
    node.seal.computed(0, crc(0))
    assert node.changed == []
    await trio.sleep(1.0)
    assert node.changed == [0]
    assert list(node.seal.seal.sealed) == [0]


async def test_a_lone_node_finds_a_broken_file_and_says_so(bench, nursery, autojump_clock, caplog):
    node = bench(a=1, b=1)
    node.hold(0, 1, checksums=True)
    node.store.record_checksum(0, crc(1))
    lose_tracker(node, nursery)
    await trio.sleep(FOUND_S + ALONE_AFTER_S + 0.5)
    assert sorted(node.changed) == [0, 1]
    assert [node.seal.seal.vouches(file) for file in (0, 1)] == [False, True]
    assert "http://o/m/a: what was read does not match" in caplog.text
    assert f"(store {told(range(1))}, read {told(range(1, 2))})" in caplog.text
    assert node.store.sealed == {1}


async def test_a_tracker_that_is_back_in_time_does_the_work(bench, nursery, autojump_clock):
    node = bench(a=1)
    node.hold(0, checksums=True)
    lose_tracker(node, nursery)
    await trio.sleep(0.5)  # between two looks, from here on
    for _ in range(3):
        await trio.sleep(ALONE_AFTER_S)
        node.tracker.connected = True
        await trio.sleep(1.0)
        node.tracker.connected = False
    await trio.sleep(ALONE_AFTER_S)
    assert node.changed == []
    await trio.sleep(1.0)
    assert node.changed == [0]


async def test_with_a_tracker_a_node_seals_nothing_by_itself(bench, nursery, autojump_clock):
    node = bench(a=1)
    node.hold(0, checksums=True)
    nursery.start_soon(node.seal.run)
    await trio.sleep(100 * ALONE_AFTER_S)
    assert node.changed == []
    assert node.pool.submitted == []


async def test_when_everything_is_decided_there_is_nothing_to_watch(bench, autojump_clock):
    node = bench(a=1, plain=1)
    async with trio.open_nursery() as nursery:
        lose_tracker(node, nursery)
        await trio.sleep(0.5)
        node.seal.sealed([0])
    assert trio.current_time() <= 2 * FOUND_S + 0.5


async def test_a_lone_node_delivers_what_it_has_sealed(bench, nursery, autojump_clock):
    node = bench(a=1)
    node.hold(0, checksums=True)
    delivery = node.delivery()
    node.seal._on_change = delivery.look
    nursery.start_soon(delivery.run)
    lose_tracker(node, nursery)
    await delivery.done.wait()
    assert trio.current_time() == FOUND_S + ALONE_AFTER_S
