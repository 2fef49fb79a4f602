"""Pinning a data worker to the cores near its NIC.

On a host with several NUMA nodes a NIC hangs on one of them; a process on another one moves every
byte across the link between sockets.
"""

import contextlib
import logging
import os
from pathlib import Path

from node.dial import interface_of

log = logging.getLogger(__name__)

INTERFACES, NODES = Path("/sys/class/net"), Path("/sys/devices/system/node")


def parse_cpus(text: str) -> set[int]:
    """The numbers in the kernel's `0-3,8`.

    Raises:
      ValueError: it is something else.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def near_cpus(interface: str, interfaces: Path = INTERFACES, nodes: Path = NODES) -> set[int]:
    """The cores of the NUMA node of an interface; none: it has no node, or nobody knows which."""
    with contextlib.suppress(OSError, ValueError):
        node = int((interfaces / interface / "device" / "numa_node").read_text())
        if node >= 0:
            return parse_cpus((nodes / f"node{node}" / "cpulist").read_text())
    return set()


def pin_near(source_ip: str) -> None:
    """Keep this process on the cores near the NIC that holds an address, if they are known."""
    interface = interface_of(source_ip)
    cpus = near_cpus(interface) & os.sched_getaffinity(0) if interface else set()
    if not cpus:
        log.info("not pinned: no NUMA node is known for source_ip=%s", source_ip)
        return
    os.sched_setaffinity(0, cpus)
    log.info("pinned near source_ip=%s interface=%s cpus=%s", source_ip, interface, sorted(cpus))
