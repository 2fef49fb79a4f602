"""The commands beside `serve` and `join`: status, verify; trackers in a list; a reboot."""

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import closing

from support.cluster import Cluster, hashes, make_model, wait_until
from support.faulty import FaultyOrigin

from node.journal import pack_record, parse

MIB = 1024**2
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=60, check=False
    )


def flip(path, at: int) -> None:
    """Change one bit of a file that may be read-only, and leave its times as they were."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_status_of_a_node_and_of_a_tracker_say_what_is_so(one):
    source = make_model(one.folder / "source", 61, {"x.bin": 3 * MIB, "y": 1})
    one.start_tracker()
    node = one.start_node("a", "--origin", source.as_uri(), "--http", "127.0.0.1:0", *CHUNKS)
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    cache = one.folder / "a" / ".model.shoal"
    for where in (["--cache-dir", str(cache)], ["--model-dir", str(one.folder / "a" / "model")]):
        shown = run("node", "status", *where, "--json")
        assert shown.returncode == 0, shown.stderr
        status = json.loads(shown.stdout)
        assert (status["held_bytes"], status["chunks"]) == (3 * MIB + 1, 4)
        assert status["tracker_connected"]
        assert status["readers"] == 0
        people = run("node", "status", *where)
        words = dict(line.split(maxsplit=1) for line in people.stdout.splitlines())
        assert (words["held_bytes"], words["complete"]) == ("3.0 MiB", "yes")
        assert words["cache_limit_bytes"] == "-"
    table = run("tracker", "status", "--http", one.http_address)
    assert table.returncode == 0, table.stderr
    for word in ("source", "100.0%", "1.000"):
        assert word in table.stdout
    assert json.loads(run("tracker", "status", "--http", one.http_address, "--json").stdout)
    node.kill()
    gone = run("node", "status", "--cache-dir", str(cache))
    assert gone.returncode == 1
    assert str(cache) in gone.stderr
    assert len(gone.stderr.splitlines()) == 1


def test_people_and_probes_get_health_readiness_and_metrics(one):
    source = make_model(one.folder / "source", 62, {"x.bin": 2 * MIB})
    one.start_tracker()
    one.start_node("a", "--origin", source.as_uri(), "--http", "127.0.0.1:0", *CHUNKS)
    status = wait_until(lambda: (s := one.node_status("a")) and s["complete"] and s, "a complete")
    at = status["http_at"][0].removeprefix("http://").rstrip("/")

    def get(address: str, path: str) -> str:
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=5) as answer:
            return answer.read().decode()

    for address in (at, one.http_address):
        assert get(address, "healthz")
        assert get(address, "readyz")
    assert json.loads(get(at, "status"))["complete"]
    metrics = get(at, "metrics")
    assert 'p2p_chunk_bytes_total{direction="in",source="origin"} 2.097152e+06' in metrics
    assert 'p2p_nodes{model="file://' in get(one.http_address, "metrics")


def test_verify_names_what_is_damaged_and_what_is_gone(one):
    source = make_model(one.folder / "source", 63, {"x.bin": 3 * MIB, "d/y": 9, "z": 5})
    one.start_tracker()
    node = one.start_node("a", "--origin", source.as_uri(), "--until-complete", *CHUNKS)
    assert node.wait() == 0, node.text
    model = one.folder / "a" / "model"
    good = run("node", "verify", str(model))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "5 chunks good" in good.stdout
    flip(model / "x.bin", MIB + 5)
    (model / "d" / "y").unlink()
    bad = run("node", "verify", str(model))
    assert bad.returncode == 1
    lines = bad.stdout.splitlines()
    assert f"x.bin: damaged in bytes {MIB} to {2 * MIB}" in lines[0] + lines[1]
    assert "d/y: No such file" in lines[0] + lines[1]
    nothing = run("node", "verify", str(one.folder))
    assert nothing.returncode == 1
    assert "no pins" in nothing.stderr


def test_after_a_reboot_nothing_is_complete_until_it_was_hashed_again(cluster, nginx):
    source = make_model(cluster.folder / "source", 64, {"x.bin": 6 * MIB})
    origin = nginx(source)
    cluster.start_tracker()
    options = ("--origin", origin.url, *CHUNKS)
    node = cluster.start_node("a", *options)
    wait_until(lambda: (s := cluster.node_status("a")) and s["complete"], "a complete")
    node.kill()
    revision = next((cluster.folder / "a" / ".model.shoal").glob("*/journal")).parent
    journal = revision / "journal"
    contents = parse(journal.read_bytes())
    assert contents.stamps, "the file was complete: this boot would trust it"
    journal.write_bytes(journal.read_bytes() + pack_record(["boot", "the boot before this one"]))
    flip(revision / "files" / "x.bin", 2 * MIB + 1)
    again = cluster.start_node("a", *options, "--until-complete", "--linger", "0")
    assert again.wait() == 0, again.text
    assert hashes(cluster.folder / "a" / "model") == hashes(source)
    report = cluster.report("a")
    assert report["corrupt_chunks"] == 1
    assert report["resumed_bytes"] == 5 * MIB
    assert report["origin_bytes"] <= MIB


def test_damage_that_was_found_is_remembered_by_a_node_that_is_killed_before_it_heals(one):
    source = make_model(one.folder / "source", 66, {"x.bin": 3 * MIB})
    with closing(FaultyOrigin(source)) as origin:
        one.start_tracker()
        options = ("--origin", origin.url, *CHUNKS)
        node = one.start_node("a", *options)
        wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
        origin.fault = lambda _: "503"
        flip(next((one.folder / "a" / ".model.shoal").glob("*/files/x.bin")), MIB + 1)
        other = one.start_node("b", *options)
        wait_until(lambda: (s := one.node_status("a")) and s["corrupt_chunks"] == 1, "a's count")
        other.kill()
        node.kill()
        again = one.start_node("a", *options, "--until-complete", "--linger", "0")
        status = wait_until(
            lambda: (s := one.node_status("a")) and s["chunks"] == 3 and s, "a is back"
        )
        assert status["held_chunks"] == 2, "the times of the file are no reason to trust it"
        origin.fault = lambda _: None
        assert again.wait() == 0, again.text
    assert hashes(one.folder / "a" / "model") == hashes(source)


def test_the_next_tracker_of_a_list_is_taken_and_the_first_again_when_it_is_back(one, nginx):
    source = make_model(one.folder / "source", 65, {"x.bin": 32 * MIB})
    origin = nginx(source, "limit_rate 600k;")
    second = Cluster(one.folder / "second", 1)
    second.folder.mkdir()
    try:
        first = one.start_tracker()
        second.start_tracker()
        lists = ("--tracker", f"{one.tracker_address},{second.tracker_address}")
        options = ("--origin", origin.url, *lists, *CHUNKS)
        nodes = {name: one.start_node(name, *options) for name in ("a", "b")}
        wait_until(lambda: (s := one.node_status("b")) and s["held_chunks"] >= 4, "some chunks")
        first.kill()
        wait_until(
            lambda: (m := second.status()["models"]) and len(m[0]["nodes"]) == 2,
            "both nodes at the second tracker",
        )
        one.start_tracker()
        wait_until(
            lambda: (m := one.status()["models"]) and len(m[0]["nodes"]) == 2,
            "both nodes back at the first",
        )
        for name in nodes:
            wait_until(
                lambda name=name: (s := one.node_status(name)) and s["complete"], f"{name} complete"
            )
            assert hashes(one.folder / name / "model") == hashes(source)
        fetched = sum(one.node_status(name)["origin_bytes"] for name in nodes)
        assert fetched <= 32 * MIB + 6 * MIB, "only what was in flight was fetched twice"
    finally:
        second.close()


def test_nodes_that_listen_on_a_wildcard_find_each_other(one):
    """As in containers, whose addresses nobody knows beforehand."""
    source = make_model(one.folder / "source", 67, {"x.bin": 5 * MIB})
    token = one.folder / "token"
    token.write_text("secret")
    wide = ("--token-file", str(token), "--listen", "0.0.0.0:0", *CHUNKS)
    one.start_tracker("--token-file", str(token), "--start-with", "2")
    for name in ("a", "b"):
        node = one.start_node(name, "--origin", source.as_uri(), *wide, "--until-complete")
    assert node.wait() == 0, node.text
    assert one.report("b")["peer_bytes"] > 0
