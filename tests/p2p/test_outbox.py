"""The outbox: a message leaves at once if it can, and none is lost or overtaken.

Method: real TCP on loopback, messages larger than its buffers, and a clock that the test turns.
"""

import os
import select
import socket
import struct

import pytest
import trio
from trio.testing import open_stream_to_socket_listener, wait_all_tasks_blocked

from p2p import messages as m
from p2p.connection import FrameStream
from p2p.framing import pack
from p2p.outbox import OUTBOX_MESSAGES, Outbox

BIG = 8 * 1024**2  # more than the buffers of both sides take while nobody reads


@pytest.fixture
async def ends():
    """Both ends of a connection; the near one is written to."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    near = await open_stream_to_socket_listener(listener)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BIG)  # trio's is 16 KiB
    async with listener, near, await listener.accept() as far:
        frames = FrameStream(far)
        frames.unbounded()
        yield FrameStream(near), frames


def message(number: int, size: int = 0) -> m.Message:
    return m.Listing(number.to_bytes(4, "big") * (1 + size // 4))


async def read(far: FrameStream, last: m.Message | None) -> list[m.Message]:
    """All messages up to this one, or to the end of the connection."""
    got = []
    while last not in got[-1:] and (one := await far.receive()) is not None:
        got.append(one)
    return got


async def start(nursery, outbox: Outbox, near: FrameStream) -> None:
    """Run it until it waits."""
    nursery.start_soon(outbox.run, near)
    await wait_all_tasks_blocked()


async def test_a_message_is_written_by_the_task_that_puts_it(ends, nursery):
    outbox, (near, far) = Outbox(), ends
    await start(nursery, outbox, near)
    outbox.put(message(1), message(2))
    assert select.select([far.stream.socket], [], [], 10)[0], "no other task ran since"
    assert os.read(far.stream.socket.fileno(), 999) == pack(message(1)) + pack(message(2))


async def test_what_the_socket_does_not_take_comes_whole_and_in_order(ends, nursery):
    outbox, (near, far) = Outbox(), ends
    nursery.start_soon(outbox.run, near)
    for begin in (0, 100, 200):
        await wait_all_tasks_blocked()
        near.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        sent = [message(n, BIG * (n % 5 == 0)) for n in range(begin, begin + 8)]
        outbox.put(sent[0])  # begun by the socket, its rest waits
        outbox.put(*sent[1:3])
        await wait_all_tasks_blocked()  # `run` waits for room: here it is, but it does not know
        near.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 192 * 1024)
        for one in sent[3:]:
            outbox.put(one)
        assert await read(far, sent[-1]) == sent


async def test_as_many_as_the_bound_wait_for_run_and_none_overtakes_them(ends, nursery):
    outbox, (near, far) = Outbox(), ends
    sent = [message(n) for n in range(OUTBOX_MESSAGES + 1)]
    outbox.put(*sent[:-2])
    nursery.start_soon(outbox.run, near)
    outbox.put(sent[-2])
    await wait_all_tasks_blocked()
    outbox.put(sent[-1])
    assert await read(far, sent[-1]) == sent


async def test_one_more_than_the_bound_ends_the_session(ends):
    outbox = Outbox()
    outbox.put(*[message(1)] * OUTBOX_MESSAGES, message(2))
    with pytest.raises(trio.BrokenResourceError, match="does not read"):
        await outbox.run(ends[0])


async def test_a_side_that_stops_reading_is_given_up_when_the_queue_is_full(ends):
    outbox, (near, _) = Outbox(), ends
    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with trio.open_nursery() as session:
            await start(session, outbox, near)
            for batch in ([message(0, BIG)], [message(1)] * (OUTBOX_MESSAGES + 1)):
                outbox.put(*batch)
                await wait_all_tasks_blocked()
            session.cancel_scope.cancel()


@pytest.mark.parametrize("place", ["before run", "rest of a put", "in run"])
async def test_after_drained_a_closed_connection_loses_nothing(ends, nursery, place):
    outbox, (near, far) = Outbox(), ends
    nursery.start_soon(outbox.run, near)
    if place != "before run":
        await wait_all_tasks_blocked()
    outbox.put(message(1, BIG))
    if place == "in run":
        await wait_all_tasks_blocked()

    async def check() -> None:
        assert await read(far, None) == [message(1, BIG)]

    async with trio.open_nursery() as reader:
        reader.start_soon(check)
        await outbox.drained()
        await near.aclose()


async def test_a_broken_connection_ends_run_and_put_never_raises(ends):
    outbox, (near, far) = Outbox(), ends
    with pytest.RaisesGroup(trio.BrokenResourceError), trio.fail_after(10):
        async with trio.open_nursery() as session:
            await start(session, outbox, near)
            far.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await far.aclose()
            await trio.lowlevel.wait_readable(near.stream.socket)  # the reset is here
            outbox.put(message(1))
            outbox.put(message(2, BIG), message(3))
            await trio.sleep_forever()
    outbox.put(message(4))
