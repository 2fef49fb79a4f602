"""What others do in the same lab: libtorrent with a web seed, and aria2c alone at each node."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from simulations.case import Case
from simulations.netlab import (
    MODEL,
    ORIGIN_IP,
    PATIENCE,
    READY_S,
    Netlab,
    sha256,
    wait_for,
)
from simulations.netns import NetError
from simulations.result import origin_figures

# One process a node. It says "ready", waits for a line, and says when it has everything; then it
# seeds until it is killed. `tuned`: every knob that helps a swarm on one fast network.
PEER = """
import json, sys, time
import libtorrent as lt
torrent, folder, ip, peers, tuned = sys.argv[1:5] + [sys.argv[5] == "tuned"]
settings = {
    "listen_interfaces": ip + ":6881", "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True,
    "alert_mask": 0,
}
if tuned:
    settings.update({
        "mixed_mode_algorithm": 0, "enable_incoming_utp": False, "enable_outgoing_utp": False,
        "unchoke_slots_limit": -1, "choking_algorithm": 0, "request_queue_time": 1,
        "max_out_request_queue": 64, "whole_pieces_threshold": 1, "connection_speed": 500,
        "torrent_connect_boost": 100, "smooth_connects": False, "strict_end_game_mode": True,
        "suggest_mode": 1, "send_buffer_watermark": 1 << 20, "aio_threads": 1,
        "urlseed_pipeline_size": 2, "urlseed_max_request_bytes": 1 << 18, "piece_timeout": 5,
        "close_redundant_connections": False, "max_web_seed_connections": 1,
    })
session = lt.session(settings)
info = lt.torrent_info(torrent)
params = lt.add_torrent_params()
params.ti, params.save_path = info, folder
params.flags |= lt.torrent_flags.paused
params.flags &= ~lt.torrent_flags.auto_managed
handle = session.add_torrent(params)
print("ready", flush=True)
begin = float(sys.stdin.readline())
time.sleep(max(0.0, begin - time.time()))
handle.resume()
for peer in peers.split(","):
    handle.connect_peer((peer, 6881))
while not handle.status().is_seeding:
    time.sleep(0.02)
print(json.dumps({"done": time.time()}), flush=True)
time.sleep(3600)
"""
MAKE = """
import sys
import libtorrent as lt
source, out, piece, url = sys.argv[1:5]
files = lt.file_storage()
lt.add_files(files, source)
torrent = lt.create_torrent(files, int(piece))
torrent.add_url_seed(url)
lt.set_piece_hashes(torrent, source.rsplit("/", 1)[0])
open(out, "wb").write(lt.bencode(torrent.generate()))
"""


def figures(case: Case, times: list[float], sent: Path) -> dict[str, float]:
    """As `Result.figures` has them, as far as others tell them."""
    origin = origin_figures(sent, case)
    mean = sum(times) / len(times) / case.bound_s
    return {
        "mean": mean, "slowest": max(times) / case.bound_s, "origin": origin.bytes / case.size,
        "origin_busy": origin.busy,
    }  # fmt: skip


def libtorrent(lab: Netlab, digest: str, tuned: bool) -> dict[str, float]:
    """All nodes as libtorrent peers that know each other, the origin as web seed.

    Raises:
      NetError: it fails or hangs.
    """
    case, folder = lab.case, lab.folder
    source, torrent = folder / "origin" / MODEL, folder / "torrent"
    lab.start_origin(folder / "origin")
    make = [MAKE, str(source / "model.bin"), str(torrent), str(case.chunk_bytes),
            f"http://{ORIGIN_IP}/{MODEL}/model.bin"]  # fmt: skip
    lab.tracker.sh(sys.executable, "-c", *make)
    sent = lab.start_sampler()
    started = [_start_peer(lab, i, torrent, tuned) for i in range(case.nodes)]
    begin = time.time() + 0.5
    for process, _ in started:
        assert process.stdin is not None
        process.stdin.write(f"{begin}\n".encode())
        process.stdin.flush()
    limit_s = READY_S + case.bound_s * PATIENCE * 2
    for process, log in started:
        wait_for(_says("done", log), "the end of libtorrent", process, log, limit_s)
    times = [json.loads(log.read_text().splitlines()[-1])["done"] - begin for _, log in started]
    for i in range(case.nodes):
        if sha256(folder / f"n{i}" / "model.bin") != digest:
            raise NetError(f"libtorrent: the copy of n{i} differs from the source")
    return figures(case, times, sent)


def _says(word: str, log: Path) -> Callable[[], bool]:
    return lambda: word in log.read_text()


def _start_peer(lab: Netlab, i: int, torrent: Path, tuned: bool) -> "tuple[Popen[bytes], Path]":
    """A libtorrent process that is ready, and its log."""
    target, log = lab.folder / f"n{i}", lab.folder / f"n{i}.log"
    target.mkdir()
    peers = ",".join(ip for ip in lab.ips if ip != lab.ips[i])
    words = (str(torrent), str(target), lab.ips[i], peers, "tuned" if tuned else "plain")
    process = lab.hosts[i].start(log, sys.executable, "-c", PEER, *words, pipe=True)
    wait_for(_says("ready", log), f"libtorrent {i}", process, log)
    return process, log


def aria2c(lab: Netlab, digest: str) -> dict[str, float]:
    """What a user has today: each node for itself, 16 connections to the origin.

    Raises:
      NetError: it is not installed, fails or hangs.
    """
    program = shutil.which("aria2c")
    if program is None:
        raise NetError("aria2c is not installed (apt-get install aria2)")
    case, folder = lab.case, lab.folder
    lab.start_origin(folder / "origin")
    sent = lab.start_sampler()
    begin, running, times = time.time(), {}, []
    for i, host in enumerate(lab.hosts):
        running[i] = host.start(
            folder / f"n{i}.log", program, "-x16", "-s16", "-k1M", "--file-allocation=none", "-q",
            "-d", str(folder / f"n{i}"), f"http://{ORIGIN_IP}/{MODEL}/model.bin",
        )  # fmt: skip
    end = begin + READY_S + case.bound_s * case.nodes * 2
    while running:
        for i, process in list(running.items()):
            if process.poll() is not None:
                _check(process, folder / f"n{i}", digest)
                times.append(time.time() - begin)
                del running[i]
        if time.time() > end:
            raise NetError("aria2c did not end")
        time.sleep(0.05)
    return figures(case, times, sent)


def _check(process: "Popen[bytes]", folder: Path, digest: str) -> None:
    if process.returncode or sha256(folder / "model.bin") != digest:
        raise NetError(f"aria2c failed with exit code {process.returncode}, or its copy differs")
