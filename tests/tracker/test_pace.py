"""The number of leases out at once: few for one fixed link, hundreds where each brings its own.

Method: the pace is played against an origin that fills leases like a fluid, as fast as its link and
the share of each connection allow; reports by hand where the exact one that decides matters.
"""

from collections import deque
from itertools import pairwise
from math import ceil, inf

import pytest

from tracker.pace import FIRST as BEGIN
from tracker.pace import FIRST_PER_NODE, LEAST, Pace, beginning

CHUNK = 16 * 1024**2
SHARE = 20e6  # what one connection to the store brings at most
NODES = 8
FIRST = LEAST
MORE = ceil(1.5 * FIRST)


class Origin:
    """All of `limit` leases are out at any time; `changes` are (when, limit from then on)."""

    def __init__(self, nodes: int = NODES) -> None:
        self.pace, self.nodes, self.now = Pace(), nodes, 0.0
        self.changes = [(0.0, self.limit)]
        self._come = 0.0  # bytes of each lease so far, if it was out since the beginning
        self._ends = deque(CHUNK * (i + 1) / self.limit for i in range(self.limit))

    @property
    def limit(self) -> int:
        return self.pace.limit(self.nodes)

    def play(self, until: float, link: float = inf, share: float = inf) -> list[int]:
        """Report chunks at rates in bytes a second; returns each limit that was in force."""
        begun = len(self.changes) - 1
        while self.now < until:
            self.now += (self._ends[0] - self._come) / min(share, link / len(self._ends))
            self._come = self._ends[0]
            self.pace.fetched(CHUNK, self.nodes, len(self._ends), self.now)
            self._ends.popleft()
            while len(self._ends) < self.limit:
                self._ends.append(self._come + CHUNK)
            if self.limit != self.changes[-1][1]:
                self.changes.append((self.now, self.limit))
        return [limit for _, limit in self.changes[begun:]]

    def rests(self) -> list[float]:
        """Seconds between the end of each try that was taken back and the next try."""
        steps = zip(pairwise(self.changes), self.changes[2:], strict=False)
        return [end - at for ((_, old), (at, low)), (end, _) in steps if low < old]


def report(pace: Pace, count: int, spacing_s: float, begin: float = 0.0, **unlike: int) -> float:
    """So many equal reports with all leases out; returns when the next one is due."""
    for i in range(count):
        in_flight = unlike.get("in_flight", pace.limit(NODES))
        pace.fetched(unlike.get("size", CHUNK), NODES, in_flight, begin + i * spacing_s)
    return begin + count * spacing_s


@pytest.mark.parametrize(
    ("nodes", "limit"),
    [(0, LEAST), (1, LEAST), (5 * LEAST, LEAST), (5 * LEAST + 1, LEAST + 1), (1000, 200)],
)
def test_it_starts_at_the_least_or_a_fifth_of_the_nodes(nodes, limit):
    assert Pace().limit(nodes) == limit


def test_a_model_begins_with_a_few_leases_and_each_chunk_that_comes_allows_one_more():
    assert [beginning(8, fetched) for fetched in range(3)] == [BEGIN, BEGIN + 1, BEGIN + 2]
    assert beginning(1000, 0) == ceil(1000 * FIRST_PER_NODE)


def test_where_each_connection_has_its_own_share_half_as_many_more_are_kept_up_to_hundreds():
    limits = Origin().play(until=40.0, share=SHARE)
    assert limits[0] == FIRST
    for before, after in pairwise(limits[:5]):
        assert after == ceil(1.5 * before)
    assert limits == sorted(limits)
    assert limits[-1] > 300


@pytest.mark.parametrize("link", [125e6, 1.25e9, 12.5e9])
def test_on_a_fixed_link_each_try_is_taken_back(link):
    limits = Origin().play(until=300.0, link=link)
    assert len(limits) > 2
    assert limits == [FIRST, MORE] * (len(limits) // 2) + [FIRST] * (len(limits) % 2)


def test_tries_that_bring_nothing_come_later_and_later_and_at_last_once_a_minute():
    origin, window_s = Origin(), 0.5  # a rest ends with the next whole window
    origin.play(until=300.0, link=2.5e9)  # so fast that eight windows are less than the first rest
    waits = [4, 8, 16, 32, 60, 60, 60]
    assert len(origin.rests()) >= len(waits)
    for rest_s, wait_s in zip(origin.rests(), waits, strict=False):
        assert wait_s <= rest_s < wait_s + window_s


def test_a_try_that_brings_more_makes_the_next_failure_a_first_one():
    origin = Origin()
    origin.play(until=60.0, link=1.25e9)
    origin.play(until=120.0, link=FIRST * SHARE, share=SHARE)
    assert origin.limit in (FIRST, MORE)
    at = len(origin.changes)
    origin.play(until=160.0, link=400 * SHARE, share=10 * SHARE)
    origin.changes = origin.changes[at:]
    assert max(limit for _, limit in origin.changes) > 40
    assert 4 <= origin.rests()[0] < 8


@pytest.mark.parametrize("knee", [30, 50, 77, 150, 400])
def test_it_settles_near_the_number_that_fills_the_link(knee):
    """Below by no more than what a kept try must bring, above by no more than one kept in part."""
    settled = min(Origin().play(until=400.0, link=knee * SHARE, share=SHARE)[-2:])
    assert knee / 1.2 <= settled <= knee * 1.5 / 1.2 + 1


def test_a_slow_origin_is_not_tried_most_of_the_time():
    """The window of a try, three chunks of 16 MiB a lease, takes a minute there."""
    origin, link = Origin(), 12.5e6
    origin.play(until=7200.0, link=link)
    rests = origin.rests()
    assert len(rests) > 3
    assert all(rest_s >= 8 * 3 * MORE * CHUNK / link for rest_s in rests)


def test_a_window_is_three_reports_a_lease_after_the_one_that_begins_it():
    pace = Pace()
    now = report(pace, 3 * FIRST, 1.0)
    assert pace.limit(NODES) == FIRST
    report(pace, 1, 1.0, now)
    assert pace.limit(NODES) == MORE


def test_a_window_is_at_least_a_quarter_of_a_second():
    pace = Pace()
    report(pace, 256, 1 / 1024)  # the last one at 255/1024 s
    assert pace.limit(NODES) == FIRST
    report(pace, 1, 1.0, 0.25)
    assert pace.limit(NODES) == MORE


def test_reports_with_fewer_leases_out_do_not_count_and_the_window_begins_again():
    pace = Pace()
    now = report(pace, 1000, 1.0, in_flight=FIRST - 1)
    now = report(pace, 3 * FIRST, 1.0, now)
    now = report(pace, 1, 1.0, now, in_flight=FIRST - 1)
    now = report(pace, 3 * FIRST, 1.0, now)
    assert pace.limit(NODES) == FIRST
    report(pace, 1, 1.0, now)
    assert pace.limit(NODES) == MORE


def test_what_was_granted_before_a_change_says_nothing_of_it():
    pace = Pace()
    now = report(pace, 3 * FIRST + 1, 1.0)
    now = report(pace, FIRST, 1.0, now, size=1000 * CHUNK)
    now = report(pace, 3 * MORE, 1.0, now)
    assert pace.limit(NODES) == MORE
    report(pace, 1, 1.0, now)
    assert pace.limit(NODES) == FIRST, "the same rate as before: taken back"
