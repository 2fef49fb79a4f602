"""A data worker in a process of its own: jobs and reports are datagrams on one socket."""

import json
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import trio

from node import jobs
from node.audit import start_logging
from node.datagrams import Datagrams
from node.heap import settle
from node.pinning import pin_near
from node.throttle import Meter
from node.worker import Arrival, Worker, WorkerSettings


class Pipe:
    """The worker's end: jobs in, with descriptors, and reports out."""

    def __init__(self, sock: socket.socket) -> None:
        self._datagrams = Datagrams(sock)
        self._out: deque[bytes] = deque()
        self._filled = trio.Event()

    def send(self, report: jobs.Report) -> None:
        """Send a report, once there is room."""
        data = jobs.encode(report)
        if self._out or not self._try(data):
            self._out.append(data)
            self._filled.set()

    def _try(self, data: bytes) -> bool:
        try:
            return self._datagrams.send(data)
        except ConnectionError:  # the end comes to `arrivals` too
            return True

    async def write(self) -> None:
        """Write what had to wait, for ever."""
        while True:
            while self._out:
                if self._try(self._out[0]):
                    self._out.popleft()
                else:
                    await self._datagrams.room()
            self._filled = trio.Event()
            await self._filled.wait()

    async def arrivals(self) -> AsyncIterator[Arrival]:
        """Jobs, until the control process is gone."""
        while messages := await self._datagrams.receive():
            for data, sock in messages:
                yield jobs.decode(data), sock  # type: ignore[misc]


async def _process(descriptor: int, settings: WorkerSettings, meter: Meter) -> None:
    pipe = Pipe(socket.socket(fileno=descriptor))
    worker = Worker(pipe.send, settings, meter)
    settle()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.write)
        await worker.run(pipe.arrivals())
        nursery.cancel_scope.cancel()


def main() -> None:
    """`python -m node.apart FD SETTINGS-JSON LEVEL METER-FD`; started by `node.workers` only."""
    descriptor, settings = int(sys.argv[1]), WorkerSettings(**json.loads(sys.argv[2]))
    start_logging(sys.argv[3], Path(settings.log_path) if settings.log_path else None)
    for number in (signal.SIGINT, signal.SIGTERM):  # may be sent to the group, as systemd does:
        signal.signal(number, signal.SIG_IGN)  # the control process says when to stop
    if settings.home:
        pin_near(settings.home)
    trio.run(_process, descriptor, settings, Meter(int(sys.argv[4])))


def arguments(settings: WorkerSettings) -> list[str]:
    """The command line after the descriptor."""
    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    return [json.dumps(asdict(settings)), level]


if __name__ == "__main__":
    main()
