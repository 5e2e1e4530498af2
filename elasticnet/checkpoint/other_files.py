"""What a file is that somebody takes for a checkpoint, told by how it begins, and what to do then.

`elasticnet.checkpoint.safetensors_file` asks when a file has no header that it can read.
"""

from __future__ import annotations

import re
import struct

START_BYTES = 512  # of a file, which are enough for everything below
MIN_TEXT = 16  # bytes; fewer may be those of a checkpoint that is cut off

_CHECKPOINT = "give the checkpoint, a .safetensors file that elasticnet.save or a recipe wrote"
_PICKLE_ADVICE = (
    "it begins as PyTorch's own files do, which are pickles: read it with "
    "torch.load(..., weights_only=True), load that into the network, and save that"
)
_EXPORT_ADVICE = "exported networks are not read back: give the checkpoint that it was made from"
_SAVED_PAGE = "a page instead of the file: look at the address, or log in, and download it again"

_ZIP_START = b"PK\3\4"
_ZIP_NAME_LENGTH = 26  # where the header of a zip file's first member says how long its name is
_ZIP_NAME = 30  # where the name itself begins (APPNOTE.TXT of PKWARE, 4.3.7)
# Names of the first member of a zip file, as torch 2.6 to 2.15 writes it.
_EXPORTED_PROGRAM = re.compile(rb"serialized_exported_program\.json|/data/weights/|archive_format")
_TORCHSCRIPT = re.compile(rb"[^/]+/data/\d+")
_PICKLE_START = re.compile(rb"\x80[\2-\5]")
# An ONNX file is a protobuf message. Field 1 is the version, a small number; then comes field 2
# (the producer), 3, 7 (the graph) or 8.
_ONNX_START = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x3a\x42]")
_HTML_START = re.compile(rb"\s*<(?:!doctype html|html|head)", re.IGNORECASE)
_XML_START = re.compile(rb"\s*<\?xml")
_JSON_START = re.compile(rb"\s*[{\[]")
_OTHER_STARTS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x89PNG": "a PNG file",
    b"\xff\xd8\xff": "a JPEG file",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"%PDF": "a PDF document",
}
_TAR_NAME = 257  # where a tar archive says what it is (POSIX.1-1988, ustar)
_TFLITE_NAME = 4  # where a TFLite file says what it is


def describe_other_file(start: bytes) -> str | None:
    """Return what a file is that is no checkpoint, and what to give instead.

    Args:
        start: The file's first `START_BYTES` bytes, or all of a shorter file.

    Returns:
        Half a sentence that follows the file's name; None where nothing is known of such a file.
    """
    if not start:
        return f"it is empty; {_CHECKPOINT}"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself: run `git lfs pull` where it lies"
    if start.startswith(_ZIP_START):
        return _describe_zip(start)
    if _PICKLE_START.match(start):
        return _PICKLE_ADVICE
    if _ONNX_START.match(start):
        return f"an ONNX file; {_EXPORT_ADVICE}"
    if _HTML_START.match(start):
        return f"an HTML page; {_SAVED_PAGE}"
    kind = _kind_of(start)
    return None if kind is None else f"{kind}; {_CHECKPOINT}"


def _kind_of(start: bytes) -> str | None:
    """What a file is that has nothing to do with networks of ours; None where nobody knows."""
    if _JSON_START.match(start):
        return "a JSON file"
    if _XML_START.match(start):
        return "an XML file, such as a server's message of an error"
    for beginning, kind in _OTHER_STARTS.items():
        if start.startswith(beginning):
            return kind
    if start.startswith(b"ustar", _TAR_NAME):
        return "a tar archive"
    if start.startswith(b"TFL3", _TFLITE_NAME):
        return "a TFLite file"
    return "a text file" if _is_text(start) else None


def _is_text(start: bytes) -> bool:
    """Whether the beginning of a file is text in UTF-8; its last letter may be cut off."""
    if len(start) < MIN_TEXT:
        return False
    text = start.decode("utf-8", errors="ignore")
    is_whole = len(text.encode()) > len(start) - 4  # a letter has at most four bytes
    return is_whole and all(letter.isprintable() or letter.isspace() for letter in text)


def _describe_zip(start: bytes) -> str:
    """What a zip file is, by the name of its first member."""
    name = b""
    if len(start) >= _ZIP_NAME:
        (length,) = struct.unpack_from("<H", start, _ZIP_NAME_LENGTH)
        name = start[_ZIP_NAME : _ZIP_NAME + length]
    if name.endswith(b"/data.pkl"):
        return _PICKLE_ADVICE
    if _EXPORTED_PROGRAM.search(name):
        return f"a program of torch.export (.pt2); {_EXPORT_ADVICE}"
    if _TORCHSCRIPT.fullmatch(name):
        return f"a TorchScript program; {_EXPORT_ADVICE}"
    if name.endswith(b".npy"):
        return f"an archive of NumPy arrays (.npz); {_CHECKPOINT}"
    return f"a zip archive; unpack it, and {_CHECKPOINT}"
