"""Bits of a header, most significant first, with Exp-Golomb numbers."""

from __future__ import annotations

MAX_HEADER_BYTES = 512  # what is read of a header; beyond lie pictures


class HeaderError(ValueError):
    """A header ends early, or is none."""


class Bits:
    """A header read bit by bit."""

    def __init__(self, header: bytes | memoryview) -> None:
        header = bytes(header[:MAX_HEADER_BYTES])
        self._number, self._left = int.from_bytes(header), 8 * len(header)

    def read(self, count: int) -> int:
        """The next bits as a number.

        Raises:
            HeaderError: there are not that many.
        """
        self._left -= count
        if self._left < 0:
            raise HeaderError("a header ends early")
        return self._number >> self._left & (1 << count) - 1

    def flag(self) -> bool:
        """The next bit."""
        return self.read(1) == 1

    def golomb(self) -> int:
        """The next Exp-Golomb number, ue(v)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise HeaderError("an Exp-Golomb number is longer than 32 bits")
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_golomb(self) -> int:
        """The next signed Exp-Golomb number, se(v)."""
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -(number // 2)


def without_emulation(payload: bytes) -> bytes:
    """A unit of H.264 or HEVC without the bytes that keep start codes out of it."""
    return payload.replace(b"\0\0\3", b"\0\0")
