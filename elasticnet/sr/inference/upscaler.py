"""Upscaler: a network and its settings, to be called with images of any kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elasticnet.checkpoint import load
from elasticnet.checkpoint.checks import elastic_net
from elasticnet.sr.inference.scale import scale_of
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import UpscalePlan, plan_upscale
from elasticnet.sr.models.pretrained import packaged, weights_file
from elasticnet.taps import resolve_depth

if TYPE_CHECKING:
    from PIL import Image

    Picture = TypeVar("Picture", Image.Image, NDArray[Any], Tensor)

MODES = ("RGB", "RGBA", "L", "LA", "I;16")
MODES_WITH_ALPHA = ("RGBA", "LA")
METADATA = ("icc_profile", "dpi", "exif")  # of what a PIL image holds beside its pixels


class Upscaler:
    """Enlarges images by one network, at any depth; what comes in comes out, `scale` times larger.

    Several threads may call one Upscaler at once, with different depths: a call changes nothing in
    it.

    Args:
        weights: A file that `elasticnet.save` wrote, or the name of a packaged net such as
            "asrn-x4:published"; only what `depth` needs is read of it. Or a net, which is kept, not
            copied, and put into eval mode once. Of a net that is compiled or wrapped for parallel
            training, the net inside. Default: the packaged net for `scale`.
        depth: The default of a call, and of a file the deepest depth that is read. Default: the
            net's own.
        scale: How many times as long each side becomes, where no `weights` are given.
        device: Where the network runs. Default: the CPU for a file, and where it is for a net.
        tile: As in `plan_upscale`.
        self_ensemble: As in `plan_upscale`.

    Attributes:
        net: The network.
        depth: The default depth of a call.
        scale: How many times as long each side of an image becomes.

    Raises:
        TypeError: A module that is not an `ElasticWrapper`, and wraps none.
        ValueError: Unknown depth, a network that makes no larger image, or both or neither of
            `weights` and `scale`.
        OSError: The file cannot be read.

    Example:
        `large = Upscaler(scale=4)(Image.open("photo.jpg"))`
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | nn.Module | None = None,
        depth: int | None = None,
        *,
        scale: int | None = None,
        device: torch.device | str | None = None,
        tile: int | str | None = "auto",
        self_ensemble: bool = False,
    ) -> None:
        if weights is not None and scale is not None:
            raise ValueError(f"scale {scale!r} beside weights, which have their own: give one")
        if isinstance(weights, nn.Module):
            self.net = elastic_net(weights).eval()
        else:
            self.net = load(_file_of(weights, scale), depth)
        if device is not None:
            self.net.to(device)
        if depth is None:
            self.depth = self.net.default_depth
        else:
            self.depth = resolve_depth(depth, self.net.taps)
        self.scale = scale_of(self.net)
        self._tile = tile
        self._self_ensemble = self_ensemble

    @property
    def depths(self) -> tuple[int, ...]:
        """What `depth` may be."""
        return self.net.taps

    def plan(self, depth: int | None = None) -> UpscalePlan:
        """Return what a call at this depth does, for `upscale_array` and `upscale_photo`.

        The first plan of a depth measures the network; later ones cost nothing.

        Args:
            depth: One of `depths`. Default: that of the Upscaler.

        Raises:
            ValueError: The depth is unknown, or the tile is invalid.
        """
        return plan_upscale(
            self.net,
            depth=self.depth if depth is None else depth,
            tile=self._tile,
            self_ensemble=self._self_ensemble,
        )

    def __call__(self, image: Picture, depth: int | None = None) -> Picture:
        """Return an image enlarged, of the same kind, dtype and device.

        Args:
            image: A PIL image of mode RGB, L, RGBA, LA (alpha is resized on its own) or I;16, which
                keeps its colour profile, DPI and EXIF. An array (h, w, 3), or gray (h, w), of
                uint8, uint16 or floats in 0..1. A tensor of floats in 0..1, (3, h, w) or
                (b, 3, h, w), whose images run one after another, without gradient.
            depth: One of `depths`. Default: that of the Upscaler.

        Returns:
            The same kind of image, `scale` times as high and wide. Integers are rounded and
            clipped, floats are not clipped.

        Raises:
            TypeError: Another kind of image.
            ValueError: Another mode, shape or range of values, or an unknown depth.
        """
        plan = self.plan(depth)
        if isinstance(image, np.ndarray):
            return upscale_array(image, plan)
        if isinstance(image, Tensor):
            return _upscale_tensor(image, plan)
        from PIL import Image  # here, as arrays and tensors need none

        if not isinstance(image, Image.Image):
            raise TypeError(
                f"image is a {type(image).__name__}: expected a PIL image, a NumPy array or a "
                "tensor"
            )
        return _upscale_picture(image, plan)


def _file_of(weights: str | os.PathLike[str] | None, scale: int | None) -> str | os.PathLike[str]:
    """The file that is meant by weights or a scale."""
    if weights is not None:
        return weights
    if scale is None:
        raise ValueError(f"neither weights nor scale: give one ({packaged()})")
    return weights_file(scale)


def _upscale_tensor(image: Tensor, plan: UpscalePlan) -> Tensor:
    """Images (3, h, w) or (b, 3, h, w), one after another."""
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
        raise ValueError(
            f"image is a tensor {image.dtype} of shape {tuple(image.shape)}: "
            "expected floats in 0..1, (3, h, w) or (b, 3, h, w)"
        )
    height, width = image.shape[-2:]
    result = image.new_empty((*image.shape[:-2], height * plan.scale, width * plan.scale))
    sources = image.detach().reshape(-1, 3, height, width)
    targets = result.view(-1, 3, height * plan.scale, width * plan.scale)
    for source, target in zip(sources, targets, strict=True):
        array = source.permute(1, 2, 0).float().cpu().numpy()  # (h, w, 3)
        large = upscale_array(array, plan)
        target.copy_(torch.from_numpy(large).permute(2, 0, 1))
    return result


def _upscale_picture(image: Image.Image, plan: UpscalePlan) -> Image.Image:
    from PIL import Image

    from elasticnet.sr.photo import Photo
    from elasticnet.sr.photo.upscale import upscale_photo

    if image.mode not in MODES:
        raise ValueError(
            f"image of mode {image.mode}: expected {', '.join(MODES)}; use image.convert('RGB')"
        )
    samples = np.asarray(image)
    if image.mode in MODES_WITH_ALPHA:
        colors = samples[..., 0] if image.mode == "LA" else samples[..., :3]
        photo = Photo(pixels=colors, alpha=samples[..., -1])
    else:
        photo = Photo(pixels=samples)
    large = upscale_photo(photo, plan)
    if large.alpha is None:
        result = Image.fromarray(large.pixels)
    else:
        result = Image.fromarray(np.dstack([large.pixels, large.alpha]))
    kept = {name: image.info[name] for name in METADATA if name in image.info}
    result.info.update(kept)
    return result
