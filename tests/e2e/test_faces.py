"""Reading while it arrives, by every face: every byte right, and an error where none can come.

Real nodes, a slow origin, peers that die and lie. Repeat one with
`pytest tests/e2e/test_faces.py -k NAME`; the seed is printed.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import fsspec
import pytest
import trio
from support.cluster import Cluster, Process, hashes, make_model, wait_until
from support.faulty import FaultyOrigin
from support.mounts import kill_alone, start_mounted
from support.slow import Slow

from node.reader import Model, open_model, open_model_async

KIB, MIB = 1024, 1024**2
CHUNK, BLOCK = 256 * KIB, 64 * KIB
CHUNKS = ("--chunk-size", "256KiB", "--block-size", "64KiB")
SIZES = {"a.json": 900, "b/one.bin": 14 * MIB + 4097, "c.bin": 12 * MIB - 1, "empty": 0}
READS, THREADS = 10_000, 8
Read = Callable[[str, int, int], bytes | memoryview]


def socket_of(cluster: Cluster, name: str) -> Path:
    """Where a node serves its readers."""
    return cluster.folder / name / ".model.shoal" / "reader.sock"


def attach(cluster: Cluster, name: str) -> Model:
    """A node's model, as soon as the node is there."""
    wait_until(socket_of(cluster, name).exists, "the node's socket")
    return open_model(socket=socket_of(cluster, name))


class Half:
    """Reads at random places of a model that is arriving, most of them where it is here."""

    def __init__(self, source: Path, arriving: Model, seed: int) -> None:
        self.data = {name: (source / name).read_bytes() for name in SIZES}
        self.names = ["b/one.bin", "c.bin"]
        self.model, self.seed = arriving, seed
        self.early = 0
        self.errors: list[BaseException] = []

    def places(self, thread: int) -> Iterator[tuple[str, int, int]]:
        """Name, start and length; around all boundaries, from 1 byte to 8 MiB. As long as half of
        it is missing, nearly all are where it is here (files come in order)."""
        rng = random.Random(f"{self.seed} {thread}")
        total = sum(len(self.data[name]) for name in self.names)
        for number in range(READS // THREADS):
            here = self.model.progress().here_bytes
            at = rng.randrange(max(CHUNK, here * 9 // 10) if rng.random() < 0.995 else total)
            name, start = self.names[0], min(at, total - 1)
            if start >= len(self.data[name]):
                name, start = self.names[1], start - len(self.data[name])
            size = len(self.data[name])
            if name == self.names[1] and here < total // 2:  # the last chunk comes last: `flip`
                size -= CHUNK
                start = min(start, size - 1)
            if rng.random() < 0.5:
                unit = rng.choice((4096, BLOCK, CHUNK))
                start = min(size - 1, max(0, start // unit * unit + rng.choice((-1, 0, 1))))
            length = int(2 ** rng.uniform(0, 23 if number % 20 == 0 else 16))
            yield name, start, min(length, size - start)

    def run(self, read: Read, places: Iterable[tuple[str, int, int]]) -> None:
        """Carry out reads and compare each."""
        for name, start, length in places:
            got = read(name, start, length)
            assert len(got) == length, (name, start, length)
            wanted = memoryview(self.data[name])[start : start + length]
            assert wanted == memoryview(got), f"{name}: bytes {start} to {start + length}"
            if not self.model.progress().complete:
                self.early += 1

    def run_threads(self, make: Callable[[ExitStack], Read]) -> None:
        """From so many threads, each with its own `read`."""

        def work(thread: int) -> None:
            try:
                with ExitStack() as stack:
                    self.run(make(stack), self.places(thread))
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=work, args=(one,)) for one in range(THREADS)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not self.errors, self.errors


def by_sync(socket: Path, _: Path) -> Callable[[ExitStack], Read]:
    """Views and streams by turns."""

    def make(stack: ExitStack) -> Read:
        model = stack.enter_context(open_model(socket=socket))
        files = {entry.path: stack.enter_context(model.open(entry.path)) for entry in model}

        def read(name: str, start: int, length: int) -> bytes | memoryview:
            if start % 3 == 0:
                return model.read(name, start, length)
            files[name].seek(start)
            if start % 3 == 1:
                return files[name].read(length)
            buffer = bytearray(length)
            assert files[name].readinto(buffer) == length
            return buffer

        return read

    return make


def by_fsspec(socket: Path, _: Path) -> Callable[[ExitStack], Read]:
    """`cat_file` and open files by turns."""

    def make(stack: ExitStack) -> Read:
        files = fsspec.filesystem("p2p", socket=str(socket))
        base = f"p2p://{files.model.name}"
        opened = {name: stack.enter_context(files.open(f"{base}/{name}")) for name in SIZES}

        def read(name: str, start: int, length: int) -> bytes:
            if start % 2:
                return files.cat_file(f"{base}/{name}", start, start + length)
            opened[name].seek(start)
            return opened[name].read(length)

        return read

    return make


def by_mount(_: Path, mount: Path) -> Callable[[ExitStack], Read]:
    """pread(2)."""

    def make(stack: ExitStack) -> Read:
        files = {}
        for name in SIZES:
            files[name] = os.open(mount / name, os.O_RDONLY)
            stack.callback(os.close, files[name])
        return lambda name, start, length: os.pread(files[name], length, start)

    return make


def by_async(socket: Path, half: Half) -> None:
    """Each thread its own loop, with two tasks."""

    async def reads(places: Iterator[tuple[str, int, int]]) -> None:
        async with open_model_async(socket=socket) as model, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(some, model, places)

    async def some(model, places: Iterator[tuple[str, int, int]]) -> None:
        files = {name: await model.open(name) for name in SIZES}
        for name, start, length in places:
            if start % 2:
                got = await model.read(name, start, length)
            else:
                files[name].seek(start)
                got = await files[name].read(length)
            half.run(lambda *_, got=got: got, [(name, start, length)])
        for file in files.values():
            await file.aclose()

    def work(thread: int) -> None:
        try:
            trio.run(reads, half.places(thread))
        except BaseException as error:
            half.errors.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not half.errors, half.errors


def flip(cluster: Cluster, name: str) -> None:
    """Damage the last chunk in a node's cache, which nobody asks for before all others."""
    cached = next((cluster.folder / name / ".model.shoal").glob("*/files/c.bin"))
    with cached.open("r+b") as stream:
        stream.seek(SIZES["c.bin"] - 7)
        byte = stream.read(1)
        stream.seek(SIZES["c.bin"] - 7)
        stream.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("face", ["sync", "async", "fsspec", "mount"])
def test_ten_thousand_random_reads_of_half_a_model_while_a_peer_dies_and_one_lies(one, face):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = make_model(one.folder / "source", 301, SIZES)
    with closing(FaultyOrigin(source)) as origin, ExitStack() as stack:
        one.start_tracker()
        options = ("--origin", origin.url, *CHUNKS)
        peers = {name: one.start_node(name, *options) for name in ("dies", "lies")}
        for name in peers:
            wait_until(lambda name=name: (s := one.node_status(name)) and s["complete"], name)
        flip(one, "lies")
        origin.fault = Slow(0.5)
        reading, mount = start_mounted(one, "a", *options, "--max-download", "5MB")
        half = Half(source, stack.enter_context(attach(one, "a")), seed)
        half.model.on_progress(
            lambda now: now.here_bytes > now.total_bytes // 4 and peers["dies"].kill(), 0.05
        )
        faces = {"sync": by_sync, "fsspec": by_fsspec, "mount": by_mount}
        if face == "async":
            by_async(socket_of(one, "a"), half)
        else:
            half.run_threads(faces[face](socket_of(one, "a"), mount))
        assert peers["dies"].popen.poll() is not None, "the peer died meanwhile"
        wait_until(lambda: (s := one.node_status("a")) and s["complete"], "the rest")
        assert "corrupt chunk" in reading.text, "the other one was dead by then"
        wait_until(
            lambda: (s := one.node_status("lies")) and s["corrupt_chunks"] == 1, "its rehash"
        )
        assert hashes(mount) == hashes(source)
        print(f"{half.early} of {READS} reads were done before all was here")
        assert half.early >= 500


def slow_node(
    one: Cluster, seed: int, *options: str, seconds: float = 0.4
) -> tuple[Process, FaultyOrigin, Slow, Path]:
    """A node whose origin gives a few chunks at once, and then one in a while."""
    source = make_model(one.folder / "source", seed, SIZES)
    slow = Slow(seconds, free=16)
    origin = FaultyOrigin(source, slow)
    one.start_tracker()
    return one.start_node("a", "--origin", origin.url, *CHUNKS, *options), origin, slow, source


def test_a_plan_progress_and_every_way_to_read_agree(one):
    _, origin, slow, source = slow_node(one, 302)
    with closing(origin), attach(one, "a") as model:
        assert {entry.path: entry.size_bytes for entry in model} == SIZES
        told = []
        ended = threading.Event()

        def progress(now) -> None:
            told.append(now.here_bytes)
            if now.complete:
                ended.set()

        model.on_progress(progress, 0.05)
        model.will_need([("c.bin", 0, MIB), ("b/one.bin", 5, 5)])
        with pytest.raises(ValueError, match="no bytes"):
            model.will_need([("c.bin", 0, 12 * MIB)])
        with pytest.raises(FileNotFoundError):
            model.read("nothing")
        threading.Timer(1.0, slow.hurry).start()
        with model.open("b/one.bin") as stream:
            assert stream.read() == (source / "b/one.bin").read_bytes()
            assert (stream.tell(), stream.read(1), stream.seek(-3, os.SEEK_END)) == (
                SIZES["b/one.bin"], b"", SIZES["b/one.bin"] - 3
            )  # fmt: skip
            assert stream.readall() == (source / "b/one.bin").read_bytes()[-3:]
            with pytest.raises(OSError, match="fileno"):
                stream.fileno()
        view = model.read("c.bin", 5, 100)
        assert view.readonly
        assert model.read("c.bin", SIZES["c.bin"] - 2, 100) == (source / "c.bin").read_bytes()[-2:]
        assert model.read("empty") == b""
        assert ended.wait(30)
        assert told == sorted(told)
        assert told[-1] == sum(SIZES.values())
        with open_model(model.name.rpartition("/")[2], socket=socket_of(one, "a")) as same:
            assert same.revision == model.revision
        with pytest.raises(FileNotFoundError, match="not 'another'"):
            open_model("another", socket=socket_of(one, "a"))
    assert view == (source / "c.bin").read_bytes()[5:105], "a view outlives its model"


async def test_on_trio_a_wait_can_be_cancelled_and_others_go_on(one):
    _, origin, slow, source = slow_node(
        one, 303, seconds=5
    )  # what is read goes first: soon it would be here
    with closing(origin):
        await trio.to_thread.run_sync(attach(one, "a").close)
        await trio.to_thread.run_sync(slow.begun.wait, 30)
        async with open_model_async(socket=socket_of(one, "a")) as model:
            with trio.move_on_after(0.3) as cancelled:
                await model.read("c.bin", SIZES["c.bin"] - 1, 1)
            assert cancelled.cancelled_caught
            assert await model.read("a.json") == (source / "a.json").read_bytes()
            slow.hurry()
            stream = await model.open("c.bin")
            async with stream:
                received = [data async for data in stream]
            assert b"".join(received) == (source / "c.bin").read_bytes()
            seen = [now.here_bytes async for now in model.progress()]
            assert seen[-1] == sum(SIZES.values())
            with pytest.raises(trio.ClosedResourceError):
                await stream.read(1)


def test_a_reader_of_a_killed_node_gets_an_error_and_goes_on_when_the_node_is_back(one):
    node, origin, slow, source = slow_node(one, 304, seconds=5)
    with closing(origin), attach(one, "a") as model:
        assert slow.begun.wait(30)
        assert model.read("a.json") == (source / "a.json").read_bytes()
        caught: list[OSError] = []

        def blocked() -> None:
            try:
                model.read("c.bin", SIZES["c.bin"] - 1, 1)
            except OSError as error:
                caught.append(error)

        thread = threading.Thread(target=blocked)
        thread.start()
        wait_until(lambda: (s := one.node_status("a")) and s["held_chunks"] >= 8, "some chunks")
        kill_alone(node)
        thread.join(10)
        assert caught, "the one that waited was told"
        assert caught[0].errno == errno.EIO
        with pytest.raises(OSError, match="no node serves readers"):
            model.read("a.json")
        slow.hurry()
        before = socket_of(one, "a").stat().st_ino
        one.start_node("a", "--origin", origin.url, *CHUNKS)
        wait_until(lambda: socket_of(one, "a").stat().st_ino != before, "the next start")
        wait_until(lambda: one.node_status("a"), "and it answers")
        assert model.read("c.bin") == (source / "c.bin").read_bytes()


def test_a_forked_child_attaches_by_itself(one):
    _, origin, slow, source = slow_node(one, 305)
    code = (
        "import os, sys\nfrom node.reader import open_model\n"
        "model = open_model(socket=sys.argv[1])\nstream = model.open('c.bin')\n"
        "wanted = open(sys.argv[2], 'rb').read()\n"
        "children = []\n"
        "for _ in range(3):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        good = stream.read() == wanted and model.read('c.bin') == wanted\n"
        "        os._exit(0 if good else 1)\n"
        "    children.append(child)\n"
        "assert model.read('c.bin') == wanted\n"
        "assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]\n"
    )
    with closing(origin):
        attach(one, "a").close()
        threading.Timer(1.0, slow.hurry).start()
        done = subprocess.run(
            [sys.executable, "-c", code, str(socket_of(one, "a")), str(source / "c.bin")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_a_read_that_waits(one):
    _, origin, _, _ = slow_node(one, 306)
    code = (
        "import signal, sys\nfrom node.reader import open_model\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored: `pytest &`\n"
        "model = open_model(socket=sys.argv[1])\n"
        "print('waiting', flush=True)\nmodel.read('c.bin')\n"
    )
    with closing(origin):
        attach(one, "a").close()
        reader = subprocess.Popen(
            [sys.executable, "-c", code, str(socket_of(one, "a"))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert reader.stdout is not None
        assert reader.stdout.readline() == "waiting\n"
        reader.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, errors = reader.communicate(timeout=20)
        assert time.monotonic() - begin < 5
        assert "KeyboardInterrupt" in errors


def test_a_broken_seal_is_an_error_for_every_later_read(one, oss):
    sizes = {"good": 2 * MIB + 3, "bad": 3 * MIB}
    source = make_model(one.folder / "source" / "model", 307, sizes)
    server = oss(one.folder / "source", corrupt={"model/bad": MIB + 77})
    one.start_tracker()
    environment = {"OSS_ACCESS_KEY_ID": "", "OSS_ENDPOINT": server.endpoint}
    one.start_node("a", *store(server, one), *CHUNKS, env=environment)
    wait_until(lambda: (s := one.node_status("a")) and s["seal"] == "broken", "the seal broke")
    with attach(one, "a") as model:
        with pytest.raises(OSError, match="does not match") as raised:
            model.read("bad", 0, 10)
        assert raised.value.errno == errno.EIO
        assert model.read("good") == (source / "good").read_bytes()


def store(server, cluster: Cluster) -> tuple[str, ...]:
    """What a node is told to reach a server of the tests."""
    from support.oss_model import ID, SECRET

    keys = cluster.folder / "keys.json"
    keys.write_text(f'{{"AccessKeyId": "{ID}", "AccessKeySecret": "{SECRET}"}}')
    return ("--origin", "oss://models/model/", "--endpoint", server.endpoint, "--region",
            server.region, "--credentials", str(keys))  # fmt: skip


def test_with_a_required_seal_nothing_is_read_before_it_even_what_is_here(one, oss):
    source = make_model(one.folder / "source" / "model", 308, {"x.bin": 4 * MIB})
    held = threading.Event()

    def fault(get) -> None:
        if get.start >= 3 * MIB:
            held.wait(30)

    server = oss(one.folder / "source", fault=fault)
    one.start_tracker()
    one.start_node("a", *store(server, one), *CHUNKS, "--require-seal")
    with attach(one, "a") as model:
        wait_until(lambda: model.progress().here_bytes >= 3 * MIB, "three quarters")
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(bytes(model.read("x.bin", 0, 100))))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it is here, and not sealed"
        held.set()
        thread.join(30)
        assert got == [(source / "x.bin").read_bytes()[:100]]


def test_a_required_seal_and_reading_on_demand_exclude_each_other():
    from node.config import check_require_seal
    from p2p.errors import UsageError

    with pytest.raises(UsageError, match="--prefetch none"):
        check_require_seal(True, "none")
    for good in ((True, "all"), (True, None), (False, "none")):
        check_require_seal(*good)
