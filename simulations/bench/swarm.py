"""A whole swarm on the shaped cluster, against the bound, and beside what others do there.

Every run is a lab of its own (see `simulations.netlab`), in a fresh folder on tmpfs; every copy is
compared with the source. Ours runs several times and is told by its medians; the others are slow,
and run once. Peers: libtorrent as it comes, libtorrent with every knob that helps, both with the
origin as web seed, and aria2c alone at each node.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from p2p.errors import UsageError
from p2p.units import format_size
from simulations.bench.processes import (
    TMPFS,
    check_space,
    console,
    end_in_order,
    machine,
    show_machine,
    write_json,
)
from simulations.case import Case
from simulations.netlab import Netlab, laid, run
from simulations.netns import NetError
from simulations.others import aria2c, libtorrent
from simulations.result import Result

COLUMNS = (
    ("mean", "mean / bound", "{:.3f}"),
    ("slowest", "slowest / bound", "{:.3f}"),
    ("origin", "origin ratio", "{:.3f}"),
    ("origin_busy", "origin busy", "{:.1%}"),
    ("tail_s", "tail s", "{:.2f}"),
    ("stall_s", "reader waits s", "{:.2f}"),
    ("stall_most_s", "longest", "{:.2f}"),
    ("cpu_s", "CPU s a node", "{:.2f}"),
    ("cpu_share", "of all cores", "{:.0%}"),
)
OTHERS = ("libtorrent", "aria2c")


def others(names: Iterable[str]) -> dict[str, Callable[[Netlab, str], dict[str, float]]]:
    """The programs to run beside ours, by the name that the table shows.

    Raises:
      UsageError: one is not known.
    """
    found: dict[str, Callable[[Netlab, str], dict[str, float]]] = {}
    for name in names:
        if name == "libtorrent":
            found["libtorrent, as it comes"] = lambda lab, digest: libtorrent(lab, digest, False)
            found["libtorrent, tuned"] = lambda lab, digest: libtorrent(lab, digest, True)
        elif name == "aria2c":
            found["aria2c at each node"] = aria2c
        else:
            raise UsageError(f"--vs knows {' and '.join(OTHERS)}, not {name!r}")
    return found


def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="shoal-netlab-", dir=TMPFS)


def show_run(result: Result) -> None:
    """A row a node."""
    table = Table("node", "up Mbit/s", "seconds", "/ bound", "reader waits s", "from origin",
                  "from peers", "served", "CPU s")  # fmt: skip
    for node in result.nodes:
        if node.seconds is None:
            table.add_row(node.ip, f"{node.up_mbit:g}", "killed")
            continue
        table.add_row(
            node.ip, f"{node.up_mbit:g}", f"{node.seconds:.2f}",
            f"{node.seconds / result.bound_s:.3f}", f"{node.stall_s or 0.0:.2f}",
            format_size(node.origin_bytes), format_size(node.peer_bytes),
            format_size(node.served_bytes), f"{node.cpu_s:.2f}",
        )  # fmt: skip
    console.print(table)


def _row(table: Table, name: str, figures: dict[str, float]) -> None:
    table.add_row(name, *[form.format(figures[key]) if key in figures else "" for key, _, form in
                          COLUMNS])  # fmt: skip


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{title} {form.format(figures[key])}" for key, title, form in COLUMNS[:5])


def measure(
    case: Case, runs: int, vs: tuple[str, ...], command: str, json_file: Path | None
) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: this machine cannot do it, or a run went wrong.
    """
    end_in_order()
    check_space(case.size, case.nodes + 1)
    try:
        result = _measure(case, runs, others(vs), command)
    except (NetError, UsageError) as error:
        raise SystemExit(str(error)) from error
    show_machine(result)
    write_json(result, json_file)


def _measure(
    case: Case,
    runs: int,
    beside: dict[str, Callable[[Netlab, str], dict[str, float]]],
    command: str,
) -> dict[str, Any]:
    result: dict[str, Any] = {"bench": "swarm", **machine(), "command": command,
                              "case": asdict(case), "bound_s": case.bound_s}  # fmt: skip
    results = []
    for number in range(runs):
        with _folder() as folder:
            results.append(run(case, Path(folder)))
        console.print(f"run {number + 1}: {_line(results[-1].figures())}")
    compared = {}
    for name, program in beside.items():
        with _folder() as folder, laid(case, Path(folder)) as (lab, digest):
            compared[name] = program(lab, digest)
        console.print(f"{name}: {_line({'tail_s': 0.0, **compared[name]})}")
    figures = [one.figures() for one in results]
    medians = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
    show_run(results[-1])
    table = Table("program", *[title for _, title, _ in COLUMNS])
    _row(table, f"p2p-node, median of {runs}", medians)
    for name, one in compared.items():
        _row(table, name, one)
    console.print(table)
    console.print(
        f"{case.nodes} nodes, {case.mbit:g} Mbit/s, origin {case.origin_mbit:g} Mbit/s, "
        f"{format_size(case.size)} in chunks of {format_size(case.chunk_bytes)}: "
        f"bound {case.bound_s:.2f} s"
    )
    return {
        **result, "medians": medians, "runs": [one.as_json() for one in results],
        "others": compared,
    }  # fmt: skip
