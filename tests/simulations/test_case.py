"""The bound of a run, what a reader waits, and how shares of nodes are written."""

import pytest

from p2p.errors import UsageError
from simulations.case import Case, bound_s, burst_bytes, parse_share, reader_stall_s

MB = 1_000_000


@pytest.mark.parametrize(
    ("origin", "downs", "ups", "seconds"),
    [
        (8, [80, 80], [80, 80], 10.0),  # the origin sends everything once
        (80, [8, 80], [80, 80], 10.0),  # the slowest node receives everything
        (10, [80] * 4, [0, 0, 0, 10], 16.0),  # 40 MB through 20 Mbit/s in all
    ],
    ids=["origin", "downlink", "uplinks"],
)
def test_the_bound_is_what_the_tightest_link_allows(origin, downs, ups, seconds):
    assert bound_s(10 * MB, origin, downs, ups) == pytest.approx(seconds)


def test_the_bound_of_a_case_is_that_of_the_nodes_that_are_to_end():
    case = Case(nodes=4, mbit=8, origin_mbit=1, size=10 * MB, slow=1, slow_factor=0.5, kills=(0.5,))
    assert [case.up_mbit(node) for node in range(4)] == [4, 8, 8, 8]
    assert case.victims == {3: 0.5}
    assert list(case.survivors) == [0, 1, 2]
    assert case.bound_s == pytest.approx(80.0)


def test_a_case_needs_a_node_that_is_neither_slow_nor_killed():
    with pytest.raises(UsageError, match="2 nodes cannot be 1 slow ones and 1 killed"):
        Case(nodes=2, slow=1, kills=(0.9,))


def test_a_reader_waits_for_what_is_not_there_and_for_nothing_else():
    assert reader_stall_s([(0.0, 10 * MB)], 10 * MB, MB) == pytest.approx(0.0)
    late = [(2.0, 5 * MB), (3.0, 5 * MB), (20.0, 10 * MB)]
    assert reader_stall_s(late, 10 * MB, MB) == pytest.approx(2.0 + 13.0)


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("10%", 1), ("25%", 2), ("0", 0)])
def test_a_share_of_eight_nodes(text, count):
    assert parse_share(text, 8) == count


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "%"])
def test_what_is_no_share_is_refused_by_name(text):
    with pytest.raises(UsageError, match="neither a number of nodes nor a percentage"):
        parse_share(text, 8)


def test_a_bucket_holds_five_milliseconds_within_bounds():
    assert [burst_bytes(mbit) for mbit in (1, 100, 10_000)] == [40 * 1024, 62_500, 128 * 1024]
