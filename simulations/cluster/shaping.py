"""Links of containers, shaped as the lab's are: each end limits what it sends. Needs root.

A container's interface is one end of a pair; the other one hangs on the engine's bridge, in this
machine's own namespace. The container's end is reached through its network namespace (`nsenter`).
A container that is started or connected again has a new pair: `shape` it again.
"""

import json
import os
import shutil
from typing import Any

from simulations.case import burst_bytes
from simulations.netns import WHERE, NetError, sh

QUEUE_MS = 50
CONGESTION = "cubic"


def why_not() -> str:
    """What stands in the way of shaping here; empty if nothing does."""
    if os.geteuid() != 0:
        return "--rate shapes the links of containers, which needs root"
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(tool, path=WHERE) is None:
            return f"--rate needs {tool}, which is not installed (apt-get install {package})"
    return ""


def shape(pid: int, mbit: float) -> None:
    """Shape all links of the container whose first process this is.

    Raises:
      NetError: a command failed.
    """
    inside = ("nsenter", "--target", str(pid), "--net")
    outer = {one["ifindex"]: one["ifname"] for one in _links(())}
    for link in _links(inside):
        if link["ifname"] == "lo":
            continue
        far = outer.get(link.get("link_index"))
        if far is None:
            raise NetError(f"{link['ifname']} of process {pid} has no other end on this machine")
        _control_congestion(inside, link["ifname"])
        _limit((*inside, "tc"), link["ifname"], mbit)
        _limit(("tc",), far, mbit)


def _links(prefix: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(sh(*prefix, "ip", "-j", "link", "show"))
    return found


def _control_congestion(inside: tuple[str, ...], device: str) -> None:
    """By the route, as in the lab: a namespace may not choose every algorithm as its default."""
    shown = sh(*inside, "ip", "-j", "-4", "route", "show", "dev", device, "scope", "link")
    for route in json.loads(shown):
        way = (route["dst"], "dev", device, "scope", "link", "src", route["prefsrc"])
        sh(*inside, "ip", "route", "replace", *way, "congctl", CONGESTION)


def _limit(tc: tuple[str, ...], device: str, mbit: float) -> None:
    sh(
        *tc, "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{mbit}mbit",
        "burst", str(burst_bytes(mbit)), "latency", f"{QUEUE_MS}ms",
    )  # fmt: skip
