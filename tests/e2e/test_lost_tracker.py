"""A tracker whose host is gone: nothing comes back, not even a refusal. Needs root."""

import os
import sys
import time

import pytest
from support.cluster import make_model, wait_until

from node.config import Timeouts
from simulations.netns import Net, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")


def test_a_node_gives_up_a_tracker_whose_cable_is_pulled_and_finds_the_next(folder):
    source = make_model(folder / "source", 71, {"x.bin": 4096})
    env = {"P2P_TOKEN": "secret", "PYTHONPATH": os.getcwd()}
    with Net() as net:
        lan = net.switch("lan")
        first, second, node = (net.host(name) for name in ("first", "second", "node"))
        cable = first.plug(lan, "10.77.1.1/24")
        second.plug(lan, "10.77.1.2/24")
        node.plug(lan, "10.77.1.3/24")
        for host, ip in ((first, "10.77.1.1"), (second, "10.77.1.2")):
            log = folder / f"{host.name}.log"
            host.start(
                log, sys.executable, "-m", "tracker", "serve", "--listen", f"{ip}:7070",
                "--http", "off", "--log-level", "info", env=env,
            )  # fmt: skip
            wait_until(lambda log=log: "tracker: nodes" in log.read_text(), "a tracker")
        log, other = folder / "node.log", folder / f"{second.name}.log"
        node.start(
            log, sys.executable, "-m", "node", "join", "--tracker", "10.77.1.1:7070,10.77.1.2:7070",
            "--origin", source.as_uri(), "--model-dir", str(folder / "model"), "--quiet",
            env=env,
        )  # fmt: skip
        wait_until(lambda: (folder / "model" / "x.bin").exists(), "the file")
        cable.unplug()
        begin = time.monotonic()
        wait_until(lambda: "joined" in other.read_text(), "the next tracker", 30)
        limit_s = Timeouts().tracker_silence_s + Timeouts().tracker_connect_s
        assert time.monotonic() - begin < limit_s + 4, "two heartbeats, to be sure"
        assert "tracker session ended tracker=10.77.1.1:7070" in log.read_text()
