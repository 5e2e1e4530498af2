"""Photographs read, enlarged and written without loss.

`reading` reads files, with the help of `samples` (pixels and alpha), `bit_depth`, `tiff_pages`,
`metadata` (EXIF, XMP, DPI), and of `png_chunks`, `png_colors` and `color_boxes` (what else a file
says of its colours). `upscale` enlarges a photograph, to what `output_size` says, and
`scaled_metadata` fits its metadata to it. `writing` writes it, by `png_writer`, `tiff_writer`,
`gif_writer` or Pillow. `animation` does all of this frame by frame. `large_array` holds large
results, `costs` says what reading and writing take.
"""

from elasticnet.sr.photo.photograph import ImageError, Photo
from elasticnet.sr.photo.reading import READABLE, read_photo

__all__ = ["READABLE", "ImageError", "Photo", "read_photo"]
