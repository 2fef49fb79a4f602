"""The origin's budget: no more than the rate and one burst; down at once, up slowly; in turn.

Time is played by hand. `Store` is an origin with a limit, for what takes many rounds.
"""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.units import MIB
from tracker.budget import (
    BACKOFF,
    BURST_S,
    DEAF_S,
    FLOOR_BYTES_S,
    HEADROOM,
    LATE_S,
    PATIENCE_S,
    PAUSE_CAP_S,
    QUIET_S,
    RANGE_BYTES,
    ROUND_S,
    SHAPED_ROUNDS,
    Budget,
    requests_for,
)

CHUNK = 200_000  # more than SMALL_BYTES: bandwidth is what it exhausts
RATE = 1_000_000.0
PACED = RATE * HEADROOM


def drain(budget: Budget, now: float, size: int = CHUNK) -> int:
    """How many requests of `size` are allowed at this moment."""
    count = 0
    while budget.take(size, 1, now):
        count += 1
    return count


def announce(budget: Budget, rate_bytes_s: float, begin: float, end: float, size: int = CHUNK):
    """Heartbeats of 0.5 s that tell of so much received, in requests of `size`."""
    for beat in range(round((end - begin) / 0.5)):
        now = begin + (beat + 1) * 0.5
        budget.passed(round(rate_bytes_s / 2), round(rate_bytes_s / 2 / size), 8, now)


# -- the buckets ----------------------------------------------------------------------------------


def test_without_limits_everything_is_allowed_and_nothing_waits():
    budget = Budget()
    assert not budget.limited
    assert all(budget.take(1 << 40, 1 << 20, 0.0) for _ in range(100))
    assert budget.granted_bytes == 100 << 40


def test_a_chunk_is_allowed_exactly_when_it_is_paid_for():
    budget = Budget(RATE, None)
    budget.take(CHUNK, 1, 0.0)
    while budget.take(CHUNK, 1, 0.0):  # the first burst
        pass
    empty_at = budget.next_deadline(CHUNK, 1, 0.0)
    assert budget.take(CHUNK, 1, empty_at)
    due = budget.next_deadline(CHUNK, 1, empty_at)
    assert due == pytest.approx(empty_at + CHUNK / PACED)
    assert not budget.take(CHUNK, 1, due - 0.001)
    assert budget.take(CHUNK, 1, due)


def test_what_is_saved_up_is_one_burst_or_one_chunk():
    budget = Budget(RATE, None)
    drain(budget, 0.0)
    assert drain(budget, 1000.0) == 1, "a chunk is more than 50 ms of the rate"
    assert drain(budget, 2000.0, size=1000) == int((PACED * LATE_S + CHUNK) / 1000)


def test_requests_are_a_limit_of_their_own():
    budget = Budget(None, 100.0)
    assert drain(budget, 0.0) == int(100 * HEADROOM * BURST_S)
    assert budget.limited
    assert drain(budget, 0.0, size=1 << 40) == 0
    assert drain(budget, 1.0 / (100 * HEADROOM)) == 1


@given(
    st.lists(
        st.tuples(st.floats(0, 0.3), st.integers(1, 300_000), st.integers(1, 4)), max_size=120
    ),
    st.floats(1e5, 1e7),
    st.floats(1, 200),
)
def test_no_window_sees_more_than_the_rate_and_a_burst(asked, rate, requests_s):
    budget, now, allowed = Budget(rate, requests_s), 0.0, []
    for wait_s, size, requests in asked:
        now += wait_s
        if budget.take(size, requests, now):
            allowed.append((now, size, requests))
    largest = max((size for _, size, _ in asked), default=0)
    for index, (begin, _, _) in enumerate(allowed):
        total = count = 0
        for at, size, requests in allowed[index:]:
            total, count = total + size, count + requests
            span_s = at - begin
            assert total <= 1.0001 * (rate * HEADROOM * (span_s + BURST_S) + largest)
            assert count <= 1.0001 * (requests_s * HEADROOM * (span_s + BURST_S) + 4)


def test_what_comes_back_is_there_for_others_and_is_never_more_than_a_burst():
    budget = Budget(RATE, 50.0)
    drain(budget, 0.0)
    assert drain(budget, 1.0) == 1
    assert not budget.take(CHUNK, 1, 1.001)
    assert budget.granted_bytes == 2 * CHUNK
    budget.back(CHUNK, 1, 1.001)
    assert budget.granted_bytes == CHUNK
    assert budget.take(CHUNK, 1, 1.001)
    for _ in range(100):
        budget.back(CHUNK, 1, 1.002)
    assert drain(budget, 1.002) == 1


def test_models_of_one_account_come_in_turn():
    budget, now, got = Budget(RATE, None), 0.0, {"a": 0, "b": 0}
    drain(budget, 0.0)
    budget._waiting.clear()
    for _ in range(200):
        now += 0.01
        for who in ("a", "b"):  # always in the same order
            got[who] += budget.take(CHUNK, 1, now, who)
    assert sum(got.values()) == pytest.approx(now * PACED / CHUNK, abs=2)
    assert abs(got["a"] - got["b"]) <= 1


def test_a_model_that_does_not_come_for_its_turn_loses_it():
    budget = Budget(RATE, None)
    drain(budget, 0.0)
    budget._waiting.clear()
    assert not budget.take(CHUNK, 1, 0.0, "gone")
    due = budget.next_deadline(CHUNK, 1, 0.0)
    assert not budget.take(CHUNK, 1, due, "here")
    assert budget.take(CHUNK, 1, due + PATIENCE_S, "here")


@pytest.mark.parametrize(
    ("size", "requests"), [(1, 1), (RANGE_BYTES, 1), (RANGE_BYTES + 1, 2), (32 * MIB, 4)]
)
def test_a_chunk_takes_as_many_requests_as_ranges(size, requests):
    assert requests_for(size) == requests


# -- what the origin says -------------------------------------------------------------------------


def test_the_first_refusal_sets_the_limit_a_tenth_below_what_got_through():
    budget = Budget()
    announce(budget, RATE, 0.0, 3.0)
    budget.throttled(0.0, 3.0, "DownloadTrafficRateLimitExceeded")
    assert budget.bytes.rate == pytest.approx(BACKOFF * RATE)
    assert budget.requests.rate == inf
    assert budget.limited


def test_refusals_of_one_round_count_once_and_the_next_round_counts_again():
    budget = Budget()
    announce(budget, RATE, 0.0, 3.0)
    for step in range(10):
        budget.throttled(0.0, 3.0 + step / 100, "RateLimit")
    once = budget.bytes.rate
    announce(budget, RATE, 3.0, 4.0)
    budget.throttled(0.0, 3.0 + ROUND_S - 0.001, "RateLimit")
    assert budget.bytes.rate == once
    budget.throttled(0.0, 3.0 + ROUND_S, "RateLimit")
    assert budget.bytes.rate < once
    assert budget.refused_requests == 12


def test_an_outage_teaches_nothing():
    budget = Budget()
    for step in range(20):
        budget.throttled(0.0, float(step))
    assert not budget.limited
    announce(budget, RATE, 20.0, 23.0)
    announce(budget, 0.0, 23.0, 26.0)
    budget.throttled(0.0, 26.0)
    budget.throttled(0.0, 3600.0)
    assert not budget.limited
    assert budget.take(CHUNK, 1, 3600.0)


def test_the_stores_hint_holds_back_everything_and_no_longer_than_a_second():
    budget = Budget()
    budget.throttled(0.3, 10.0)
    assert not budget.take(1, 1, 10.0)
    assert budget.next_deadline(1, 1, 10.0) == pytest.approx(10.3)
    assert not budget.take(1, 1, 10.299)
    assert budget.take(1, 1, 10.3)
    budget.throttled(3600.0, 20.0)
    assert not budget.take(1, 1, 20.0 + PAUSE_CAP_S - 0.001)
    assert budget.take(1, 1, 20.0 + PAUSE_CAP_S)


def test_nothing_is_saved_up_while_the_hint_holds():
    budget = Budget(RATE, None)
    drain(budget, 10.0)
    announce(budget, RATE, 7.0, 10.0)
    budget.throttled(0.5, 10.0, "RateLimit")
    rate = budget.bytes.rate
    assert not budget.take(CHUNK, 1, 10.5)
    assert budget.next_deadline(CHUNK, 1, 10.5) == pytest.approx(10.5 + CHUNK / rate)
    assert drain(budget, 10.5 + CHUNK / rate + 0.001) == 1


@pytest.mark.parametrize(
    ("code", "size", "requests"),
    [
        ("QpsLimitExceeded", 250_000, True),
        ("SlowDown", 250_000, True),
        ("DownloadTrafficRateLimitExceeded", 1000, False),
        ("", 250_000, False),
        ("", 1000, True),
    ],
)
def test_the_stores_word_or_else_the_size_says_which_limit_was_met(code, size, requests):
    budget = Budget()
    announce(budget, RATE, 0.0, 3.0, size)
    budget.throttled(0.0, 3.0, code)
    assert budget.requests.limited == requests
    assert budget.bytes.limited != requests


def test_a_configured_limit_is_the_ceiling_and_shrinks_to_a_twentieth_at_most():
    budget = Budget(RATE, None)
    now = 0.0
    for _ in range(40):
        announce(budget, 1000.0, now, now + 1.5)
        now += ROUND_S
        if budget.refused_requests % 3 == 0:
            now += 3 * ROUND_S  # not in a row: this store means it
        budget.throttled(0.0, now, "RateLimit")
    assert budget.bytes.rate == pytest.approx(RATE / 20)
    for step in range(60_000):
        budget.take(CHUNK, 1, now + step / 100)
    assert budget.bytes.rate == pytest.approx(PACED)


def test_a_rate_grows_back_quickly_then_slowly_then_faster_and_only_while_it_is_wanted():
    budget = Budget()
    announce(budget, RATE, 0.0, 3.0)
    budget.throttled(0.0, 3.0 - ROUND_S, "RateLimit")
    budget.throttled(0.0, 3.0, "RateLimit")
    top, now = budget.bytes.rate / BACKOFF, 3.0
    while now < 3.0 + ROUND_S + 3.0:
        now += 0.01
        drain(budget, now)
    assert budget.bytes.rate == pytest.approx(0.96 * top, rel=0.002), "2 % a second"
    while now < 3.0 + ROUND_S + 11.0:
        now += 0.01
        drain(budget, now)
    assert budget.bytes.rate == pytest.approx(top, rel=0.002), "half a percent a second"
    idle = budget.bytes.rate
    for _ in range(100):
        now += 1.0
        budget.take(1, 1, now)
    assert budget.bytes.rate <= idle * 1.02, "nobody waited: nothing was learned"
    quick = budget.bytes.rate
    for _ in range(100):
        now += 0.01
        drain(budget, now)
    assert now > 3.0 + QUIET_S
    assert 2 * quick < budget.bytes.rate < 2.8 * quick, "doubled in a second, and no faster"


def test_the_first_limit_is_a_guess_and_grows_quickly_until_it_is_refused():
    budget = Budget()
    announce(budget, 0.8 * RATE, 0.0, 3.0)
    budget.throttled(0.0, 3.0, "RateLimit")
    now = 3.0
    while now < 3.0 + ROUND_S + 10.0:
        now += 0.01
        drain(budget, now)
    assert budget.bytes.rate == pytest.approx(0.8 * RATE * (BACKOFF + 0.3), rel=0.01)


def test_without_a_configured_limit_there_is_a_floor():
    budget, now = Budget(), 3.0
    announce(budget, RATE, 0.0, 3.0)
    for _ in range(30):
        budget.throttled(0.0, now, "RateLimit")
        now += 10 * ROUND_S
    assert budget.bytes.rate == FLOOR_BYTES_S


class Store:
    """Serves what a budget allows every 10 ms, as far as its own bucket has room."""

    def __init__(self, budget: Budget, rate_bytes_s: float, *, random_share: float = 0.0) -> None:
        self.budget, self.rate, self.share = budget, rate_bytes_s, random_share
        self.tokens, self.now, self.count = rate_bytes_s * 0.2, 0.0, 0
        self.served = self.refused = self.untold = self.untold_requests = 0

    def run(self, seconds: float) -> tuple[float, float]:
        """Bytes a second and the share of refused requests in so many seconds."""
        self.served = self.refused = count = 0
        for _ in range(round(seconds * 100)):
            self.now += 0.01
            self.tokens = min(self.rate * 0.2, self.tokens + self.rate / 100)
            for _ in range(5):  # more than a client has connections is not asked at once
                if self.budget.take(CHUNK, 1, self.now):
                    count += 1
                    self._serve()
            if round(self.now * 100) % 50 == 0:
                self.budget.passed(self.untold, self.untold_requests, 8, self.now)
                self.untold = self.untold_requests = 0
        return self.served / seconds, self.refused / max(1, count)

    def _serve(self) -> None:
        self.count += 1
        bad = self.share and self.count % round(1 / self.share) == 0
        if self.tokens < CHUNK or bad:
            self.refused += 1
            hint_s = 0.0 if bad else (CHUNK - self.tokens) / self.rate
            self.budget.throttled(hint_s, self.now)
            self.budget.back(CHUNK, 0, self.now)
            return
        self.tokens -= CHUNK
        self.served += CHUNK
        self.untold += CHUNK
        self.untold_requests += 1


@pytest.mark.parametrize("rate", [2e6, 7.5e6, 2e7])
def test_an_unknown_limit_is_found_within_ten_seconds_and_kept(rate):
    store = Store(Budget(), rate)
    store.run(10.0)
    served, refused = store.run(60.0)
    print(f"{served / rate:.3f} of the rate, {refused:.2%} refused")
    assert served >= 0.90 * rate
    assert refused < 0.02


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9])
def test_a_first_limit_that_is_too_low_is_left_soon_and_without_a_crowd_of_refusals(share):
    store = Store(Budget(), 7.5e6)
    announce(store.budget, share * store.rate, 0.0, 3.0)
    store.budget.throttled(0.0, 3.0, "RateLimit")
    store.now = 3.0
    store.run(8.0)
    served, refused = store.run(20.0)
    print(f"{served / store.rate:.3f} of the rate, {refused:.2%} refused")
    assert served >= 0.88 * store.rate
    assert refused < 0.02


def test_a_limit_that_moves_is_followed_down_and_up():
    store = Store(Budget(), 7.5e6)
    store.run(20.0)
    store.rate = 3e6
    store.run(10.0)
    served, refused = store.run(20.0)
    assert served >= 0.88 * 3e6
    assert refused < 0.03
    store.rate = 7.5e6
    store.run(60.0)
    served, refused = store.run(20.0)
    assert served >= 0.88 * 7.5e6


def test_refusals_that_do_not_answer_to_the_rate_are_left_to_the_nodes():
    """A third of all requests is refused, whatever the rate: it stays near where it was."""
    store = Store(Budget(RATE * 20, None), 1e9, random_share=1 / 3)
    store.run(15.0)
    rates = []
    for _ in range(12):
        store.run(5.0)
        rates.append(store.budget.bytes.rate)
    print([round(rate / 1e6, 1) for rate in rates])
    assert max(rates) >= 0.9 * RATE * 20 * HEADROOM
    assert sum(rate >= 0.8 * RATE * 20 for rate in rates) >= 0.7 * len(rates)
    assert DEAF_S > 10 * ROUND_S


def test_less_for_more_leases_is_a_sign_of_shaping_after_three_rounds():
    budget, now = Budget(), 0.0

    def rounds(count: int, rate_bytes_s: float, leases: int) -> None:
        nonlocal now
        for _ in range(round(count * ROUND_S / 0.5)):
            now += 0.5
            budget.passed(round(rate_bytes_s / 2), 5, leases, now)

    rounds(4, RATE, 8)
    rounds(4, RATE / 3, 4)
    assert not budget.limited, "less for less is no sign"
    rounds(SHAPED_ROUNDS - 1, RATE / 3, 16)
    assert not budget.limited
    rounds(2, RATE / 3, 16)
    assert budget.limited
    assert budget.bytes.rate == pytest.approx(BACKOFF * RATE / 3, rel=0.01)
