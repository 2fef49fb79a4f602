"""The origin's budget, end to end: what the origin counts is what the tracker allowed.

Repeat one with `pytest tests/e2e/test_budget.py -k NAME -s`; the seed is printed.
"""

import random
import threading
import time
import urllib.request

import pytest
from support.cluster import Process, hashes, make_model, sums, wait_until
from support.counted import Log, Shaper
from support.oss import Fault, ObjectGet, OssServer
from support.oss_model import ID, SECRET

KIB, MIB = 1024, 1024**2
STORE = ("--origin", "oss://models/model/")
ORIGIN = (*STORE, "--chunk-size", "256KiB", "--block-size", "256KiB")


def environment(server: OssServer) -> dict[str, str]:
    return {
        "OSS_ACCESS_KEY_ID": ID, "OSS_ACCESS_KEY_SECRET": SECRET, "OSS_SESSION_TOKEN": "",
        "OSS_ENDPOINT": server.endpoint, "OSS_REGION": server.region,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_origin_counts_no_more_than_the_budget(one, oss):
    """Small files meet the limit of requests, large ones that of bytes; 30 % of requests fail."""
    sizes = {f"small/{i:03}": 4 * KIB + i for i in range(150)}
    sizes |= {"large.gguf": 48 * MIB + 5}
    source = make_model(one.folder / "source" / "model", 91, sizes)
    print("fault seed 91")
    rng, lock, log = random.Random(91), threading.Lock(), Log()

    def fault(get: ObjectGet) -> Fault | None:
        with lock:
            draw = rng.random()
        size = get.end - get.start
        if draw < 0.20:
            log.add(0, refused=True)
            return Fault(500, "InternalError") if draw < 0.10 else Fault(503, "ServiceUnavailable")
        if draw < 0.30:
            log.add(size // 2, refused=True)
            return Fault(cut_after=size // 2)
        log.add(size, refused=False)
        return None

    server = oss(one.folder / "source", fault=fault)
    one.start_tracker("--start-with", "8", "--origin-rate", "100mbit", "--origin-requests", "50")
    names = [f"n{i}" for i in range(8)]
    options = (
        *STORE, "--chunk-size", "512KiB", "--block-size", "256KiB", "--until-complete",
        "--linger", "30",
    )  # fmt: skip
    nodes = {name: one.start_node(name, *options, env=environment(server)) for name in names}
    for node in nodes.values():
        assert node.wait(150) == 0, node.text
    (budget,) = one.status()["budgets"]
    print(budget)
    for name in names:
        assert hashes(one.folder / name / "model") == hashes(source)
    total, seen = sum(sizes.values()), log.copy()
    requests, size = log.busiest(2.0)
    seconds = seen[-1].at - seen[0].at
    ratio = sums(one, names, "origin_bytes") / total
    print(
        f"{len(seen)} requests in {seconds:.1f} s; busiest 2 s: {requests} requests, "
        f"{size * 8 / 2e6:.1f} Mbit/s; origin ratio {ratio:.4f}"
    )
    assert requests <= 50 * 2 * 1.05
    assert size <= 12.5e6 * 2 * 1.05
    assert ratio <= 1.02
    # it must not keep the budget by being slow: each part of the load is bound by one limit
    assert requests >= 50 * 2 * 0.80
    assert size >= 12.5e6 * 2 * 0.85
    assert budget["configured"] == {"bytes_s": 12.5e6, "requests_s": 50}
    assert budget["used_requests"] >= len(seen) * 0.95


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_cluster_finds_the_rate_above_which_the_store_refuses(one, oss):
    """Nothing is configured; the store refuses above 60 Mbit/s, and says how long to wait."""
    rate_bytes_s, settle_s, watch_s = 60e6 / 8, 10.0, 20.0
    size = int(rate_bytes_s * (settle_s + watch_s) * 1.2)
    make_model(one.folder / "source" / "model", 92, {"x.gguf": size})
    shaper = Shaper(rate_bytes_s, rate_bytes_s * 0.2)
    server = oss(one.folder / "source", fault=shaper)
    one.start_tracker("--start-with", "4")
    nodes = [one.start_node(x, *ORIGIN, env=environment(server)) for x in ("a", "b", "c", "d")]

    def first_request() -> float:
        for node in nodes:
            assert node.popen.poll() is None, node.text
        return next((entry.at for entry in shaper.log.copy()), 0.0)

    first = wait_until(first_request, "the first request")
    begin, end = first + settle_s, first + settle_s + watch_s
    wait_until(lambda: time.monotonic() >= end, "the end of the watch", settle_s + watch_s + 5)
    (budget,) = one.status()["budgets"]
    seen = shaper.log.copy()
    for second in range(int(settle_s + watch_s)):
        entries = [x for x in seen if first + second <= x.at < first + second + 1]
        print(
            f"{second:3} s {sum(x.bytes for x in entries) * 8e-6:6.1f} Mbit/s "
            f"{len(entries)} requests, {sum(x.refused for x in entries)} refused"
        )
    watched = [x for x in seen if begin <= x.at < end]
    rate = sum(x.bytes for x in watched) / watch_s
    refused = sum(x.refused for x in watched) / len(watched)
    print(f"{rate / rate_bytes_s:.3f} of the store's rate, {refused:.2%} refused", budget)
    assert rate >= 0.90 * rate_bytes_s
    assert refused < 0.02
    assert budget["in_force"]["bytes_s"] is not None
    assert budget["configured"] == {"bytes_s": None, "requests_s": None}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_without_a_tracker_the_nodes_together_keep_their_pace(one, oss):
    """The tracker is killed in mid-load: 10 s later the origin is asked no more than before.

    A chunk is a hundredth of what 2 s allow: of 256 KiB, one that comes late is all the tolerance.
    """
    rate_bytes_s, before_s, after_s = 20e6 / 8, 8.0, 10.0
    options = (*STORE, "--chunk-size", "64KiB", "--block-size", "64KiB")
    size = int(rate_bytes_s * 2 * (before_s + after_s))
    make_model(one.folder / "source" / "model", 93, {"x.gguf": size})
    log = Log()

    def count(get: ObjectGet) -> None:
        log.add(get.end - get.start, refused=False)

    server = oss(one.folder / "source", fault=count)
    tracker = one.start_tracker("--origin-rate", "20mbit", "--start-with", "3")
    names = ("a", "b", "c")
    nodes = [one.start_node(name, *options, env=environment(server)) for name in names]
    first = wait_until(lambda: next((entry.at for entry in log.copy()), 0.0), "the first request")
    wait_until(lambda: time.monotonic() >= first + before_s, "a load under way")
    tracker.kill()
    killed = time.monotonic()
    wait_until(lambda: time.monotonic() >= killed + after_s, "a load without a tracker")
    alone = [entry for entry in log.copy() if entry.at > killed]
    rate = sum(entry.bytes for entry in alone) / after_s
    print(f"{rate / rate_bytes_s:.2f} of the budget without a tracker, {len(alone)} requests")
    for node in nodes:
        assert node.popen.poll() is None, node.text
    assert 0.2 * rate_bytes_s <= rate <= 1.05 * rate_bytes_s
    one.start_tracker("--origin-rate", "20mbit")
    back = time.monotonic()
    wait_until(lambda: time.monotonic() >= back + 5.0, "a load with a new tracker")
    _, most = log.busiest(2.0)
    print(f"{most / 2.0 / rate_bytes_s:.3f} of the budget in the busiest 2 s")
    assert most <= 1.05 * 2.0 * rate_bytes_s


def test_a_rate_that_is_none_is_one_line_and_an_exit_code(one):
    command = ("tracker", "serve", "--listen", "127.0.0.1:0", "--http", "off")
    for wrong in ("80", "fast", "0mbit"):
        tracker = Process(one.folder, f"t{wrong}", *command, "--origin-rate", wrong)
        one.processes.append(tracker)
        assert tracker.wait(20) == 2, tracker.text
        assert tracker.text.count("\n") == 1, tracker.text
        assert repr(wrong) in tracker.text


def test_people_and_prometheus_see_the_budget(one):
    source = make_model(one.folder / "source", 94, {"x": 3 * MIB})
    one.start_tracker("--origin-rate", "1gbit", "--origin-requests", "500")
    node = one.start_node("a", "--origin", source.as_uri(), "--until-complete")
    assert node.wait() == 0, node.text
    (budget,) = one.status()["budgets"]
    assert budget["account"] == "file://"
    assert budget["configured"] == {"bytes_s": 125e6, "requests_s": 500}
    assert budget["used_bytes"] == 3 * MIB
    with urllib.request.urlopen(f"http://{one.http_address}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    label = '{account="file://"}'
    assert f"p2p_origin_budget_configured_bytes_per_second{label} 1.25e+08" in metrics
    assert f"p2p_origin_budget_requests_per_second{label} 485.0" in metrics
    assert f"p2p_origin_budget_used_bytes_total{label} 3.145728e+06" in metrics
    assert f"p2p_origin_refused_requests_total{label} 0.0" in metrics
    status = Process(one.folder, "status", "tracker", "status", "--http", one.http_address)
    one.processes.append(status)
    assert status.wait(20) == 0
    assert "budget of file://: 970mbit, 485 requests/s; refused 0" in status.text
