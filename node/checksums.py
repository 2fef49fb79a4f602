"""The functions behind the stores' own checksums; each comes with the extra of its store."""

from collections.abc import Callable
from functools import cache
from typing import Any

from p2p.errors import UsageError

Checksum = Callable[[Any], int]
"""The CRC of bytes or a memoryview. Releases the GIL."""


@cache
def checksum_function(kind: str) -> Checksum:
    """`crc64xz` (fastcrc: 7 GB/s) or `crc64nvme` (awscrt: 7 GB/s).

    Raises:
      UsageError: the package that computes it is not installed.
    """
    try:
        if kind == "crc64xz":
            from fastcrc import crc64

            return crc64.xz
        from awscrt import checksums

        nvme: Checksum = checksums.crc64nvme
        return nvme
    except ImportError as error:
        extra = "oss" if kind == "crc64xz" else "s3"
        raise UsageError(
            f"the store's checksum {kind} needs a package: pip install 'shoal[{extra}]'"
        ) from error
