"""Photographs read, enlarged and written without loss.

`reading` reads files, with the help of `samples` (pixels and alpha) and `metadata` (EXIF, XMP,
DPI). `upscale` enlarges a photograph. `writing` writes it, by `png_writer`, `tiff_writer` or
Pillow. `large_array` holds large results.
"""

from elasticnet.sr.photo.photograph import ImageError, Photo
from elasticnet.sr.photo.reading import READABLE, read_photo

__all__ = ["READABLE", "ImageError", "Photo", "read_photo"]
