"""The tracker's bench, run for real with few nodes: its figures are of what it says they are."""

import json
import subprocess
import sys

import pytest

from p2p.checksum import expected
from p2p.seal import Seal
from simulations.bench.crowd import CRC, FILES, manifest_of


def test_a_small_crowd_gets_leases_and_the_figures_are_counted(tmp_path):
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "simulations", "bench", "tracker", "--nodes", "5",
         "--seconds", "0.5", "--warm-up", "0.2", "--leases", "100", "--heartbeat", "0.1",
         "--chunks", "1024", "--json", str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 nodes, 1,024 chunks" in done.stdout
    assert "repeat: python -m simulations bench tracker --nodes 5" in done.stdout
    figures = json.loads(file.read_text())
    for name in ("leases_s", "reports_s", "heartbeats_s", "rss_mb", "latency_p50_ms"):
        assert figures[name] > 0, name
    assert figures["latency_p50_ms"] <= figures["latency_p99_ms"] <= figures["latency_max_ms"]
    assert figures["load"] == {"nodes": 5, "leases_s": 100, "heartbeat_s": 0.1, "chunks": 1024}


def test_chunks_that_do_not_last_are_a_mistake_of_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "simulations", "bench", "tracker", "--chunks", "1024"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "1024 chunks do not last: give fewer --seconds or more --chunks\n"


def test_the_crowds_checksums_seal_its_model():
    manifest = manifest_of(2 * FILES)
    seal = Seal(manifest)
    decided = [seal.take(chunk, CRC) for chunk in range(manifest.chunk_count)]
    assert len(seal.sealed) == FILES
    assert not seal.broken
    assert [file for file in decided if file is not None] == list(range(FILES))
    assert expected(manifest.files[0].checksum)[0] == "crc64xz"


def test_files_of_unequal_size_are_refused():
    with pytest.raises(SystemExit, match="multiple"):
        manifest_of(FILES + 1)
