"""Hosts with several NICs, each in network namespaces of its own and shaped at both ends.

Rates are bytes on the wire, counted by the links' shapers, over the time of the transfer. Repeat
one with `pytest tests/e2e/test_nics.py -k NAME`, as root.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import hashes, make_model, wait_until

from node.status import read_status
from p2p.errors import P2PError
from simulations.netns import Host, Link, Net, why_not

MIB = 1024**2
MBIT = 1_000_000 / 8
ORIGIN = "10.77.9.1"  # behind all subnets, so that every NIC has a way to it
FRAMES = 1514 / 1448  # of payload
SCRAPE = (
    "import urllib.request as u; print(u.urlopen('http://127.0.0.1:7080/metrics').read().decode())"
)
CHUNKS = ("--chunk-size", "4MiB", "--block-size", "512KiB")
NGINX = """
daemon off; worker_processes 1; pid {work}/pid; error_log {work}/error.log; user root;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on;
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  server {{
    listen 80;
    location / {{ root {root}; autoindex on; autoindex_format json; }}
  }}
}}
"""

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "never"),
    pytest.mark.timeout(240),
]


class Node:
    """A node that runs on a host."""

    def __init__(self, lab: "Lab", host: Host, name: str, links: list[Link], *options: str) -> None:
        self.host, self.links = host, links
        self.folder = lab.folder / name
        self.folder.mkdir()
        self.log = self.folder / "log"
        sources = ("--source-ip", ",".join(link.ip for link in links)) if links else ()
        self.before = self.counters()
        self.process = lab.python(
            host, self.log, "-m", "node", "join", "--tracker", lab.tracker, "--origin", lab.url,
            "--model-dir", str(self.folder / "model"), "--report", str(self.folder / "report"),
            "--listen", "0.0.0.0:0", "--quiet", *CHUNKS, *sources, *options,
        )  # fmt: skip

    @property
    def text(self) -> str:
        """All output so far."""
        return self.log.read_text()

    def counters(self) -> list[tuple[int, int]]:
        """Of each NIC, in and out."""
        return [link.counters() for link in self.links]

    def status(self) -> dict[str, Any]:
        """Its own; empty while it does not answer."""
        try:
            return read_status(self.folder / ".model.shoal")
        except (P2PError, ValueError):
            return {}

    def report(self) -> dict[str, Any]:
        """Its figures."""
        report: dict[str, Any] = json.loads((self.folder / "report").read_text())
        return report

    def finish(self, source: dict[str, str]) -> None:
        """It ends with 0 and holds the source's bytes."""
        try:
            assert self.process.wait(120) == 0, self.text
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.status()}\n{self.text}") from None
        assert hashes(self.folder / "model") == source

    def mbit(self) -> float:
        """What came in by all NICs over the time of the transfer."""
        after = self.counters()
        moved = sum(new[0] - old[0] for old, new in zip(self.before, after, strict=True))
        return moved / self.report()["seconds"] / MBIT


class Lab:
    """An origin and a tracker; a management network that nobody shapes joins all hosts."""

    def __init__(self, net: Net, folder: Path, size: int) -> None:
        self.net, self.folder = net, folder
        self.source = make_model(folder / "source", 1, {"big.bin": size})
        self.hashes = hashes(self.source)
        self.management = net.switch("mgmt")
        self.infra = net.host("infra")
        self.infra.plug(self.management, "10.77.100.1/24")
        self.infra.sh("ip", "addr", "add", f"{ORIGIN}/32", "dev", "lo")
        self.infra.sh("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.arp_ignore=1")
        self.switches = [net.switch(f"lan{i}") for i in range(1, 4)]
        for i, switch in enumerate(self.switches, 1):
            self.infra.plug(switch, f"10.77.{i}.1/24")
        self.url = f"http://{ORIGIN}/"
        self.tracker = ""
        self._hosts = 0
        self._start()

    def python(self, host: Host, log: Path, *words: str) -> "subprocess.Popen[bytes]":
        """Start one of our programs."""
        root = str(Path(__file__).resolve().parents[2])
        env = {"P2P_TOKEN": "t", "PYTHONPATH": root}
        return host.start(log, sys.executable, *words, env=env)

    def _start(self) -> None:
        work = self.folder / "nginx"
        work.mkdir()
        config = work / "conf"
        config.write_text(NGINX.format(work=work, root=self.source))
        program = ("nginx", "-p", str(work), "-c", str(config), "-e", str(work / "error.log"))
        self.infra.start(work / "log", *program)
        log = self.folder / "tracker.log"
        listen = ("--listen", "10.77.100.1:7070", "--http", "off")
        self.python(self.infra, log, "-m", "tracker", "serve", *listen)
        self.tracker = "10.77.100.1:7070"
        wait_until(lambda: (work / "pid").exists() and (work / "pid").read_text(), "nginx")
        wait_until(lambda: log.exists() and "tracker: nodes" in log.read_text(), "the tracker")

    def host(self, name: str) -> Host:
        """A host on the management network."""
        self._hosts += 1
        host = self.net.host(name)
        host.plug(self.management, f"10.77.100.{self._hosts + 1}/24")
        host.sh("ip", "route", "add", "unreachable", "default", "metric", "9999")
        return host

    def nics(self, host: Host, *mbits: float) -> list[Link]:
        """NICs in a subnet each, with a way to the origin each."""
        links = []
        for i, mbit in enumerate(mbits, 1):
            link = host.plug(self.switches[i - 1], f"10.77.{i}.{self._hosts + 1}/24", mbit)
            way = ("default", "via", f"10.77.{i}.1", "dev", link.near, "metric", str(i))
            host.sh("ip", "route", "add", *way)
            links.append(link)
        return links

    def node(self, name: str, mbits: list[float], *options: str, use: int | None = None) -> Node:
        """A node on a host of its own; it uses the first `use` of its NICs."""
        host = self.host(name)
        links = self.nics(host, *mbits)
        return Node(self, host, name, links[:use], *options)


@pytest.fixture
def lab(folder: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose model has as many MiB as the parameter says."""
    with Net() as net:
        yield Lab(net, folder, request.param * MIB)


def alone(*options: str) -> tuple[str, ...]:
    """Of a node that is done when it has everything."""
    return ("--until-complete", "--linger", "0", *options)


def best(run: Callable[[str], Node], enough: float) -> float:
    """The better rate of at most two runs, in Mbit/s: all hosts share a machine's few cores, and
    what else runs there may slow a run down, but nothing makes it faster than its links."""
    rates: list[float] = []
    while len(rates) < 2 and max(rates, default=0.0) < enough:
        rates.append(run(f"try{len(rates)}").mbit())
    print("measured", *(f"{rate:.1f}" for rate in rates), f"Mbit/s; {enough:.1f} are enough")
    return max(rates)


def held(node: Node) -> int:
    """Chunks that it has."""
    count: int = node.status().get("held_chunks", 0)
    return count


@pytest.mark.parametrize("lab", [320], indirect=True)
def test_two_nics_read_the_origin_twice_as_fast_as_one(lab):
    one = lab.node("one", [200, 200], *alone(), use=1)
    one.finish(lab.hashes)
    enough = 1.9 * one.mbit()

    def both(name: str) -> Node:
        node = lab.node(name, [200, 200], *alone("--model", name))
        node.finish(lab.hashes)
        assert node.report()["origin_bytes"] >= 320 * MIB
        return node

    assert enough <= best(both, enough) <= 400 * 1.05, "the links were shaped"


@pytest.mark.parametrize("lab", [640], indirect=True)
def test_three_uneven_nics_carry_what_they_can(lab):
    enough = 0.95 * 350

    def three(name: str) -> Node:
        node = lab.node(name, [50, 100, 200], *alone("--model", name))
        node.finish(lab.hashes)
        wire = sum(new[0] - old[0] for old, new in zip(node.before, node.counters(), strict=True))
        waste = wire / (640 * MIB * FRAMES) - 1
        assert waste <= 0.02, "what was taken from a slow NIC is hardly read twice"
        return node

    assert best(three, enough) >= enough


@pytest.mark.parametrize("lab", [800], indirect=True)
def test_an_unplugged_nic_costs_nothing_but_its_requests_and_comes_back(lab):
    node = lab.node("n", [200, 200], *alone("--http", "127.0.0.1:7080"))
    wait_until(lambda: held(node) >= 40, "the first 160 MiB")
    node.links[1].unplug()
    survivor = node.links[0].mbit_in(3)
    assert node.links[1].mbit_in(0.5) < 1
    node.links[1].replug()
    back = wait_until(
        lambda: (rate := node.links[1].mbit_in(0.5)) > 180 and rate, "its rate again", 15
    )
    nics = wait_until(
        lambda: (
            (found := node.status()["nics"])
            and all(nic["in_bytes_s"] > 150 * MBIT for nic in found)
            and found
        ),
        "both rates in the status",
        15,
    )
    metrics = node.host.sh(sys.executable, "-c", SCRAPE)
    node.finish(lab.hashes)
    print(f"the other one meanwhile {survivor:.1f} Mbit/s, back at {back:.1f}; {nics}")
    assert survivor >= 0.9 * 200
    assert node.text == "", "no error, no warning"
    assert [nic["source_ip"] for nic in nics] == [link.ip for link in node.links]
    assert all(nic["in_bytes"] > 60 * MIB for nic in nics)
    for link in node.links:
        assert f'p2p_nic_bytes_total{{direction="in",source_ip="{link.ip}"}}' in metrics


@pytest.mark.parametrize("lab", [480], indirect=True)
def test_two_nics_read_from_a_peer_twice_as_fast_as_one(lab):
    seeder = lab.node("seeder", [200, 200])
    wait_until(lambda: seeder.status().get("complete"), "the seeder complete")
    assert len(seeder.status()["peers_at"]) == 2, "it tells both addresses"
    one = lab.node("one", [200, 200], *alone(), use=1)
    one.finish(lab.hashes)
    enough = 1.9 * one.mbit()

    def both(name: str) -> Node:
        node = lab.node(name, [200, 200], *alone())
        node.finish(lab.hashes)
        assert node.report()["peer_bytes"] >= 480 * MIB
        return node

    assert best(both, enough) >= enough


@pytest.mark.parametrize("lab", [640], indirect=True)
@pytest.mark.parametrize("which", [0, 1])
def test_a_nic_that_goes_down_between_peers_comes_back(lab, which):
    seeder = lab.node("seeder", [400, 400])
    wait_until(lambda: seeder.status().get("complete"), "the seeder complete")
    node = lab.node("n", [200, 200], *alone())
    wait_until(lambda: held(node) >= 30, "the first 120 MiB")
    node.links[which].down()
    survivor = node.links[1 - which].mbit_in(3)
    node.links[which].up()
    back = wait_until(
        lambda: (rate := node.links[which].mbit_in(0.5)) > 180 and rate, "its rate again", 20
    )
    node.finish(lab.hashes)
    print(f"the other one meanwhile {survivor:.1f} Mbit/s, back at {back:.1f}")
    assert survivor >= 0.5 * 200, "its requests in flight are lost with the session at most"
    assert node.text == "", "no error, no warning"


@pytest.mark.parametrize("lab", [320], indirect=True)
@pytest.mark.parametrize("same_subnet", [True, False], ids=["same subnet", "one default route"])
def test_a_host_without_policy_routing_is_told_the_lines_that_mend_it(lab, same_subnet):
    host = lab.host("seeder")
    places = ((0, "10.77.1.11"), (0, "10.77.1.12")) if same_subnet else (
        (0, "10.77.1.11"), (1, "10.77.2.11"))  # fmt: skip
    links = [host.plug(lab.switches[i], f"{ip}/24", 200) for i, ip in places]
    host.sh("ip", "route", "add", "default", "via", "10.77.1.1", "dev", links[0].near)
    seeder = Node(lab, host, "seeder", links)
    wait_until(lambda: seeder.status().get("complete"), "the seeder complete")

    def serve(name: str) -> list[float]:
        """Mbit/s that each of the seeder's NICs sends to a peer of its own."""
        before = seeder.counters()
        peer_host = lab.host(name)
        nic = peer_host.plug(lab.switches[2], f"10.77.3.{len(lab.net.processes)}/24", 800)
        peer_host.sh("ip", "route", "add", "default", "via", "10.77.3.1", "dev", nic.near)
        peer = Node(lab, peer_host, name, [nic], *alone())
        peer.finish(lab.hashes)
        seconds = peer.report()["seconds"]
        pairs = zip(before, seeder.counters(), strict=True)
        return [(new[1] - old[1]) / seconds / MBIT for old, new in pairs]

    broken = serve("before")
    text = wait_until(lambda: "routing bypasses" in seeder.text and seeder.text, "the warning", 5)
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    for line in lines:
        host.sh(*shlex.split(line))
    mended = serve("after")
    print(f"{broken} Mbit/s, then {mended}", *lines, sep="\n")
    assert broken[1] < 20
    assert min(mended) >= 0.85 * 200
