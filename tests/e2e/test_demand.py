"""Reading on demand with real nodes: needs before prefetch, one fetch for all, bounded caches.

Read by `open_model`, or, where the test looks at the state map meanwhile, by `support.demands`,
which does what every face does, and nothing more.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from support.cluster import Cluster, Process, make_model, wait_until
from support.demands import Reader

from node.reader import Model, open_model

KIB, MIB = 1024, 1024**2
SIZES = {"a/config.json": 700, "model.bin": 24 * MIB + 17, "z/last.bin": 3 * MIB - 5}
TOTAL = sum(SIZES.values())
CHUNKS = ("--chunk-size", "512KiB", "--block-size", "64KiB")


class Place:
    """A cluster with an origin; nodes take the calls of `Demand`."""

    def __init__(self, cluster: Cluster, nginx, extra: str = "") -> None:
        self.cluster = cluster
        self.source = make_model(cluster.folder / "source", 61, SIZES)
        self.origin = nginx(self.source, extra)
        self.data = {name: (self.source / name).read_bytes() for name in SIZES}
        cluster.start_tracker()

    def cache(self, name: str) -> Path:
        return self.cluster.folder / name / "cache"

    def start(self, name: str, *options: str) -> Process:
        folder = self.cluster.node_folder(name)
        process = Process(
            folder, "node", "support.demanding_node", "join", "--tracker",
            self.cluster.tracker_address, "--origin", self.origin.url, "--cache-dir",
            str(self.cache(name)), "--report", str(folder / "report.json"), "--workers",
            str(self.cluster.workers), "--log-level", "info", "--quiet", *CHUNKS, *options,
            env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )  # fmt: skip
        self.cluster.processes.append(process)
        return process

    def status(self, name: str) -> dict:
        from node.status import read_status

        return read_status(self.cache(name))

    def model(self, name: str) -> Model:
        """What programs open."""

        def opened() -> Model | None:
            try:
                return open_model(socket=self.cache(name) / "reader.sock", timeout_s=60)
            except (FileNotFoundError, ConnectionRefusedError):  # it does not listen yet
                return None

        model: Model = wait_until(opened, "the node's readers")
        return model

    def same(self, model: Model, name: str, start: int, end: int) -> None:
        """These bytes are the source's."""
        assert model.read(name, start, end - start) == self.data[name][start:end], (start, end)

    def check(self, reader: Reader, name: str, start: int, end: int) -> None:
        """These bytes are the source's."""
        got = reader.read(reader.file(name), start, end)
        assert got == self.data[name][start:end], (name, start, end)


class Watch(threading.Thread):
    """Looks at what a cache's files take on disk, every 50 ms or oftener."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self._cache, self._over = cache, threading.Event()
        self.most = self.looks = 0

    def run(self) -> None:
        while not self._over.wait(0.05):
            taken = 0
            for path in self._cache.glob("*/files/**/*"):
                taken += path.stat().st_blocks * 512 if path.is_file() else 0
            self.most, self.looks = max(self.most, taken), self.looks + 1

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def test_a_need_overtakes_prefetch_though_the_origin_is_slow(cluster, nginx):
    """At 2 MB/s a connection the model takes seconds; what a reader needs does not."""
    place = Place(cluster, nginx, "limit_rate 500k;")
    place.start("a", "--connections", "2")
    with place.model("a") as model:
        begin = time.monotonic()
        for start in (20 * MIB + 5, 11 * MIB, 23 * MIB + 9):
            place.same(model, "model.bin", start, start + 100)
        elapsed_s = time.monotonic() - begin
        held = place.status("a")["held_bytes"]
    print(f"three needs in {elapsed_s:.2f} s, {held} bytes held")
    assert held < TOTAL / 2, "prefetch had not got there"
    assert elapsed_s < 10


def test_a_need_for_what_another_node_prefetches_slowly_is_read_by_itself(cluster, nginx):
    """One node gets 50 kB/s for each chunk that it prefetches, another needs the end of one."""
    place = Place(cluster, nginx, "limit_rate_after 64k; limit_rate 50k;")
    place.start("b", "--prefetch", "none")
    place.start("a")
    with place.model("b") as model, place.model("a"):
        wait_until(lambda: place.status("a")["origin_bytes"] > 0, "prefetch at a")
        begin = time.monotonic()
        place.same(model, "model.bin", 512 * KIB - 9, 512 * KIB - 1)
        elapsed_s = time.monotonic() - begin
        wait_until(lambda: place.status("b")["origin_bytes"] > 0, "the figures of b")
        read, held = (place.status("b")[name] for name in ("origin_bytes", "held_chunks"))
    print(f"{elapsed_s:.2f} s, {read} bytes of the origin")
    assert read == 64 * KIB, "the block that was needed"
    assert held == 0
    assert elapsed_s < 5, "the chunk takes nine seconds"


def test_with_prefetch_none_eight_nodes_that_read_the_same_cost_the_origin_one_read(cluster, nginx):
    """1 % of the model at the same places, all at the same time."""
    place = Place(cluster, nginx)
    names = [f"n{i}" for i in range(8)]
    for name in names:
        place.start(name, "--prefetch", "none")
    places = [5 * MIB + 1, 17 * MIB + 500 * KIB, 23 * MIB, 2 * MIB - 40 * KIB]
    together = threading.Barrier(len(names))

    def read(name: str) -> None:
        with place.model(name) as model:
            together.wait(60)
            for start in places:
                place.same(model, "model.bin", start, start + 70 * KIB)

    with ThreadPoolExecutor(len(names)) as threads:
        for done in [threads.submit(read, name) for name in names]:
            done.result(120)
    chunks = {at // (512 * KIB) for start in places for at in (start, start + 70 * KIB - 1)}
    given = place.origin.body_bytes()
    print(f"the origin gave {given / (512 * KIB)} chunks for {len(chunks)}")
    assert 0 <= given - len(chunks) * 512 * KIB < 4 * KIB, "the chunks, and the listing"
    time_held = {name: place.status(name)["held_chunks"] for name in names}
    assert sum(time_held.values()) >= len(chunks)
    assert max(time_held.values()) <= len(chunks), "nobody has more than was read"


@pytest.mark.parametrize("kind", ["sequential", "random"])
def test_a_cache_of_a_quarter_of_the_model_is_right_and_never_larger(cluster, nginx, kind):
    place = Place(cluster, nginx)
    limit = TOTAL // 4
    for name in ("a", "b"):
        place.start(name, "--prefetch", "none" if kind == "random" else "all", "--cache-size",
                    str(limit))  # fmt: skip
    rng = Random(62)
    print("seed 62")
    ranges = [(at, min(at + 300 * KIB, SIZES["model.bin"])) for at in range(0, 24 * MIB, 300 * KIB)]
    if kind == "random":
        ranges = [(at, at + rng.randrange(1, 600 * KIB)) for at in rng.sample(range(23 * MIB), 120)]

    def read(name: str) -> None:
        with place.model(name) as model:
            for start, end in ranges:
                place.same(model, "model.bin", start, end)

    with (
        Watch(place.cache("a")) as first,
        Watch(place.cache("b")) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        for done in [threads.submit(read, name) for name in ("a", "b")]:
            done.result(150)
    statuses = [place.status(name) for name in ("a", "b")]
    ratio = place.origin.body_bytes() / TOTAL
    print(f"most {first.most} and {second.most} of {limit}, {first.looks} looks, origin {ratio:.2f}"
          f" x the model, again {[s['again_bytes'] for s in statuses]}")  # fmt: skip
    for watch in (first, second):
        assert watch.looks > 5
        assert limit // 2 < watch.most <= limit
    for status in statuses:
        assert status["evicted_chunks"] > 20
        assert status["corrupt_chunks"] == 0
        assert not status["complete"]


def test_what_is_kept_stays_and_a_restart_goes_on_with_it(cluster, nginx):
    from click.testing import CliRunner

    from node.cli import main

    place = Place(cluster, nginx)
    limit = str(TOTAL // 4)
    process = place.start("a", "--prefetch", "none", "--cache-size", limit)
    with Reader(place.cache("a"), 1) as reader:
        keep = CliRunner().invoke(main, ["keep", "z", "--cache-dir", str(place.cache("a"))])
        assert keep.exit_code == 0, keep.output
        assert keep.output == "1 files kept, 3.0 MiB in all\n"
        last = reader.file("z/last.bin")
        wait_until(lambda: reader.here(last, 0, SIZES["z/last.bin"]), "what is kept to come")
        for start in range(0, 20 * MIB, MIB):
            place.check(reader, "model.bin", start, start + 600 * KIB)
        assert reader.here(last, 0, SIZES["z/last.bin"])
        wrong = CliRunner().invoke(main, ["keep", ".", "--cache-dir", str(place.cache("a"))])
        assert wrong.exit_code == 1
        assert "the cache has room for" in wrong.output
    given = place.origin.body_bytes()
    process.kill()
    place.start("a", "--prefetch", "none", "--cache-size", limit)
    with Watch(place.cache("a")) as watch, Reader(place.cache("a"), 1) as reader:
        wait_until(lambda: reader.here(last, 0, SIZES["z/last.bin"]), "the kept file")
        for start in range(0, 20 * MIB, MIB):
            place.check(reader, "model.bin", start, start + 600 * KIB)
        assert place.status("a")["kept_chunks"] == 6
        assert reader.here(last, 0, SIZES["z/last.bin"])
    assert watch.most <= TOTAL // 4
    assert place.origin.body_bytes() > given


def test_the_last_copy_stays_while_others_can_go(cluster, nginx):
    """a reads all, b the second half: what only a has outlives what b has too."""
    place = Place(cluster, nginx)
    limit = str(TOTAL // 2 + 2 * MIB)
    place.start("a", "--prefetch", "none", "--cache-size", limit)
    place.start("b", "--prefetch", "none", "--cache-size", limit)
    with Reader(place.cache("a"), 1) as first, Reader(place.cache("b"), 1) as second:
        for start in range(12 * MIB, 18 * MIB, 512 * KIB):
            place.check(second, "model.bin", start, start + 512 * KIB)
        wait_until(lambda: place.status("a")["peers"] == 1, "the two to meet")
        for start in (*range(0, 6 * MIB, 512 * KIB), *range(12 * MIB, 24 * MIB, 512 * KIB)):
            place.check(first, "model.bin", start, start + 512 * KIB)
        assert place.status("a")["evicted_chunks"] > 0
        file = first.file("model.bin")
        alone = [first.here(file, at, at + 512 * KIB) for at in range(0, 6 * MIB, 512 * KIB)]
        assert all(alone)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--prefetch", "none", "--until-complete"), "--until-complete and --prefetch none"),
        (("--prefetch", "none", "--require-seal"), "--require-seal and --prefetch none"),
        (("--cache-size", "7MiB", "--until-complete"), "--until-complete needs all of it"),
        (("--cache-size", "7MiB", "--model-dir", "out"), "--model-dir needs all of it"),
        (("--cache-size", "1MiB"), "the least for its chunks"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_2(one, nginx, options, text):
    place = Place(one, nginx)
    process = place.start("a", *options)
    assert process.wait() == 2, process.text
    assert text in process.text
    assert "Traceback" not in process.text
