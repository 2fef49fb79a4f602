"""A data worker in a process of its own: jobs and reports are datagrams on one socket."""

import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import trio

from node import jobs
from node.audit import start_logging
from node.heap import settle
from node.pinning import pin_near
from node.throttle import Meter
from node.worker import Arrival, Worker, WorkerSettings

DATAGRAM_BYTES = 128 * 1024  # a Got of 1024 blocks has 16 KiB of digests


class Pipe:
    """The worker's end of the control socket: datagrams in, with descriptors, and out."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._out: list[bytes] = []
        self._filled = trio.Event()

    def send(self, report: jobs.Report) -> None:
        """Queue a report."""
        self._out.append(jobs.encode(report))
        self._filled.set()

    async def write(self) -> None:
        """Write what is queued, for ever."""
        while True:
            while self._out:
                batch, self._out = self._out, []
                for data in batch:
                    with contextlib.suppress(ConnectionError):  # the end comes to `arrivals` too
                        await self._sock.send(data)
            self._filled = trio.Event()
            await self._filled.wait()

    async def arrivals(self) -> AsyncIterator[Arrival]:
        """Jobs, until the control process is gone."""
        space = socket.CMSG_SPACE(4)
        while True:
            try:
                data, ancillary, _, _ = await self._sock.recvmsg(DATAGRAM_BYTES, space)
            except ConnectionError:
                return
            if not data:
                return
            sock = None
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    sock = socket.socket(fileno=int.from_bytes(payload[:4], sys.byteorder))
                    sock.setblocking(False)
            job = jobs.decode(data)
            yield job, sock  # type: ignore[misc]


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the control process says when to stop
    if settings.home:
        pin_near(settings.home)
    trio.run(_process, descriptor, settings, Meter(int(sys.argv[4])))


def arguments(settings: WorkerSettings) -> list[str]:
    """The command line after the descriptor."""
    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    return [json.dumps(asdict(settings)), level]


if __name__ == "__main__":
    main()
