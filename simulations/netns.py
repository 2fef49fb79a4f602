"""Hosts in network namespaces, joined by bridges, every link shaped at both ends.

All traffic stays between namespaces that `Net` made itself. Names are unique, and `close` removes
everything, whatever failed. Needs root and iproute2 (`ip`, `tc`). A kernel without the tbf queueing
discipline, or a command that fails, is a `NetError`.

    with Net() as net:
        lan = net.switch("a")
        host = net.host("node").plug(lan, "10.77.1.2/24", mbit=200)
        host.run("python", ...)
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

BURST_BYTES = 128 * 1024  # a timer tick's worth at 1 Gbit/s
QUEUE_BYTES = 640 * 1024  # of a link: what does not fit is dropped
NEIGHBOURS = "/proc/sys/net/ipv4/neigh/default/gc_thresh"  # of all namespaces together

_numbers = itertools.count()


class NetError(RuntimeError):
    """A command failed, or a process does not end; the text names it."""


def why_not() -> str:
    """What stands in the way of network namespaces here; empty if nothing does.

    Raises:
      NetError: a tool is not installed.
    """
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool, path=WHERE) is None:
            raise NetError(f"{tool} is not installed (apt-get install iproute2)")
    return ""


WHERE = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin"


def sh(*words: str, text: str | None = None) -> str:
    """Run a command; what it printed. Its own words are in the error if it fails."""
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": WHERE},
    )  # fmt: skip
    if done.returncode:
        raise NetError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Link:
    """One NIC of a host: `near` in the host, `far` at the switch."""

    host: "Host"
    near: str
    far: str
    switch: "Switch"
    address: str

    @property
    def ip(self) -> str:
        """Without the prefix length."""
        return self.address.partition("/")[0]

    def unplug(self) -> None:
        """Pull the cable: the host sees the carrier go."""
        sh("ip", "-n", self.switch.name, "link", "set", self.far, "down")

    def replug(self) -> None:
        """Put the cable back."""
        sh("ip", "-n", self.switch.name, "link", "set", self.far, "up")

    def down(self) -> None:
        """Take the NIC down as an administrator does: its routes go."""
        sh("ip", "-n", self.host.name, "link", "set", self.near, "down")

    def up(self) -> None:
        """The inverse of `down`."""
        sh("ip", "-n", self.host.name, "link", "set", self.near, "up")

    def counters(self) -> tuple[int, int]:
        """Bytes on the wire, in and out, as the shapers of both ends count them: unlike the
        counters of a veth interface they count the headers of every packet of a large segment."""
        return _sent(self.switch.name, self.far), _sent(self.host.name, self.near)

    def mbit_in(self, seconds: float) -> float:
        """Mbit/s that come in, over so long from now."""
        before, begin = self.counters()[0], time.monotonic()
        time.sleep(seconds)
        return (self.counters()[0] - before) * 8 / 1e6 / (time.monotonic() - begin)


def _sent(namespace: str, device: str) -> int:
    shown = json.loads(sh("tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", device))
    return int(next(qdisc["bytes"] for qdisc in shown if qdisc.get("root")))


@dataclass
class Switch:
    """A bridge in a namespace of its own. It forwards, and nothing else: where a host has loaded
    `br_netfilter`, each frame would pass its firewall at every port (5 % of all CPU time)."""

    name: str

    def __post_init__(self) -> None:
        for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            sh("ip", "netns", "exec", self.name, "sh", "-c", f"echo 0 > {setting}")
        sh("ip", "-n", self.name, "link", "add", "name", "br0", "type", "bridge")
        sh("ip", "-n", self.name, "link", "set", "br0", "up")


@dataclass
class Host:
    """A namespace in which processes run."""

    net: "Net"
    name: str
    links: list[Link] = field(default_factory=list)

    def plug(
        self,
        switch: Switch,
        address: str,
        mbit: float | None = None,
        *,
        up_mbit: float | None = None,
        mtu: int | None = None,
        burst_bytes: int = BURST_BYTES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> Link:
        """A NIC at a switch, shaped in both directions: each end limits what it sends.

        Args:
          up_mbit: what the host sends; default: as much as it receives.
          burst_bytes: what may pass at once after a pause.
          queue_bytes: what waits at the switch for the host's link. The host's own end keeps three
            bands (pfifo_fast, the kernel's default), served in order of their priority.
        """
        near, far = f"eth{len(self.links)}", f"p{next(_numbers)}"
        sh(
            "ip", "-n", self.name, "link", "add", near, "type", "veth",
            "peer", "name", far, "netns", switch.name,
        )  # fmt: skip
        sh("ip", "-n", switch.name, "link", "set", far, "master", "br0", "up")
        sh("ip", "-n", self.name, "addr", "add", address, "dev", near)
        sh("ip", "-n", self.name, "link", "set", near, "up")
        ends = ((self.name, near, up_mbit or mbit), (switch.name, far, mbit))
        for namespace, device, rate in ends:
            if mtu is not None:
                sh("ip", "-n", namespace, "link", "set", device, "mtu", str(mtu))
            if rate is not None:
                sh(
                    "tc", "-n", namespace, "qdisc", "add", "dev", device, "root",
                    "handle", "1:", "tbf", "rate", f"{rate}mbit", "burst", str(burst_bytes),
                    "limit", str(queue_bytes),
                )  # fmt: skip
                if namespace == self.name:
                    sh("tc", "-n", namespace, "qdisc", "add", "dev", device, "parent", "1:",
                       "pfifo_fast")  # fmt: skip
        link = Link(self, near, far, switch, address)
        self.links.append(link)
        return link

    def sh(self, *words: str) -> str:
        """Run a command here; what it printed."""
        return sh("ip", "netns", "exec", self.name, *words)

    def start(
        self, log: Path, *words: str, env: dict[str, str] | None = None, pipe: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a process here, with its output in a file; it ends with the net at the latest.

        Args:
          pipe: its standard input can be written to; otherwise it is empty.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "PATH": WHERE, **(env or {})},
            )  # fmt: skip
        self.net.processes.append(process)
        return process


class Net:
    """Some hosts and switches; everything is gone after `close`."""

    def __init__(self) -> None:
        self._prefix = f"sh{os.getpid()}"
        self._namespaces: list[str] = []
        self._neighbours: dict[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def allow_neighbours(self, count: int) -> None:
        """Let the kernel keep so many addresses of neighbours, until `close`: its table is one for
        all namespaces, and n hosts fill it with n * n entries."""
        for number, factor in ((3, 2), (2, 1), (1, 1)):
            path = Path(f"{NEIGHBOURS}{number}")
            before = path.read_text().strip()
            if int(before) < factor * count:
                self._neighbours[str(path)] = before
                path.write_text(str(factor * count))

    def __enter__(self) -> "Net":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _namespace(self, name: str) -> str:
        full = f"{self._prefix}-{next(_numbers)}-{name}"
        sh("ip", "netns", "add", full)
        self._namespaces.append(full)
        sh("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def switch(self, name: str) -> Switch:
        """A bridge."""
        return Switch(self._namespace(name))

    def host(self, name: str) -> Host:
        """A host without a NIC."""
        return Host(self, self._namespace(name))

    def close(self) -> None:
        """Kill what was started here, then remove the namespaces and with them all links."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        end = time.monotonic() + 5
        for name in self._namespaces:
            while pids := self._pids(name):
                if time.monotonic() >= end:
                    raise NetError(f"{name} still holds processes {pids}")
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
            subprocess.run(["ip", "netns", "del", name], check=False, env={"PATH": WHERE})
        self._namespaces.clear()
        for path, before in reversed(self._neighbours.items()):
            Path(path).write_text(before)

    @staticmethod
    def _pids(name: str) -> list[int]:
        done = subprocess.run(
            ["ip", "netns", "pids", name],
            capture_output=True, text=True, check=False, env={"PATH": WHERE},
        )  # fmt: skip
        return [int(word) for word in done.stdout.split()]
