"""One pick at 65,536 chunks and 64 peers: what a node's control process pays for each request."""

import json
import os
import platform
import statistics
import time
from pathlib import Path
from random import Random

from p2p.bitfield import Bitfield
from p2p.ids import NodeId
from p2p.picker import Picker

CHUNKS, PEERS, PICKS, RUNS = 65_536, 64, 20_000, 5


def one_run(seed: int) -> float:
    """Median microseconds of a window and a pick in the middle of a download."""
    rng = Random(seed)
    held = Bitfield(CHUNKS, (c for c in range(CHUNKS // 2) if rng.random() < 0.99))
    picker = Picker(list(range(CHUNKS)), held, window=64, per_peer=2, rng=rng)
    for number in range(PEERS):
        bits = Bitfield(CHUNKS, (c for c in range(CHUNKS) if rng.random() < 0.5))
        picker.join(NodeId(number.to_bytes(16, "big")), bits)
    taken = []
    for _ in range(PICKS):
        begin = time.perf_counter()
        picked = picker.pick(picker.window())
        taken.append(time.perf_counter() - begin)
        assert picked is not None
        chunk, peer = picked
        picker.reserve(chunk, peer)
        picker.answered(peer)
        picker.held(chunk)
    return statistics.median(taken) * 1e6


def measure(json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named."""
    runs = [one_run(seed) for seed in range(RUNS)]
    result = {
        "bench": "picker", "chunks": CHUNKS, "peers": PEERS, "runs_us": runs,
        "median_us": statistics.median(runs), "python": platform.python_version(),
        "machine": platform.machine(), "cores": os.cpu_count(),
        "command": "python -m simulations bench picker",
    }  # fmt: skip
    print(f"one pick at {CHUNKS:,} chunks and {PEERS} peers: {result['median_us']:.1f} us")
    print(f"runs: {', '.join(f'{run:.1f}' for run in runs)} us; seeds 0 to {RUNS - 1}")
    print(f"python {result['python']}, {result['cores']} cores; repeat: {result['command']}")
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
