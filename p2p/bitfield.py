"""The set of held chunks as bits: chunk 0 is the highest bit of byte 0, as in BEP 3."""

from collections.abc import Iterable, Iterator


def indexes(data: bytes | bytearray, at: int = 0) -> Iterator[int]:
    """The bits that are set, in ascending order; `data` begins at byte `at` of its bitfield."""
    for position, byte in enumerate(data, at):
        if byte:
            for bit in range(8):
                if byte & (0x80 >> bit):
                    yield position * 8 + bit


def changed(before: bytes, after: bytes) -> tuple[int, bytes]:
    """The shortest part of `after` that turns `before`, which is as long, into it.

    Returns:
      The byte at which it begins, and its bytes: none when both are the same.
    """
    difference = int.from_bytes(before, "big") ^ int.from_bytes(after, "big")
    if not difference:
        return 0, b""
    at = len(after) - (difference.bit_length() + 7) // 8
    end = len(after) - ((difference & -difference).bit_length() - 1) // 8
    return at, after[at:end]


class Bitfield:
    """A fixed number of bits. Spare bits of the last byte are always 0."""

    __slots__ = ("_bits", "count", "size")

    def __init__(self, size: int, held: Iterable[int] = ()) -> None:
        self.size = size
        self.count = 0
        self._bits = bytearray((size + 7) // 8)
        for index in held:
            self.add(index)

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> "Bitfield":
        """Read the wire form.

        Raises:
          ValueError: the length is wrong, or a spare bit is set.
        """
        if len(data) != (size + 7) // 8:
            raise ValueError(f"a bitfield of {size} chunks has {(size + 7) // 8} bytes")
        if size % 8 and data[-1] & (0xFF >> size % 8):
            raise ValueError("a spare bit of the bitfield is set")
        field = cls(size)
        field._bits[:] = data
        field.count = int.from_bytes(data, "big").bit_count()
        return field

    def __bytes__(self) -> bytes:
        return bytes(self._bits)

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] & (0x80 >> (index & 7)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return indexes(self._bits)

    def __repr__(self) -> str:
        return f"<Bitfield {self.count}/{self.size}>"

    @property
    def complete(self) -> bool:
        """All bits are set."""
        return self.count == self.size

    def part(self, at: int, length: int) -> int:
        """`length` bytes from byte `at` on, as a number."""
        return int.from_bytes(self._bits[at : at + length], "big")

    def patch(self, at: int, data: bytes) -> tuple[int, int]:
        """Replace the bytes from byte `at` on.

        Returns:
          The bits that are new, and those that are gone, as numbers of `len(data)` bytes.

        Raises:
          ValueError: beyond the end, or a spare bit is set; nothing is changed.
        """
        end = at + len(data)
        if end > len(self._bits):
            raise ValueError(f"a bitfield of {self.size} chunks has {len(self._bits)} bytes")
        if self.size % 8 and data and end == len(self._bits) and data[-1] & (0xFF >> self.size % 8):
            raise ValueError("a spare bit of the bitfield is set")
        before, after = self.part(at, len(data)), int.from_bytes(data, "big")
        self._bits[at:end] = data
        gained, lost = after & ~before, before & ~after
        self.count += gained.bit_count() - lost.bit_count()
        return gained, lost

    def add(self, index: int) -> None:
        """Set a bit; setting it again changes nothing."""
        if index not in self:
            self._bits[index >> 3] |= 0x80 >> (index & 7)
            self.count += 1

    def discard(self, index: int) -> None:
        """Clear a bit; clearing it again changes nothing."""
        if index in self:
            self._bits[index >> 3] &= ~(0x80 >> (index & 7)) & 0xFF
            self.count -= 1
