"""Whether the kernel's routing takes each source address's traffic through its own NIC. Pure.

What this node moved with each of its addresses is compared with what the interfaces that hold them
carried. An interface that carried less than half of it is bypassed: the other NICs do its work, and
the remedy is policy routing, a table of its own for each such address.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from itertools import count
from typing import Any

from p2p.units import MIB, format_size

LEAST_BYTES = 8 * MIB  # less is noise: other programs, retransmissions, a connection or two
FIRST_TABLE = 101  # any number from 1 to 252 is free for administrators

Bytes = tuple[int, int]
"""in and out"""


@dataclass(frozen=True, slots=True)
class Nic:
    """One source address and where it lives: `subnet` as in 10.0.0.0/24; `gateway` may be empty."""

    address: str
    interface: str
    subnet: str
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Bypassed:
    """An interface that carried less than what its addresses moved, in one direction."""

    interface: str
    direction: str
    moved: int
    carried: int


def parse_counters(text: str) -> dict[str, Bytes]:
    """Bytes in and out of each interface, from `/proc/net/dev`."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        found[name.strip()] = (int(words[0]), int(words[8]))
    return found


def find_nics(
    source_ips: Iterable[str],
    addresses: list[dict[str, Any]],
    routes: list[dict[str, Any]],
) -> list[Nic]:
    """Where the source addresses live, from `ip -j addr` and `ip -j route`.

    A subnet without a gateway of its own gets, if there is any default route, the address that has
    the same place in it: routers are numbered alike in all subnets, if anything is.
    """
    held = {
        info["local"]: (link["ifname"], ip_interface(f"{info['local']}/{info['prefixlen']}"))
        for link in addresses
        for info in link.get("addr_info", ())
    }
    gateways = {r["dev"]: r["gateway"] for r in reversed(routes) if "gateway" in r and "dev" in r}
    nics = []
    for ip in source_ips:
        if ip in held:
            interface, address = held[ip]
            gateway = gateways.get(interface, "")
            if gateway and ip_interface(gateway).version != address.version:
                gateway = ""
            nics.append(Nic(ip, interface, str(address.network), gateway))
    return [_with_gateway(nic, nics) for nic in nics]


def _with_gateway(nic: Nic, nics: list[Nic]) -> Nic:
    known = [other for other in nics if other.gateway and ":" not in other.gateway]
    if nic.gateway or not known or ":" in nic.address:
        return nic
    subnet, theirs = ip_network(nic.subnet), ip_network(known[0].subnet)
    router = ip_interface(known[0].gateway).ip
    if nic.subnet == known[0].subnet:
        gateway = str(router)
    elif int(theirs.broadcast_address) - int(router) < int(router) - int(theirs.network_address):
        gateway = str(subnet.broadcast_address - (int(theirs.broadcast_address) - int(router)))
    else:
        gateway = str(subnet.network_address + (int(router) - int(theirs.network_address)))
    return Nic(nic.address, nic.interface, nic.subnet, gateway)


def bypassed(
    nics: Iterable[Nic], moved: Mapping[str, Bytes], carried: Mapping[str, Bytes]
) -> list[Bypassed]:
    """Interfaces that did not carry what their addresses moved in the same time.

    Args:
      moved: bytes by source address.
      carried: bytes by interface.
    """
    totals: dict[str, list[int]] = {}
    for nic in nics:
        total = totals.setdefault(nic.interface, [0, 0])
        for way, number in enumerate(moved.get(nic.address, (0, 0))):
            total[way] += number
    found = []
    if len(totals) > 1:
        for interface, total in totals.items():
            for way, direction in enumerate(("in", "out")):
                number = carried.get(interface, (0, 0))[way]
                if total[way] >= LEAST_BYTES and number < total[way] / 2:
                    found.append(Bypassed(interface, direction, total[way], number))
    return found


def remedy(nics: list[Nic], interfaces: Iterable[str], tables: Iterable[int] = ()) -> list[str]:
    """Shell commands that give each address on these interfaces its own way out and in.

    Args:
      tables: routing tables that are in use already.
    """
    free = (number for number in count(FIRST_TABLE) if number not in set(tables))
    wanted, lines = list(interfaces), []
    shared = {nic.subnet for nic in nics if sum(nic.subnet == o.subnet for o in nics) > 1}
    if shared:  # else one NIC answers for the address of another, and its traffic comes in there
        for word in ("arp_ignore=1", "arp_announce=2"):
            lines.append(f"sysctl -w net.ipv4.conf.all.{word}")
    for nic in nics:
        if nic.interface not in wanted and nic.subnet not in shared:
            continue
        table, ip = next(free), "ip -6" if ":" in nic.address else "ip"
        where = f"dev {nic.interface} src {nic.address} table {table}"
        lines.append(f"{ip} route add {nic.subnet} {where}")
        if nic.gateway:
            lines.append(f"{ip} route add default via {nic.gateway} {where}")
        lines.append(f"{ip} rule add from {nic.address} table {table}")
    return lines


def warning(found: list[Bypassed], lines: list[str]) -> str:
    """What a person should read: what is wrong, and what mends it."""
    ways = {"in": "received", "out": "sent"}
    facts = "; ".join(
        f"of {format_size(one.moved)} {ways[one.direction]} with {one.interface}'s addresses "
        f"{one.interface} carried {format_size(one.carried)}"
        for one in found
    )
    commands = "\n".join(f"  {line}" for line in lines)
    return f"routing bypasses a NIC: {facts}. Policy routing mends it, as root:\n{commands}"
