"""llama.cpp itself on a folder that is still arriving: `make test-llama` (it brings what it needs).

The model is two splits of random weights with a fixed seed; what llama.cpp makes of them at
temperature 0 must be what it makes of the local files.
"""

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from support import tiny_gguf
from support.cluster import hashes, wait_until
from support.faulty import FaultyOrigin
from support.mounts import start_mounted
from support.slow import Cut, Slow

PACKAGES = os.path.abspath(os.environ["LLAMA_PACKAGES"])
SCRIPT = Path(tiny_gguf.__file__).with_name("generate.mjs")
FIRST = "tiny-00001-of-00002.gguf"
CHUNKS = ("--chunk-size", "256KiB", "--block-size", "64KiB")
WAYS = ["mmap", "read", "direct"]
COUNT = 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    folder = tmp_path_factory.mktemp("gguf")
    assert tiny_gguf.write(folder, seed=7)[0].name == FIRST
    return folder


@pytest.fixture(scope="module")
def wanted(source: Path) -> list[int]:
    """What llama.cpp generates from local files."""
    tokens: list[int] = finish(begin(source, "mmap"))["tokens"]
    assert len(tokens) == COUNT
    assert len(set(tokens)) > 3, "tokens that say something about the weights"
    return tokens


def begin(folder: Path, way: str) -> subprocess.Popen[str]:
    """llama.cpp, started."""
    return subprocess.Popen(
        ["node", str(SCRIPT), PACKAGES, str(folder / FIRST), way, str(COUNT)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict:
    """What it says at its end."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("way", WAYS)
def test_llama_starts_while_the_model_arrives_and_says_the_same(one, source, wanted, way):
    slow = Slow(0.25, free=4)
    with closing(FaultyOrigin(source, slow)) as origin:
        one.start_tracker()
        node, mount = start_mounted(one, "a", "--origin", origin.url, *CHUNKS)
        process = begin(mount, way)
        status = wait_until(lambda: one.node_status("a"), "a status")
        assert not status["complete"]
        assert process.poll() is None
        said = finish(process)
        assert said["tokens"] == wanted
        assert said["mmap"] == (way == "mmap")
        print(f"began at {status['held_bytes']} of {status['bytes']} bytes: {said}")
        assert hashes(mount) == hashes(source)
        assert "EIO" not in node.text


def test_llama_reads_from_peers_when_the_origin_is_cut_off(one, source, wanted):
    cut = Cut()
    with closing(FaultyOrigin(source, cut)) as origin:
        one.start_tracker()
        one.start_node("seeder", "--origin", origin.url, *CHUNKS)
        wait_until(lambda: (s := one.node_status("seeder")) and s["complete"], "the swarm has all")
        cut.cut.set()
        before = len(origin.requests)
        _, mount = start_mounted(one, "a", "--origin", origin.url, "--max-download", "4MB", *CHUNKS)
        processes = [begin(mount, way) for way in WAYS]
        assert not wait_until(lambda: one.node_status("a"), "a status")["complete"]
        for process in processes:
            assert finish(process)["tokens"] == wanted
        assert one.node_status("a")["origin_bytes"] == 0
        assert len(origin.requests) == before
