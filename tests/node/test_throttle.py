"""What moves bytes keeps to the limit: real sockets, tasks and processes, exact times of each read.

The clock is real here (`tests/p2p/test_rates.py` turns its own): the promise is an upper bound for
any second, which no delay of this machine can break.
"""

import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing
from support.tcp import pair
from support.windows import Seen

from node.sockets import receive_into
from node.throttle import DOWNLOAD, UPLOAD, Meter, Throttle
from node.uplink import Served, Uplink
from p2p.dataframe import HEADER_BYTES, Header, Kind
from p2p.manifest import File, Manifest
from p2p.poller import Poller
from p2p.slots import UploadSlots

RATE = 2_500_000  # 20 Mbit/s
KIB = 1024


async def flood(sock: socket.socket) -> None:
    """Send for ever."""
    data = bytes(256 * KIB)
    while True:
        await trio.lowlevel.wait_writable(sock)
        sock.send(data)


async def receive(sock: socket.socket, throttle: Throttle, seen: Seen, counts: list[int]) -> None:
    """Read for ever."""
    buffer, index = memoryview(bytearray(256 * KIB)), len(counts)
    counts.append(0)
    while True:
        count = await receive_into(sock, buffer, 2.0, throttle)
        counts[index] += count
        seen.add(count)


def throttle(direction: int, rate: int | None = RATE, meter: Meter | None = None) -> Throttle:
    made = Throttle(meter, direction)
    made.set(rate)
    return made


async def test_many_receivers_keep_within_the_limit_together_and_take_turns():
    limited, seen, counts = throttle(DOWNLOAD), Seen(), []
    with pair() as a, pair() as b, pair() as c, pair() as d:
        async with trio.open_nursery() as nursery:
            for sender, receiver in (a, b, c, d):
                nursery.start_soon(flood, sender)
                nursery.start_soon(receive, receiver, limited, seen, counts)
            await trio.sleep(2.0)
            nursery.cancel_scope.cancel()
    print(f"busiest second {seen.most() / RATE:.3f}, mean {seen.mean / RATE:.3f}, shares {counts}")
    assert seen.most() <= 1.03 * RATE
    assert seen.mean >= 0.9 * RATE
    assert max(counts) <= min(counts) + 2 * 12_500 + 1, "in turn, a slice each"


class Held:
    """A store that holds one file of one chunk."""

    def __init__(self, path: Path) -> None:
        self.manifest = Manifest("m", "", (File("x", 1 << 20, "e"),), 1 << 20, 1 << 20)
        self._file = os.open(path, os.O_RDONLY)

    def verified(self, *_: int) -> bool:
        return True

    def descriptor(self, _file: int) -> int:
        return self._file

    def close(self) -> None:
        os.close(self._file)


async def test_a_sender_hands_the_kernel_no_more_than_the_limit(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    limited, seen, poller = throttle(UPLOAD), Seen(), Poller()

    async def drain(sock: socket.socket) -> None:
        request = Header(Kind.REQUEST, 1, 0, 0, 1 << 20).encode()
        sock.send(request)
        got = 0
        while True:
            await trio.lowlevel.wait_readable(sock)
            count = len(sock.recv(1 << 20))
            seen.add(count)
            got += count
            while got >= HEADER_BYTES + (1 << 20):
                got -= HEADER_BYTES + (1 << 20)
                sock.send(request)

    with closing(Held(path)) as held, pair() as (sender, receiver):
        uplink = Uplink(sender, held, UploadSlots(8, 1), Served(), 5.0, limited)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            nursery.start_soon(uplink.run, poller)
            nursery.start_soon(drain, receiver)
            await trio.sleep(1.5)
            nursery.cancel_scope.cancel()
    assert seen.most() <= 1.03 * RATE
    assert seen.mean >= 0.9 * RATE


async def test_waiting_for_a_turn_is_no_stall_and_the_end_of_a_stream_is_seen():
    limited = throttle(DOWNLOAD, 125_000)
    buffer = memoryview(bytearray(64 * KIB))
    with pair() as (sender, receiver):
        sender.send(bytes(20_000))
        sender.shutdown(socket.SHUT_WR)
        got, begin = 0, time.monotonic()
        while got < 20_000:  # a turn comes every 8 ms; a byte may take 6
            got += await receive_into(receiver, buffer, 0.006, limited)
        assert time.monotonic() - begin >= (20_000 - 4096) / 125_000
        with pytest.raises(OSError, match="closed by the other side"):
            await receive_into(receiver, buffer, 0.006, limited)
    with pair() as (_, receiver), pytest.raises(trio.TooSlowError):
        await receive_into(receiver, buffer, 0.05, limited)


async def test_a_change_holds_for_those_who_wait_and_loses_nothing():
    now = 0.0
    limited = Throttle(None, UPLOAD, clock=lambda: now)
    limited.set(125_000)
    for _ in range(4):
        await limited.take(1 << 20)
    taken: list[int] = []
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            taken.append(await limited.take(1 << 20))

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        now = 0.02  # not yet its turn at the old rate, but at the new one
        limited.set(1_250_000)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [6250]
        limited.set(None)
        assert await limited.take(1 << 20) == 1 << 20


async def test_who_gives_up_while_it_waits_takes_nothing_from_the_others():
    limited = Throttle(None, UPLOAD, clock=lambda: 0.0)
    limited.set(RATE)
    assert limited.pacer is not None
    for _ in range(4):
        await limited.take(1 << 20)
    before = limited.pacer.free_at
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limited.take, 1 << 20)
        await trio.testing.wait_all_tasks_blocked()
        assert limited.pacer.free_at > before
        nursery.cancel_scope.cancel()
    assert limited.pacer.free_at == pytest.approx(before)


CHILD = """
import sys, time, trio
from node.throttle import UPLOAD, Meter, Throttle
async def main():
    throttle = Throttle(Meter(int(sys.argv[1])), UPLOAD)
    throttle.set(int(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        count = await throttle.take(1 << 20)
        print(time.monotonic(), count)
trio.run(main)
"""


def test_processes_share_one_limit_and_one_alone_has_all_of_it():
    moved: list[tuple[float, int, int]] = []
    with closing(Meter()) as meter:
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(meter.descriptor), str(RATE), seconds],
                pass_fds=[meter.descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True,
            )
            for seconds in ("1.2", "2.4")
        ]  # fmt: skip
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for number, child in enumerate(children):
            out, _ = child.communicate(timeout=20)
            for line in out.splitlines():
                at, count = line.split()
                moved.append((float(at), int(count), number))
    moved.sort()
    seen = Seen([(at, count) for at, count, _ in moved])
    shares = [sum(count for _, count, who in moved if who == number) for number in (0, 1)]
    print(f"busiest second {seen.most() / RATE:.3f}, mean {seen.mean / RATE:.3f}, {shares}")
    assert seen.most() <= 1.03 * RATE
    assert seen.mean >= 0.9 * RATE
    assert shares[1] > 2 * shares[0], "alone it had all"
    assert shares[0] > 0.3 * 1.2 * RATE, "together each had half"


async def test_without_a_limit_nothing_is_asked():
    free = Throttle(None, DOWNLOAD)
    assert free.pacer is None
    await free.pay(1 << 40)
    with pair() as (sender, receiver):
        sender.send(b"12345")
        assert await receive_into(receiver, memoryview(bytearray(9)), 1.0, free) == 5
