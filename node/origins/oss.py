"""`oss://`: Alibaba Cloud OSS in its own dialect, which unlike its S3 one is always enabled."""

import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import httpx

from node.credentials import Anonymous, CredentialsFile, Source, from_environment
from node.origins.base import OriginOptions
from node.origins.endpoints import oss_endpoint
from node.origins.signing import OssV1, OssV4, Signer
from node.origins.store import StoreOrigin


class OssOrigin(StoreOrigin):
    """A bucket of OSS. Signed with V4 when its region is known, and with V1 when it is not.

    Credentials are those of the file, else of `OSS_ACCESS_KEY_ID` and its kin, else none.

    Raises:
      UsageError: the URL, endpoint or credentials cannot be, or the SDK is not installed.
    """

    token_encoded = True
    version_header = "x-oss-version-id"
    # without it a range that is off the object is answered with 200 and all of the object
    job_headers: ClassVar[Mapping[str, str]] = {"x-oss-range-behavior": "standard"}

    def __init__(
        self,
        url: str,
        options: OriginOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        options = options or OriginOptions()
        endpoint = oss_endpoint(options.endpoint, options.region, options.addressing)
        source = _source(options)
        signer: Signer | None = None
        if not isinstance(source, Anonymous):
            signer = OssV4(endpoint.region) if endpoint.region else OssV1()
        super().__init__(url, options, endpoint, source, signer, clock)

    def _checksum(self, headers: httpx.Headers) -> str:
        """CRC-64/XZ in decimal; objects that were put together from older ones have none."""
        text = headers.get("x-oss-hash-crc64ecma", "")
        if not text:
            return ""
        if not (text.isascii() and text.isdecimal()) or int(text[:21]) >= 2**64:
            raise ValueError("not a decimal number of 64 bits")
        return f"crc64xz:{int(text):016x}"


def _source(options: OriginOptions) -> Source:
    if options.anonymous:
        return Anonymous()
    if options.credentials_file is not None:
        return CredentialsFile(options.credentials_file)
    return from_environment()
