"""Photographs read, enlarged and written without loss.

`reading` reads files, with the help of `samples` (pixels and alpha), `bit_depth`, `tiff_pages`,
`metadata` (EXIF, XMP, DPI), and of `png_chunks`, `png_colors` and `color_boxes` (what else a file
says of its colours). `upscale` enlarges a photograph, `scaled_metadata` fits its metadata to it.
`writing` writes it, by `png_writer`, `tiff_writer` or Pillow. `large_array` holds large results.
"""

from elasticnet.sr.photo.photograph import ImageError, Photo
from elasticnet.sr.photo.reading import READABLE, read_photo

__all__ = ["READABLE", "ImageError", "Photo", "read_photo"]
