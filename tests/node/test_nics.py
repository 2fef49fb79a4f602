"""Which NIC carries what: slots by measured rate, outages, what idle ones take, pairs with peers.

The situations are drawn with exact times; nothing here opens a socket but the last tests.
"""

import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.dial import Dialler, interface_of
from node.nics import FORGET_S, STEAL_S, Sources, Steal, limits_for, steal
from node.pairs import Pairs, order, spare
from node.peers import to_advertise
from node.pinning import near_cpus, parse_cpus
from node.spans import Span, Spans

A, B, C = "10.0.1.2", "10.0.2.2", "10.0.3.2"
MB = 1_000_000


def measured(slots: int = 4, **rates: float) -> Sources:
    """Sources A, B, C with these rates in MB/s, all idle at time 1."""
    sources = Sources((A, B, C)[: len(rates)], slots)
    for source, rate in zip(sources.all, rates.values(), strict=True):
        source.took(0.0)
        source.came(int(rate * MB))
        source.released(1.0)
    sources.measure(1.0)
    return sources


def taken(sources: Sources, count: int, now: float = 1.0) -> list[str]:
    """Where so many requests go, one after another."""
    found = [sources.take(now) for _ in range(count)]
    return [source.ip if source else "-" for source in found]


# -- slots ----------------------------------------------------------------------------------------


def test_without_addresses_the_kernel_chooses_and_slots_are_all_there_is():
    assert taken(Sources((), 2), 3) == ["", "", "-"]


def test_unmeasured_addresses_are_all_tried_first():
    assert taken(Sources((A, B, C), 4), 6) == [A, B, C, A, B, C]


def test_requests_go_where_each_can_expect_most():
    # 200 alone, 100 (=200/2), 100 alone of B, ...: ties go to the less used
    assert taken(measured(a=200, b=100), 6) == [A, B, A, A, B, A]


def test_no_request_waits_while_a_slow_address_has_a_free_slot():
    assert taken(measured(slots=2, a=200, b=1), 5) == [A, A, B, B, "-"]


def test_a_rate_is_that_of_the_busy_time_alone():
    sources = Sources((A, B), 4)
    a = sources.all[0]
    a.took(10.0)
    a.came(5 * MB)
    a.released(10.5)
    sources.measure(11.0)  # half of the second nothing was asked of it
    assert a.share(1) == 10 * MB
    assert a.share(4) == 2.5 * MB


def test_an_address_that_was_idle_for_long_is_tried_again_whatever_its_rate_was():
    sources = measured(a=200, b=1)
    sources.measure(1.0 + FORGET_S)
    assert sources.all[1].share(1) == MB, "not forgotten at exactly that time"
    sources.measure(1.0 + FORGET_S + 0.01)
    assert taken(sources, 2, 4.0) == [A, B]


def test_one_request_alone_finds_out_about_an_address_of_unknown_rate():
    sources = measured(a=200, b=1)
    assert taken(sources, 1) == [A], "in use: its rate is kept"
    sources.measure(1.0 + FORGET_S + 0.01)
    assert taken(sources, 2, 4.0) == [B, A]


def test_the_address_near_a_pinned_worker_is_used_first():
    sources = Sources((A, B), 2, home=B)
    assert taken(sources, 3) == [B, B, A]


# -- outages --------------------------------------------------------------------------------------


def test_an_address_that_failed_is_left_alone_then_tried_once_then_trusted():
    sources = measured(a=100, b=100)
    b = sources.all[1]
    sources.failed(b, 1.0)
    assert taken(sources, 5, 1.49) == [A, A, A, A, "-"]
    assert sources.next_deadline(1.0) == 1.5
    assert taken(sources, 2, 1.5) == [B, "-"], "one request finds out"
    b.came(1)
    assert taken(sources, 3, 1.6) == [B, B, B]


def test_all_requests_of_one_outage_count_as_one_failure_and_waits_double_to_a_cap():
    sources = Sources((A, B), 4)
    b, now, waits = sources.all[1], 0.0, []
    for _ in range(6):
        for _ in range(4):
            sources.failed(b, now)
        waits.append(b.down_until - now)
        now = b.down_until
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_the_only_address_is_never_left_alone():
    sources = Sources((A,), 2)
    sources.failed(sources.all[0], 0.0)
    assert taken(sources, 2, 0.0) == [A, A]


# -- what idle ones take --------------------------------------------------------------------------


def test_a_range_is_divided_so_that_both_ends_come_together():
    # 40 MB left at 1 MB/s, the idle one has 3: it takes three quarters
    assert steal(40 * MB, 0, MB, slow=1 * MB, fast=3 * MB) == Steal(30 * MB)


def test_the_block_that_is_arriving_is_not_divided():
    assert steal(4 * MB, 3 * MB, MB, slow=1, fast=100 * MB) == Steal(1 * MB)
    assert steal(3 * MB, 3 * MB, MB, slow=1, fast=100 * MB) == Steal(3 * MB, whole=True)


def test_what_ends_soon_anyway_is_left_alone():
    assert steal(10 * MB, 0, MB, slow=10 * MB / STEAL_S, fast=1000 * MB) is None
    assert steal(1 * MB, 1 * MB, MB, slow=1 * MB, fast=1.5 * MB) is None, "one block, hardly faster"


@given(
    left=st.integers(1, 64), block_left=st.integers(1, 4), slow=st.floats(0, 100),
    fast=st.floats(0.1, 100) | st.just(float("inf")),
)  # fmt: skip
def test_never_more_is_taken_than_there_is_beyond_the_arriving_block(left, block_left, slow, fast):
    part = steal(left, min(left, block_left), 4, slow, fast)
    if part is not None and not part.whole:
        assert 0 < part.tail_bytes <= left - min(left, block_left)
        assert part.tail_bytes % 4 == 0


# -- pairs ----------------------------------------------------------------------------------------

OURS, THEIRS = ("10.0.1.2", "10.0.2.2"), ("10.0.2.9:7", "10.0.1.9:7")
ONE, TWO = ("10.0.1.2", "10.0.1.9:7"), ("10.0.2.2", "10.0.2.9:7")


def test_addresses_of_one_network_come_first_whatever_the_order_they_were_told_in():
    assert set(order(OURS, THEIRS)[:2]) == {ONE, TWO}
    assert len(order(OURS, THEIRS)) == 4


def test_every_nic_gets_a_connection_and_then_there_are_enough():
    pairs = Pairs.between(OURS, THEIRS)
    first = pairs.pick([], 0.0)
    second = pairs.pick([first], 0.0)
    assert {first, second} == {ONE, TWO}
    assert pairs.pick([first, second], 0.0) is None


def test_a_connection_of_two_unused_addresses_comes_before_one_of_a_used_one():
    pairs = Pairs.between(OURS, ("h1:1", "h2:1"))
    assert pairs.pick([(OURS[0], "h2:1")], 0.0) == (OURS[1], "h1:1")


@pytest.mark.parametrize("stopgap", [(TWO[0], ONE[1]), (ONE[0], TWO[1])], ids=["theirs", "ours"])
def test_a_nic_that_was_down_is_used_again_and_what_stood_in_for_it_is_spare(stopgap):
    pairs = Pairs.between(OURS, THEIRS)
    assert spare([ONE, stopgap]) == set()
    assert pairs.pick([ONE, stopgap], 0.0) == TWO
    assert spare([ONE, stopgap, TWO]) == {1}
    assert pairs.pick([ONE, TWO], 0.0) is None


def test_of_two_connections_alike_the_older_one_is_spare():
    assert spare([ONE, TWO, ONE]) == {0}
    assert spare([ONE]) == spare([ONE, TWO]) == spare([("", "h:1"), ("", "h:2")]) == set()


def test_one_nic_here_reaches_both_of_a_peer_and_without_addresses_all_is_as_before():
    pairs = Pairs.between((), THEIRS)
    first = pairs.pick([], 0.0)
    assert {first, pairs.pick([first], 0.0)} == {("", THEIRS[0]), ("", THEIRS[1])}
    assert Pairs.between((), ("host:7",)).pick([("", "host:7")], 0.0) is None
    assert Pairs([]).pick([], 0.0) is None


def test_a_pair_that_failed_is_replaced_by_another_of_the_same_nic_and_comes_back():
    pairs = Pairs.between(OURS, THEIRS)
    pairs.failed(TWO, 0.0)
    other = pairs.pick([ONE], 0.5)
    assert other is not None
    assert other != TWO
    assert pairs.pick([ONE], 1.0) == TWO, "a second later it is tried again"


def test_where_a_peer_dials_from_is_tried_when_nothing_works_that_it_said():
    pairs = Pairs.between(OURS[:1], THEIRS, "10.0.1.77")
    seen = (OURS[0], "10.0.1.77:7")
    assert pairs.each[-1] == seen
    assert [pairs.pick(pairs.all[:count], 0.0) for count in (1, 2)] == [pairs.all[1], None]
    for count, pair in enumerate(pairs.all):
        assert pairs.pick([], 0.0) == pair == pairs.tries(0.0)[0], count
        pairs.failed(pair, 0.0)
    assert pairs.pick([], 0.0) == seen == pairs.tries(0.0)[0]
    for known in (THEIRS[0].removesuffix(":7"), ""):
        assert Pairs.between(OURS, THEIRS, known).last == []
    assert Pairs.between(OURS, (), "10.0.1.77").each == [], "its port is not known"


def test_with_every_pair_down_the_soonest_usable_is_dialled_all_the_same():
    pairs = Pairs.between(OURS[:1], THEIRS)
    for at, pair in enumerate(reversed(pairs.all)):
        pairs.failed(pair, float(at))
    assert pairs.pick([], 1.0) == pairs.all[-1]


def test_families_are_not_mixed():
    assert order(("fd00::1",), ("10.0.0.1:1", "[fd00::2]:1")) == [("fd00::1", "[fd00::2]:1")]


# -- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "bound", "told"),
    [
        ([("host", 9)], [("0.0.0.0", 7)], [("host", 9)]),
        ([], [("0.0.0.0", 7)], [(A, 7), (B, 7)]),
        ([], [("::", 7)], [("fd00::1", 7)]),
        ([], [(A, 7), (B, 8)], [(A, 7), (B, 8)]),
    ],
)
def test_what_peers_are_told_to_dial(given, bound, told):
    assert to_advertise(given, bound, (A, B, "fd00::1")) == told


def test_without_source_addresses_the_wildcard_is_told_as_it_is():
    assert to_advertise([], [("0.0.0.0", 7)], ()) == [("0.0.0.0", 7)]


def test_more_nics_mean_more_at_once():
    one, two = limits_for(4, 0), limits_for(4, 2)
    assert (two.asks_per_peer, two.asks_total) == (2 * one.asks_per_peer, 2 * one.asks_total)
    assert (one.origin_fetches, two.origin_fetches, limits_for(4, 9).origin_fetches) == (2, 4, 8)


def test_cores_near_a_nic(tmp_path):
    assert parse_cpus("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    device, node = tmp_path / "net" / "eth0" / "device", tmp_path / "nodes" / "node1"
    device.mkdir(parents=True)
    node.mkdir(parents=True)
    (node / "cpulist").write_text("2-3\n")
    (device / "numa_node").write_text("1\n")
    assert near_cpus("eth0", tmp_path / "net", tmp_path / "nodes") == {2, 3}
    (device / "numa_node").write_text("-1\n")
    assert near_cpus("eth0", tmp_path / "net", tmp_path / "nodes") == set()
    assert near_cpus("eth1", tmp_path / "net", tmp_path / "nodes") == set()


def test_the_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") == interface_of("2001:db8::1") == ""


async def test_a_connection_leaves_from_the_address_that_was_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stream = await Dialler(bind_device=False).connect("127.0.0.1", port, "127.0.0.3", 5)
        async with stream:
            assert stream.socket.getsockname()[0] == "127.0.0.3"


async def test_an_interface_that_does_not_lead_there_is_given_up_for_the_address_alone():
    dialler = Dialler()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises((OSError, trio.TooSlowError)):
            await dialler.connect("127.0.0.1", port, "192.0.2.1", 5)  # not ours
        assert not dialler.binds_device("192.0.2.1")
        assert dialler.binds_device("127.0.0.1"), "each address for itself"
        async with await dialler.connect("127.0.0.1", port, "127.0.0.1", 5):
            pass
    with pytest.raises(OSError, match="refused"):
        await dialler.connect("127.0.0.1", port, "127.0.0.1", 5)
    assert dialler.binds_device("127.0.0.1"), "what has worked once is kept"


# -- ranges under way -----------------------------------------------------------------------------


class Part:
    """A range as far as `Spans` sees it: blocks of 1 MB, the current one just begun."""

    def __init__(self, position: int, end: int) -> None:
        self.position, self.end = position, end
        self.block_left = min(MB, end - position)

    def cut(self, end: int) -> None:
        """Shorter from now on."""
        self.end = end


def reading(sources: Sources, *parts: tuple[int, int, int]) -> tuple[Spans, list[Span], list]:
    """Spans of (source, position, end), all with a request under way, and what they start."""
    spans, started = Spans(sources, MB), []
    for index, position, end in parts:
        source = sources.all[index]
        source.took(1.0)
        span = Span(
            None, Part(position, end), 0, None, source, lambda *what: started.append(what),
            request=trio.CancelScope(),
        )  # fmt: skip
        spans.all[span] = None
    return spans, list(spans.all), started


def test_an_idle_address_takes_the_end_of_the_range_that_would_end_last():
    sources = measured(a=90, b=10)
    spans, (soon, late), started = reading(sources, (1, 0, 5 * MB), (1, 0, 20 * MB))
    spans.balance(1.0)
    # the range gets 5 MB/s of B's 10, A has 90: 90/95 of 20 MB, in whole blocks, is 18
    assert started == [(2 * MB, 20 * MB, "steal")]
    assert (soon.sink.end, late.sink.end) == (5 * MB, 2 * MB)


def test_the_short_block_at_a_files_end_goes_along():
    spans, (span,), started = reading(measured(a=90, b=10), (1, 0, 20 * MB + 17))
    spans.balance(1.0)
    ((start, end, _),) = started
    assert start % MB == 0
    assert (span.sink.end, end) == (start, 20 * MB + 17)


def test_a_single_block_moves_with_its_request():
    spans, (span,), started = reading(measured(a=90, b=1), (1, 0, MB))
    scope = span.request
    spans.balance(1.0)
    assert scope.cancel_called
    assert span.request is None
    assert started == []


def test_nothing_is_taken_while_a_range_waits_or_when_no_address_is_idle():
    sources = measured(a=90, b=10)
    spans, (waiting, _), started = reading(sources, (1, 0, 20 * MB), (1, 0, 20 * MB))
    waiting.request = None
    spans.balance(1.0)
    assert started == []
    spans, _, started = reading(measured(a=90, b=10), (0, 0, 20 * MB), (1, 0, 20 * MB))
    spans.balance(1.0)
    assert started == []
