"""Whom the faults of a run in containers hit, and when."""

from math import inf

import pytest

from p2p.errors import UsageError
from simulations.cluster.case import ClusterCase, parse_percent
from simulations.cluster.faults import Fault
from simulations.cluster.run import body_bytes


def test_no_node_has_two_faults_and_the_last_ones_come_first():
    case = ClusterCase(nodes=6, kills=2, pauses=1, disconnects=1)
    assert case.victims == {6: "kill", 5: "kill", 4: "pause", 3: "disconnect"}
    assert case.survivors == [1, 2, 3, 4]
    assert ClusterCase(nodes=6, kills=2, restart=True).survivors == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": 3, "kills": 2, "pauses": 1}, "3 faults need more than 3 nodes"),
        ({"restart": True}, "--restart is of killed nodes"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        ClusterCase(**options)


def test_the_bound_is_that_of_the_nodes_that_are_to_end():
    case = ClusterCase(nodes=4, mbit=8, kills=1)
    assert case.bound_s(10_000_000) == pytest.approx(10.0)
    assert ClusterCase(nodes=4).bound_s(10_000_000) is None


@pytest.mark.parametrize(("text", "part"), [("50%", 0.5), ("0", 0.0), ("100%", 1.0)])
def test_a_percentage(text, part):
    assert parse_percent(text) == part


@pytest.mark.parametrize("text", ["", "x", "-1", "101%", "nan"])
def test_what_is_no_percentage_is_refused_by_name(text):
    with pytest.raises(UsageError, match="is not a percentage"):
        parse_percent(text)


@pytest.mark.parametrize(("back_s", "undone"), [(2.0, True), (inf, False)])
def test_a_fault_comes_once_when_enough_is_there_and_goes_when_its_time_has_passed(back_s, undone):
    did: list[str] = []
    fault = Fault("kill", 0.5, back_s, lambda: did.append("kill"), lambda: did.append("start"))
    assert fault.step(0.49, 0.0) == ""
    assert fault.step(0.6, 10.0) == "kill at 60%"
    assert fault.away
    assert fault.settled is (back_s == inf)
    assert fault.step(0.9, 11.9) == ""
    assert did == ["kill"]
    assert bool(fault.step(0.0, 12.0)) is undone
    assert did == ["kill", "start"][: 1 + undone]
    assert fault.settled
    assert fault.step(1.0, 99.0) == ""


def test_what_nginx_sent_is_the_sum_of_its_bodies():
    log = "GET 206 262144 /model/a b.bin\nHEAD 200 0 /model/x\nGET 200 180 /model/\nnginx: notice\n"
    assert body_bytes(log) == 262144 + 180
