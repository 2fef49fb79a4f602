"""The node's part in the budget: what leases bring, what is asked for, what goes back."""

import pytest
import trio

from node import jobs
from node.allowance import EXPIRY_S, PACE_S, Allowances
from node.http_get import Answer
from node.permits import Permits
from p2p import messages as m

SIZE = 1000


class Played:
    """Two workers and a tracker, played by hand: what goes to either is kept."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, jobs.Job]] = []
        self.sent: list[m.Message] = []
        self.allowances = Allowances(2, self._submit, self.sent.append)

    def _submit(self, worker: int, job: jobs.Job) -> None:
        self.jobs.append((worker, job))

    def lease(self, now: float, *, size: int = SIZE, requests: int = 1) -> None:
        self.allowances.leased(m.Leases([0], 1.0, True, size, requests), now)

    def want(self, now: float, *, worker: int = 0, number: int = 1, spare: bool = False) -> None:
        wanted = jobs.AllowanceWanted(number, 7, SIZE, spare)
        assert self.allowances.take(worker, wanted, now)

    def answers(self) -> list[tuple[int, jobs.Job]]:
        """To workers since the last look; the news of the limit aside."""
        found = [entry for entry in self.jobs if not isinstance(entry[1], jobs.SetBudget)]
        self.jobs.clear()
        return found


def allowed(number: int = 1, wait_s: float = 0.0, *, granted: bool = True) -> jobs.Allowed:
    return jobs.Allowed(number, SIZE, granted, wait_s)


def test_workers_hear_of_a_limit_once():
    played = Played()
    played.allowances.leased(m.Leases([1], 1.0), 0.0)
    assert played.jobs == []
    played.lease(1.0)
    played.lease(2.0)
    assert played.jobs == [(0, jobs.SetBudget(True)), (1, jobs.SetBudget(True))]


def test_what_leases_bring_is_used_first_and_the_rest_is_asked_for():
    played = Played()
    played.lease(0.0)
    played.want(0.01)
    assert played.answers() == [(0, allowed())]
    assert played.sent == []
    played.want(0.02, worker=1, number=5)
    assert played.answers() == []
    assert played.sent == [m.AllowanceWanted(7, SIZE, 1)]
    played.allowances.allowed(m.Allowance(7, SIZE, 1), 3.0)
    assert played.answers() == [(1, allowed(5))]


def test_what_is_not_used_within_a_tenth_of_a_second_goes_back():
    played = Played()
    played.lease(0.0, size=2 * SIZE, requests=2)
    played.want(0.05)
    played.want(EXPIRY_S, number=2)
    assert played.answers() == [(0, allowed())]
    assert played.sent == [m.AllowanceBack(SIZE, 1), m.AllowanceWanted(7, SIZE, 1)]


def test_what_is_too_little_for_a_request_is_not_used_for_it():
    played = Played()
    played.lease(0.0, size=SIZE - 1)
    played.want(0.01)
    assert played.sent == [m.AllowanceWanted(7, SIZE, 1)]
    assert played.answers() == []


def test_a_hedge_lives_on_what_is_there_and_never_asks_the_tracker():
    played = Played()
    played.lease(0.0)
    played.want(0.01, number=1, spare=True)
    played.want(0.01, number=2, spare=True)
    assert played.answers() == [(0, allowed(1)), (0, allowed(2, granted=False))]
    assert played.sent == []


def test_refusals_and_what_was_not_used_are_told_at_once():
    played = Played()
    assert played.allowances.take(0, jobs.Throttled(503, 0.1, "SlowDown"), 0.0)
    assert played.allowances.take(0, jobs.Unused(5, 1), 0.0)
    assert played.sent == [m.Throttled(503, 0.1, "SlowDown")], "without a limit nothing goes back"
    played.lease(1.0)
    assert played.allowances.take(0, jobs.Unused(5, 1), 1.0)
    assert played.sent[1:] == [m.AllowanceBack(5, 1)]
    assert not played.allowances.take(0, jobs.Damaged(3), 1.0), "not ours"


def test_an_answer_that_nobody_waits_for_goes_back():
    played = Played()
    played.allowances.allowed(m.Allowance(7, SIZE, 1), 0.0)
    assert played.sent == [m.AllowanceBack(SIZE, 1)]


def test_without_a_tracker_the_pace_of_the_last_seconds_is_kept():
    played = Played()
    for step in range(20):
        played.lease(0.25 + step * 0.5, size=4 << 20, requests=2)
    played.want(9.9)  # after what the last lease brought had gone back
    played.allowances.lost(10.0)
    for number in (2, 3):
        played.want(10.0, number=number)
    # 20 leases of 2 requests in 10 s: four requests a second
    paced = [job for _, job in played.answers()]
    assert paced == [allowed(1), allowed(2, 0.25), allowed(3, 0.5)]
    played.lease(11.0)
    played.want(11.0, number=4)
    assert played.answers() == [(0, allowed(4))]


def test_a_node_that_was_granted_nothing_goes_on_slowly_alone():
    played = Played()
    played.lease(0.0)
    played.allowances.lost(2 * PACE_S)
    for number in (1, 2):
        played.want(2 * PACE_S, number=number)
    assert [job for _, job in played.answers()] == [allowed(1), allowed(2, 1.0)]


# -- in the worker --------------------------------------------------------------------------------


class Range:
    """As much of a sink as permits look at."""

    def __init__(self) -> None:
        self.position, self.end = 0, SIZE


async def test_without_a_limit_a_worker_asks_nobody():
    reports: list[jobs.Report] = []
    async with Permits(reports.append).request(7, Range(), Answer()):  # type: ignore[arg-type]
        pass
    assert reports == []


@pytest.mark.parametrize(
    ("received", "sent", "expected"),
    [
        (SIZE, True, []),
        (300, True, [jobs.Unused(SIZE - 300, 0)]),
        (0, False, [jobs.Unused(SIZE, 1)]),
    ],
)
async def test_a_request_waits_for_leave_and_gives_back_what_it_did_not_use(
    autojump_clock, received, sent, expected
):
    reports: list[jobs.Report] = []
    permits, part, answer = Permits(reports.append), Range(), Answer()
    permits.limited = True
    began = trio.Event()

    async def request() -> None:
        async with permits.request(7, part, answer):  # type: ignore[arg-type]
            began.set()
            part.position, answer.sent = received, sent

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        assert reports == [jobs.AllowanceWanted(1, 7, SIZE, False)]
        begin = trio.current_time()
        permits.answered(jobs.Allowed(1, SIZE, True, 2.5))
        await began.wait()
        assert trio.current_time() - begin == pytest.approx(2.5)
    assert reports[1:] == expected


async def test_leave_for_who_is_gone_is_given_back():
    reports: list[jobs.Report] = []
    permits = Permits(reports.append)
    permits.limited = True
    with trio.move_on_after(0):
        await permits.ask(7, SIZE)
    permits.answered(jobs.Allowed(1, SIZE, True, 0.0))
    assert reports[1:] == [jobs.Unused(SIZE, 1)]
    permits.answered(jobs.Allowed(9, SIZE, False, 0.0))
    assert len(reports) == 2


async def test_a_hedge_hears_no():
    permits = Permits(lambda report: permits.answered(jobs.Allowed(report.number, 1, False, 0.0)))
    permits.limited = True
    assert not await permits.ask(7, 1, spare=True)
