"""What strangers and broken peers send: that connection ends, with its reason, and nothing else."""

from contextlib import closing

import pytest
from support.cluster import Cluster, make_model, wait_until
from support.wire import Wire, hello

from p2p import dataframe, messages
from p2p.dataframe import Header, Kind
from p2p.framing import MAX_FRAME, pack

MIB = 1024**2


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A tracker and a complete node `a`; both must be alive, without a traceback, at the end."""
    one = Cluster(tmp_path_factory.mktemp("standing"), 1)
    with closing(one):
        source = make_model(one.folder / "source", 51, {"x": 3 * MIB})
        processes = {"tracker": one.start_tracker("--log-level", "info")}
        origin = ("--origin", source.as_uri(), "--chunk-size", "1MiB", "--block-size", "256KiB")
        processes["node"] = one.start_node("a", *origin)
        status = wait_until(
            lambda: (s := one.node_status("a")) and s["complete"] and s, "a complete"
        )
        addresses = {"tracker": one.tracker_address, "node": status["peers_at"][0]}
        yield processes, addresses, bytes.fromhex(status["manifest_id"])
        other = one.start_node("b", *origin, "--until-complete", "--linger", "0")
        assert other.wait() == 0, "both still serve\n" + other.text
        assert one.report("b")["peer_bytes"] == 3 * MIB
        for process in processes.values():
            assert process.popen.poll() is None
            assert "Traceback" not in process.text, process.text


@pytest.fixture
def dial():
    """`dial(address)` gives a `Wire`; all are closed at the end."""
    wires = []

    def start(address: str) -> Wire:
        wires.append(Wire(address))
        return wires[-1]

    yield start
    for wire in wires:
        wire.close()


ROLES = [("tracker", "node"), ("node", "control"), ("node", "data")]


@pytest.mark.parametrize(("who", "role"), ROLES)
def test_an_incompatible_protocol_version_is_refused_by_name(standing, dial, who, role):
    _, addresses, manifest = standing
    manifest = b"" if who == "tracker" else manifest
    wire = dial(addresses[who])
    wire.send(hello(role, manifest, low=90, high=99))
    refusal = wire.receive()
    assert isinstance(refusal, messages.Refuse)
    assert refusal.code == "version"
    assert "90 to 99" in refusal.text
    assert "upgrade" in refusal.text
    assert wire.ended()


@pytest.mark.parametrize(("who", "role"), ROLES)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((2**31).to_bytes(4, "big"), "is more than"),
        ((8 * 1024 + 1).to_bytes(4, "big"), "is more than"),
        (b"\0\0\0\5hello", ""),
        (pack(messages.Ping()), "starts with hello"),
        (pack(hello("node"))[:-3], "in the middle of a frame"),
        (b"", "ended during the handshake"),
    ],
    ids=["huge", "over 8 KiB", "garbage", "no hello", "cut", "nothing"],
)
def test_a_bad_first_frame_ends_the_connection(standing, dial, who, role, data, reason):
    processes, addresses, _ = standing
    before = len(processes[who].text)
    wire = dial(addresses[who])
    wire.sock.sendall(data)
    wire.sock.shutdown(1)
    assert wire.ended()
    if reason:
        wait_until(lambda: reason in processes[who].text[before:], f"{reason!r} in the log", 10)


@pytest.mark.parametrize(("who", "role"), ROLES[:2])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((MAX_FRAME + 1).to_bytes(4, "big"), "is more than"),
        (b"\0\0\0\7garbage", ""),
        (b"\0\0\1\0half", "in the middle of a frame"),
        (pack(messages.Welcome(1)), "welcome"),
    ],
    ids=["oversized", "garbage", "truncated", "out of place"],
)
def test_a_bad_frame_of_a_known_peer_ends_its_session(standing, dial, who, role, data, reason):
    processes, addresses, manifest = standing
    before = len(processes[who].text)
    wire = dial(addresses[who]).handshake(hello(role, b"" if who == "tracker" else manifest))
    if who == "tracker":
        wire.send(messages.Join("m", "file:///nowhere", ["127.0.0.1:1"], b"", False, MIB, MIB))
    wire.sock.sendall(data)
    wire.sock.shutdown(1)
    assert wire.ended()
    if reason:
        wait_until(lambda: reason in processes[who].text[before:], f"{reason!r} in the log", 10)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * dataframe.HEADER_BYTES,
        Header(Kind.DATA, 1, 0, 0, 5).encode(),
        Header(Kind.REQUEST, 1, 99, 0, 5).encode(),
        Header(Kind.REQUEST, 1, 0, 1, 5).encode(),
        Header(Kind.REQUEST, 1, 0, 0, 2**31).encode(),
        Header(Kind.REQUEST, 1, 0, 0, 0).encode(),
        Header(Kind.REQUEST, 1, 0, 0, 5).encode()[:-1],
    ],
    ids=["garbage", "not upward", "no such chunk", "offset", "too long", "empty", "truncated"],
)
def test_a_bad_data_header_ends_that_data_connection(standing, dial, header):
    _, addresses, manifest = standing
    wire = dial(addresses["node"]).handshake(hello("data", manifest))
    wire.sock.sendall(header)
    wire.sock.shutdown(1)
    assert wire.ended()


@pytest.mark.parametrize(("who", "role"), [("tracker", "control"), ("node", "node"), ("node", "")])
def test_a_role_that_has_no_answer_is_refused_by_name(standing, dial, who, role):
    _, addresses, manifest = standing
    wire = dial(addresses[who])
    wire.send(hello(role, manifest))
    refusal = wire.receive()
    assert isinstance(refusal, messages.Refuse)
    assert refusal.code == "role"
    assert repr(role) in refusal.text
    assert wire.ended()


def test_a_node_of_another_model_is_told_so(standing, dial):
    _, addresses, _ = standing
    wire = dial(addresses["node"])
    wire.send(hello("control", b"m" * 32))
    refusal = wire.receive()
    assert isinstance(refusal, messages.Refuse)
    assert refusal.code == "manifest"
