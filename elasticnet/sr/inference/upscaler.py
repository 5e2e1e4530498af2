"""Upscaler: a network and its settings, to be called with images of any kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from elasticnet.checkpoint import load
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper

if TYPE_CHECKING:
    from PIL import Image

    Picture = TypeVar("Picture", Image.Image, np.ndarray, Tensor)

MODES = ("RGB", "RGBA", "L", "LA", "I;16")
KEPT = ("icc_profile", "dpi", "exif")  # of what a PIL image knows beside its pixels


class Upscaler:
    """Enlarges images by one network, at any depth; what comes in comes out, `scale` times larger.

    weights: a file that `elasticnet.save` wrote, of which only what `depth` needs is read; or a
    net, which is kept, not copied, and put into eval mode once. depth: the default of a call, and
    with a file the deepest there is; None means the net's. device: None means the CPU for a file,
    and where it is for a net. tile, self_ensemble: see `tiling.upscale_array`. Several threads may
    call one Upscaler at once, with different depths: a call changes nothing in it.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | ElasticWrapper,
        depth: int | None = None,
        *,
        device: torch.device | str | None = None,
        tile: int | str | None = "auto",
        self_ensemble: bool = False,
    ) -> None:
        if isinstance(weights, ElasticWrapper):
            self.net = weights.eval() if device is None else weights.eval().to(device)
        else:
            self.net = load(weights, depth, device="cpu" if device is None else device)
        self.depth = (
            self.net.default_depth if depth is None else resolve_depth(depth, self.net.taps)
        )
        self.tile = tile
        self.self_ensemble = self_ensemble
        self.scale = footprint(self.net, self.net.taps[0]).scale

    @property
    def depths(self) -> tuple[int, ...]:
        """What `depth` may be."""
        return self.net.taps

    def __call__(self, image: Picture, depth: int | None = None) -> Picture:
        """Return an image enlarged, of the same kind, dtype and device, `scale` times as high and
        wide.

        PIL images: modes RGB, L, RGBA, LA (alpha is resized on its own) and I;16, with colour
        profile, DPI and EXIF. Arrays: (h, w, 3), or gray (h, w), of uint8, uint16 or floats in
        0..1. Tensors: floats in 0..1, (3, h, w) or (b, 3, h, w), one image after another, without
        gradient. Integers are rounded and clipped, floats are not clipped. Raises TypeError for
        other kinds, ValueError for other modes, shapes and ranges.
        """
        if isinstance(image, np.ndarray):
            return self._array(image, depth)
        if isinstance(image, Tensor):
            return self._tensor(image, depth)
        from PIL import Image  # here, as arrays and tensors need none

        if not isinstance(image, Image.Image):
            raise TypeError(
                f"image is a {type(image).__name__}: expected a PIL image, a NumPy array or a tensor"
            )
        return self._picture(image, depth)

    def _array(self, image: np.ndarray, depth: int | None) -> np.ndarray:
        depth = self.depth if depth is None else depth
        return upscale_array(
            self.net, image, depth=depth, tile=self.tile, self_ensemble=self.self_ensemble
        )

    def _tensor(self, image: Tensor, depth: int | None) -> Tensor:
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
            kind = f"{image.dtype} of shape {tuple(image.shape)}"
            raise ValueError(
                f"image is a tensor {kind}: expected floats in 0..1, (3, h, w) or (b, 3, h, w)"
            )
        height, width = (side * self.scale for side in image.shape[-2:])
        result = image.new_empty((*image.shape[:-2], height, width))
        sources, targets = (
            image.detach().reshape(-1, *image.shape[-3:]),
            result.view(-1, 3, height, width),
        )
        for source, target in zip(sources, targets, strict=True):
            array = self._array(source.permute(1, 2, 0).float().cpu().numpy(), depth)
            target.copy_(torch.from_numpy(array).permute(2, 0, 1))
        return result

    def _picture(self, image: Image.Image, depth: int | None) -> Image.Image:
        from PIL import Image

        from elasticnet.sr.photo import Photo
        from elasticnet.sr.photo.upscale import upscale_photo

        if image.mode not in MODES:
            raise ValueError(
                f"image of mode {image.mode}: expected {', '.join(MODES)}; use image.convert('RGB')"
            )
        pixels, alpha = np.asarray(image), None
        if image.mode in ("RGBA", "LA"):
            pixels, alpha = pixels[..., :-1], pixels[..., -1]
            pixels = pixels[..., 0] if image.mode == "LA" else pixels
        depth = self.depth if depth is None else depth
        options = {"depth": depth, "tile": self.tile, "self_ensemble": self.self_ensemble}
        large = upscale_photo(self.net, Photo(pixels, alpha), self.scale, **options)
        planes = large.pixels if large.alpha is None else np.dstack([large.pixels, large.alpha])
        result = Image.fromarray(planes)
        result.info.update({name: image.info[name] for name in KEPT if name in image.info})
        return result
