"""Deadlines that move: the earliest is exact at every moment, and each comes once.

Method: a state machine sets, puts off, brings forward and discards at random, beside a plain dict.
"""

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2p.deadlines import Deadlines

KEYS = st.integers(0, 5)


def test_what_is_put_off_is_not_due_at_its_old_time():
    deadlines: Deadlines[int] = Deadlines()
    deadlines.set(1, 2.0)
    deadlines.set(1, 5.0)
    assert deadlines.pop_due(2.0) == []
    assert deadlines.next() == 5.0
    assert deadlines.pop_due(5.0) == [1]
    assert deadlines.next() == inf


def test_messages_that_put_it_off_cost_no_memory():
    deadlines: Deadlines[int] = Deadlines()
    for moment in range(10_000):
        deadlines.set(1, moment + 2.0)
        deadlines.discard(2)
        deadlines.set(2, moment + 3.0)
    assert len(deadlines._heap) == 2


class AnyOrder(RuleBasedStateMachine):
    """`expected` is the same thing without a heap."""

    def __init__(self):
        super().__init__()
        self.deadlines: Deadlines[int] = Deadlines()
        self.expected: dict[int, float] = {}
        self.now = 0.0

    @rule(key=KEYS, after=st.floats(-1, 10))
    def set(self, key, after):
        self.deadlines.set(key, self.now + after)
        self.expected[key] = self.now + after

    @rule(key=KEYS)
    def discard(self, key):
        self.deadlines.discard(key)
        self.expected.pop(key, None)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds):
        self.now += seconds
        due = [key for key, at in self.expected.items() if at <= self.now]
        assert sorted(self.deadlines.pop_due(self.now)) == sorted(due)
        for key in due:
            del self.expected[key]

    @invariant()
    def the_earliest_is_exact(self):
        assert self.deadlines.next() == min(self.expected.values(), default=inf)
        assert len(self.deadlines) == len(self.expected)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
