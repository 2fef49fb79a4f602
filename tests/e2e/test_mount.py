"""A folder that is complete before the model is: programs that know nothing of us read it.

Every byte is compared; the nodes are real, the mount is the kernel's. Repeat one with
`pytest tests/e2e/test_mount.py -k NAME`.
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.cluster import Cluster, Process, hashes, make_model, wait_until
from support.faulty import FaultyOrigin
from support.mounts import kill_alone, mount_of, mount_process, start_mounted
from support.oss_model import ID, SECRET
from support.programs import build
from support.slow import Cut, Slow

from node.mount.prepare import DEVICE

KIB, MIB = 1024, 1024**2
CHUNKS = ("--chunk-size", "256KiB", "--block-size", "64KiB")
SIZES = {"config.json": 700, "empty.txt": 0, "deep/er/model.bin": 10 * MIB + 4097}
BIG = "deep/er/model.bin"


def start(cluster: Cluster, name: str, origin: FaultyOrigin, *options: str) -> tuple[Process, Path]:
    """A node with a mount, as soon as it is there."""
    return start_mounted(cluster, name, "--origin", origin.url, *CHUNKS, *options)


def fnv(data: bytes) -> str:
    """What the C programs print."""
    value = 14695981039346656037
    for byte in data:
        value = (value ^ byte) * 1099511628211 & 0xFFFF_FFFF_FFFF_FFFF
    return f"{value:016x}"


def run_all(commands: dict[str, list[str]]) -> dict[str, str]:
    """All at once; what each prints."""
    running = {
        name: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in commands.items()
    }
    outputs = {}
    for name, process in running.items():
        outputs[name] = process.communicate(timeout=60)[0].strip()
        assert process.returncode == 0, f"{name}: {outputs[name]}"
    return outputs


def test_all_files_are_there_at_once_and_every_program_reads_what_is_still_arriving(cluster):
    source = make_model(cluster.folder / "source", 201, SIZES)
    slow = Slow(0.2)
    programs = build(cluster.folder)
    with closing(FaultyOrigin(source, slow)) as origin:
        cluster.start_tracker()
        node, mount = start(cluster, "a", origin)
        shown = {
            str(path.relative_to(mount)): path.stat().st_size
            for path in mount.rglob("*")
            if path.is_file()
        }
        assert shown == SIZES
        inodes = {path: path.stat().st_ino for path in mount.rglob("*")}
        big, copy, wanted = mount / BIG, cluster.folder / "copy", source / BIG
        outputs = (
            run_all(
                {
                    "cat": ["sh", "-c", f"cat {big} | sha256sum"],
                    "cmp": ["cmp", str(big), str(wanted)],
                    "dd": ["sh", "-c", f"dd if={big} bs=1M status=none | sha256sum"],
                    "cp": ["cp", str(big), str(copy)],
                    "sha256sum": ["sha256sum", str(big)],
                    "tail": ["sh", "-c", f"tail -c 100000 {big} | sha256sum"],
                    "cmp small": ["cmp", str(mount / "config.json"), str(source / "config.json")],
                    **{name: [str(path), str(big)] for name, path in programs.items()},
                }
            )
            if (status := cluster.node_status("a")) and not status["complete"]
            else {}
        )
        assert outputs, "the model was still arriving when the programs began"
        data = wanted.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        for name in ("cat", "dd", "sha256sum"):
            assert outputs[name].split()[0] == digest, name
        assert outputs["tail"].split()[0] == hashlib.sha256(data[-100_000:]).hexdigest()
        assert copy.read_bytes() == data
        assert {outputs[name] for name in programs} == {fnv(data)}
        assert hashes(mount) == hashes(source)
        assert inodes == {path: path.stat().st_ino for path in mount.rglob("*")}
        with pytest.raises(OSError, match="Read-only"):
            (mount / "new").write_text("x")
        node.popen.terminate()
        assert node.wait(10) == 0, node.text
        assert not os.path.ismount(mount)
        again, mount = start(cluster, "a", origin)
        assert inodes == {path: path.stat().st_ino for path in mount.rglob("*")}, "the revision's"
        assert "Traceback" not in node.text + again.text


READER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
wanted, at = open(sys.argv[2], "rb").read(), 0
print("reading", flush=True)
while at < len(wanted):
    try:
        data = os.pread(file, 100_000, at)
    except OSError as error:
        print("error", error.errno)
        break
    if not data or data != wanted[at : at + len(data)]:
        print("wrong bytes at", at)
        break
    at += len(data)
else:
    print("all")
"""


def test_a_node_killed_in_mid_read_is_an_error_and_its_next_start_mounts_again(one):
    source = make_model(one.folder / "source", 202, SIZES)
    slow = Slow(0.3, free=20)
    with closing(FaultyOrigin(source, slow)) as origin:
        one.start_tracker()
        node, mount = start(one, "a", origin)
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(mount / BIG), str(source / BIG)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        wait_until(lambda: (s := one.node_status("a")) and s["held_chunks"] >= 12 and s, "chunks")
        kill_alone(node)
        said = reader.communicate(timeout=20)[0].split()
        assert said in [
            ["error", str(code)] for code in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
        ], said
        assert not os.path.ismount(mount), "the mount ends with its node"
        if said[1] == str(
            errno.EIO
        ):  # ENOTCONN is the kernel's word, when the mount is gone already
            assert "mount: EIO" in node.text
        slow.hurry()
        _, mount = start(one, "a", origin)
        assert hashes(mount) == hashes(source)


def errno_of_statvfs(path: Path) -> int:
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_mount_that_crashed_with_its_node_is_cleaned_by_the_next_start(one):
    source = make_model(one.folder / "source", 203, {"x.bin": MIB})
    with closing(FaultyOrigin(source)) as origin:
        one.start_tracker()
        node, mount = start(one, "a", origin)
        held = os.open(mount / "x.bin", os.O_RDONLY)
        try:
            assert os.pread(held, 10, 0) == (source / "x.bin").read_bytes()[:10]
            node.kill()  # the whole group, the mount too
            # who asks in the very moment of the crash is told ECONNABORTED
            wait_until(
                lambda: errno_of_statvfs(mount) == errno.ENOTCONN, "a mount without a server"
            )
            again, mount = start(one, "a", origin)
        finally:
            with contextlib.suppress(OSError):  # it belongs to the mount that is gone
                os.close(held)
        assert "removing the mount that a crash left" in again.text
        assert hashes(mount) == hashes(source)


def test_a_mount_that_dies_alone_is_mounted_again(one):
    source = make_model(one.folder / "source", 204, {"x.bin": MIB})
    with closing(FaultyOrigin(source)) as origin:
        one.start_tracker()
        node, mount = start(one, "a", origin)
        assert hashes(mount) == hashes(source)
        os.kill(mount_process(node), signal.SIGKILL)
        wait_until(lambda: node.text.count(f"the model is at {mount}") == 2, "the second mount")
        assert hashes(mount) == hashes(source)


NOBODY = 65534
# reads what is root's, as Python and this folder may be; to mount, fusermount3 has to do it
AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--",
)  # fmt: skip


@contextlib.contextmanager
def device_for_everyone() -> Iterator[None]:
    """As udev makes it; fusermount3 opens it with the rights of who calls."""
    mode = stat.S_IMODE(DEVICE.stat().st_mode)
    if os.geteuid() == 0:
        DEVICE.chmod(mode | 0o666)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            DEVICE.chmod(mode)


def test_whoever_is_not_root_mounts_by_fusermount3_and_reads(one):
    source = make_model(one.folder / "source", 207, SIZES)
    prefix = AS_NOBODY if os.geteuid() == 0 else ()
    if prefix:
        one.folder.chmod(0o755)
        os.chown(one.node_folder("a"), NOBODY, NOBODY)
    with device_for_everyone(), closing(FaultyOrigin(source)) as origin:
        one.start_tracker()
        options = ("--origin", origin.url, *CHUNKS)
        node, folder = start_mounted(one, "a", *options, prefix=prefix)
        for name in SIZES:
            shown = subprocess.run(
                [*prefix, "sha256sum", str(folder / name)],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert shown.stdout.split()[:1] == [hashes(source)[name]], shown.stderr
        owner = Path(f"/proc/{mount_process(node)}").stat().st_uid
        assert owner == (NOBODY if prefix else os.geteuid())
        node.send(signal.SIGTERM)
        assert node.wait() == 0, node.text
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()


def test_what_nobody_has_is_waited_for_and_read_when_it_comes(one):
    source = make_model(one.folder / "source", 205, {"x.bin": 4 * MIB})
    cut = Cut()
    with closing(FaultyOrigin(source, lambda r: cut(r) if r.start >= 2 * MIB else None)) as origin:
        cut.cut.set()
        one.start_tracker()
        _, mount = start(one, "a", origin)
        reading = subprocess.Popen(
            ["tail", "-c", "1000", str(mount / "x.bin")], stdout=subprocess.PIPE
        )
        wait_until(lambda: (s := one.node_status("a")) and s["held_chunks"] == 8, "the first half")
        assert reading.poll() is None, "it waits: a path may come"
        cut.cut.clear()
        assert reading.communicate(timeout=60)[0] == (source / "x.bin").read_bytes()[-1000:]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("sys.modules['pyfuse3'] = None", "pip install 'shoal[fuse]'"),
        ("prepare.DEVICE = Path('/nonexistent/fuse')", "--device /dev/fuse"),
        ("prepare.shutil.which = lambda name: None; prepare.os.geteuid = lambda: 1", "fusermount3"),
    ],
    ids=["no pyfuse3", "no device", "neither root nor fusermount3"],
)
def test_what_is_missing_is_said_in_one_line_before_anything_is_downloaded(folder, broken, words):
    code = (
        f"import sys\nfrom pathlib import Path\nfrom node.mount import prepare\n{broken}\n"
        "from node.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "join", "--tracker", "127.0.0.1:1", "--origin", "file:///x",
         "--mount", str(folder / "mnt")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(folder.iterdir()), "nothing was made"


def test_a_folder_that_holds_something_is_not_mounted_over(one):
    (one.node_folder("a") / "mnt").mkdir()
    (one.node_folder("a") / "mnt" / "mine").write_text("mine")
    one.start_tracker()
    node = one.start_node("a", "--origin", "file:///x", "--mount", str(mount_of(one, "a")))
    assert node.wait() == 2
    assert "is not empty" in node.text


def test_a_file_whose_seal_breaks_is_refused_even_where_it_was_read_before(one, oss):
    """The second reading breaks the seal; a program has read most of the file by then."""
    source = make_model(one.folder / "source" / "model", 206, {"bad": 3 * MIB, "good": MIB})
    held, last = threading.Event(), []

    def fault(get) -> None:
        if get.key.endswith("bad") and get.start + 256 * KIB >= 3 * MIB:
            last.append(get)
            if len(last) == 2:
                held.wait(60)

    server = oss(one.folder / "source", corrupt={"model/bad": MIB + 77}, fault=fault)
    keys = one.folder / "keys.json"
    keys.write_text(json.dumps({"AccessKeyId": ID, "AccessKeySecret": SECRET}))
    one.start_tracker()
    node, mount = start_mounted(
        one, "a", "--origin", "oss://models/model/", "--endpoint", server.endpoint, "--region",
        server.region, "--credentials", str(keys), *CHUNKS,
    )  # fmt: skip
    wait_until(lambda: len(last) == 2, "the second reading")
    wait_until(lambda: node.text.count(f"the model is at {mount}") == 2, "its mount")
    file = os.open(mount / "bad", os.O_RDONLY)
    try:
        assert os.pread(file, 4096, 0) == (source / "bad").read_bytes()[:4096]
        held.set()
        wait_until(lambda: (s := one.node_status("a")) and s["seal"] == "broken", "the seal breaks")

        def refused() -> bool:
            try:
                os.pread(file, 4096, 0)
            except OSError as error:
                return error.errno == errno.EIO
            return False

        wait_until(refused, "the page cache forgets it, and the node refuses it", 10)
        for _ in range(12):
            assert refused(), "from then on"
        assert "does not match the store's checksum" in node.text
        assert "is asked for again and again" in node.text
        assert (mount / "good").read_bytes() == (source / "good").read_bytes()
    finally:
        os.close(file)
