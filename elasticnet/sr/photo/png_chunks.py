"""Chunks of a PNG file that do not carry pixels, checked before Pillow sees the file.

Pillow refuses a whole file for one damaged or very large chunk of metadata in front of the pixels,
and drops it without a word behind them. The PNG specification (13.2) lets a reader go on after an
error in an ancillary chunk. So the chunks are walked here, those that cannot be used are left out
with a note, and Pillow reads a view of the file without them. Chunks that say what the pixels are
(critical ones, transparency, animation) always stay.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from elasticnet.sr.photo.file_parts import file_without

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_UNPACKED = 2**20  # bytes of one packed chunk; Pillow's MAX_TEXT_CHUNK
MAX_TEXT = 2**26  # bytes of all text that Pillow reads; its MAX_TEXT_MEMORY

CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
ANIMATION = (b"acTL", b"fcTL", b"fdAT")
OF_PIXELS = (b"tRNS", *ANIMATION)  # ancillary by name, but they change what is seen
# Pillow calls a file with a wrong checksum in one of these no image at all.
CHECKED_OF_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL")
OF_PLACES = (b"sCAL", b"pCAL", b"oFFs")  # the size of a pixel, its value, an offset
TEXT = (b"tEXt", b"zTXt", b"iTXt")
# The only text that is used: XMP, and EXIF as ImageMagick writes it.
USED_TEXT = (b"XML:com.adobe.xmp", b"Raw profile type exif")
# How colours are meant, where there is no ICC profile: written again as they are.
COLOR = (b"cICP", b"mDCV", b"mDCv", b"cLLI", b"cLLi", b"cHRM", b"gAMA", b"sRGB")
LENGTHS = {  # in bytes (PNG specification, 3rd edition, 11.3)
    b"cHRM": 32,
    b"gAMA": 4,
    b"sRGB": 1,
    b"cICP": 4,
    b"mDCV": 24,
    b"mDCv": 24,
    b"cLLI": 8,
    b"cLLi": 8,
    b"pHYs": 9,
    b"tIME": 7,
}
_HEAD = 8  # length and kind
_CHECK = 4  # CRC


class Chunk(NamedTuple):
    """Where a chunk lies in its file.

    Attributes:
        kind: Its four letters.
        start: Of its first byte, in bytes from the start of the file.
        length: Of its body, in bytes.
    """

    kind: bytes
    start: int
    length: int

    @property
    def end(self) -> int:
        """Where the next chunk begins."""
        return self.start + _HEAD + self.length + _CHECK


class ReadableChunks(NamedTuple):
    """A PNG file without the chunks that cannot be used.

    Attributes:
        file: What Pillow reads.
        colors: Kind and body of chunks that say how colours are meant.
    """

    file: BinaryIO
    colors: tuple[tuple[bytes, bytes], ...]


def without_unusable_chunks(file: BinaryIO, notes: list[str]) -> ReadableChunks:
    """Return a view of an image file in which Pillow meets no unusable metadata.

    Args:
        file: Seekable, in binary mode; files of other formats are returned as they are.
        notes: Gets a line for each kind of chunk that was left out, and why.

    Raises:
        ValueError: A chunk that says what the pixels are has a wrong checksum or is not known.
    """
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return ReadableChunks(file, ())
    chunks = _walk(file)
    left_out: dict[Chunk, str] = {}  # to the reason
    text_bytes = 0
    for chunk in chunks:
        _refuse_unknown(chunk)
        if chunk.kind in CHECKED_OF_PIXELS:
            _refuse_if_damaged(file, chunk)
        if not _is_metadata(chunk.kind):
            continue
        reason = _why_left_out(file, chunk, text_bytes + chunk.length)
        if reason:
            left_out[chunk] = reason
        elif chunk.kind in TEXT:
            text_bytes += chunk.length
    notes.extend(_notes(left_out))
    colors: list[tuple[bytes, bytes]] = []
    for chunk in chunks:
        if chunk.kind in COLOR and chunk not in left_out:
            colors.append((chunk.kind, _body(file, chunk)))
    file.seek(0)
    if not left_out:
        return ReadableChunks(file, tuple(colors))
    view = file_without(file, [(chunk.start, chunk.end) for chunk in left_out])
    return ReadableChunks(view, tuple(colors))


def _walk(file: BinaryIO) -> list[Chunk]:
    """The whole chunks up to IEND."""
    size = file.seek(0, io.SEEK_END)
    chunks: list[Chunk] = []
    place = len(SIGNATURE)
    while place + _HEAD + _CHECK <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(_HEAD))
        chunk = Chunk(kind, place, length)
        if chunk.end > size or not kind.isalpha():
            break  # cut off or damaged: Pillow says so
        chunks.append(chunk)
        place = chunk.end
        if kind == b"IEND":
            break
    return chunks


def _is_metadata(kind: bytes) -> bool:
    """Whether a chunk is ancillary (its first letter is small) and says nothing of pixels."""
    return kind[:1].islower() and kind not in OF_PIXELS


def _body(file: BinaryIO, chunk: Chunk) -> bytes:
    file.seek(chunk.start + _HEAD)
    return file.read(chunk.length)


def _has_wrong_checksum(file: BinaryIO, chunk: Chunk, body: bytes) -> bool:
    file.seek(chunk.end - _CHECK)
    (check,) = struct.unpack(">I", file.read(_CHECK))
    return zlib.crc32(chunk.kind + body) != check


def _refuse_unknown(chunk: Chunk) -> None:
    """Refuse a critical chunk that is not known: pixels cannot be read rightly without it."""
    if chunk.kind[:1].isupper() and chunk.kind not in CRITICAL:
        name = chunk.kind.decode("ascii")
        raise ValueError(f"its chunk {name} is not known, and pixels depend on it")


def _refuse_if_damaged(file: BinaryIO, chunk: Chunk) -> None:
    if _has_wrong_checksum(file, chunk, _body(file, chunk)):
        name = chunk.kind.decode("ascii")
        raise ValueError(f"its chunk {name} is damaged: the checksum (CRC) is wrong")


def _why_left_out(file: BinaryIO, chunk: Chunk, text_bytes: int) -> str:
    """Why a chunk of metadata is left out; empty if it stays."""
    body, reason = _checked_body(file, chunk)
    if reason:
        return reason
    if chunk.kind in OF_PLACES:
        return "it speaks of the pixels of the smaller image"
    if chunk.kind in TEXT:
        return _why_text_is_left_out(body, text_bytes)
    return ""


def _checked_body(file: BinaryIO, chunk: Chunk) -> tuple[bytes, str]:
    """The body of a chunk, and why it cannot be used; an empty reason if it can."""
    body = _body(file, chunk)
    if _has_wrong_checksum(file, chunk, body):
        return body, "its checksum (CRC) is wrong"
    expected = LENGTHS.get(chunk.kind)
    if expected is not None and len(body) != expected:
        return body, f"it has {len(body)} bytes instead of {expected}"
    find_packed = _PACKED.get(chunk.kind)
    if find_packed is None:
        return body, ""
    try:
        return body, _why_not_unpacked(find_packed(body))
    except (ValueError, IndexError):  # a separator is missing
        return body, "it is damaged"


def _packed_behind_name(body: bytes) -> tuple[int, bytes]:
    """Method and packed bytes of iCCP and zTXt: name, 0, method, packed."""
    behind_name = body.index(b"\0") + 1
    return body[behind_name], body[behind_name + 1 :]


def _packed_international(body: bytes) -> tuple[int, bytes] | None:
    """Method and packed bytes of iTXt: keyword, 0, flag, method, language, 0, keyword, 0, text."""
    behind_keyword = body.index(b"\0") + 1
    is_packed = body[behind_keyword]
    method = body[behind_keyword + 1]
    behind_language = body.index(b"\0", behind_keyword + 2) + 1
    behind_translation = body.index(b"\0", behind_language) + 1
    if not is_packed:
        return None
    return method, body[behind_translation:]


_PACKED: dict[bytes, Callable[[bytes], tuple[int, bytes] | None]] = {
    b"iCCP": _packed_behind_name,
    b"zTXt": _packed_behind_name,
    b"iTXt": _packed_international,
}


def _why_not_unpacked(packed: tuple[int, bytes] | None) -> str:
    """Why a packed part of a chunk cannot be used; empty if it can, or if nothing is packed."""
    if packed is None:
        return ""
    method, content = packed
    if method != 0:
        return f"its compression method {method} is unknown"
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content, MAX_UNPACKED + 1)
    except zlib.error:
        return "it is damaged"
    if len(unpacked) > MAX_UNPACKED:
        return "it is larger than 1 MiB"
    return "" if unpacker.eof else "it is cut off"


def _why_text_is_left_out(body: bytes, text_bytes: int) -> str:
    """Why an undamaged text is left out; empty if it is used."""
    keyword = body.partition(b"\0")[0]
    if keyword not in USED_TEXT:
        return "only XMP and EXIF are kept of text"
    if text_bytes > MAX_TEXT:
        return "the file holds more than 64 MiB of text"
    return ""


def _notes(left_out: dict[Chunk, str]) -> list[str]:
    """A line for each kind and reason."""
    meanings = {
        b"iCCP": "the colour profile (iCCP)",
        b"pHYs": "the resolution (pHYs)",
        b"eXIf": "EXIF (eXIf)",
        b"cICP": "the kind of colours (cICP)",
        b"gAMA": "gamma (gAMA)",
        b"tIME": "the time (tIME)",
    }
    counts: dict[tuple[str, str], int] = {}
    for chunk, reason in left_out.items():
        name = chunk.kind.decode("ascii")
        meaning = f"text ({name})" if chunk.kind in TEXT else f"a chunk {name}"
        key = meanings.get(chunk.kind, meaning), reason
        counts[key] = counts.get(key, 0) + 1
    lines: list[str] = []
    for (meaning, reason), count in counts.items():
        times = f", {count} times" if count > 1 else ""
        lines.append(f"{meaning} was left out{times}: {reason}")
    return lines
