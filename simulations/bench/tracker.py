"""A real `tracker serve` under the load of a large swarm: its CPU, its memory, its answer times.

All nodes' sessions come from this process (see `crowd`), over loopback. The tracker's CPU time and
memory are the kernel's account of its process. A lease's latency is a node's: from the moment that
a reader there is blocked on a chunk to the moment that it has read the lease, so this process's own
delays are in it; its share of a core is shown beside the tracker's.
"""

import statistics
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from rich.table import Table

from p2p.units import parse_address
from simulations.bench.crowd import LEASES, Crowd, Load
from simulations.bench.processes import (
    console,
    cpu_s,
    machine,
    tracker,
    write_json,
)

MB = 1e6
GOALS = {"cpu_share": 0.5, "rss_mb": 300.0, "latency_p99_ms": 50.0}  # at 1,000 nodes


def memory_mb(pid: int, field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (at most so far) of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024 / MB


def run(load: Load, seconds: float, warm_up_s: float) -> dict[str, Any]:
    """One tracker, one crowd; the figures of `seconds` after the warm-up."""
    with tracker("--start-with", str(load.nodes)) as (pid, address):
        crowd = Crowd(parse_address(address), load, Random(1))
        join_s = crowd.join()
        join_cpu_s = cpu_s(pid)
        crowd.run(warm_up_s)
        tally = crowd.begin()
        begin, before, ours = time.monotonic(), cpu_s(pid), time.process_time()
        crowd.run(seconds)
        elapsed_s = time.monotonic() - begin
        spent_s, ours = cpu_s(pid) - before, time.process_time() - ours
        rss_mb, peak_mb = memory_mb(pid, "VmRSS"), memory_mb(pid, "VmHWM")
        crowd.close()
    if len(tally.latencies_s) < 2:
        raise SystemExit("no leases came: give more --seconds")
    percentiles = statistics.quantiles(tally.latencies_s, n=100, method="inclusive")
    return {
        "load": asdict(load), "seconds": elapsed_s, "join_s": join_s, "join_cpu_s": join_cpu_s,
        "cpu_share": spent_s / elapsed_s, "crowd_cpu_share": ours / elapsed_s,
        "rss_mb": rss_mb, "peak_mb": peak_mb,
        "leases_s": tally.leases / elapsed_s, "reports_s": tally.reports / elapsed_s,
        "heartbeats_s": tally.heartbeats / elapsed_s,
        "messages_s": (tally.sent + tally.received) / elapsed_s,
        "heard_mb_s": tally.sent_bytes / elapsed_s / MB,
        "us_per_message": spent_s / (tally.sent + tally.received) * 1e6,
        "latency_p50_ms": percentiles[49] * 1e3, "latency_p99_ms": percentiles[98] * 1e3,
        "latency_max_ms": max(tally.latencies_s) * 1e3,
    }  # fmt: skip


ROWS = (
    ("joined after, s", "join_s", "{:.1f}"),
    ("leases a second", "leases_s", "{:.0f}"),
    ("reports with pins a second", "reports_s", "{:.0f}"),
    ("heartbeats a second", "heartbeats_s", "{:.0f}"),
    ("messages a second, both ways", "messages_s", "{:.0f}"),
    ("heard, MB/s", "heard_mb_s", "{:.2f}"),
    ("tracker, share of a core", "cpu_share", "{:.1%}"),
    ("tracker, us a message", "us_per_message", "{:.0f}"),
    ("tracker, resident MB", "rss_mb", "{:.0f}"),
    ("tracker, peak MB", "peak_mb", "{:.0f}"),
    ("lease latency p50, ms", "latency_p50_ms", "{:.1f}"),
    ("lease latency p99, ms", "latency_p99_ms", "{:.1f}"),
    ("lease latency max, ms", "latency_max_ms", "{:.1f}"),
    ("this process, share of a core", "crowd_cpu_share", "{:.1%}"),
)


def show(result: dict[str, Any]) -> None:
    """The table, the goals, the machine."""
    load, figures = result["load"], result
    table = Table(f"{load['nodes']:,} nodes, {load['chunks']:,} chunks", "figure")
    for text, key, form in ROWS:
        table.add_row(text, form.format(figures[key]))
    console.print(table)
    missed = [key for key, limit in GOALS.items() if figures[key] >= limit]
    if missed:
        console.print(f"above the goals for 1,000 nodes: {', '.join(missed)}")
    console.print(
        f"{result['machine']}, {result['cores']} cores, python {result['python']}, "
        f"Linux {result['kernel']}, load {result['load_before']:.1f} before; "
        f"repeat: {result['command']}", soft_wrap=True,
    )  # fmt: skip


def measure(load: Load, seconds: float, warm_up_s: float, json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: the chunks do not last, or the tracker failed.
    """
    needed = load.leases_s * (seconds + warm_up_s) + load.nodes * LEASES
    if needed > load.chunks // 2:  # readers want what is in the second half
        raise SystemExit(f"{load.chunks} chunks do not last: give fewer --seconds or more --chunks")
    host = machine()
    result = {
        "bench": "tracker", **host, "load_before": host["load"],
        "command": f"python -m simulations bench tracker --nodes {load.nodes} "
        f"--seconds {seconds:g} --warm-up {warm_up_s:g} --leases {load.leases_s:g} "
        f"--heartbeat {load.heartbeat_s:g} --chunks {load.chunks}",
        **run(load, seconds, warm_up_s),
    }  # fmt: skip
    show(result)
    write_json(result, json_file)
