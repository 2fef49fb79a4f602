"""The node's part in the origin's budget: what came with leases, what is asked of the tracker.

    worker: AllowanceWanted --> covered by what leases brought? --> Allowed
                                        | no
                                        '--> tracker: AllowanceWanted ... Allowance --> Allowed

What leases bring is to be used within a tenth of a second, or goes back: the origin counts when a
request comes, not when it was allowed. Hedges live on what happens to be there.

Without a tracker a node goes on at the pace of its last ten seconds: together the nodes then ask as
much of the origin as they did before. No clock and no socket here.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from node import jobs
from p2p import messages as m

EXPIRY_S = 0.1  # a twentieth of the 2 s in which a store's limits are felt
PACE_S = 10.0
PACE_LOWEST_BYTES_S, PACE_LOWEST_REQUESTS_S = 1024**2, 1.0


@dataclass(slots=True)
class _Left:
    """What came with leases and is not used yet."""

    until: float
    bytes: int
    requests: int


@dataclass(frozen=True, slots=True)
class _Ticket:
    """A worker's question that the tracker is to answer."""

    worker: int
    wanted: jobs.AllowanceWanted


class Allowances:
    """Answers the workers' questions.

    Args:
      workers: their number.
      submit: gives a job to one of them.
      send: gives a message to the tracker.
    """

    def __init__(
        self,
        workers: int,
        submit: Callable[[int, jobs.Job], None],
        send: Callable[[m.Message], None],
    ) -> None:
        self.limited = False
        self._workers = workers
        self._submit = submit
        self._send = send
        self._left: deque[_Left] = deque()
        self._tickets: deque[_Ticket] = deque()
        self._granted: deque[tuple[float, int, int]] = deque()
        self._alone = False
        self._pace = (0.0, 0.0)
        self._free_at = 0.0

    def __repr__(self) -> str:
        return f"<Allowances limited={self.limited} waiting={len(self._tickets)}>"

    # -- the tracker ------------------------------------------------------------------------------

    def leased(self, message: m.Leases, now: float) -> None:
        """Leases came: perhaps with an allowance, perhaps with the news that one is needed."""
        if message.limited and not self.limited:
            self.limited = True
            for worker in range(self._workers):
                self._submit(worker, jobs.SetBudget(True))
        self._alone = False
        self._expire(now)
        if message.limited and message.requests:
            self._left.append(_Left(now + EXPIRY_S, message.bytes, message.requests))
            self._grant(message.bytes, message.requests, now)

    def allowed(self, message: m.Allowance, now: float) -> None:
        """The tracker found room for what we wanted: answers come in the order of questions."""
        if not self._tickets:  # asked before the last session ended
            self._send(m.AllowanceBack(message.bytes, message.requests))
            return
        ticket = self._tickets.popleft()
        self._grant(message.bytes, message.requests, now)
        self._answer(ticket.worker, ticket.wanted, 0.0)

    def lost(self, now: float) -> None:
        """No tracker from now on: the pace of the last seconds is kept."""
        self._forget_grants(now)
        count = sum(entry[1] for entry in self._granted), sum(e[2] for e in self._granted)
        self._pace = (
            max(count[0] / PACE_S, PACE_LOWEST_BYTES_S),
            max(count[1] / PACE_S, PACE_LOWEST_REQUESTS_S),
        )
        self._alone, self._free_at = True, now
        self._left.clear()
        while self._tickets:
            ticket = self._tickets.popleft()
            self._answer_alone(ticket.worker, ticket.wanted, now)

    # -- workers ----------------------------------------------------------------------------------

    def take(self, worker: int, report: jobs.Report, now: float) -> bool:
        """A worker's report, if it is one of ours (false: it is not)."""
        match report:
            case jobs.AllowanceWanted():
                self._wanted(worker, report, now)
            case jobs.Unused(size_bytes, requests):
                if self.limited:
                    self._send(m.AllowanceBack(size_bytes, requests))
            case jobs.Throttled(status, retry_after_s, code):
                self._send(m.Throttled(status, retry_after_s, code[:256]))
            case _:
                return False
        return True

    def _wanted(self, worker: int, wanted: jobs.AllowanceWanted, now: float) -> None:
        self._expire(now)
        for left in self._left:
            if left.requests and left.bytes >= wanted.bytes:
                left.bytes -= wanted.bytes
                left.requests -= 1
                self._answer(worker, wanted, 0.0)
                return
        if wanted.spare:
            self._submit(worker, jobs.Allowed(wanted.number, wanted.bytes, False, 0.0))
        elif self._alone:
            self._answer_alone(worker, wanted, now)
        else:
            self._tickets.append(_Ticket(worker, wanted))
            self._send(m.AllowanceWanted(wanted.chunk, wanted.bytes, 1))

    def _answer(self, worker: int, wanted: jobs.AllowanceWanted, wait_s: float) -> None:
        self._submit(worker, jobs.Allowed(wanted.number, wanted.bytes, True, wait_s))

    def _answer_alone(self, worker: int, wanted: jobs.AllowanceWanted, now: float) -> None:
        bytes_s, requests_s = self._pace
        at = max(self._free_at, now)
        self._free_at = at + max(wanted.bytes / bytes_s, 1 / requests_s)
        self._answer(worker, wanted, at - now)

    # -- time -------------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        """What was not used in time goes back."""
        while self._left and (self._left[0].until <= now or not self._left[0].requests):
            left = self._left.popleft()
            if left.bytes or left.requests:
                self._send(m.AllowanceBack(left.bytes, left.requests))

    def _grant(self, size_bytes: int, requests: int, now: float) -> None:
        self._granted.append((now, size_bytes, requests))
        self._forget_grants(now)

    def _forget_grants(self, now: float) -> None:
        while self._granted and self._granted[0][0] <= now - PACE_S:
            self._granted.popleft()
