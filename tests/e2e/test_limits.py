"""A host's limits, from outside: bytes over time at a peer that asks for more than it may get."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster, children, hashes, make_model, wait_until
from support.windows import Seen, watch
from support.wire import Wire, hello

from node.limits import FIELDS
from node.status import SOCKET_NAME, ask_node, read_status
from p2p.dataframe import HEADER_BYTES, Header, Kind

MIB = 1024**2
MBIT = 125_000
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")


def limit(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`p2p-node limit`, to its end."""
    command = [sys.executable, "-m", "node", "limit", "--model-dir", str(folder / "model")]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=30, check=False
    )


class Leecher:
    """Peers that always have requests outstanding, each on a data connection of its own.

    Every byte is counted; frames are so few beside payload that they do not matter (0.02 %).
    """

    def __init__(self, address: str, manifest: bytes, count: int, chunks: int) -> None:
        self.chunks = chunks
        self.wires = [Wire(address).handshake(hello("data", manifest)) for _ in range(count)]
        self.came = [0] * count
        self.wanted = [0] * count
        self.asked = [0] * count
        for index, wire in enumerate(self.wires):
            wire.sock.setblocking(False)
            for _ in range(3):
                self._ask(index)

    def _ask(self, index: int) -> None:
        self.asked[index] += 1
        request = Header(Kind.REQUEST, self.asked[index], self.asked[index] % self.chunks, 0, MIB)
        assert self.wires[index].sock.send(request.encode()) == HEADER_BYTES
        self.wanted[index] += MIB

    def _take(self, index: int, data: bytes) -> None:
        self.came[index] += len(data)
        while self.came[index] > self.wanted[index] - 2 * MIB:
            self._ask(index)

    def watch(self, seconds: float) -> Seen:
        """Look on for so long."""
        socks = [wire.sock for wire in self.wires]
        return watch(socks, time.monotonic() + seconds, self._take)

    def close(self) -> None:
        """Hang up."""
        for wire in self.wires:
            wire.close()


def seeder(cluster: Cluster, *options: str) -> tuple[str, bytes]:
    """A complete node `a` of 4 chunks; its address and manifest id."""
    source = make_model(cluster.folder / "source", 81, {"x.bin": 4 * MIB})
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", source.as_uri(), *CHUNKS, *options)

    def complete() -> dict[str, Any] | None:
        assert node.popen.poll() is None, node.text
        status = cluster.node_status("a")
        return status if status and status["complete"] else None

    status = wait_until(complete, "a complete")
    return status["peers_at"][0], bytes.fromhex(status["manifest_id"])


def check(seen: Seen, rate: int, what: str) -> None:
    """No second carries 5 % more than the limit, and on average no 5 % less goes unused."""
    most, mean = seen.most() / rate, seen.mean / rate
    print(f"{what}: busiest second {most:.3f} of the limit, mean {mean:.3f}")
    assert most <= 1.05, what
    assert 0.95 <= mean <= 1.05, what


def test_an_upload_limit_holds_over_any_second_and_so_does_a_changed_one(cluster):
    where = seeder(cluster, "--max-upload", "20mbit")
    with closing(Leecher(*where, count=4, chunks=4)) as peers:
        check(peers.watch(4.0), 20 * MBIT, "20 Mbit/s from the start")
        assert min(peers.came) > 0.5 * max(peers.came), "they get bytes in turn"
        for rate, options in (
            (60, ("--max-upload", "60mbit")),
            (12, ("--max-upload", "1.5MB", "--max-download", "off")),
        ):
            changed = limit(cluster.folder / "a", *options)
            assert changed.returncode == 0, changed.stderr
            peers.watch(0.2)
            check(peers.watch(3.0), rate * MBIT, f"changed to {rate} Mbit/s")
        assert limit(cluster.folder / "a", "--max-upload", "off").returncode == 0
        peers.watch(0.2)
        assert peers.watch(0.5).mean > 2 * 60 * MBIT, "nothing is held back any more"


def test_a_restarted_worker_has_the_limit_too(folder):
    with closing(Cluster(folder, 1)) as one:
        where = seeder(one, "--max-upload", "80mbit")
        assert limit(one.folder / "a", "--max-upload", "16mbit").returncode == 0
        node = one.processes[-1]
        (worker,) = children(node.popen.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "it is restarted" in node.text, "the worker's death")
        with closing(Leecher(*where, count=2, chunks=4)) as peers:
            wait_until(lambda: peers.watch(0.1).mean, "the next worker's first bytes")
            check(peers.watch(3.0), 16 * MBIT, "after the worker's restart")


class Sampler:
    """A node's received bytes over time, from its status, while other things happen."""

    def __init__(self, cache_dir: Path) -> None:
        self.seen = Seen()
        self._cache_dir = cache_dir
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        before = 0
        while not self._ended.wait(0.005):
            status = read_status(self._cache_dir)
            total = status["origin_bytes"] + status["peer_bytes"]
            if total != before or status["complete"]:
                self.seen.add(total - before)
                before = total
            if status["complete"]:
                return

    def join(self) -> Seen:
        """Until the node is complete."""
        self._thread.join(60)
        self._ended.set()
        return self.seen


REPORTS_S = 0.06  # a worker tells its totals with each chunk: about every 26 ms here


def test_a_download_limit_holds_for_peers_and_origin_together(cluster, nginx):
    """`a` is quick and unlimited; `b` reads from the origin and from `a`, and keeps its leases."""
    source = make_model(cluster.folder / "source", 82, {"x.bin": 14 * MIB})
    origin = nginx(source, "limit_rate 500k;")
    cluster.start_tracker("--start-with", "2")
    options = ("--origin", origin.url, "--chunk-size", "64KiB", "--block-size", "64KiB")
    cluster.start_node("a", *options)
    cluster.start_node("b", *options, "--max-download", "20mbit")
    cache = cluster.folder / "b" / ".model.shoal"
    wait_until(lambda: (s := cluster.node_status("b")) and s["held_chunks"], "b's first chunk")
    seen = Sampler(cache).join()
    status = read_status(cache)
    print("b has from origin", status["origin_bytes"], "and from peers", status["peer_bytes"])
    assert status["complete"]
    assert status["origin_bytes"] > 0
    assert status["peer_bytes"] > 0
    assert hashes(cluster.folder / "b" / "model") == hashes(source)
    rate = 20 * MBIT
    most, steady = seen.most(1.0), seen.since(seen.looks[2][0])
    steady.looks = [look for look in steady.looks if look[0] < steady.looks[-1][0] - 0.5]
    print(f"busiest second {most / rate:.3f} of the limit, mean {steady.mean / rate:.3f}")
    assert most <= rate * (1.05 + REPORTS_S)
    assert 0.95 <= steady.mean / rate <= 1.05
    wait_until(lambda: (s := cluster.node_status("a")) and s["complete"], "a complete")
    total = sum(cluster.node_status(name)["origin_bytes"] for name in "ab")
    assert total <= 1.02 * 14 * MIB, "no lease was lost because its download was slow"


def test_a_download_limit_changes_while_it_runs(one, nginx):
    source = make_model(one.folder / "source", 83, {"x.bin": 24 * MIB})
    origin = nginx(source)
    one.start_tracker()
    one.start_node(
        "a", "--origin", origin.url, "--chunk-size", "64KiB", "--block-size", "64KiB",
        "--max-download", "8mbit",
    )  # fmt: skip
    cache = one.folder / "a" / ".model.shoal"
    wait_until(lambda: (s := one.node_status("a")) and s["held_chunks"], "the first chunk")
    sampler = Sampler(cache)
    wait_until(lambda: sampler.seen.looks and len(sampler.seen.looks) > 60, "seconds at 8 Mbit/s")
    before = Seen(list(sampler.seen.looks))
    assert limit(one.folder / "a", "--max-download", "40mbit").returncode == 0
    changed = time.monotonic()
    seen = sampler.join()
    after = seen.since(changed + 0.2)
    after.looks = [look for look in after.looks if look[0] < after.looks[-1][0] - 0.5]
    for name, part, rate in (("8", before, 8 * MBIT), ("40", after, 40 * MBIT)):
        most, mean = part.most() / rate, part.mean / rate
        print(f"{name} Mbit/s: busiest second {most:.3f} of the limit, mean {mean:.3f}")
        assert most <= 1.05 + REPORTS_S
        assert 0.9 <= mean <= 1.05


def test_a_mounted_origin_counts_and_what_is_adopted_in_place_does_not(one):
    source = make_model(one.folder / "source", 84, {"x.bin": 3 * MIB})
    one.start_tracker()
    options = ("--origin", source.as_uri(), *CHUNKS)
    begin = time.monotonic()
    one.start_node("a", *options, "--max-download", "12mbit")
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    assert time.monotonic() - begin >= 0.95 * 3 * MIB / (12 * MBIT)
    shutil.copytree(source, one.node_folder("b") / "model")
    begin = time.monotonic()
    other = one.start_node("b", *options, "--max-download", "1mbit", "--until-complete")
    assert other.wait() == 0, other.text
    assert one.report("b")["resumed_bytes"] == 3 * MIB
    assert time.monotonic() - begin < 0.8 * 3 * MIB / MBIT


# -- the command and its socket -------------------------------------------------------------------


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A node with HTTP that stands for all tests below; its folder and cache dir."""
    with closing(Cluster(tmp_path_factory.mktemp("standing"), 1)) as one:
        seeder(one, "--http", "127.0.0.1:0", "--max-upload", "2gbit")
        yield one.folder / "a", one.folder / "a" / ".model.shoal"


def test_the_command_shows_and_changes_what_is_in_force(standing):
    folder, cache = standing
    shown = limit(folder)
    assert shown.stdout.split() == ["max-upload", "2gbit", "max-download", "off"]
    shown = limit(folder, "--max-download", "12.5MB")
    assert shown.stdout.split() == ["max-upload", "2gbit", "max-download", "100mbit"]
    status = read_status(cache)
    assert (status["max_upload_bytes_s"], status["max_download_bytes_s"]) == (
        250_000_000,
        12_500_000,
    )
    with urllib.request.urlopen(status["http_at"][0] + "/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert 'p2p_limit_bytes_per_second{direction="in"} 1.25e+07' in metrics
    assert 'p2p_limit_bytes_per_second{direction="out"} 2.5e+08' in metrics
    shown = limit(folder, "--max-download", "off")
    assert shown.stdout.split() == ["max-upload", "2gbit", "max-download", "off"]


@pytest.mark.parametrize("text", ["fast", "20", "0.5mbit", "-1mbit", ""])
def test_a_wrong_rate_is_one_line_and_changes_nothing(standing, text):
    folder, _ = standing
    refused = limit(folder, "--max-upload", text)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert "mbit" in refused.stderr
    assert limit(folder).stdout.split()[1] == "2gbit"


def test_a_limit_of_no_node_is_an_error_that_names_the_cache_dir(tmp_path):
    gone = limit(tmp_path, "--max-upload", "20mbit")
    assert gone.returncode == 1
    assert str(tmp_path) in gone.stderr


def test_only_this_user_may_connect(standing):
    assert (standing[1] / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


def talk(cache: Path, data: bytes, *, half_close: bool) -> dict[str, object]:
    """Say something to a node's socket; its answer."""
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(4)
            connection.connect(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("data", "half_close"),
    [(b"", True), (b"\n", False), (b'{"command": "status"}\n', False),
     (b'{"command": "status"}', True)],
)  # fmt: skip
def test_whoever_says_nothing_or_status_gets_the_status(standing, data, half_close):
    assert talk(standing[1], data, half_close=half_close)["complete"] is True


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello\n", "JSON"),
        (b"[1]\n", "object"),
        (b"\xff\xfe\n", "JSON"),
        (b"[" * 4000 + b"\n", "JSON"),
        (b" " * 5000 + b"\n", "at most"),
        (b'{"command": "stop"}\n', "unknown command 'stop'"),
        (b'{"command": ["limit"]}\n', "unknown command"),
        (b'{"command": "limit", "upload": 5}\n', "unknown field 'upload'"),
        (b'{"command": "limit", "upload_bytes_s": "20mbit"}\n', "whole number"),
        (b'{"command": "limit", "upload_bytes_s": true}\n', "whole number"),
        (b'{"command": "limit", "upload_bytes_s": 5}\n', "1mbit"),
    ],
)
def test_what_is_not_understood_is_answered_by_name_and_changes_nothing(standing, data, reason):
    before = ask_node(standing[1], "limit")
    assert reason in str(talk(standing[1], data, half_close=False)["error"])
    assert ask_node(standing[1], "limit") == before
    assert set(before) == set(FIELDS)
