"""Mistakes that users make: one clear line, a non-zero exit, nothing lost or half-written."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from support.cluster import hashes, make_model, wait_until

MIB = 1024**2
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")


def fails(process, *words: str, code: int = 1) -> None:
    """The command ends with `code` and one last line that holds all `words`."""
    assert process.wait(30) == code, process.text
    assert "Traceback" not in process.text, process.text
    last = process.text.strip().splitlines()[-1]
    for word in words:
        assert word in last, process.text


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that is to fail at once."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "P2P_TOKEN": "", **(env or {})},
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tracker", "nowhere", "--model-dir", "m"], ["--tracker", "nowhere", "HOST:PORT"]),
        (["--tracker", "127.0.0.1:1"], ["--model-dir", "MODEL_DIR"]),
        (["--tracker", "127.0.0.1:1", "--model-dir", "m", "--chunk-size", "x"], ["'x'", "16MiB"]),
        (["--tracker", "127.0.0.1:1", "--model-dir", "m", "--chunk-size", "5000"], ["5000"]),
        (["--tracker", "127.0.0.1:1", "--model-dir", "m", "--origin", "gopher://x/"], ["gopher"]),
        (["--tracker", "127.0.0.1:1", "--model-dir", "m", "--listen", "0.0.0.0:0"], ["token"]),
        (["--tracker", "127.0.0.1:1", "--model-dir", "m", "--token-file", "no"], ["no"]),
        (
            ["--tracker", "127.0.0.1:1", "--model-dir", "m", "--http", "0.0.0.0:0"],
            ["--http-public"],
        ),
        (
            ["--tracker", "127.0.0.1:1", "--model-dir", "m", "--advertise", "10.0.0.1:5"],
            ["10.0.0.1", "token"],
        ),
    ],
)
def test_a_wrong_option_is_named_in_one_line(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    named_in_one_line(run("node", "join", *options), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "nowhere"], ["--listen", "nowhere", "HOST:PORT"]),
        (["--listen", "0.0.0.0:0"], ["0.0.0.0", "token"]),
        (["--listen", "127.0.0.1:0", "--http", "0.0.0.0:0"], ["--http-public"]),
        (["--token-file", "no"], ["no"]),
    ],
)
def test_a_wrong_option_of_the_tracker_is_named_in_one_line(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    named_in_one_line(run("tracker", "serve", *options), words)


def named_in_one_line(done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_an_unreachable_tracker_is_said_and_tried_again_until_it_comes(one):
    source = make_model(one.folder / "source", 11, {"x": 5})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        one.tracker_address = f"127.0.0.1:{probe.getsockname()[1]}"
    node = one.start_node("a", "--origin", source.as_uri(), "--until-complete")
    wait_until(lambda: "does not answer" in node.text, "the warning")
    one.start_tracker()
    assert node.wait() == 0, node.text
    assert hashes(one.folder / "a" / "model") == hashes(source)


def test_a_wrong_token_ends_the_join_at_once(one):
    token = one.folder / "token"
    token.write_text("right\n")
    one.start_tracker("--token-file", str(token))
    node = one.start_node("a", "--origin", one.folder.as_uri(), env={"P2P_TOKEN": "wrong-secret"})
    fails(node, "token")
    assert "wrong-secret" not in node.text


def test_the_right_token_lets_nodes_share(one):
    token = one.folder / "token"
    token.write_text("right\n")
    source = make_model(one.folder / "source", 12, {"x": 3 * MIB})
    one.start_tracker("--token-file", str(token), "--start-with", "2")
    nodes = [
        one.start_node(
            name, "--origin", source.as_uri(), "--token-file", str(token), "--until-complete",
            *CHUNKS,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].text + nodes[1].text
    assert hashes(one.folder / "b" / "model") == hashes(source)


def test_an_origin_that_is_not_there_is_named(one, nginx):
    origin = nginx(make_model(one.folder / "source", 13, {"x": 5}))
    one.start_tracker()
    fails(one.start_node("a", "--origin", origin.url + "missing/"), "404", "missing")
    fails(one.start_node("b", "--origin", (one.folder / "none").as_uri()), "none")
    (one.folder / "empty").mkdir()
    fails(one.start_node("c", "--origin", (one.folder / "empty").as_uri()), "no files")


def test_existing_files_that_differ_are_named_and_replaced_only_when_told(one):
    source = make_model(one.folder / "source", 14, {"x": 2 * MIB, "y": 9})
    one.start_tracker()
    model = one.node_folder("a") / "model"
    make_model(model, 15, {"x": 2 * MIB, "mine.txt": 3})
    mine = hashes(model)
    options = ("--origin", source.as_uri(), "--until-complete", *CHUNKS)
    fails(one.start_node("a", *options), "x", "--replace", code=2)
    assert {name: hashes(model)[name] for name in mine} == mine, "nothing of the user's is lost"
    again = one.start_node("a", *options, "--replace")
    assert again.wait() == 0, again.text
    expected = {**hashes(source), "mine.txt": mine["mine.txt"]}
    assert hashes(model) == expected, "what we did not write is never removed"


def test_existing_files_that_differ_are_found_before_anything_is_fetched(one):
    source = make_model(one.folder / "source", 19, {"x": 2 * MIB, "y": 9})
    one.start_tracker()
    one.start_node("a", "--origin", source.as_uri(), *CHUNKS)
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    for name, wrong in (("b", {"x": 2 * MIB}), ("c", {"y": 8})):
        model = make_model(one.node_folder(name) / "model", 20, wrong)
        mine = hashes(model)
        fails(
            one.start_node(name, "--origin", source.as_uri(), "--until-complete", *CHUNKS),
            *wrong, "--replace", code=2,
        )  # fmt: skip
        assert hashes(model) == mine
        assert one.report(name)["peer_bytes"] == 0
    assert one.node_status("a")["served_bytes"] == 0


def test_existing_files_that_match_are_adopted_and_not_fetched(one):
    source = make_model(one.folder / "source", 16, {"x": 5 * MIB + 1})
    one.start_tracker()
    first = one.start_node("a", "--origin", source.as_uri(), *CHUNKS)
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    make_model(one.node_folder("b") / "model", 16, {"x": 5 * MIB + 1})
    other = one.start_node("b", "--origin", source.as_uri(), "--until-complete", *CHUNKS)
    assert other.wait() == 0, other.text + first.text
    report = one.report("b")
    assert report["peer_bytes"] == report["origin_bytes"] == 0
    assert report["resumed_bytes"] == 5 * MIB + 1


def test_a_cache_in_use_and_a_cache_of_an_unknown_version_are_refused(one):
    source = make_model(one.folder / "source", 17, {"x": 5})
    one.start_tracker()
    one.start_node("a", "--origin", source.as_uri())
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    second = one.start_node("a", "--origin", source.as_uri())
    wait_until(lambda: second.popen.poll() is not None, "the second node's end")
    assert second.popen.returncode == 1
    assert "in use" in second.text
    cache = one.node_folder("c") / ".model.shoal"
    cache.mkdir()
    (cache / "format-version").write_text("99\n")
    (cache / "precious").write_text("kept")
    fails(one.start_node("c", "--origin", source.as_uri()), "99")
    assert (cache / "precious").read_text() == "kept"


def test_garbage_on_both_listeners_ends_that_connection_only(one):
    source = make_model(one.folder / "source", 18, {"x": 5})
    tracker = one.start_tracker()
    node = one.start_node("a", "--origin", source.as_uri())
    status = wait_until(lambda: (s := one.node_status("a")) and s["complete"] and s, "a complete")
    for address in (one.tracker_address, status["peers_at"][0]):
        host, port = address.rsplit(":", 1)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0\0\0\5hello", b"\0\0\0\x20ab"):
            with (
                socket.create_connection((host, int(port)), timeout=10) as connection,
                contextlib.suppress(OSError),  # it may have been reset by now
            ):
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
    other = one.start_node("b", "--origin", source.as_uri(), "--until-complete")
    assert other.wait() == 0, other.text
    for process in (tracker, node):
        assert process.popen.poll() is None
        assert "Traceback" not in process.text, process.text
