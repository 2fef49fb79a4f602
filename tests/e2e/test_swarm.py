"""What a user sees: real trackers, real nodes, a real nginx; every byte compared.

Repeat one with `pytest tests/e2e/test_swarm.py -k NAME`.
"""

import os
import signal
import time

from support.cluster import Cluster, children, hashes, make_model, sums, wait_until
from support.wire import Wire, hello

from p2p import messages

KIB, MIB = 1024, 1024**2

UNEVEN = {
    "config.json": 700,
    "empty.txt": 0,
    "one": 1,
    "exactly-one-chunk.bin": MIB,
    "weights/model-00001-of-00002.gguf": 13 * MIB + 17,
    "weights/model-00002-of-00002.gguf": 9 * MIB + 4095,
    "tokenizer/deep er/täxt %41.json": 3 * KIB,
}
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")
# nginx sends the first second's worth of `limit_rate` at once: with less than a chunk a second it
# throttles, to about one chunk a second on each connection.


def finish(cluster: Cluster, processes: dict[str, object], source: dict[str, str]) -> None:
    """Every node ends with 0 and holds the source's bytes."""
    for name, process in processes.items():
        assert process.wait() == 0, process.text
        assert hashes(cluster.folder / name / "model") == source, name


def test_three_nodes_get_every_file_and_the_origin_gives_each_byte_once(cluster, nginx):
    source = make_model(cluster.folder / "source", 1, UNEVEN)
    origin = nginx(source)
    cluster.start_tracker("--start-with", "3")
    names = ["a", "b", "c"]
    processes = {
        name: cluster.start_node(name, "--origin", origin.url, "--until-complete", *CHUNKS)
        for name in names
    }
    finish(cluster, processes, hashes(source))
    total = sum(UNEVEN.values())
    assert sums(cluster, names, "origin_bytes") == total
    assert origin.body_bytes() <= total * 1.01
    assert sums(cluster, names, "peer_bytes") >= total * 2
    for name in names:
        report = cluster.report(name)
        assert report["complete"]
        assert report["started_at"] >= report["joined_at"]
        assert report["completed_at"] >= report["started_at"]


def test_a_file_origin_needs_no_server_and_two_models_share_a_tracker(cluster):
    first = make_model(cluster.folder / "first", 2, {"x.bin": 3 * MIB + 1, "y/z": 10})
    second = make_model(cluster.folder / "second", 3, {"x.bin": 2 * MIB})
    cluster.start_tracker()
    processes = {}
    for name, source in (("a", first), ("b", first), ("c", second), ("d", second)):
        processes[name] = cluster.start_node(
            name, "--origin", source.as_uri(), "--until-complete", *CHUNKS
        )
    for name, source in (("a", first), ("b", first), ("c", second), ("d", second)):
        assert processes[name].wait() == 0, processes[name].text
        assert hashes(cluster.folder / name / "model") == hashes(source)
    assert len(cluster.status()["models"]) == 2


def test_a_killed_node_resumes_and_fetches_only_what_was_missing(cluster, nginx):
    sizes = {"big.bin": 16 * MIB + 5}
    source = make_model(cluster.folder / "source", 4, sizes)
    origin = nginx(source, "limit_rate 700k;")
    cluster.start_tracker()
    options = ("--origin", origin.url, "--until-complete", *CHUNKS)
    node = cluster.start_node("a", *options)
    status = wait_until(
        lambda: (s := cluster.node_status("a")) and s["held_chunks"] >= 8 and s,
        "half of the chunks",
    )
    node.kill()
    again = cluster.start_node("a", *options)
    assert again.wait() == 0, again.text
    report = cluster.report("a")
    assert report["resumed_bytes"] >= 0.9 * status["held_bytes"]
    assert report["origin_bytes"] <= sizes["big.bin"] - report["resumed_bytes"]
    assert hashes(cluster.folder / "a" / "model") == hashes(source)


def test_a_tracker_killed_and_restarted_is_rebuilt_and_nothing_is_fetched_twice(cluster, nginx):
    sizes = {"big.bin": 48 * MIB}
    source = make_model(cluster.folder / "source", 5, sizes)
    origin = nginx(source, "limit_rate 600k;")
    tracker = cluster.start_tracker("--start-with", "3")
    names = ["a", "b", "c"]
    processes = {
        name: cluster.start_node(name, "--origin", origin.url, "--until-complete", *CHUNKS)
        for name in names
    }
    wait_until(
        lambda: (s := cluster.node_status("a")) and s["held_chunks"] >= 12,
        "a quarter of the chunks",
    )
    tracker.kill()
    time.sleep(5)  # the words: restarted 5 s later; the swarm goes on meanwhile
    cluster.start_tracker("--start-with", "3")
    finish(cluster, processes, hashes(source))
    assert sums(cluster, names, "origin_bytes") <= sizes["big.bin"] + 6 * MIB
    listings = [line for line in origin.log.read_text().splitlines() if line.endswith(" /")]
    assert len(listings) == 1, "the running nodes vouch for the manifest"


def test_a_lease_lives_as_long_as_its_bytes_come(cluster, nginx):
    source = make_model(cluster.folder / "source", 14, {"x.bin": MIB})
    origin = nginx(source, "limit_rate 220k;")  # the chunk takes longer than a lease does
    cluster.start_tracker("--start-with", "2")
    names = ["a", "b"]
    processes = {
        name: cluster.start_node(name, "--origin", origin.url, "--until-complete", *CHUNKS)
        for name in names
    }
    finish(cluster, processes, hashes(source))
    assert sums(cluster, names, "origin_bytes") == sums(cluster, names, "peer_bytes") == MIB
    assert origin.body_bytes() < MIB + 10_000, "and the listing"


def test_a_restarted_tracker_hears_the_manifest_and_all_pins_from_a_running_node(one):
    source = make_model(one.folder / "source", 13, {"big.bin": 3 * MIB})
    tracker = one.start_tracker()
    one.start_node("a", "--origin", source.as_uri(), *CHUNKS)
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    tracker.kill()
    one.start_tracker()
    wait_until(lambda: (m := one.status()["models"]) and m[0]["complete_nodes"], "a is back")
    wire = Wire(one.tracker_address).handshake(hello("node"))
    wire.send(messages.Join("", source.as_uri(), ["127.0.0.1:1"]))
    joined = wire.receive()
    assert isinstance(joined, messages.Joined), "and not the question to list"
    assert joined.confirmed
    wire.send(messages.Announce(b"\0", [], [], 0, 0, 0, 0))

    def pins() -> bool:
        wire.send(messages.PinsQuery([0, 1, 2]))
        while not isinstance(answer := wire.receive(), messages.PinsKnown):
            assert answer is not None, "the session ended"
        return answer.chunks == [0, 1, 2]

    wait_until(pins, "all pins")
    wire.close()


def test_everything_killed_and_started_again_fetches_nothing_that_was_complete(cluster, nginx):
    source = make_model(cluster.folder / "source", 6, UNEVEN)
    origin = nginx(source)
    tracker = cluster.start_tracker("--start-with", "2")
    names = ["a", "b"]
    options = ("--origin", origin.url, *CHUNKS)
    nodes = [cluster.start_node(name, *options) for name in names]
    for name in names:
        wait_until(
            lambda name=name: (s := cluster.node_status(name)) and s["complete"], f"{name} complete"
        )
    for process in [tracker, *nodes]:
        process.kill()
    before = origin.body_bytes()
    cluster.start_tracker("--start-with", "2")
    again = {name: cluster.start_node(name, *options, "--until-complete") for name in names}
    finish(cluster, again, hashes(source))
    total = sum(UNEVEN.values())
    for name in names:
        report = cluster.report(name)
        assert report["origin_bytes"] == report["peer_bytes"] == 0
        assert report["resumed_bytes"] == total
    assert origin.body_bytes() - before < 10_000, "only the listing was asked again"


def test_a_stopped_node_that_holds_leases_does_not_hold_up_the_others(cluster, nginx):
    sizes = {"big.bin": 24 * MIB}
    source = make_model(cluster.folder / "source", 7, sizes)
    origin = nginx(source, "limit_rate 600k;")
    cluster.start_tracker("--start-with", "3")
    names = ["a", "b", "c"]
    processes = {
        name: cluster.start_node(
            name, "--origin", origin.url, "--until-complete", "--linger", "0", *CHUNKS
        )
        for name in names
    }
    status = wait_until(
        lambda: (s := cluster.node_status("c")) and s["held_chunks"] >= 6 and s, "some chunks"
    )
    processes["c"].send(signal.SIGSTOP)

    def leases_of_c() -> list[int]:
        nodes = cluster.status()["models"][0]["nodes"]
        return [node["leases"] for node in nodes if node["node"] == status["node"]]

    wait_until(lambda: leases_of_c() == [0], "c's leases expired, before c itself does")
    for name in ("a", "b"):
        assert processes[name].wait(40) == 0, processes[name].text
        assert hashes(cluster.folder / name / "model") == hashes(source)
    processes["c"].send(signal.SIGCONT)
    assert processes["c"].wait(60) == 0, processes["c"].text
    assert hashes(cluster.folder / "c" / "model") == hashes(source)


def test_a_flipped_byte_never_spreads_and_the_damaged_node_heals(cluster, nginx):
    source = make_model(cluster.folder / "source", 8, {"big.bin": 6 * MIB})
    origin = nginx(source)
    cluster.start_tracker()
    options = ("--origin", origin.url, *CHUNKS)
    cluster.start_node("a", *options)
    wait_until(lambda: (s := cluster.node_status("a")) and s["complete"], "a complete")
    cached = next((cluster.folder / "a" / ".model.shoal").glob("*/files/big.bin"))
    with cached.open("r+b") as stream:
        stream.seek(2 * MIB + 7)
        byte = stream.read(1)
        stream.seek(2 * MIB + 7)
        stream.write(bytes([byte[0] ^ 1]))
    other = cluster.start_node("b", *options, "--until-complete", "--linger", "0")
    assert other.wait() == 0, other.text
    assert hashes(cluster.folder / "b" / "model") == hashes(source)
    status = wait_until(
        lambda: (s := cluster.node_status("a")) and s["corrupt_chunks"] == 1 and s, "a's count"
    )

    def reported() -> list[int]:
        nodes = cluster.status()["models"][0]["nodes"]
        return [node["reported"] for node in nodes if node["node"] == status["node"]]

    wait_until(lambda: reported() == [1], "the tracker hears whose bytes were refused")
    wait_until(
        lambda: hashes(cluster.folder / "a" / "model") == hashes(source), "a healed", deadline_s=20
    )


def test_ctrl_c_ends_within_three_seconds_and_leaves_a_resumable_cache(cluster, nginx):
    source = make_model(cluster.folder / "source", 9, {"big.bin": 16 * MIB})
    origin = nginx(source, "limit_rate 500k;")
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    wait_until(lambda: (s := cluster.node_status("a")) and s["held_chunks"] >= 3, "3 chunks")
    node.send(signal.SIGINT)
    assert node.wait(6) == 130, node.text
    assert not cluster.report("a")["complete"]
    assert "Traceback" not in node.text
    assert not (cluster.folder / "a" / "model" / "big.bin").exists()


def test_a_worker_that_dies_is_restarted_and_loses_only_its_transfers(cluster, nginx):
    if cluster.workers == 0:
        cluster.workers = 1
    source = make_model(cluster.folder / "source", 10, {"big.bin": 12 * MIB})
    origin = nginx(source, "limit_rate 700k;")
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    wait_until(lambda: (s := cluster.node_status("a")) and s["held_chunks"] >= 4, "4 chunks")
    os.kill(children(node.popen.pid)[0], signal.SIGKILL)
    assert node.wait() == 0, node.text
    assert "died: its transfers are lost, it is restarted" in node.text
    assert hashes(cluster.folder / "a" / "model") == hashes(source)
    fetched_twice = origin.body_bytes() - 12 * MIB
    assert fetched_twice <= 4 * MIB, "at most the transfers under way"
