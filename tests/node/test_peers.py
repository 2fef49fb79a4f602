"""Control sessions between two nodes of this process: who is let in, and whose word is believed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from node import peers
from node.config import Timeouts
from node.peers import Peers
from p2p import connection, events, liveness, messages
from p2p.connection import FrameStream
from p2p.handshake import NONCE_BYTES
from p2p.ids import ManifestId, NodeId

A, B, C = (NodeId(letter * 16) for letter in (b"a", b"b", b"c"))
MANIFEST = ManifestId(b"m" * 32)
CHUNKS = 4


class Side:
    """One node's sessions; what they tell its swarm is received with `event`."""

    def __init__(self, node: NodeId, token: bytes) -> None:
        self._send, self._events = trio.open_memory_channel[events.Event](100)
        self.peers = Peers(node, token, Timeouts())
        self.peers.attach(MANIFEST, CHUNKS, lambda _: b"\x80", self._send.send_nowait, None)
        self.address = ""

    async def event(self) -> events.Event:
        """The next one."""
        with trio.fail_after(10):
            return await self._events.receive()


@asynccontextmanager
async def sides(*tokens: bytes) -> AsyncIterator[list[Side]]:
    """Nodes A, B, ... that listen, each with its token."""
    async with trio.open_nursery() as nursery:
        started = []
        for node, token in zip((A, B), tokens, strict=False):
            side = Side(node, token)
            listeners = await side.peers.listen([("127.0.0.1", 0)], [])
            (side.address,) = side.peers.advertised
            await nursery.start(partial(side.peers.serve, listeners))
            started.append(side)
        yield started
        nursery.cancel_scope.cancel()


async def test_two_nodes_with_one_token_hear_what_the_other_holds():
    async with sides(b"token", b"token") as (a, b):
        a.peers.connect(B, (b.address,))
        assert await a.event() == events.PeerReady(B, b"\x80")
        assert await b.event() == events.PeerReady(A, b"\x80")
        a.peers.disconnect(B)
        assert await a.event() == events.PeerLost(B)
        assert await b.event() == events.PeerLost(A)


@pytest.mark.parametrize("tokens", [(b"token", b"other"), (b"token", b""), (b"", b"token")])
async def test_nodes_with_two_tokens_never_meet(tokens):
    async with sides(*tokens) as (a, b):
        a.peers.connect(B, (b.address,))
        assert await a.event() == events.PeerLost(B)
        with pytest.raises(trio.WouldBlock):
            b._events.receive_nowait()


async def test_a_node_that_is_not_the_one_that_was_offered_is_not_let_in():
    async with sides(b"", b"") as (a, b):
        a.peers.connect(C, (b.address,))
        assert await a.event() == events.PeerLost(C)


@pytest.mark.parametrize(
    "said",
    [
        [messages.Have([0], b"p" * 16)],
        [messages.BitfieldMessage(b"\0\0")],
        [messages.BitfieldMessage(b"\0"), messages.Have([CHUNKS], b"p" * 16)],
        [messages.BitfieldMessage(b"\0"), messages.Have([0], b"p" * 15)],
        [messages.BitfieldMessage(b"\0"), messages.Lost([CHUNKS])],
        [messages.BitfieldMessage(b"\0"), messages.Fetching([CHUNKS])],
        [messages.BitfieldMessage(b"\0"), messages.PinsQuery([CHUNKS])],
        [messages.BitfieldMessage(b"\0"), messages.PinsKnown([CHUNKS], b"p" * 16)],
        [messages.BitfieldMessage(b"\0"), messages.Corrupt(CHUNKS)],
    ],
    ids=lambda said: " ".join(message.TYPE for message in said),
)
async def test_what_is_out_of_bounds_ends_the_session_and_reaches_no_swarm(said):
    async with sides(b"") as (a,):
        host, port = a.address.rsplit(":", 1)
        frames = FrameStream(await trio.open_tcp_stream(host, int(port)))
        hello = messages.Hello("control", 1, 1, B, b"n" * NONCE_BYTES, MANIFEST)
        await connection.dial(frames, b"", hello)
        await frames.send(*said)
        heard = [await a.event()]
        while not isinstance(heard[-1], events.PeerLost):
            heard.append(await a.event())
        expected = [events.PeerReady(B, b"\0"), events.PeerLost(B)]
        assert heard == expected[len(expected) - len(said) :]
        await frames.aclose()


async def met(side: Side) -> FrameStream:
    """A session with it, played by hand as node B."""
    host, port = side.address.rsplit(":", 1)
    frames = FrameStream(await trio.open_tcp_stream(host, int(port)))
    hello = messages.Hello("control", 1, 1, B, b"n" * NONCE_BYTES, MANIFEST)
    await connection.dial(frames, b"", hello)
    frames.unbounded()
    await frames.send(messages.BitfieldMessage(b"\0"))
    assert isinstance(await frames.receive(), messages.BitfieldMessage)
    assert await side.event() == events.PeerReady(B, b"\0")
    return frames


async def test_who_is_asked_whether_it_lives_says_so():
    async with sides(b"") as (a,):
        frames = await met(a)
        await frames.send(messages.Ping())
        assert await frames.receive() == messages.Pong()
        await frames.aclose()


async def test_a_silent_peer_is_asked_stays_while_it_answers_and_is_given_up_then(monkeypatch):
    monkeypatch.setattr(peers, "LOOK_S", 0.01)
    monkeypatch.setattr(liveness, "QUIET_S", 0.1)
    monkeypatch.setattr(liveness, "SILENCE_S", 0.1)
    monkeypatch.setattr(liveness, "ANSWER_S", 3.0)
    async with sides(b"") as (a,):
        frames = await met(a)
        for _ in range(3):
            with trio.fail_after(10):
                while await frames.receive() != messages.Ping():
                    pass
            await frames.send(messages.Pong())
        with pytest.raises(trio.WouldBlock):
            a._events.receive_nowait()
        assert await a.event() == events.PeerLost(B)
        await frames.aclose()


async def test_a_wildcard_is_told_as_the_address_that_the_tracker_is_reached_from_now():
    async with sides(b"secret") as (a,):
        listener, *_ = await a.peers.listen([("0.0.0.0", 0)], [])
        port = listener.socket.getsockname()[1]
        for ip in ("10.0.0.7", "10.0.0.9"):  # a container that is connected again
            a.peers.reached_from(ip)
            assert a.peers.advertised == [f"{ip}:{port}"]
        await listener.aclose()
        (listener,) = await a.peers.listen([("127.0.0.1", 0)], [("node.example", 7)])
        a.peers.reached_from("10.0.0.7")
        assert a.peers.advertised == ["node.example:7"]
        await listener.aclose()
