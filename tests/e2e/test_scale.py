"""The larger claims: 8 nodes and a gigabyte, a late joiner, a terabyte that is not there."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
from support.cluster import children, hashes, make_model, wait_until

MIB, GIB, TIB = 1024**2, 1024**3, 1024**4

GIGABYTE = {
    "a/model-00001.bin": 400 * MIB + 12345,
    "a/model-00002.bin": 300 * MIB,
    "b/model-00003.bin": 323 * MIB - 1,
    "config.json": 700,
    "empty": 0,
    "one": 1,
    "chunk.bin": 4 * MIB,
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_nodes_share_a_gigabyte_and_none_carries_the_origin(one, nginx):
    """One process a node: the scheduler gives few cores to sixteen unevenly, and who is quicker
    reads more of an origin that nothing slows down."""
    source = make_model(one.folder / "source", 21, GIGABYTE)
    expected = hashes(source)
    origin = nginx(source)
    one.start_tracker("--start-with", "8")
    names = [f"n{i}" for i in range(8)]
    processes = {
        name: one.start_node(
            name, "--origin", origin.url, "--until-complete", "--linger", "60",
            "--chunk-size", "4MiB", "--workers", "0",
        )
        for name in names
    }  # fmt: skip
    for process in processes.values():
        assert process.wait(200) == 0, process.text
    for name in names:
        assert hashes(one.folder / name / "model") == expected
    total = sum(GIGABYTE.values())
    shares = [one.report(name)["origin_bytes"] for name in names]
    print("origin bytes by node", shares)
    assert sum(shares) <= 1.01 * total
    assert origin.body_bytes() <= 1.01 * total
    assert max(shares) <= 0.25 * total


def test_a_node_added_at_the_end_completes_from_its_peers(one, nginx):
    source = make_model(one.folder / "source", 22, {"x.bin": 20 * MIB})
    origin = nginx(source, "limit_rate 700k;")
    one.start_tracker("--start-with", "2")
    options = ("--origin", origin.url, "--until-complete", "--chunk-size", "1MiB")
    processes = [one.start_node(name, *options) for name in ("a", "b")]
    wait_until(lambda: (s := one.node_status("a")) and s["held_chunks"] >= 18, "90 %")
    processes.append(one.start_node("late", *options))
    for process in processes:
        assert process.wait() == 0, process.text
    assert hashes(one.folder / "late" / "model") == hashes(source)
    total = sum(one.report(name)["origin_bytes"] for name in ("a", "b", "late"))
    assert total <= 1.02 * 20 * MIB


def test_a_terabyte_is_joined_within_seconds_and_in_little_memory(one):
    source = one.folder / "source"
    source.mkdir()
    with (source / "sparse.gguf").open("wb") as stream:
        try:
            stream.truncate(TIB)
        except OSError as error:
            pytest.skip(f"this filesystem has no sparse file of 1 TiB: {error.strerror}")
    one.start_tracker()
    begin = time.monotonic()
    node = one.start_node("a", "--origin", source.as_uri(), "--http", "127.0.0.1:0")
    status = wait_until(
        lambda: (s := one.node_status("a")) and s["chunks"] == 65_536 and s, "the manifest"
    )
    print("ready after", time.monotonic() - begin)
    assert status["bytes"] == TIB
    pages = int(Path(f"/proc/{node.popen.pid}/statm").read_text().split()[1])
    assert pages * resource.getpagesize() < 200 * 10**6
    node.send(signal.SIGTERM)
    assert node.wait(5) == 0, node.text


def test_an_idle_node_uses_under_a_hundredth_of_a_core(one):
    source = make_model(one.folder / "source", 23, {"x": MIB})
    one.start_tracker()
    nodes = [one.start_node(name, "--origin", source.as_uri()) for name in ("a", "b")]
    for name in ("a", "b"):
        wait_until(
            lambda name=name: (s := one.node_status(name)) and s["complete"] and s["peers"] == 1,
            f"{name} complete",
        )

    def cpu_s() -> float:
        total = 0.0
        for process in nodes:
            pids = [process.popen.pid, *children(process.popen.pid)]
            assert len(pids) == 2
            for pid in pids:
                words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return total

    before, begin = cpu_s(), time.monotonic()
    time.sleep(6)  # CPU time is counted over this window, however long it really lasts
    share = (cpu_s() - before) / (time.monotonic() - begin) / len(nodes)
    print(f"share of a core, control and worker: {share:.4f}")
    assert share < 0.01
