"""Receive windows: together what a slow link drains in 35 ms, and a fast link's are never touched.

Method: exact numbers, then real connections on loopback whose settings are written down.
"""

import socket
from collections.abc import Iterator

import pytest

from node.windows import NEAR_S, Unsent, Windows, round_trip_s, window_bytes
from p2p.units import KIB

LEAST, MOST = 48 * KIB, 192 * KIB


class Recorded(socket.socket):
    """Remembers the receive buffers that were asked for."""

    asked: tuple[int, ...] = ()

    def setsockopt(self, level, name, value) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.asked = (*self.asked, value)
        super().setsockopt(level, name, value)

    @property
    def buffer_bytes(self) -> int:
        """What the kernel holds: twice what was asked for, for its own books."""
        return self.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


@pytest.fixture
def socks() -> Iterator[list[Recorded]]:
    """The receiving ends of three TCP connections on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        accepted = [Recorded(fileno=listener.accept()[0].detach()) for _ in range(3)]
    yield accepted
    for sock in (*dialled, *accepted):
        sock.close()


class Link:
    """Windows, and the bytes that came so far."""

    def __init__(self) -> None:
        self.windows, self.received, self.now = Windows(), 0, 1000.0
        self.windows.fit([], 0, self.now)

    def fit(self, socks: list[Recorded], rate: float, span_s: float = 0.25) -> None:
        """A span at this rate, and a look."""
        self.received += int(rate * span_s)
        self.now += span_s
        self.windows.fit(socks, self.received, self.now)


@pytest.mark.parametrize(
    ("rate", "connections", "size"),
    [
        (12_500_000, 1, None), (12_500_000, 2, None), (12_500_000, 3, 145_833),
        (12_500_000, 8, 54_687), (12_500_000, 9, LEAST), (12_500_000, 1000, LEAST),
        (1_000_000, 1, LEAST), (2_000_000, 1, 70_000), (2_000_000, 0, 70_000), (0, 0, LEAST),
        (5_617_371, 1, MOST - 1), (5_617_372, 1, None),
        (1_404_371, 1, LEAST), (1_404_372, 1, LEAST + 1),
        (125_000_000, 8, None), (125_000_000, 30, 145_833),
    ],
)  # fmt: skip
def test_a_connection_gets_its_share_of_35_ms_between_a_least_and_no_limit(rate, connections, size):
    assert window_bytes(rate, connections) == size


def test_a_round_trip_on_loopback_is_near(socks):
    assert 0 < round_trip_s(socks[0]) < NEAR_S


def test_a_slow_link_narrows_the_windows_of_busy_connections_only(socks):
    before, link = socks[2].buffer_bytes, Link()
    link.fit(socks[:2], 2_000_000)
    assert [sock.asked for sock in socks] == [(LEAST,), (LEAST,), ()]
    assert socks[0].buffer_bytes == socks[1].buffer_bytes == 2 * LEAST < before
    assert socks[2].buffer_bytes == before


def test_a_fast_link_is_left_to_the_kernel_and_so_are_its_pauses_and_its_slow_tail(socks):
    link = Link()
    for rate in (1e9, 1e9, 0, 0, 1e6, 1e6):
        link.fit(socks, rate)
    assert [sock.asked for sock in socks] == [(), (), ()]


def test_a_pause_on_a_slow_link_changes_nothing(socks):
    link = Link()
    for rate in (4_000_000, 0, 0, 0, 0):
        link.fit(socks[:1], rate)
    assert socks[0].asked == (140_000,)


def test_a_far_peer_is_left_to_the_kernel(socks, monkeypatch):
    monkeypatch.setattr("node.windows.round_trip_s", lambda sock: NEAR_S * (sock is socks[1]))
    Link().fit(socks, 1_000_000)
    assert [sock.asked for sock in socks] == [(LEAST,), (), (LEAST,)]


def test_a_change_under_a_quarter_is_not_set(socks):
    link, sock = Link(), socks[0]
    for rate in (2_000_000, 2_000_000, 2_480_000, 1_600_000):
        link.fit([sock], rate)
    assert sock.asked == (70_000,)
    link.fit([sock], 2_500_000)
    assert sock.asked == (70_000, 87_500)
    assert sock.buffer_bytes == 2 * 87_500


def test_a_window_that_was_narrowed_is_opened_when_the_link_turns_out_to_be_fast(socks):
    link, sock = Link(), socks[0]
    for rate in (1_000_000, 1e9, 1e9):
        link.fit([sock], rate)
    assert sock.asked == (LEAST, MOST)


def test_a_closed_connection_is_skipped_and_has_no_share(socks):
    link = Link()
    socks[1].close()
    link.fit(socks[:2], 2_000_000)
    assert [sock.asked for sock in socks[:2]] == [(70_000,), ()]
    socks[0].close()
    link.fit(socks, 4_000_000)
    assert [sock.asked for sock in socks] == [(70_000,), (), (140_000,)]


def test_what_the_kernel_refuses_is_skipped(socks):
    one, other = socket.socketpair()  # without a round trip
    with one, other:
        Link().fit([one, *socks], 1_000_000)
    assert [sock.asked for sock in socks] == [(LEAST,)] * 3


def test_nothing_is_judged_before_a_span_is_over_or_when_a_connections_bytes_are_gone(socks):
    windows = Windows()
    for received, now in ((5_000_000, 0.0), (5_100_000, 0.19), (1_000_000, 1.0)):
        windows.fit(socks, received, now)
    assert [sock.asked for sock in socks] == [(), (), ()]
    windows.fit(socks, 1_250_000, 1.25)
    assert [sock.asked for sock in socks] == [(LEAST,)] * 3


# -- what the kernel takes ahead of the wire ------------------------------------------------------


def unsent(sock: socket.socket) -> int:
    """What the kernel may hold unsent, as it says itself; the socket module has no name for it."""
    tcp_notsent_lowat = 25
    return sock.getsockopt(socket.IPPROTO_TCP, tcp_notsent_lowat)


class Sending:
    """Limits, and the bytes that went out so far."""

    def __init__(self) -> None:
        self.limits, self.sent, self.now = Unsent(), 0, 1000.0
        self.limits.fit([], 0, self.now)

    def fit(self, socks: list[Recorded], rate: float, span_s: float = 0.25) -> list[int]:
        """A span at this rate, and a look; what the kernel says then."""
        self.sent += int(rate * span_s)
        self.now += span_s
        self.limits.fit(socks, self.sent, self.now)
        return [unsent(sock) for sock in socks]


@pytest.fixture
def senders() -> Iterator[list[socket.socket]]:
    """The sending ends of two TCP connections on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in range(2)]
    yield dialled
    for sock in (*dialled, *accepted):
        sock.close()


@pytest.mark.parametrize(
    ("rate", "size"),
    [
        (1_000_000, 16 * KIB), (12_500_000, 16 * KIB), (32_768_000, 16 * KIB),
        (32_770_000, 16_385), (125_000_000, 62_500), (1_250_000_000, 625_000),
    ],
)  # fmt: skip
def test_each_connection_holds_what_goes_out_in_half_a_ms_and_16_kib_at_least(senders, rate, size):
    assert Sending().fit(senders, rate) == [size, size]


def test_a_link_on_which_nothing_was_sent_is_left_to_the_kernel(senders):
    before = [unsent(sock) for sock in senders]
    assert Sending().fit(senders, 0) == before


def test_the_limit_follows_changes_by_more_than_half(senders):
    sending = Sending()
    for rate, size in (
        (100_000_000, 50_000), (150_000_000, 50_000), (150_004_000, 75_002),
        (0, 75_002), (0, 75_002), (0, 75_002), (0, 30_720),
    ):  # fmt: skip
        assert sending.fit(senders[:1], rate) == [size], rate


def test_a_new_connection_gets_the_limit_of_the_others_and_a_closed_one_is_skipped(senders):
    sending, before = Sending(), unsent(senders[1])
    assert sending.fit(senders[:1], 100_000_000) == [50_000]
    assert unsent(senders[1]) == before
    assert sending.fit(senders, 100_000_000) == [50_000, 50_000]
    senders[0].close()
    sending.sent, sending.now = sending.sent + 50_000_000, sending.now + 0.25
    sending.limits.fit(senders, sending.sent, sending.now)
    assert unsent(senders[1]) == 100_000


def test_a_connection_that_takes_no_limit_is_skipped(senders):
    one, other = socket.socketpair()
    with one, other:
        sending = Sending()
        sending.sent, sending.now = 25_000_000, sending.now + 0.25
        sending.limits.fit([one, *senders], sending.sent, sending.now)
    assert [unsent(sock) for sock in senders] == [50_000, 50_000]


def test_no_limit_is_set_before_a_span_is_over_or_when_a_connections_bytes_are_gone(senders):
    before, limits = unsent(senders[0]), Unsent()
    for sent, now in ((5_000_000, 0.0), (90_000_000, 0.1), (1_000_000, 0.15), (26_000_000, 0.34)):
        limits.fit(senders, sent, now)
        assert unsent(senders[0]) == before
    limits.fit(senders, 26_000_000, 0.4)
    assert unsent(senders[0]) == 50_000
