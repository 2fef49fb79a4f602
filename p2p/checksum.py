"""The stores' own checksums of whole objects, put together from those of their parts.

Both are 64-bit CRCs with reflected bits, all ones at the start and inverted at the end: CRC-64/XZ
(OSS, `x-oss-hash-crc64ecma`) and CRC-64/NVME (S3, `x-amz-checksum-crc64nvme`). Such a CRC of A+B
follows from the CRCs of A and of B and the length of B alone: crc(A) times x^(8 * length of B)
modulo the polynomial, plus crc(B) (as zlib's `crc32_combine`). So nodes that read different chunks
of an object can compare it with what the store says of it, and nobody reads it again.

A combination costs about 10 us; the power of x is kept for each length, of which there are two or
three a file. The OSS SDK's own `combine` takes 10 ms.
"""

from collections.abc import Iterable
from functools import lru_cache

CHECKSUM_BYTES = 8
_POLYNOMIALS = {  # reflected: the highest bit is the coefficient of x^0
    "crc64xz": 0xC96C5795D7870F42,
    "crc64nvme": 0x9A6C9329AC4BC9B5,
}
_ONE = 1 << 63


def _multiply(one: int, other: int, polynomial: int) -> int:
    """The product of two polynomials over GF(2), modulo a third."""
    product = 0
    while one:
        if one & _ONE:
            product ^= other
        one = (one << 1) & 0xFFFF_FFFF_FFFF_FFFF
        other = (other >> 1) ^ (polynomial if other & 1 else 0)
    return product


@lru_cache(maxsize=4096)
def _shift(kind: str, length: int) -> int:
    """x^(8 * length) modulo the polynomial, by squaring."""
    polynomial = _POLYNOMIALS[kind]
    power, square, exponent = _ONE, _ONE >> 1, 8 * length
    while exponent:
        if exponent & 1:
            power = _multiply(square, power, polynomial)
        square = _multiply(square, square, polynomial)
        exponent >>= 1
    return power


def combine(kind: str, parts: Iterable[tuple[int, int]]) -> int:
    """The CRC of parts laid end to end.

    Args:
      kind: `crc64xz` or `crc64nvme`.
      parts: CRC and length in bytes of each part, in order.

    Raises:
      KeyError: a checksum of another kind.
    """
    polynomial, total = _POLYNOMIALS[kind], 0
    for crc, length in parts:
        total = _multiply(_shift(kind, length), total, polynomial) ^ crc
    return total


def expected(checksum: str) -> tuple[str, int]:
    """Kind and value of a manifest's `checksum`, like `crc64xz:995dc9bbdf1939fa`."""
    kind, _, digits = checksum.partition(":")
    return kind, int(digits, 16)


def written(kind: str, value: int) -> str:
    """The inverse of `expected`."""
    return f"{kind}:{value:016x}"
