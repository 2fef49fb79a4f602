"""Full filesystems: nothing is lost, the node says so, and it goes on when there is space."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster import hashes, make_model, sums, wait_until

MIB = 1024**2
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")


@pytest.fixture
def small_disk() -> Iterator[Callable[..., Path]]:
    """Mount a tmpfs of `mib` MiB at a folder: `small_disk(folder, mib)`; again to resize it."""
    if os.geteuid():
        pytest.skip("mounting a small filesystem needs root")
    mounted: list[Path] = []

    def mount(folder: Path, mib: int) -> Path:
        folder.mkdir(exist_ok=True)
        options = f"size={mib}m" + (",remount" if folder in mounted else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Write until there is no space."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    assert shutil.disk_usage(path.parent).free == 0


def test_a_disk_that_fills_in_mid_load_loses_nothing_and_goes_on(cluster, nginx, small_disk):
    sizes = {"x.bin": 24 * MIB, "y.bin": 8 * MIB + 5}
    source = make_model(cluster.folder / "source", 41, sizes)
    origin = nginx(source)
    small_disk(cluster.folder / "a", 16)
    cluster.start_tracker("--start-with", "2")
    options = ("--origin", origin.url, "--until-complete", *CHUNKS)
    full = cluster.start_node("a", *options)
    other = cluster.start_node("b", *options, "--linger", "0")
    assert other.wait() == 0, "a full disk elsewhere is no reason to fail\n" + other.text
    assert hashes(cluster.folder / "b" / "model") == hashes(source)
    status = wait_until(
        lambda: (s := cluster.node_status("a")) and s["waiting_for_space"] and s, "a is full"
    )
    assert 8 <= status["held_chunks"] <= 16
    assert full.popen.poll() is None
    assert "no space" in full.text
    assert "lacks" in full.text, "said at the start, too"
    # Killed while it is full, it still knows what it has.
    full.kill()
    again = cluster.start_node("a", *options)
    wait_until(lambda: (s := cluster.node_status("a")) and s["waiting_for_space"], "a full again")
    small_disk(cluster.folder / "a", 64)
    assert again.wait() == 0, again.text
    assert hashes(cluster.folder / "a" / "model") == hashes(source)
    report = cluster.report("a")
    assert report["resumed_bytes"] >= status["held_chunks"] * MIB * 0.9
    assert report["origin_bytes"] + report["peer_bytes"] <= (33 - status["held_chunks"] + 1) * MIB
    assert "Traceback" not in full.text + again.text


def test_a_disk_that_is_full_before_waits_for_space(cluster, nginx, small_disk):
    source = make_model(cluster.folder / "source", 42, {"x.bin": 6 * MIB, "y.bin": 9})
    origin = nginx(source)
    folder = small_disk(cluster.folder / "a", 16)
    (folder / "ballast").write_bytes(bytes(16 * MIB - 400 * 1024))
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    wait_until(lambda: (s := cluster.node_status("a")) and s["waiting_for_space"], "a is full")
    (folder / "ballast").unlink()
    assert node.wait() == 0, node.text
    assert hashes(folder / "model") == hashes(source)
    assert sums(cluster, ["a"], "origin_bytes") == 6 * MIB + 9


def test_a_disk_without_room_for_the_first_file_of_ours_is_refused_in_one_line(one, small_disk):
    source = make_model(one.folder / "source", 43, {"x.bin": MIB})
    folder = small_disk(one.folder / "disk", 1)
    fill(folder / "ballast")
    one.start_tracker()
    node = one.start_node("a", "--origin", source.as_uri(), "--model-dir", str(folder / "model"))
    assert node.wait(30) == 1
    last = node.text.splitlines()[-1]
    assert "No space left" in last
    assert str(folder) in last
    assert "Traceback" not in node.text


def test_a_model_dir_on_another_disk_that_is_full_is_waited_for(one, small_disk):
    source = make_model(one.folder / "source", 44, {"x.bin": 3 * MIB})
    disk = small_disk(one.folder / "disk", 2)
    one.start_tracker()
    node = one.start_node(
        "a", "--origin", source.as_uri(), "--model-dir", str(disk / "model"),
        "--cache-dir", str(one.folder / "cache"), "--until-complete", *CHUNKS,
    )  # fmt: skip
    wait_until(lambda: "no space for a copy" in node.text, "the warning")
    assert not list((disk / "model").iterdir()), "no part of a file"
    small_disk(disk, 8)
    assert node.wait() == 0, node.text
    assert hashes(disk / "model") == hashes(source)
