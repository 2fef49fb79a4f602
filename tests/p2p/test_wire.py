"""The wire: what goes in comes out, whatever the split; garbage is one named error.

Method: Hypothesis draws messages from the codec's own annotations' bounds; frames are cut at every
byte; the handshake is played between its two machines, honest and not.
"""

import contextlib
import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import dataframe, messages
from p2p.errors import LocalProtocolError, Refused, RemoteProtocolError
from p2p.framing import FrameReader, pack
from p2p.handshake import Dialler, Listener, proof
from p2p.manifest import MAX_CHUNK_BYTES, MAX_CHUNKS
from p2p.messages import Hello, Message

EXAMPLES: list[Message] = [
    Hello("node", 1, 1, b"n" * 16, b"x" * 32, b"m" * 32, ["127.0.0.1:1"], b"p" * 32),
    messages.Join("m", "http://o/", ["h:1"], b"manifest", True, 1 << 24, 1 << 20),
    messages.Announce(b"\xf0", [1, 2], [5, 6], 2, 7, 8, 9, 1),
    messages.Fetched([3], b"p" * 16, b"c" * 8),
    messages.Have([1, 2], b"p" * 32),
    messages.Leases([5], 123.5),
    messages.LeaseFailed(4, "gone", True, 1.5),
    messages.Peers([b"n" * 16], [["h:1", "h:2"]]),
    messages.Ping(),
    messages.Pong(),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.TYPE)
def test_a_message_survives_the_wire_cut_at_every_byte(message):
    data = pack(message) + pack(messages.Ping())
    for cut in range(len(data) + 1):
        reader = FrameReader()
        found = []
        for part in (data[:cut], data[cut:]):
            reader.receive_data(part)
            while (got := reader.next_message()) is not None:
                found.append(got)
        assert found == [message, messages.Ping()]
        assert not reader.mid_frame


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.TYPE)
def test_a_reader_that_asks_for_exactly_what_is_wanted_never_reads_into_the_next_frame(message):
    data, reader, at = pack(message) + b"NEXT", FrameReader(), 0
    while wanted := reader.wanted:
        reader.receive_data(data[at : at + wanted])
        at += wanted
    assert reader.next_message() == message
    assert data[at:] == b"NEXT"


@given(st.binary(max_size=200))
def test_garbage_is_never_more_than_a_remote_error(data):
    for attempt in (lambda: messages.decode(data), lambda: read(data)):
        with contextlib.suppress(RemoteProtocolError):
            attempt()


def read(data: bytes) -> None:
    reader = FrameReader()
    reader.receive_data(data)
    while reader.next_message() is not None:
        pass


def test_a_field_out_of_bounds_is_named_on_both_sides():
    with pytest.raises(LocalProtocolError, match=r"lease_failed\.text"):
        messages.encode(messages.LeaseFailed(1, "x" * 5000, False))
    good = msgpack.unpackb(messages.encode(messages.LeaseFailed(1, "x", False)))
    for change, words in [
        ({"chunk": -1}, "lease_failed.chunk"),
        ({"chunk": True}, "lease_failed.chunk"),
        ({"text": 5}, "lease_failed.text"),
        ({"fatal": 1}, "lease_failed.fatal"),
        ({"retry_after_s": float("nan")}, "lease_failed.retry_after_s"),
        ({"t": "nonsense"}, "unknown type"),
    ]:
        with pytest.raises(RemoteProtocolError, match=words):
            messages.decode(msgpack.packb({**good, **change}))
    del good["chunk"]
    with pytest.raises(RemoteProtocolError, match="lacks chunk"):
        messages.decode(msgpack.packb(good))


def test_an_unknown_key_of_a_newer_peer_is_ignored():
    tree = msgpack.unpackb(messages.encode(messages.Ping()))
    assert messages.decode(msgpack.packb({**tree, "colour": "red"})) == messages.Ping()


def test_an_http_server_in_place_of_a_peer_is_known_by_its_first_word():
    reader = FrameReader()
    reader.receive_data(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(RemoteProtocolError, match="an HTTP server is there"):
        reader.next_message()


def test_before_authentication_a_long_frame_is_refused_by_its_length_alone():
    reader = FrameReader()
    reader.receive_data((8 * 1024 + 1).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match="8193"):
        reader.next_message()


def test_a_frame_that_no_reader_would_take_is_not_sent():
    long = ["h" * 1024] * 16
    with pytest.raises(LocalProtocolError, match=r"peers of \d+ bytes"):
        pack(messages.Peers([b"n" * 16] * 1024, [long] * 1024))


# -- handshake ------------------------------------------------------------------------------------

ME = Hello("control", 1, 1, b"a" * 16, b"1" * 32, b"m" * 32)
YOU = Hello("control", 1, 1, b"b" * 16, b"2" * 32, b"m" * 32)


def shake(dials: Dialler, listens: Listener, hello: Hello = YOU) -> None:
    answer = listens.receive_hello(dials.first, hello)
    proof = dials.receive(answer)
    assert proof is not None
    assert dials.receive(listens.receive_proof(proof)) is None


def test_both_sides_end_with_the_same_version_and_know_each_other():
    dials, listens = Dialler(b"token", ME), Listener(b"token")
    shake(dials, listens)
    assert dials.version == listens.version == 1
    assert dials.peer is not None
    assert (dials.peer.node, listens.peer) == (YOU.node, ME)


def test_a_listener_with_another_token_is_refused_by_the_dialler():
    dials = Dialler(b"token", ME)
    answer = Listener(b"other").receive_hello(ME, YOU)
    with pytest.raises(Refused, match="token") as refusal:
        dials.receive(answer)
    assert refusal.value.code == "token"
    assert dials.peer is None, "and it was shown no proof of ours"


def test_a_dialler_without_the_token_is_refused_by_the_listener():
    listens = Listener(b"token")
    answer = listens.receive_hello(ME, YOU)
    forged = messages.Proof(answer.proof)  # the listener's own proof played back
    with pytest.raises(Refused, match="token"):
        listens.receive_proof(forged)
    assert listens.version is None


def test_a_proof_of_another_session_does_not_open_this_one():
    first, old = Dialler(b"token", ME), Listener(b"token")
    proof = first.receive(old.receive_hello(ME, YOU))
    assert proof is not None
    new = Listener(b"token")
    new.receive_hello(ME, dataclasses.replace(YOU, nonce=b"3" * 32))
    with pytest.raises(Refused, match="token"):
        new.receive_proof(proof)


@pytest.mark.parametrize(
    "change",
    [{"role": "data"}, {"nonce": b"3" * 32}, {"node": b"c" * 16}, {"manifest": b""}, {"high": 2}],
    ids=lambda change: next(iter(change)),
)
def test_a_proof_is_good_for_exactly_these_two_hellos(change):
    good = proof(b"token", b"label", ME, YOU)
    assert proof(b"token", b"label", dataclasses.replace(ME, **change), YOU) != good
    assert proof(b"token", b"label", ME, dataclasses.replace(YOU, **change)) != good


@pytest.mark.parametrize("change", [{"nonce": b"3" * 31}, {"node": b"c"}, {"manifest": b"m"}])
def test_a_hello_with_a_field_of_a_wrong_length_is_refused_on_both_sides(change):
    with pytest.raises(RemoteProtocolError, match="wrong length"):
        Listener(b"").receive_hello(dataclasses.replace(ME, **change), YOU)
    with pytest.raises(RemoteProtocolError, match="wrong length"):
        Dialler(b"", ME).receive(dataclasses.replace(YOU, **change))


def test_versions_that_do_not_meet_are_both_named():
    newer = dataclasses.replace(ME, low=7, high=9)
    with pytest.raises(Refused, match="7 to 9") as refusal:
        Listener(b"").receive_hello(newer, YOU)
    assert refusal.value.code == "version"


# -- data frames ----------------------------------------------------------------------------------


def test_a_data_header_is_forty_bytes_and_survives():
    header = dataframe.Header(dataframe.Kind.DATA, 7, 9, 1 << 20, 1 << 18, 1, 256, 0)
    data = header.encode()
    assert len(data) == dataframe.HEADER_BYTES == 40
    assert dataframe.decode(data, dataframe.DOWNWARD) == header


@given(st.binary(min_size=40, max_size=40))
def test_a_garbage_header_is_never_more_than_a_remote_error(data):
    for prefix in (b"", b"SHL1\x01"):
        with contextlib.suppress(RemoteProtocolError):
            dataframe.decode((prefix + data)[:40], dataframe.UPWARD)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (dataframe.Header(dataframe.Kind.DATA, 1, MAX_CHUNKS, 0, 1), "names bytes"),
        (dataframe.Header(dataframe.Kind.DATA, 1, 1, 1, MAX_CHUNK_BYTES), "names bytes"),
        (dataframe.Header(dataframe.Kind.DATA, 1, 1, digests=1025 * 16), "of digests"),
        (dataframe.Header(dataframe.Kind.DATA, 1, 1, digests=8), "of digests"),
        (dataframe.Header(dataframe.Kind.BUSY, 1, 1, status=60_001), "60001 ms"),
    ],
    ids=["chunk", "range", "too many digests", "half a digest", "busy for too long"],
)
def test_a_data_header_out_of_bounds_is_refused_before_anything_is_allocated(header, words):
    with pytest.raises(RemoteProtocolError, match=words):
        dataframe.decode(header.encode(), dataframe.DOWNWARD)


@pytest.mark.parametrize(("at", "words"), [(0, "starts with"), (4, "version")])
def test_a_data_header_of_another_protocol_or_version_is_refused(at, words):
    data = bytearray(dataframe.Header(dataframe.Kind.DATA, 1, 1).encode())
    data[at] ^= 0x40
    with pytest.raises(RemoteProtocolError, match=words):
        dataframe.decode(data, dataframe.DOWNWARD)


def test_a_frame_of_the_other_direction_is_refused():
    data = dataframe.Header(dataframe.Kind.DATA, 1, 1).encode()
    with pytest.raises(RemoteProtocolError, match="does not belong"):
        dataframe.decode(data, dataframe.UPWARD)
