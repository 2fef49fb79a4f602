"""Leases under a budget: none beyond it, retries first, the news at once, accounts apart.

Nodes are played by hand, as in `test_model`.
"""

from random import Random

import pytest

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.errors import RemoteProtocolError
from p2p.ids import NodeId
from p2p.manifest import File, Manifest
from tracker.budget import HEADROOM, Budget
from tracker.directory import Directory, account_of
from tracker.leases import LEASE_S
from tracker.model import Model

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
CHUNK = 4096
COUNT = 64
SECOND = CHUNK / HEADROOM  # a configured rate that allows one chunk a second
EMPTY = bytes(Bitfield(COUNT))


def manifest(name: str = "m") -> Manifest:
    return Manifest(name, "http://o/", (File("x", COUNT * CHUNK, "e"),), CHUNK, CHUNK)


def join(name: str = "m", account: str = "") -> m.Join:
    return m.Join(name, "http://o/", ["h:1"], b"", False, CHUNK, CHUNK, False, account)


def announce(wanted: int = 4, origin_bytes: int = 0, requests: int = 0, received=()) -> m.Announce:
    """`received`: bytes so far of chunks 0, 1 ..."""
    fetching = list(range(len(received)))
    return m.Announce(
        EMPTY, fetching, list(received), wanted, origin_bytes, 0, 0, 0, b"", requests
    )  # fmt: skip


def model(budget: Budget, *nodes: NodeId) -> Model:
    """A model whose manifest is known and whose nodes have not announced yet."""
    tracked = Model("m", "", 1, 0.0, Random(1), budget)
    for node in nodes or (A,):
        tracked.joined(node, join(), 0.0)
    tracked.handle((nodes or (A,))[0], m.Listing(manifest().encode()), 0.0)
    return tracked


def leases(sends, to: NodeId) -> list[m.Leases]:
    return [x for node, x in sends if node == to and isinstance(x, m.Leases)]


def granted(sends, to: NodeId) -> list[int]:
    return [chunk for message in leases(sends, to) for chunk in message.chunks]


def allowances(sends, to: NodeId) -> list[m.Allowance]:
    return [x for node, x in sends if node == to and isinstance(x, m.Allowance)]


def run(tracked: Model, begin: float, end: float) -> list[tuple[float, NodeId, m.Message | None]]:
    """Tick at every deadline in between; what was sent, and when."""
    sent = []
    while (now := max(begin, tracked.next_deadline())) < end:
        begin = now
        sent += [(now, node, message) for node, message in tracked.tick(now)]
    return sent


def test_without_a_limit_leases_carry_none():
    tracked = model(Budget())
    (message,) = leases(tracked.handle(A, announce(), 1.0), A)
    assert message.chunks == [0, 1, 2, 3]
    assert (message.limited, message.bytes, message.requests) == (False, 0, 0)


def test_a_lease_is_granted_exactly_when_its_chunk_is_paid_for_and_carries_its_allowance():
    tracked = model(Budget(SECOND, None))
    first = tracked.handle(A, announce(), 10.0)
    assert granted(first, A) == [0]
    news, message = leases(first, A)
    assert news.limited
    assert not news.chunks
    assert (message.limited, message.bytes, message.requests) == (True, CHUNK, 1)
    # 10 ms of the rate may be saved up beside a chunk
    due = tracked.next_deadline()
    assert due == pytest.approx(11.0 - 0.01, abs=1e-6)
    assert granted(tracked.tick(due - 0.001), A) == []
    assert granted(tracked.tick(due), A) == [1]


def test_two_nodes_share_the_budget_in_turn():
    tracked = model(Budget(SECOND, None), A, B)
    tracked._came = 8  # the careful beginning is over
    tracked.handle(A, announce(wanted=8), 1.0)
    tracked.handle(B, announce(wanted=8), 1.0)
    got = {A: 0, B: 0}
    for step in range(1, 7):
        # progress keeps the leases; who has room is hungry again with each announce
        for node in (A, B):
            sends = tracked.handle(node, announce(wanted=8), 1.0 + step)
            for one in got:
                got[one] += len(granted(sends, one))
    assert sum(got.values()) == 6
    assert got[A] == got[B] == 3


def test_a_retry_waits_for_its_turn_comes_before_new_leases_and_its_lease_lives_meanwhile():
    tracked = model(Budget(None, 0.5 / HEADROOM))  # one request in two seconds
    assert granted(tracked.handle(A, announce(), 10.0), A) == [0]
    assert allowances(tracked.handle(A, m.AllowanceWanted(0, CHUNK, 1), 10.1), A) == []
    assert allowances(tracked.handle(A, m.AllowanceWanted(0, 5, 1), 10.1), A) == []
    sent = run(tracked, 10.1, 15.0)
    answers = [(now, x) for now, _, x in sent if isinstance(x, m.Allowance)]
    assert [x for _, x in answers] == [m.Allowance(0, CHUNK, 1), m.Allowance(0, 5, 1)]
    assert [now for now, _ in answers] == pytest.approx([12.0, 14.0], abs=0.03)
    assert len(sent) == len(answers), "nothing is left for new leases"
    assert tracked.leases is not None
    assert tracked.leases.count(A) == 1, "waiting for us ended no lease"
    tracked.handle(A, announce(received=[100]), 15.0)
    sent = run(tracked, 15.0, 16.1)
    assert [x.chunks for _, _, x in sent if isinstance(x, m.Leases)] == [[1]]
    tracked.handle(A, announce(received=[100, 100]), 16.5)
    tracked.tick(15.0 + LEASE_S)
    assert tracked.leases.count(A) == 1, "but silence after the answer does"


def test_who_wants_and_leaves_is_not_answered_and_blocks_nobody():
    tracked = model(Budget(None, 1 / HEADROOM), A, B)
    tracked.handle(A, announce(), 10.0)
    tracked.handle(A, m.AllowanceWanted(0, CHUNK, 1), 10.0)
    tracked.gone(A, 10.1)
    assert granted(tracked.handle(B, announce(), 12.0), B) == [0]


def test_what_is_given_back_is_granted_again():
    tracked = model(Budget(SECOND, None))
    assert granted(tracked.handle(A, announce(), 10.0), A) == [0]
    assert granted(tracked.handle(A, m.AllowanceBack(CHUNK, 1), 10.1), A) == [1]


def test_a_refusal_limits_every_node_of_the_account_at_once_or_with_its_next_word():
    directory = Directory("", 1, 0.0, Random(1))
    one, _ = directory.join(A, join("one", "oss://e"), 0.0)
    two, _ = directory.join(B, join("two", "oss://e"), 0.0)
    assert len(directory.budgets) == 1
    for tracked, node in ((one, A), (two, B)):
        tracked.handle(node, m.Listing(manifest(tracked.name).encode()), 0.0)
        tracked.handle(node, announce(wanted=2), 1.0)
    one.handle(A, announce(wanted=2, origin_bytes=8 << 20, requests=4), 2.0)
    news = leases(one.handle(A, m.Throttled(503, 0.0, "TrafficRateLimitExceeded"), 2.1), A)
    assert [message.limited for message in news] == [True]
    assert [x.limited for x in leases(two.handle(B, announce(wanted=2), 2.2), B)] == [True]
    assert [x.limited for x in leases(two.handle(B, announce(wanted=2), 2.3), B)] == [], "once"
    (shown,) = directory.status()["budgets"]
    assert shown["account"] == "oss://e"
    assert shown["refused_requests"] == 1
    assert shown["in_force"]["bytes_s"] is not None
    assert shown["in_force"]["requests_s"] is None


def test_accounts_have_budgets_of_their_own():
    directory = Directory("", 1, 0.0, Random(1), SECOND, 7.0)
    for node, name, account in ((A, "one", "oss://e"), (B, "two", "oss://f")):
        tracked, _ = directory.join(node, join(name, account), 0.0)
        tracked.handle(node, m.Listing(manifest(name).encode()), 0.0)
        assert granted(tracked.handle(node, announce(), 1.0), node) == [0]
    assert [x["account"] for x in directory.status()["budgets"]] == ["oss://e", "oss://f"]
    shown = directory.status()["budgets"][0]
    assert shown["configured"] == {"bytes_s": SECOND, "requests_s": 7.0}
    assert shown["in_force"] == {"bytes_s": pytest.approx(CHUNK), "requests_s": 6.79}
    assert (shown["used_bytes"], shown["used_requests"]) == (CHUNK, 1)


@pytest.mark.parametrize(
    ("url", "account"),
    [
        ("", ""),
        ("http://h:80/a/b", "http://h:80"),
        ("https://user:secret@h/a", "https://h"),
        ("oss://bucket/prefix/", "oss://bucket"),
        ("file:///models/x", "file://"),
    ],
)
def test_without_a_word_from_the_node_the_account_is_the_origins_host(url, account):
    assert account_of(url) == account


def test_a_refusal_before_the_manifest_is_known_is_heard():
    budget = Budget()
    tracked = Model("m", "", 1, 0.0, Random(1), budget)
    tracked.joined(A, join(), 0.0)
    tracked.handle(A, m.Throttled(429, 0.5, ""), 0.0)
    assert budget.refused_requests == 1
    with pytest.raises(RemoteProtocolError, match="allowance_wanted"):
        tracked.handle(A, m.AllowanceWanted(0, 1, 1), 0.0)


@pytest.mark.parametrize(
    "message",
    [
        m.AllowanceWanted(COUNT, 1, 1),
        m.AllowanceWanted(0, CHUNK + 1, 1),
        m.AllowanceWanted(0, 1, 5000),
    ],
)
def test_a_node_cannot_ask_for_more_than_a_chunk(message):
    tracked = model(Budget(SECOND, None))
    tracked.handle(A, announce(), 1.0)
    with pytest.raises(RemoteProtocolError):
        tracked.handle(A, message, 1.0)


def test_a_node_that_comes_back_does_not_count_its_past_as_got_through():
    budget = Budget()
    tracked = model(budget)
    tracked.handle(A, announce(origin_bytes=1 << 40, requests=1 << 20), 1.0)
    tracked.handle(A, announce(origin_bytes=(1 << 40) + (8 << 20), requests=(1 << 20) + 1), 1.5)
    tracked.handle(A, m.Throttled(503, 0.0, ""), 1.5)
    assert budget.bytes.rate < 20 << 20
