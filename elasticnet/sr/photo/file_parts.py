"""A file without some of its parts, which Pillow is not to see."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO


def file_without(file: BinaryIO, left_out: Sequence[tuple[int, int]]) -> BinaryIO:
    """Return a file as it would be without some parts; nothing is copied.

    Args:
        file: Seekable, in binary mode.
        left_out: Where each part begins and ends, in bytes from the start, in order.
    """
    end_of_file = file.seek(0, io.SEEK_END)
    parts: list[tuple[int, int]] = []
    place = 0
    for start, end in left_out:
        if start > place:
            parts.append((place, start))
        place = end
    parts.append((place, end_of_file))
    return io.BufferedReader(_FileParts(file, parts))


class _FileParts(io.RawIOBase):
    """Parts of a seekable file, as one file to read."""

    def __init__(self, file: BinaryIO, parts: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._file = file
        self._parts = parts  # (start, end) in the file
        self._size = sum(end - start for start, end in parts)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}
        self._place = max(0, origins[whence] + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, of one part at most; all that are left if it is negative."""
        if size < 0:
            return self.readall()
        first = 0  # where a part begins in the view
        for start, end in self._parts:
            length = end - start
            if self._place < first + length:
                skipped = self._place - first
                self._file.seek(start + skipped)
                data = self._file.read(min(size, length - skipped))
                self._place += len(data)
                return data
            first += length
        return b""

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
