"""What OSS refuses: what is mended without a word to the user, and how the rest is told.

Goal: a token, a clock, a busy store are got over, once and not for ever; what cannot be mended is
one line that names the object, the status and the store's code, and never a secret.
Method: the tests' OSS server checks every signature with the SDK's code, against its own clock.
"""

import logging
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import trio
from support.oss import Fault, OssServer
from support.oss_model import FILES, options, write_credentials
from support.readers import read_all, read_chunk, refusal_of

from node.jobs import FetchEnded
from node.origins.base import OriginOptions, open_origin
from node.origins.oss import OssOrigin
from p2p.errors import OriginError
from p2p.manifest import Manifest

KIB = 1024
CHUNK, BLOCK = 64 * KIB, 16 * KIB
KINDS = pytest.mark.parametrize("kind", ["v4", "v1"])


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The pauses between two tries, which are not slept."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    there = SimpleNamespace(
        sleep=sleep,
        open_nursery=trio.open_nursery,
        CapacityLimiter=trio.CapacityLimiter,
        current_time=trio.current_time,
    )
    monkeypatch.setattr("node.origins.control.trio", there)
    return waits


@KINDS
async def test_a_wrong_secret_is_told_without_a_secret(serve, keys, kind, monkeypatch, caplog):
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "wrong-s3cr3t")
    caplog.set_level(logging.DEBUG)
    server = serve()
    origin = open_origin("oss://models/model/", options(server, kind))
    with pytest.raises(OriginError) as caught:
        await origin.list("m", CHUNK, BLOCK)
    assert str(caught.value) == (
        "oss://models/model/: HTTP 403 SignatureDoesNotMatch (the access key's secret is wrong)"
    )
    assert caught.value.fatal
    assert (caught.value.status, caught.value.code) == (403, "SignatureDoesNotMatch")
    assert len(server.requests) == 1, "asking again cannot help"
    signature = server.requests[0].headers["authorization"][-20:]
    for secret in ("s3cr3t", signature):
        assert secret not in repr(origin) + caplog.text + str(caught.value)


async def test_an_unknown_key_is_told(serve, keys, monkeypatch):
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "unknown-id")
    server = serve()
    with pytest.raises(OriginError) as caught:
        await open_origin("oss://models/model/", options(server)).list("m", CHUNK, BLOCK)
    assert str(caught.value) == (
        "oss://models/model/: HTTP 403 InvalidAccessKeyId (the access key is unknown)"
    )


async def test_a_wrong_region_is_told(serve, keys):
    server = serve()
    wrong = OriginOptions(endpoint=server.endpoint, region="cn-other")
    with pytest.raises(OriginError, match=r"^oss://models/model/: HTTP 40[03] "):
        await open_origin("oss://models/model/", wrong).list("m", CHUNK, BLOCK)


@KINDS
async def test_an_expired_token_is_replaced_from_the_file(serve, tmp_path, kind):
    """It ended earlier than its file says: only the store's refusal tells."""
    server, file = serve(), tmp_path / "credentials.json"
    write_credentials(file, server.issue_token(10))
    origin = open_origin("oss://models/model/", options(server, kind, credentials_file=file))
    manifest = await origin.list("m", CHUNK, BLOCK)
    job = await origin.fetch_job(manifest, 0)
    server.clock_offset_s = 30
    ended = await refusal_of(job)
    assert ended.code == "SecurityTokenExpired"
    assert not await origin.refused(job, ended), "the file still holds the same"
    with pytest.raises(OriginError, match="SecurityTokenExpired") as caught:
        await origin.list("m", CHUNK, BLOCK)
    assert caught.value.fatal

    write_credentials(file, server.issue_token(3600))
    assert await origin.refused(job, ended)
    file.unlink()
    assert await origin.refused(job, ended), "others that were under way need no file"
    assert await read_all(origin, manifest) == FILES
    fresh = await origin.fetch_job(manifest, 0)
    for code in ("AccessDenied", "SecurityTokenExpired"):
        refusal = FetchEnded(0, "", True, 0.0, False, 403, code)
        assert not await origin.refused(fresh, refusal), "fresh ones are refused for good"


async def test_a_listing_meets_an_expired_token_and_goes_on(serve, tmp_path):
    server, file = serve(), tmp_path / "credentials.json"
    write_credentials(file, server.issue_token(10))
    origin = open_origin("oss://models/model/", options(server, credentials_file=file))
    await origin.list("m", CHUNK, BLOCK)
    server.clock_offset_s = 30
    write_credentials(file, server.issue_token(3600))
    before = len(server.requests)
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert len(manifest.files) == len(FILES)
    refused = [request for request in server.requests[before:] if request.status == 403]
    assert len(refused) == 1


@KINDS
@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_off_by_an_hour_is_corrected(serve, keys, kind, hours):
    server = serve()
    origin = OssOrigin(
        "oss://models/model/", options(server, kind), lambda: time.time() + hours * 3600
    )
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == FILES
    statuses = [request.status for request in server.requests]
    assert statuses.count(403) == 1
    assert statuses[0] == 403, "the first answer tells the time"


@KINDS
async def test_a_node_that_listed_nothing_learns_the_time_from_a_workers_report(serve, keys, kind):
    server = serve()
    place = options(server, kind)
    manifest = await open_origin("oss://models/model/", place).list("m", CHUNK, BLOCK)
    origin = OssOrigin("oss://models/model/", place, lambda: time.time() - 3600)
    job = await origin.fetch_job(manifest, 0)
    ended = await refusal_of(job)
    assert ended.code == "RequestTimeTooSkewed"
    assert await origin.refused(job, ended)
    assert await origin.refused(job, ended), "another one that was under way"
    assert await read_all(origin, manifest) == FILES
    fresh = await origin.fetch_job(manifest, 0)
    assert not await origin.refused(fresh, ended), "its signature is of now: it would not help"


async def test_a_signature_that_has_grown_old_in_a_queue_is_made_anew(serve, keys):
    server = serve()
    now = [time.time() - 1000]
    origin = OssOrigin("oss://models/model/", options(server), lambda: now[0])
    old = Manifest("m", "", (await manifest_of(server)).files, CHUNK, BLOCK)
    job = await origin.fetch_job(old, 0)
    now[0] += 1000
    ended = await refusal_of(job)
    assert await origin.refused(job, ended)
    assert isinstance(await read_chunk(origin, old, 0), bytes)


async def manifest_of(server: OssServer) -> Manifest:
    return await open_origin("oss://models/model/", options(server)).list("m", CHUNK, BLOCK)


async def test_a_busy_store_is_asked_again_not_before_it_says(serve, keys, waits):
    faults = [Fault(503, "ServiceUnavailable", delay_ms=2500), "429", "500"]
    server = serve(control_fault=lambda method, key: faults.pop(0) if faults else None)
    manifest = await manifest_of(server)
    assert len(manifest.files) == len(FILES)
    assert len(waits) == 3
    assert waits[0] >= 2.5
    assert max(waits[1:]) < 2.5


async def test_a_store_that_stays_busy_is_told_after_some_tries(serve, keys, waits):
    server = serve(control_fault=lambda method, key: Fault(503, "ServiceUnavailable", 10**12))
    with pytest.raises(OriginError) as caught:
        await manifest_of(server)
    assert str(caught.value) == "oss://models/model/: HTTP 503 ServiceUnavailable (busy)"
    assert not caught.value.fatal
    assert max(waits) <= 60, "an absurd hint is not a hang"


def test_no_repr_shows_a_secret(serve, keys):
    server = serve()
    origin = open_origin("oss://models/model/", options(server))
    host = urlsplit(server.endpoint).netloc
    assert repr(origin) == f"<OssOrigin oss://models/model/ at {host} <OssV4 cn-test>>"


async def test_an_endpoint_that_does_not_answer_is_named_and_tried_again(serve, keys, waits):
    server = serve()
    server.close()
    with pytest.raises(OriginError) as caught:
        await open_origin("oss://models/x", options(server)).list("m", CHUNK, BLOCK)
    host = server.endpoint.removeprefix("http://")
    assert str(caught.value) == f"oss://models/x: endpoint {host}: Connection refused"
    assert not caught.value.fatal
    assert len(waits) == 4
