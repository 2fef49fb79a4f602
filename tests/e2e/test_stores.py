"""Object stores as origins, end to end: signed, audited, sealed; busy, changing and lying ones.

Repeat one with `pytest tests/e2e/test_stores.py -k NAME`.
"""

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fastcrc
import httpx
import pytest
import trustme
from moto.server import ThreadedMotoServer
from support.cluster import Cluster, Process, children, hashes, make_model, sums, wait_until
from support.oss import Fault, ObjectGet, OssServer
from support.oss_model import ID, SECRET

from node.audit import AuditLine, parse_line
from node.credentials import Credentials
from node.origins.signing import S3V4

KIB, MIB = 1024, 1024**2
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")
ODD = {
    "config.json": 700,
    "empty.txt": 0,
    "weights/model 00001+of+00002.gguf": 5 * MIB + 17,
    "weights/模型-00002.gguf": 4 * MIB,
    "tokenizer/deep er/täxt %41&=?#;.json": 3 * KIB,
}


def connector_environment(server: OssServer, folder: Path, **more: str) -> dict[str, str]:
    """What a user of the connector has set already."""
    config = folder / "connector.json"
    config.write_text(
        json.dumps(
            {
                "logLevel": 1,
                "logPath": str(folder / "connector.log"),
                "auditPath": str(folder / "audit.log"),
                "expireTimeSec": 120,
                "prefetch": {"vcpus": 2, "workers": 4},
            }
        )
    )
    return {
        "OSS_ACCESS_KEY_ID": ID, "OSS_ACCESS_KEY_SECRET": SECRET, "OSS_SESSION_TOKEN": "",
        "OSS_ENDPOINT": server.endpoint, "OSS_REGION": server.region,
        "OSS_PATH": "oss://models/model/", **more,
    }  # fmt: skip


def start_by_environment(cluster: Cluster, server: OssServer) -> dict[str, Process]:
    """Three nodes that load with what a user of the connector has set, each with its own logs."""
    nodes = {}
    for name in ("a", "b", "c"):
        folder = cluster.node_folder(name)
        environment = connector_environment(server, folder)
        config = ("--connector-config", str(folder / "connector.json"))
        nodes[name] = cluster.start_node(
            name, "--until-complete", *config, *CHUNKS, env=environment
        )
    return nodes


def audit(*paths: Path) -> list[AuditLine]:
    """The lines of all nodes together."""
    return [parse_line(line) for path in paths for line in path.read_text().splitlines()]


def check_each_byte_requested_once(lines: list[AuditLine], sizes: dict[str, int]) -> None:
    """By objects' names: what is not marked as resume or hedge was asked for once, and all came."""
    for name, size in sizes.items():
        ours = [line for line in lines if line.object == name and line.kind not in ("head", "list")]
        asked = sorted((x.start, x.end) for x in ours if x.kind == "first")
        for (_, end), (start, _) in itertools.pairwise(asked):
            assert end <= start, f"{name}: asked for twice at {start}"
        came = sorted((x.start, x.start + x.bytes) for x in ours if x.kind != "hedge")
        at = 0
        for start, end in came:
            assert start <= at, f"{name}: bytes {at} to {start} were never asked for"
            at = max(at, end)
        assert at == size, name


def finish(cluster: Cluster, nodes: dict[str, Process], source: dict[str, str]) -> None:
    """Every node ends with 0, sealed, and holds the source's bytes."""
    for name, node in nodes.items():
        assert node.wait() == 0, node.text
        assert hashes(cluster.folder / name / "model") == source, name


def test_the_connectors_environment_is_all_that_is_needed(cluster, oss):
    source = make_model(cluster.folder / "source" / "model", 81, ODD)
    server = oss(cluster.folder / "source")
    cluster.start_tracker("--start-with", "3")
    nodes = start_by_environment(cluster, server)
    finish(cluster, nodes, hashes(source))
    total = sum(ODD.values())
    assert sums(cluster, list(nodes), "origin_bytes") == total
    assert server.body_bytes <= total * 1.01
    assert {cluster.report(name)["seal"] for name in nodes} == {"sealed"}
    assert {request.signature for request in server.requests} == {"v4"}
    lines = audit(*(cluster.folder / name / "audit.log" for name in nodes))
    check_each_byte_requested_once(
        lines, {f"oss://models/model/{name}": size for name, size in ODD.items()}
    )
    assert {line.kind for line in lines} <= {"first", "list", "head"}
    for request in server.requests:
        if request.method == "GET" and request.key:
            assert request.headers["x-oss-range-behavior"] == "standard"
            assert request.headers["if-match"]
    assert all(line.request_id for line in lines)


@pytest.fixture
def s3() -> Iterator[str]:
    """moto's server; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def put(endpoint: str, key: str, data: bytes) -> None:
    """Write an object into the bucket, with S3's own checksum."""
    url = f"{endpoint}/bucket/{quote(key)}"
    headers = S3V4("us-east-1").sign(
        "PUT", url, "bucket", key, {}, Credentials(ID, SECRET), time.time()
    )  # moto only wants to see one
    headers["x-amz-sdk-checksum-algorithm"] = "CRC64NVME"
    httpx.put(url, content=data, headers=headers, trust_env=False).raise_for_status()


def test_s3_with_botocores_own_variables(cluster, s3):
    source = make_model(cluster.folder / "source", 82, ODD)
    httpx.put(f"{s3}/bucket", trust_env=False).raise_for_status()
    for name in ODD:
        put(s3, f"models/x/{name}", (source / name).read_bytes())
    cluster.start_tracker("--start-with", "3")
    environment = {
        "AWS_ACCESS_KEY_ID": ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    nodes = {
        name: cluster.start_node(
            name, "--origin", "s3://bucket/models/x/", "--until-complete", *CHUNKS,
            "--audit", str(cluster.node_folder(name) / "audit.log"), env=environment,
        )
        for name in ("a", "b", "c")
    }  # fmt: skip
    finish(cluster, nodes, hashes(source))
    assert sums(cluster, list(nodes), "origin_bytes") == sum(ODD.values())
    assert {cluster.report(name)["seal"] for name in nodes} == {"sealed"}
    lines = audit(*(cluster.folder / name / "audit.log" for name in nodes))
    check_each_byte_requested_once(
        lines, {f"s3://bucket/models/x/{name}": size for name, size in ODD.items()}
    )


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_http_and_https_of_a_real_nginx(one, nginx, secure):
    source = make_model(one.folder / "source", 83, ODD)
    environment = {}
    if secure:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(one.folder / "ca.pem"))
        environment["SSL_CERT_FILE"] = str(one.folder / "ca.pem")
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(one.folder / "server.pem"))
        origin = nginx(source, certificate=one.folder / "server.pem")
    else:
        origin = nginx(source)
    one.start_tracker("--start-with", "3")
    nodes = {
        name: one.start_node(
            name, "--origin", origin.url, "--until-complete", *CHUNKS,
            "--audit", str(one.node_folder(name) / "audit.log"), env=environment,
        )
        for name in ("a", "b", "c")
    }  # fmt: skip
    finish(one, nodes, hashes(source))
    assert sums(one, list(nodes), "origin_bytes") == sum(ODD.values())
    assert origin.body_bytes() <= 1.01 * sum(ODD.values())
    assert {one.report(name)["seal"] for name in nodes} == {"none"}, "nginx tells no checksum"
    lines = audit(*(one.folder / name / "audit.log" for name in nodes))
    check_each_byte_requested_once(lines, {origin.url + name: size for name, size in ODD.items()})


def test_a_store_that_is_busy_cuts_and_stalls_costs_little_more(cluster, oss):
    """503 to 30 % of requests, 10 % of bodies cut, 1 % stalled."""
    sizes = {"x.gguf": 48 * MIB + 5, "y": 9}
    source = make_model(cluster.folder / "source" / "model", 84, sizes)
    print("fault seed 84")
    rng, lock = random.Random(84), threading.Lock()

    def fault(get: ObjectGet) -> Fault | None:
        with lock:
            draw = rng.random()
        if draw < 0.30:
            return Fault(status=503, code="DownloadTrafficRateLimitExceeded", delay_ms=100)
        if draw < 0.40:
            return Fault(cut_after=(get.end - get.start) // 2)
        if draw < 0.41:
            return Fault(stall_after=(get.end - get.start) // 3)
        return None

    server = oss(cluster.folder / "source", fault=fault)
    cluster.start_tracker("--start-with", "3")
    nodes = start_by_environment(cluster, server)
    finish(cluster, nodes, hashes(source))
    total = sum(sizes.values())
    ratio = sums(cluster, list(nodes), "origin_bytes") / total
    print("origin ratio", ratio)
    assert ratio <= 1.05
    statuses = [request.status for request in server.requests if request.method == "GET"]
    assert statuses.count(503) > 0.2 * len(statuses), "the store was as bad as it was meant to be"


def write_credentials(path: Path, token: Any) -> None:
    """The connector's file, replaced at once."""
    fields = dict(
        zip(("AccessKeyId", "AccessKeySecret", "SecurityToken", "Expiration"), token, strict=True)
    )
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(fields))
    temporary.replace(path)


@pytest.mark.slow
def test_a_load_of_half_a_minute_outlives_tokens_of_five_seconds(one, oss):
    sizes = {"x.gguf": 30 * MIB}
    source = make_model(one.folder / "source" / "model", 85, sizes)
    # two nodes with two leases each: at 256 KiB a second for each request, 1 MiB a second in all
    server = oss(one.folder / "source", fault=lambda _: Fault(rate_bytes_s=256 * KIB))
    path = one.folder / "credentials"
    write_credentials(path, server.issue_token(5))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(3.5):  # whoever renews tokens does so before they expire
            write_credentials(path, server.issue_token(5))

    renewer = threading.Thread(target=renew)
    renewer.start()
    try:
        one.start_tracker("--start-with", "2")
        nodes = {
            name: one.start_node(
                name, "--origin", "oss://models/model/", "--endpoint", server.endpoint, "--region",
                server.region, "--credentials", str(path), "--until-complete", *CHUNKS,
            )
            for name in ("a", "b")
        }  # fmt: skip
        finish(one, nodes, hashes(source))
    finally:
        ended.set()
        renewer.join()
    assert one.report("a")["seconds"] > 20, "several tokens were needed"
    assert sums(one, ["a", "b"], "origin_bytes") <= 1.05 * sizes["x.gguf"]
    assert not any("failed" in node.text for node in nodes.values())


def test_one_wrong_byte_at_the_store_is_never_delivered(cluster, oss):
    sizes = {"good": 2 * MIB + 3, "bad": 3 * MIB}
    source = make_model(cluster.folder / "source" / "model", 86, sizes)
    server = oss(cluster.folder / "source", corrupt={"model/bad": MIB + 77})
    cluster.start_tracker("--start-with", "2")
    environment = connector_environment(server, cluster.folder)
    loads = cluster.start_node("a", "--until-complete", *CHUNKS, env=environment)
    stays = cluster.start_node("b", *CHUNKS, env=environment)
    assert loads.wait() == 1, loads.text
    last = loads.text.strip().splitlines()[-1]
    stored = f"crc64xz:{fastcrc.crc64.xz((source / 'bad').read_bytes()):016x}"
    for word in ("oss://models/model/bad", stored, "does not match", "not delivered"):
        assert word in last, loads.text
    assert not cluster.report("a")["complete"]
    status = wait_until(
        lambda: (s := cluster.node_status("b")) and s["seal"] == "broken" and s, "b knows it"
    )
    assert not status["complete"]
    assert [broken["file"] for broken in status["broken_files"]] == ["bad"]
    assert stays.popen.poll() is None
    model = cluster.status()["models"][0]
    assert model["seal"] == "broken"
    for name in ("a", "b"):
        delivered = hashes(cluster.folder / name / "model")
        assert set(delivered) <= {"good"}, name
    wait_until(lambda: (cluster.folder / "b" / "model" / "good").exists(), "the good file at b")
    assert (cluster.folder / "b" / "model" / "good").read_bytes() == (source / "good").read_bytes()
    # The bad file was read twice and no more, the good one again only where it was on its way.
    reads = [(request.key, request.range) for request in server.requests if request.range]
    counts = {key: sum(k == key for k, _ in reads) for key, _ in reads}
    assert counts["model/bad"] == 6, reads
    assert 3 <= counts["model/good"] <= 6, reads


def test_a_byte_that_was_wrong_once_is_mended_by_a_second_read(cluster, oss):
    sizes = {"bad": 3 * MIB}
    source = make_model(cluster.folder / "source" / "model", 87, sizes)
    server = oss(cluster.folder / "source", corrupt={"model/bad": MIB + 77})
    seen: set[int] = set()

    def heals(get: ObjectGet) -> None:
        if get.start in seen:
            server.corrupt = {}
        seen.add(get.start)

    server.fault = heals
    cluster.start_tracker("--start-with", "2")
    environment = connector_environment(server, cluster.folder)
    nodes = {
        name: cluster.start_node(name, "--until-complete", *CHUNKS, env=environment)
        for name in ("a", "b")
    }
    finish(cluster, nodes, hashes(source))
    assert {cluster.report(name)["seal"] for name in nodes} == {"sealed"}
    assert "begun anew" in nodes["a"].text


def replace_in_mid_load(server: OssServer, key: str, data: bytes, after: int) -> None:
    """The object is written anew once `after` requests for it have come."""
    done = threading.Event()

    def fault(get: ObjectGet) -> Fault | None:
        if get.key == key and get.count >= after and not done.is_set():
            done.set()
            server.replace(key, data)
        return None

    server.fault = fault


def test_an_object_that_changes_ends_the_load_and_is_followed_when_told(cluster, oss):
    sizes = {"same": 2 * MIB, "x": 8 * MIB}
    source = make_model(cluster.folder / "source" / "model", 88, sizes)
    server = oss(cluster.folder / "source")
    environment = connector_environment(server, cluster.folder)
    new = random.Random(880).randbytes(6 * MIB + 1)
    cluster.start_tracker("--start-with", "2")
    replace_in_mid_load(server, "model/x", new, 6)
    nodes = [cluster.start_node(n, "--until-complete", *CHUNKS, env=environment) for n in "ab"]
    for name, node in zip("ab", nodes, strict=True):
        assert node.wait() == 1, node.text
        last = node.text.strip().splitlines()[-1]
        assert "changed" in last, node.text
        assert "oss://models/model/x" in last or "model" in last
        assert "x" not in hashes(cluster.folder / name / "model")
    # The same load with --follow, and another change in its midst.
    newer = random.Random(881).randbytes(7 * MIB)
    replace_in_mid_load(server, "model/x", newer, 6 + server.object_gets)
    options = ("--follow", "--until-complete", *CHUNKS)
    again = {n: cluster.start_node(n, *options, env=environment) for n in ("c", "d")}
    (source / "x").write_bytes(newer)
    expected = hashes(source)
    finish(cluster, again, expected)
    for name in again:
        assert cluster.report(name)["seal"] == "sealed"


def test_what_was_sealed_is_sealed_after_everything_was_started_again(cluster, oss):
    sizes = {"x": 4 * MIB, "y": 2 * MIB + 1}
    source = make_model(cluster.folder / "source" / "model", 90, sizes)
    server = oss(cluster.folder / "source")
    environment = connector_environment(server, cluster.folder)
    for again in (False, True):
        cluster.start_tracker("--start-with", "2")
        nodes = {
            name: cluster.start_node(name, "--until-complete", *CHUNKS, env=environment)
            for name in ("a", "b")
        }
        finish(cluster, nodes, hashes(source))
        assert {cluster.report(name)["seal"] for name in nodes} == {"sealed"}
        for process in cluster.processes:
            process.kill()
        if again:
            assert sums(cluster, list(nodes), "origin_bytes") == 0
            assert server.object_gets == 6 + 1, "six chunks and a bit, once"


def test_without_a_tracker_a_node_seals_what_it_has_read(cluster, oss):
    sizes = {"x": 6 * MIB}
    source = make_model(cluster.folder / "source" / "model", 91, sizes)
    server = oss(cluster.folder / "source", fault=lambda _: Fault(rate_bytes_s=2 * MIB))
    tracker = cluster.start_tracker()
    node = cluster.start_node(
        "a", "--until-complete", "--linger", "0", *CHUNKS,
        env=connector_environment(server, cluster.folder),
    )  # fmt: skip
    wait_until(lambda: (s := cluster.node_status("a")) and s["held_chunks"] >= 2, "2 chunks")
    tracker.kill()
    finish(cluster, {"a": node}, hashes(source))
    assert cluster.report("a")["seal"] == "sealed"


def test_planted_secrets_appear_nowhere(one, oss):
    sizes = {"x": 2 * MIB}
    make_model(one.folder / "source" / "model", 89, sizes)
    server = oss(one.folder / "source")
    secret_token = server.issue_token(3600)
    planted = {
        "cluster": "plantedClusterToken",
        "secret": secret_token[1],
        "token": secret_token[2],
    }
    one.start_tracker("--log-level", "debug")
    folder = one.node_folder("a")
    environment = connector_environment(
        server, folder, OSS_ACCESS_KEY_ID=secret_token[0],
        OSS_ACCESS_KEY_SECRET=secret_token[1], OSS_SESSION_TOKEN=secret_token[2],
    )  # fmt: skip
    command = ("--connector-config", str(folder / "connector.json"), "--log-level", "debug",
               "--http", "127.0.0.1:0", *CHUNKS)  # fmt: skip
    node = one.start_node("a", *command, env=environment)
    status = wait_until(lambda: (s := one.node_status("a")) and s["complete"] and s, "complete")
    # A second one is refused by the store: its error must not tell either.
    wrong = {**environment, "OSS_ACCESS_KEY_SECRET": "plantedWrongS3cr3t"}
    wrong["OSS_PATH"] = "oss://models/model/x"
    other = one.start_node("b", "--until-complete", *CHUNKS, env=wrong)
    assert other.wait() == 1, other.text
    assert "oss://models/model/x" in other.text
    at = status["http_at"][0].rstrip("/")
    shown = [json.dumps(status), json.dumps(one.status()), node.text, other.text]
    for url in (f"{at}/status", f"{at}/metrics", f"http://{one.http_address}/metrics"):
        shown.append(httpx.get(url, trust_env=False).text)
    shown += [path.read_text() for path in one.folder.rglob("*.log")]
    shown += [path.read_text() for path in one.folder.rglob("report.json")]
    workers = children(node.popen.pid)
    assert workers
    for pid in (node.popen.pid, *workers, *children(os.getpid())):
        shown.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
    everything = "\n".join(shown)
    assert "oss://models/model" in everything
    for word in (*planted.values(), "plantedWrongS3cr3t"):
        assert word not in everything
    assert "Signature=" not in everything
    manifest = next((folder / ".model.shoal").glob("*/manifest")).read_bytes()
    for word in planted.values():
        assert word.encode() not in manifest
