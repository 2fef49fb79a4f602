"""The scale bench, run for real with tiny sizes: every event has a cost, every size a row."""

import json
import subprocess
import sys


def test_tiny_cores_have_a_figure_for_each_event_and_size(tmp_path):
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "simulations", "bench", "scale", "--nodes", "3", "--nodes", "6",
         "--peers", "2", "--chunks", "64", "--chunks", "128", "--events", "8",
         "--json", str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["command"] in done.stdout.replace("\n", " ")
    sizes = [(row["nodes"], row["chunks"]) for row in figures["tracker_us"]]
    assert sizes == [(3, 64), (3, 128), (6, 64), (6, 128)]
    assert [(row["peers"], row["chunks"]) for row in figures["node_us"]] == [(2, 64), (2, 128)]
    for row in figures["tracker_us"] + figures["node_us"]:
        assert all(value > 0 for value in row.values()), row
    assert {"lease", "heartbeat", "join", "recount", "status"} < figures["tracker_us"][0].keys()
