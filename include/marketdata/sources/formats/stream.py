"""A file's bytes as a stream that is decompressed, bounded and checked while it is read."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from pathlib import Path
from typing import Any

from marketdata.errors import BadDataError, UnavailableError

MAX_DECOMPRESSED = 512 * 2**20
"""Bytes a compressed file may grow to."""

_BLOCK = 2**20


def refused(origin: str, what: str, remedy: str = "") -> BadDataError:
    """The error of a file that cannot be read."""
    return BadDataError(f"{origin}: {what}; nothing of this extraction was kept", remedy)


def opened(path: Path, origin: str) -> io.BufferedIOBase:
    """The file's bytes, decompressed where it ends in ``.gz``; decompression is bounded."""
    try:
        plain = path.open("rb")
    except OSError as error:
        raise UnavailableError(
            f"{origin}: cannot be opened: {error.strerror}; nothing was read", "check the folder"
        ) from error
    return io.BufferedReader(_Gunzipped(plain, origin), _BLOCK) if path.suffix.lower() == ".gz" else plain


class _Gunzipped(io.RawIOBase):
    def __init__(self, plain: Any, origin: str) -> None:
        self._plain = plain
        self._gzip = gzip.GzipFile(fileobj=plain)
        self._origin = origin
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._gzip.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            what = "is truncated" if isinstance(error, EOFError) else "is not a sound gzip file"
            raise refused(self._origin, f"{what}, after byte {self._bytes} of its content", "fetch it again") from error
        self._bytes += len(block)
        if self._bytes > MAX_DECOMPRESSED:
            raise refused(self._origin, f"decompresses to more than {MAX_DECOMPRESSED // 2**20} MiB", "split it")
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._plain.close()
        super().close()


class Text(io.RawIOBase):
    """A text file as UTF-8 bytes. Bytes that are not of its encoding, and NUL, are refused with their offset.

    Attributes:
        quotes: double quotes seen so far.
    """

    def __init__(self, path: Path, origin: str, encoding: str) -> None:
        self._file = opened(path, origin)
        self._origin = origin
        self._encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._offset = 0
        self._pending = memoryview(b"")
        self._last = b"\n"
        self._ended = False
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and not self._ended:
            self._fill()
        taken = min(len(buffer), len(self._pending))
        buffer[:taken] = self._pending[:taken]
        self._pending = self._pending[taken:]
        return taken

    def _fill(self) -> None:
        block = self._file.read(_BLOCK)
        self._ended = not block
        before = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            offset = self._offset - before + error.start
            raise refused(
                self._origin,
                f"byte {offset} is not {self._encoding.removesuffix('-sig')} text",
                "say its encoding in the mapping",
            ) from error
        checked = text.encode()
        if (position := checked.find(b"\0")) >= 0:
            raise refused(
                self._origin, f"holds a NUL byte near byte {self._offset + position}", "is it really a text file?"
            )
        self._offset += len(block)
        self.quotes += checked.count(b'"')
        self._last = checked[-1:] or self._last
        # A last line without its newline is a line all the same.
        self._pending = memoryview(checked if not self._ended or self._last in b"\r\n" else checked + b"\n")

    def close(self) -> None:
        self._file.close()
        super().close()
