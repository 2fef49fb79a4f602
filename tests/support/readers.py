"""Reads an origin's jobs as a worker does: adds Range and If-Match, and nothing else."""

import httpx
import trio

from node.jobs import FetchEnded, FetchJob
from node.origins.base import Origin
from node.origins.listing import parse_error
from node.tls import tls_context
from p2p.manifest import Manifest


async def carry_out(job: FetchJob, start: int, end: int) -> bytes | FetchEnded:
    """Bytes `start` to `end` (not included), or the end that a worker would report."""
    headers = {
        "Range": f"bytes={start}-{end - 1}",
        "If-Match": job.etag,
        "Accept-Encoding": "identity",
        **dict(job.headers),
    }
    async with httpx.AsyncClient(trust_env=False, verify=tls_context()) as client:
        answer = await client.get(job.url, headers=headers)
    if answer.status_code == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{job.total}"
        assert answer.headers["etag"] == job.etag
        return answer.content
    code, date = parse_error(answer.content).code, answer.headers.get("date", "")
    return FetchEnded(job.chunk, "refused", True, 0.0, False, answer.status_code, code, date)


async def refusal_of(job: FetchJob) -> FetchEnded:
    """What comes of a job that is refused."""
    ended = await carry_out(job, 0, 1)
    assert isinstance(ended, FetchEnded)
    return ended


async def read_chunk(origin: Origin, manifest: Manifest, chunk: int) -> bytes | FetchEnded:
    """One chunk, by a job made for it."""
    extent = manifest.extent(chunk)
    job = await origin.fetch_job(manifest, chunk)
    return await carry_out(job, extent.offset, extent.offset + extent.length)


async def read_all(origin: Origin, manifest: Manifest) -> dict[str, bytes]:
    """All files, chunk by chunk."""
    read = {file.path: b"" for file in manifest.files}
    for chunk in range(manifest.chunk_count):
        data = await read_chunk(origin, manifest, chunk)
        assert isinstance(data, bytes), data
        read[manifest.files[manifest.extent(chunk).file].path] += data
    return read


class LoopbackNames(trio.abc.HostnameResolver):
    """Every name is a server of this test, whatever the port: what DNS does for the real thing."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: set[str] = set()

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        """One address."""
        self.asked.add(host if isinstance(host, str) else host.decode())
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", ("127.0.0.1", self.port))]

    async def getnameinfo(self, sockaddr, flags):
        """Not asked."""
        raise NotImplementedError
