"""The cluster in containers: real runs of `python -m simulations cluster`, small ones.

They need a Docker engine, which CI starts (.ci/run); where there is none they are skipped, but not
in CI. Repeat one with `pytest tests/e2e/test_cluster.py -k NAME`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from simulations.cluster.engine import PROJECT, NoEngine, compose_command, connect

COMMAND = (sys.executable, "-m", "simulations")
MIB = 1024**2


def why_not() -> str:
    """What is missing here; in CI nothing may be."""
    if os.environ.get("CI"):
        return ""
    try:
        connect().close()
        compose_command()
    except NoEngine as error:
        return str(error)
    return ""


needs_engine = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")


@pytest.fixture(scope="module")
def images() -> str:
    """Build them; what was said about their sizes."""
    command = [*COMMAND, "images", "build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def engine() -> Iterator["docker.DockerClient"]:
    """The engine, which has after a test what it had before."""
    client = connect()
    before = everything(client)
    yield client
    assert everything(client) == before
    client.close()


def everything(client: "docker.DockerClient") -> set[str]:
    """All that a run could leave behind, its folder included."""
    found = [f"container {one.name}" for one in client.containers.list(all=True)]
    found += [f"network {one.name}" for one in client.networks.list()]
    found += [f"volume {one.name}" for one in client.volumes.list()]
    found += map(str, Path(tempfile.gettempdir()).glob("shoal-cluster-*"))
    return set(found)


def simulate(tmp_path: Path, *words: str) -> tuple[dict[str, Any], str]:
    """A run that succeeds; its figures and its words."""
    path = tmp_path / "figures.json"
    command = [*COMMAND, "cluster", *words, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures, done.stdout


@needs_engine
@pytest.mark.timeout(400)  # the first one builds the images
def test_every_copy_is_verified_no_process_is_root_and_the_secret_is_none(images, engine, tmp_path):
    sizes = re.findall(r"^shoal: (\d+) MB over", images, re.MULTILINE)
    assert int(sizes[0]) < 200
    figures, said = simulate(tmp_path, "--nodes", "3", "--size", "64MiB", "--keep")
    down = said.partition("this removes it:\n")[2].strip()
    try:
        assert "all 3 copies equal the source" in said
        assert figures["verified"]
        assert figures["figures"]["origin"] <= 1.02
        assert 1 <= figures["figures"]["origin_nginx"] <= 1.02
        name = re.findall(r"project (\w+): starting", said)[0]
        kept = engine.containers.list(filters={"label": f"{PROJECT}={name}"})
        assert len(kept) == 5
        token = next(Path(tempfile.gettempdir()).glob("shoal-cluster-*/token"))
        for container in kept:
            top = container.top(ps_args="-eo pid,uid,args")
            assert all(row[1] != "0" for row in top["Processes"]), top
            assert token.read_text() not in json.dumps([container.attrs, top])
        healthy = [one for one in kept if one.attrs["State"]["Health"]["Status"] == "healthy"]
        assert len(healthy) >= 2, "the tracker and the origin, for which the nodes waited"
    finally:
        done = subprocess.run(["sh", "-c", down], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_engine
@pytest.mark.timeout(250)
def test_a_cluster_comes_through_kills_a_pause_a_pulled_cable_and_a_new_tracker(
    images, engine, tmp_path
):
    figures, said = simulate(
        tmp_path, "--nodes", "6", "--kill", "2", "--at", "50%", "--restart", "--pause", "1",
        "--disconnect", "1", "--restart-tracker",
    )  # fmt: skip
    nodes = figures["nodes"]
    assert [node["fault"] for node in nodes] == ["", "", "disconnect", "pause", "kill", "kill"]
    assert [node["verified"] for node in nodes] == [True] * 6
    assert "tracker: restart" in said
    for node in nodes[4:]:
        assert node["resumed_bytes"] >= 256 * MIB * 0.4, "a restarted node begins anew"
    # Once the tracker has forgotten an absent node, what that one fetched and nobody else has is
    # fetched again: 0 to 2 % on a quiet machine, more on a busy one, but nothing else.
    absent = sum(node["origin_bytes"] for node in nodes if node["fault"] in {"disconnect", "pause"})
    assert figures["figures"]["origin_nginx"] <= 1.03 + absent / (256 * MIB)


@needs_engine
@pytest.mark.timeout(250)
def test_a_node_that_stays_dead_holds_up_nobody(images, engine, tmp_path):
    words = ("--nodes", "3", "--size", "64MiB", "--kill", "1", "--at", "20%")
    figures, _ = simulate(tmp_path, *words)
    assert [node["seconds"] is None for node in figures["nodes"]] == [False, False, True]
    assert [node["verified"] for node in figures["nodes"]] == [True, True, False]


@needs_engine
@pytest.mark.skipif(os.geteuid() != 0, reason="shaping needs root")
@pytest.mark.timeout(250)
def test_links_are_shaped_from_the_first_byte_and_after_a_restart(images, engine, tmp_path):
    words = ("--nodes", "3", "--size", "32MiB", "--rate", "50mbit", "--kill", "1", "--restart")
    figures, said = simulate(tmp_path, *words)
    assert figures["bound_s"] == pytest.approx(32 * MIB * 8 / 50e6)
    assert "mean / bound" in said
    for node in figures["nodes"]:
        assert node["seconds"] / figures["bound_s"] >= 0.98, "faster than its link"


@needs_engine
@pytest.mark.timeout(250)
@pytest.mark.parametrize(
    ("moment", "code"),
    [
        ("starting 3 nodes", 130),
        ("all containers run", 130),
        ("comparing every copy", 130),
        ("removing it", 0),
    ],
)
def test_ctrl_c_leaves_nothing_behind(images, engine, moment, code):
    command = [*COMMAND, "cluster", "--nodes", "3", "--size", "256MiB"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if moment in line:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
            break
    said += process.stdout
    process.stdout.close()
    assert process.wait(120) == code, "".join(said)
    assert "removing it" in "".join(said)
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("words", [("cluster",), ("images", "base")])
def test_without_an_engine_one_line_says_so(words):
    nowhere = "unix:///nonexistent/docker.sock"
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "DOCKER_HOST": nowhere},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"no Docker engine answers at {nowhere} (No such file")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kill", "8"), "8 faults need more than 8 nodes"),
        (("--restart",), "--kill"),
        (("--at", "half"), "'half' is not a percentage"),
        (("--rate", "fast"), "'fast' is not a rate"),
    ],
)
def test_bad_options_are_refused_in_one_line(words, said):
    command = [*COMMAND, "cluster", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
