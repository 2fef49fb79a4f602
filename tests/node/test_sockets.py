"""Raw sockets: when a task yields, and how much of a connection the kernel holds for it."""

import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from support.tcp import pair

from node.sockets import FAST_BYTES, FAST_BYTES_S, TURN_BYTES, Turns, Window, receive_exactly
from p2p.units import KIB


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection on loopback, both ends non-blocking."""
    with pair() as both:
        yield both


def buffer_bytes(sock: socket.socket) -> int:
    """What the kernel may hold for a reader now."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def test_a_fast_connection_gets_a_wide_window_once(ends):
    sock = ends[1]
    window, before = Window(sock), buffer_bytes(sock)
    window.came(16 * FAST_BYTES, 16 * FAST_BYTES / FAST_BYTES_S * 1.01)  # slow
    window.came(FAST_BYTES - 1, 0.0)  # too few to tell
    assert (window.wide, buffer_bytes(sock)) == (False, before)
    window.came(FAST_BYTES, FAST_BYTES / FAST_BYTES_S * 0.99)
    assert window.wide
    assert buffer_bytes(sock) > 4 * before


async def test_a_short_tail_wakes_its_reader_on_a_wide_connection(ends):
    near, far = ends
    window = Window(far)
    window.came(FAST_BYTES, 0.0)
    assert far.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await trio.testing.wait_all_tasks_blocked()  # the reader sleeps
            near.send(b"tail!")

        nursery.start_soon(send)
        assert await receive_exactly(far, 5, 10.0) == b"tail!"


async def test_others_get_a_turn_every_few_mib_and_not_more_often():
    turns = Turns()
    for _ in range(2):
        with trio.testing.assert_no_checkpoints():
            for _ in range(TURN_BYTES // (256 * KIB) - 1):
                await turns.moved(256 * KIB)
        with trio.testing.assert_checkpoints():
            await turns.moved(256 * KIB)
