"""Jobs and reports between the control process and a worker: at once, whole, and to the end."""

import os
import socket
import time

import trio

from node import jobs
from node.apart import Pipe
from node.datagrams import Datagrams
from p2p.poller import TURN_S, Poller


def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


async def test_messages_come_whole_and_several_at_once_until_the_end():
    ours, theirs = map(Datagrams, pair())
    assert theirs.send(b"one")
    assert theirs.send(b"two" * 1000)
    assert await ours.receive() == [(b"one", None), (b"two" * 1000, None)]
    theirs.send(b"three")
    theirs.close()
    assert await ours.receive() == [(b"three", None)]
    assert await ours.receive() == []
    ours.close()


async def test_a_descriptor_comes_along_as_a_socket_of_its_own():
    ours, theirs = map(Datagrams, pair())
    one, other = socket.socketpair()
    assert theirs.send(b"take it", one)
    one.close()
    [(data, passed)] = await ours.receive()
    assert data == b"take it"
    assert passed is not None
    with passed, other:
        other.send(b"still open")
        assert passed.recv(100) == b"still open"
    ours.close()
    theirs.close()


async def test_what_finds_no_room_is_told_and_can_be_waited_for():
    ours, theirs = map(Datagrams, pair())
    sent = 0
    while theirs.send(bytes(60_000)):
        sent += 1
    got = 0
    async with trio.open_nursery() as nursery:

        async def more() -> None:
            await theirs.room()
            assert theirs.send(b"the last")
            theirs.close()

        nursery.start_soon(more)
        while messages := await ours.receive():
            got += len(messages)
    assert got == sent + 1
    ours.close()


async def test_a_worker_reports_without_waiting_for_a_turn():
    ours, theirs = pair()
    pipe, control = Pipe(theirs), Datagrams(ours)
    for chunk in range(50):
        pipe.send(jobs.Dropped(chunk))
    got = [jobs.decode(data) for data, _ in await control.receive()]  # no task of the pipe's ran
    assert got == [jobs.Dropped(chunk) for chunk in range(50)]
    control.close()
    theirs.close()


async def test_reports_beyond_the_room_keep_their_order():
    ours, theirs = pair()
    pipe, control = Pipe(theirs), Datagrams(ours)
    count = 5000
    for chunk in range(count):
        pipe.send(jobs.Dropped(chunk))
    got = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.write)
        while len(got) < count:
            got += [jobs.decode(data) for data, _ in await control.receive()]
        nursery.cancel_scope.cancel()
    assert got == [jobs.Dropped(chunk) for chunk in range(count)]
    control.close()
    theirs.close()


async def test_connections_that_are_always_ready_leave_turns_to_others_and_to_each_other():
    poller, calls = Poller(), [0] * 20
    pipes = [os.pipe() for _ in calls]

    def ready(index: int) -> None:
        calls[index] += 1
        time.sleep(TURN_S / 4)  # the work of a callback

    turns = 0
    async with trio.open_nursery() as nursery:
        for index, (reads, writes) in enumerate(pipes):
            os.write(writes, b"never read")
            poller.add(reads, lambda _, index=index: ready(index))
        nursery.start_soon(poller.run)
        while min(calls) < 3:
            turns += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    for descriptors in pipes:
        for descriptor in descriptors:
            os.close(descriptor)
    assert max(calls) <= min(calls) + 2
    assert turns >= sum(calls) / 10
