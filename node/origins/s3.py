"""`s3://`: AWS S3, and stores that speak its language (`endpoint`)."""

import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar
from urllib.parse import urlsplit

import httpx

from node.config import environment
from node.credentials import Anonymous, AwsChain, CredentialsFile, Source
from node.jobs import FetchEnded, FetchJob
from node.origins.base import OriginOptions
from node.origins.endpoints import is_region, parse_location, s3_endpoint
from node.origins.refusals import Refusal
from node.origins.signing import S3V4
from node.origins.store import StoreOrigin
from p2p.errors import P2PError

log = logging.getLogger(__name__)


class S3Origin(StoreOrigin):
    """A bucket of S3, signed with Signature V4.

    The options win over `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION` and
    `AWS_DEFAULT_REGION`, and those over the profile's region. Credentials are those of the file,
    else what botocore's chain finds.

    Raises:
      UsageError: the URL or endpoint cannot be, or botocore is not installed.
    """

    version_header = "x-amz-version-id"
    head_headers: ClassVar[Mapping[str, str]] = {"x-amz-checksum-mode": "ENABLED"}

    def __init__(
        self,
        url: str,
        options: OriginOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        options = options or OriginOptions()
        source = _source(options)
        self._addressing = options.addressing
        self._given = (
            options.endpoint
            or environment("AWS_ENDPOINT_URL_S3")
            or environment("AWS_ENDPOINT_URL")
        )
        region = options.region or environment("AWS_REGION") or environment("AWS_DEFAULT_REGION")
        if not region and isinstance(source, AwsChain):
            region = source.region()
        bucket = parse_location(url).bucket
        endpoint = s3_endpoint(self._given, region, options.addressing, bucket)
        signer = None if isinstance(source, Anonymous) else S3V4(endpoint.region)
        super().__init__(url, options, endpoint, source, signer, clock)

    def _checksum(self, headers: httpx.Headers) -> str:
        """CRC-64/NVME in base64; one that is composed of parts' checksums is none of the object."""
        text = headers.get("x-amz-checksum-crc64nvme", "")
        if not text or headers.get("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT":
            return ""
        try:
            value = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
        if len(value) != 8:
            raise ValueError("not 64 bits")
        return f"crc64nvme:{value.hex()}"

    def _relocate(self, refusal: Refusal) -> bool:
        """AWS names the bucket's region when it was asked in another one."""
        region = refusal.region
        if is_region(region) and region != self._endpoint.region:
            if self._given:
                self._endpoint = replace(self._endpoint, region=region)
            else:
                self._endpoint = s3_endpoint(None, region, self._addressing, self._location.bucket)
            if self._signer is not None:
                self._signer = S3V4(region)
            log.warning("%s: the bucket is in region %s", self.url, region)
        return self._is_elsewhere(refusal)

    def _is_elsewhere(self, refusal: Refusal) -> bool:
        """Whether a request went where, or was signed for what, is not current any more."""
        here = self._endpoint.url(self._location.bucket, "")
        word = refusal.headers.get("authorization", "")
        region = f"/{self._endpoint.region}/s3/aws4_request"
        return urlsplit(here).netloc != urlsplit(refusal.url).netloc or (
            bool(word) and region not in word
        )

    async def refused(self, job: FetchJob, ended: FetchEnded) -> bool:
        """See `Origin`. A worker does not hear of regions, so the bucket is asked where it is."""
        if ended.status in (301, 307, 400) and not ended.code.endswith("Token"):
            async with self._client() as client:
                try:
                    await self._ask(client, "HEAD", "")
                except P2PError as error:
                    log.debug("%s", error)
        return await super().refused(job, ended)


def _source(options: OriginOptions) -> Source:
    if options.anonymous:
        return Anonymous()
    if options.credentials_file is not None:
        return CredentialsFile(options.credentials_file)
    return AwsChain(options.profile)
