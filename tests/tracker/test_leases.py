"""Leases: no chunk at two live nodes, none lost, each ended exactly in time."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from p2p.ids import NodeId
from tracker.leases import FETCHED, LEASE_S, LEASED, QUEUED, Leases

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)


def test_chunks_are_granted_in_order_and_a_returned_one_comes_first_again():
    leases = Leases([2, 0, 1])
    assert [leases.grant(A, 0.0), leases.grant(B, 0.0)] == [2, 0]
    leases.failed(A, 2)
    assert [leases.grant(B, 0.0), leases.grant(B, 0.0), leases.grant(B, 0.0)] == [2, 1, None]


def test_a_lease_ends_exactly_two_seconds_after_its_last_progress():
    leases = Leases([0])
    leases.grant(A, 0.0)
    leases.progress(A, 0, 100, 1.5)
    leases.progress(A, 0, 100, 3.0)  # no new byte: no new life
    assert leases.next_deadline() == 1.5 + LEASE_S
    assert leases.expire(3.499) == []
    assert leases.expire(3.5) == [(0, A)]
    assert leases.grant(B, 3.5) == 0


def test_a_late_result_still_counts():
    leases = Leases([0])
    leases.grant(A, 0.0)
    leases.expire(LEASE_S)
    leases.fetched(0)
    assert leases.grant(B, 3.0) is None
    assert leases.state(0) == FETCHED


def test_a_node_that_is_gone_gives_back_all_and_a_running_fetch_is_adopted():
    leases = Leases([0, 1, 2])
    leases.grant(A, 0.0)
    leases.grant(A, 0.0)
    leases.release(A)
    leases.progress(B, 1, 5, 0.0)
    assert leases.state(1) == LEASED
    assert [leases.grant(B, 0.0), leases.grant(B, 0.0)] == [0, 2]


def test_only_a_fetched_chunk_can_be_lost():
    leases = Leases([0])
    leases.lost(0)
    assert leases.grant(A, 0.0) == 0
    leases.lost(0)
    assert leases.state(0) == LEASED
    leases.fetched(0)
    leases.lost(0)
    assert leases.state(0) == QUEUED


class AnyOrder(RuleBasedStateMachine):
    """Three nodes play with six chunks; a model keeps its own books."""

    CHUNKS = 6
    NODES = (A, B, NodeId(b"c" * 16))

    def __init__(self):
        super().__init__()
        self.leases = Leases(list(range(self.CHUNKS)))
        self.now = 0.0
        self.owner: dict[int, tuple[NodeId, float]] = {}
        self.fetched: set[int] = set()

    @rule(node=st.sampled_from(NODES))
    def grant(self, node):
        free = set(range(self.CHUNKS)) - self.fetched - set(self.owner)
        chunk = self.leases.grant(node, self.now)
        assert chunk == (min(free) if free else None), "the most wanted free one, never another's"
        if chunk is not None:
            self.owner[chunk] = (node, self.now + LEASE_S)

    @precondition(lambda self: self.owner)
    @rule(data=st.data())
    def finish(self, data):
        chunk = data.draw(st.sampled_from(sorted(self.owner)))
        del self.owner[chunk]
        self.fetched.add(chunk)
        self.leases.fetched(chunk)

    @rule(node=st.sampled_from(NODES))
    def crash(self, node):
        self.owner = {c: entry for c, entry in self.owner.items() if entry[0] != node}
        self.leases.release(node)

    @rule(seconds=st.floats(0.1, 3))
    def wait(self, seconds):
        self.now += seconds
        late = {c for c, (_, deadline) in self.owner.items() if deadline <= self.now}
        assert {chunk for chunk, _ in self.leases.expire(self.now)} == late
        for chunk in late:
            del self.owner[chunk]

    def teardown(self):
        """Liveness: one good node that stays ends with every chunk fetched."""
        for chunk in list(self.owner):
            self.leases.fetched(chunk)
        while (chunk := self.leases.grant(A, self.now)) is not None:
            self.leases.fetched(chunk)
        assert all(self.leases.state(c) == FETCHED for c in range(self.CHUNKS))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
