"""The shaped cluster: real runs, small ones, in namespaces of their own."""

import json
import subprocess
import sys

import pytest

from simulations.netns import why_not

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "never"),
    pytest.mark.timeout(240),
]
SMALL = ("--nodes", "3", "--rate", "200mbit", "--size", "8MiB", "--chunk-size", "128KiB")


def namespaces() -> set[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulations", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_a_swarm_is_measured_against_the_bound_and_leaves_nothing_behind(tmp_path):
    before = namespaces()
    path = tmp_path / "figures.json"
    done = simulate("bench", "swarm", *SMALL, "--runs", "2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "repeat: python -m simulations bench swarm --nodes 3" in done.stdout
    assert namespaces() == before
    result = json.loads(path.read_text())
    assert result["bound_s"] == pytest.approx(8 * 1024**2 * 8 / 200e6)
    assert len(result["runs"]) == 2
    for run in result["runs"]:
        assert [node["seconds"] > 0 for node in run["nodes"]] == [True] * 3
        assert sum(node["origin_bytes"] for node in run["nodes"]) == 8 * 1024**2
        assert 1 <= run["figures"]["origin"] < 1.5
        assert run["figures"]["mean"] >= 0.9, "faster than the links: they are not shaped"
        assert run["figures"]["stall_s"] > 0


def test_a_slow_node_a_late_one_and_one_that_is_killed(tmp_path):
    path = tmp_path / "figures.json"
    more = ("--slow", "1", "--slow-rate", "50", "--stagger", "1", "--kill", "50")
    done = simulate("netlab", "--nodes", "4", *SMALL[2:], *more, "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
    (run,) = json.loads(path.read_text())["runs"]
    slow, *others, victim = run["nodes"]
    assert (slow["up_mbit"], others[0]["up_mbit"]) == (100, 200)
    assert victim["killed_at"] is not None
    assert victim["seconds"] is None
    assert all(node["seconds"] > 0 for node in (slow, *others))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--slow", "many", "neither a number of nodes"),
        ("--rate", "100", "100"),
        ("--chunk-size", "5KiB", "chunk"),
        ("--vs", "ftp", "--vs knows libtorrent and aria2c, not 'ftp'"),
    ],
)
def test_bad_options_are_refused_in_one_line(option, value, said):
    done = simulate("bench", "swarm", *SMALL, option, value)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
