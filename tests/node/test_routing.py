"""When routing bypasses a NIC: found from counters, said with the lines that mend it."""

import json
from collections import defaultdict

from node.metrics import NodeCollector
from node.nicwatch import NicWatch
from node.progress import Snapshot, format_line
from node.routing import (
    LEAST_BYTES,
    Bypassed,
    Nic,
    bypassed,
    find_nics,
    parse_counters,
    remedy,
    warning,
)

MB = 1_000_000
A, B = "10.0.1.2", "10.0.2.2"
NICS = [Nic(A, "eth0", "10.0.1.0/24", "10.0.1.1"), Nic(B, "eth1", "10.0.2.0/24", "10.0.2.1")]
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     100       1    0    0    0     0          0         0     200       2    0    0    0
  eth0:12345678       9    0    0    0     0          0         0 87654321       8    0    0    0
"""
ADDRESSES = json.loads("""[
 {"ifname": "eth0", "addr_info": [{"family": "inet", "local": "10.0.1.2", "prefixlen": 24}]},
 {"ifname": "eth1", "addr_info": [{"family": "inet", "local": "10.0.2.2", "prefixlen": 24},
                                  {"family": "inet6", "local": "fd00::2", "prefixlen": 64}]}
]""")


def test_counters_of_proc_net_dev():
    assert parse_counters(NET_DEV) == {"lo": (100, 200), "eth0": (12345678, 87654321)}


# -- where addresses live -------------------------------------------------------------------------


def test_each_subnet_keeps_its_own_gateway():
    routes = [
        {"dst": "default", "gateway": "10.0.1.254", "dev": "eth0", "metric": 1},
        {"dst": "default", "gateway": "10.0.2.7", "dev": "eth1", "metric": 2},
        {"dst": "10.0.1.0/24", "dev": "eth0"},
    ]
    found = find_nics([A, B], ADDRESSES, routes)
    assert [nic.gateway for nic in found] == ["10.0.1.254", "10.0.2.7"]
    assert [nic.interface for nic in found] == ["eth0", "eth1"]
    assert [nic.subnet for nic in found] == ["10.0.1.0/24", "10.0.2.0/24"]


def test_a_subnet_without_a_gateway_gets_the_one_at_the_same_place():
    for router, guess in (("10.0.1.1", "10.0.2.1"), ("10.0.1.254", "10.0.2.254")):
        routes = [{"dst": "default", "gateway": router, "dev": "eth0"}]
        assert find_nics([A, B], ADDRESSES, routes)[1].gateway == guess


def test_without_any_router_there_is_no_gateway_and_foreign_addresses_are_skipped():
    found = find_nics([A, "192.0.2.1", "fd00::2"], ADDRESSES, [])
    assert found == [
        Nic(A, "eth0", "10.0.1.0/24"),
        Nic("fd00::2", "eth1", "fd00::/64"),
    ]


# -- what is wrong --------------------------------------------------------------------------------


def test_an_interface_that_carries_what_its_address_moved_is_well():
    moved = {A: (100 * MB, 0), B: (90 * MB, 50 * MB)}
    carried = {"eth0": (101 * MB, MB), "eth1": (91 * MB, 52 * MB)}
    assert bypassed(NICS, moved, carried) == []


def test_an_interface_that_carries_less_than_half_is_bypassed_in_that_direction():
    moved = {A: (100 * MB, 50 * MB), B: (100 * MB, 50 * MB)}
    carried = {"eth0": (200 * MB, 75 * MB), "eth1": (MB, 25 * MB)}
    assert bypassed(NICS, moved, carried) == [Bypassed("eth1", "in", 100 * MB, MB)]


def test_little_traffic_says_nothing():
    moved = {A: (100 * MB, 0), B: (LEAST_BYTES - 1, 0)}
    assert bypassed(NICS, moved, {"eth0": (108 * MB, 0), "eth1": (0, 0)}) == []
    moved[B] = (LEAST_BYTES, 0)
    assert len(bypassed(NICS, moved, {"eth0": (108 * MB, 0), "eth1": (0, 0)})) == 1


def test_two_addresses_of_one_interface_are_counted_together_and_one_nic_has_no_other_way():
    nics = [Nic(A, "eth0", "10.0.1.0/24"), Nic(B, "eth0", "10.0.2.0/24")]
    assert bypassed(nics, {A: (100 * MB, 0), B: (100 * MB, 0)}, {"eth0": (0, 0)}) == []


# -- what mends it --------------------------------------------------------------------------------


def test_a_bypassed_nic_gets_a_table_of_its_own_that_nobody_uses():
    assert remedy(NICS, ["eth1"], tables=[101, 103]) == [
        "ip route add 10.0.2.0/24 dev eth1 src 10.0.2.2 table 102",
        "ip route add default via 10.0.2.1 dev eth1 src 10.0.2.2 table 102",
        "ip rule add from 10.0.2.2 table 102",
    ]


def test_two_nics_of_one_subnet_both_get_one_and_answer_for_themselves():
    nics = [Nic("10.0.1.2", "eth0", "10.0.1.0/24"), Nic("10.0.1.3", "eth1", "10.0.1.0/24")]
    assert remedy(nics, ["eth1"]) == [
        "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        "sysctl -w net.ipv4.conf.all.arp_announce=2",
        "ip route add 10.0.1.0/24 dev eth0 src 10.0.1.2 table 101",
        "ip rule add from 10.0.1.2 table 101",
        "ip route add 10.0.1.0/24 dev eth1 src 10.0.1.3 table 102",
        "ip rule add from 10.0.1.3 table 102",
    ]


def test_the_sixth_version_has_its_own_rules():
    nics = [NICS[0], Nic("fd00::2", "eth1", "fd00::/64", "fd00::1")]
    assert remedy(nics, ["eth1"])[-1] == "ip -6 rule add from fd00::2 table 101"


def test_the_warning_names_the_facts_and_its_lines_can_be_pasted():
    text = warning([Bypassed("eth1", "out", 64 * 2**20, 2**20)], ["ip rule add x"])
    first, *lines = text.splitlines()
    assert "of 64.0 MiB sent with eth1's addresses eth1 carried 1.0 MiB" in first
    assert lines == ["  ip rule add x"]


# -- what people see ------------------------------------------------------------------------------


def test_the_progress_line_shows_each_of_several_nics():
    snapshot = Snapshot("m", 100, 50, 0, 0, 0, 1, False, False, 0, "", ((A, 2048.0, 0.0),) * 2)
    assert f"{A} in 2.0 KiB/s out 0 B/s" in format_line(snapshot, 1.0, 1.0)
    one = Snapshot("m", 100, 50, 0, 0, 0, 1, False, False, 0, "", ((A, 2048.0, 0.0),))
    assert A not in format_line(one, 1.0, 1.0), "one NIC carries what the line says already"


def test_metrics_and_status_name_every_source_address():
    watch = NicWatch((A, B), lambda: {A: [5, 7]})
    nics = watch.figures()
    assert [(nic["source_ip"], nic["in_bytes"], nic["out_bytes"]) for nic in nics] == [
        (A, 5, 7),
        (B, 0, 0),
    ]
    status = defaultdict(int, nics=nics)
    families = NodeCollector(lambda: status).collect()
    samples = {
        (sample.labels["source_ip"], sample.labels["direction"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "p2p_nic_bytes_total"
    }
    assert samples == {(A, "in"): 5, (A, "out"): 7, (B, "in"): 0, (B, "out"): 0}
