"""What the chunks of a PNG say of its colours, beside a colour profile."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ColorChunks = Sequence[tuple[bytes, bytes]]  # kind and body

# Numbers of ITU-T H.273 that are in use for photographs.
_PRIMARIES = {1: "BT.709", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_TRANSFERS = {1: "BT.709", 8: "linear", 13: "sRGB", 14: "BT.2020", 16: "PQ", 18: "HLG"}

# What sRGB is in the other chunks (PNG specification, 11.3.2.5).
_SRGB = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"cICP": bytes([1, 13, 0, 1]),
}
_HDR = (b"cICP", b"mDCV", b"mDCv", b"cLLI", b"cLLi")


def other_than_srgb(chunks: ColorChunks, icc: bytes) -> list[str]:
    """Return the names of the chunks without which the colours would look different.

    A chunk that says sRGB says what a reader takes for granted. A colour profile or an sRGB chunk
    takes the place of gAMA and cHRM.

    Args:
        chunks: Of one file.
        icc: Its colour profile; empty if there is none.
    """
    kinds = [kind for kind, _ in chunks]
    replaces_gamma = bool(icc) or b"sRGB" in kinds
    names: list[str] = []
    for kind, body in chunks:
        is_needed = kind != b"sRGB" and body != _SRGB.get(kind)
        if kind not in _HDR and replaces_gamma:
            is_needed = False
        if is_needed:
            names.append(kind.decode("ascii"))
    return names


def note_of_hdr(chunks: ColorChunks) -> str | None:
    """Return what is to be said of an image that names its colours by cICP, if it is not sRGB.

    Args:
        chunks: Of one file.
    """
    for kind, body in chunks:
        if kind == b"cICP" and body != _SRGB[kind]:
            primaries = _PRIMARIES.get(body[0], f"primaries {body[0]}")
            transfer = _TRANSFERS.get(body[1], f"transfer {body[1]}")
            return (
                f"its colours are {primaries}, {transfer} (cICP), and the network takes them for "
                "sRGB"
            )
    return None
