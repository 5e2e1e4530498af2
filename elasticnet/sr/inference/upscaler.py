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
from elasticnet.sr.inference.depth_choice import DepthChooser
from elasticnet.sr.inference.dtype_choice import plan_in_dtype
from elasticnet.sr.inference.scale import scale_of
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import UpscalePlan, plan_upscale
from elasticnet.sr.models.pretrained import packaged, weights_file
from elasticnet.sr.photo.costs import PhotoCosts
from elasticnet.sr.photo.metadata import UPRIGHT, read_exif
from elasticnet.sr.photo.photograph import Photo, turned_upright
from elasticnet.sr.photo.upscale import upscale_photo
from elasticnet.sr.photo.writing import exif_with_size
from elasticnet.taps import resolve_depth

if TYPE_CHECKING:
    from PIL import Image

    Picture = TypeVar("Picture", Image.Image, NDArray[Any], Tensor)

MODES = ("RGB", "RGBA", "L", "LA", "I;16", "I", "F")
MODES_WITH_ALPHA = ("RGBA", "LA")
LARGEST_16_BITS = 65535


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
        tile_batch: As in `plan_upscale`.
        self_ensemble: As in `plan_upscale`.
        dtype: In which convolutions are computed, "float32", "bfloat16" or "float16", while weights
            are float32; or "auto", the fastest on this machine that loses at most 0.01 dB (see
            `choose_dtype`), which may measure some seconds once. Default: that of the weights,
            float32 for packaged nets.
        max_ms: Milliseconds that a call may take: the deepest depth, up to `depth`, that is
            expected to take at most so many is run. By a card of this machine in the file, or one
            that is kept for the user; without one, the first call measures some seconds and keeps
            it. Default: no limit.

    Attributes:
        net: The network.
        depth: The default depth of a call.
        dtype_reason: Why "auto" has chosen its dtype, in a line; empty without it.
        scale: How many times as long each side of an image becomes.

    Raises:
        TypeError: A module that is not an `ElasticWrapper`, and wraps none.
        ValueError: Unknown depth or dtype, a network that makes no larger image, or both or neither
            of `weights` and `scale`.
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
        tile_batch: int | str = "auto",
        self_ensemble: bool = False,
        dtype: str | None = None,
        max_ms: float | None = None,
    ) -> None:
        if weights is not None and scale is not None:
            raise ValueError(f"scale {scale!r} beside weights, which have their own: give one")
        file: str | os.PathLike[str] | None = None
        if isinstance(weights, nn.Module):
            self.net = elastic_net(weights).eval()
        else:
            file = _file_of(weights, scale)
            self.net = load(file, depth)
        if device is not None:
            self.net.to(device)
        if depth is None:
            self.depth = self.net.default_depth
        else:
            self.depth = resolve_depth(depth, self.net.taps)
        self.scale = scale_of(self.net)
        self._tile = tile
        self._tile_batch = tile_batch
        self._self_ensemble = self_ensemble
        self._compute_dtype: torch.dtype | None = None
        self.dtype_reason = ""
        if dtype is not None:
            self.net.float()
            planned, self.dtype_reason = plan_in_dtype(self._plan_at(self.depth), dtype, file)
            self._compute_dtype = planned.compute_dtype
        self._chooser: DepthChooser | None = None
        if max_ms is not None:
            _check_max_ms(max_ms)
            self._chooser = DepthChooser(self._plan_at(self.depth), file, max_ms=max_ms)
            self._costs = PhotoCosts()

    @property
    def depths(self) -> tuple[int, ...]:
        """What `depth` may be."""
        return self.net.taps

    def plan(self, depth: int | None = None, *, size: tuple[int, int] | None = None) -> UpscalePlan:
        """Return what a call at this depth does, for `upscale_array` and `upscale_photo`.

        The first plan of a depth measures the network; later ones cost nothing.

        Args:
            depth: One of `depths`. Default: the deepest within `max_ms` for an image of `size`,
                without them that of the Upscaler.
            size: Height and width of the image, by which `max_ms` chooses.

        Raises:
            ValueError: The depth is unknown, the tile is invalid, or no depth fits `max_ms`.
        """
        if depth is not None:
            return self._plan_at(depth)
        if self._chooser is None or size is None:
            return self._plan_at(self.depth)
        num_bytes = size[0] * size[1] * 3 * self.scale**2  # of a result of 8 bits
        return self._chooser(size, self._costs.converting(num_bytes)).plan

    def _plan_at(self, depth: int) -> UpscalePlan:
        return plan_upscale(
            self.net,
            depth=depth,
            tile=self._tile,
            tile_batch=self._tile_batch,
            self_ensemble=self._self_ensemble,
            compute_dtype=self._compute_dtype,
        )

    def __call__(self, image: Picture, depth: int | None = None) -> Picture:
        """Return an image enlarged, of the same kind, dtype and device.

        Args:
            image: A PIL image of mode RGB, L, RGBA, LA (alpha is resized on its own), I;16, I (as
                16 bits, 0..65535) or F (in 0..1). It keeps its colour profile, DPI and EXIF. An
                array (h, w, 3), or gray (h, w), of uint8, uint16 or floats in 0..1. A tensor of
                floats in 0..1, (3, h, w) or (b, 3, h, w), whose images run one after another,
                without gradient.
            depth: One of `depths`. Default: as in `plan`.

        Returns:
            The same kind of image, `scale` times as high and wide. A PIL image is upright: its EXIF
            orientation is applied, and reset in the EXIF that the result has. Integers are rounded
            and clipped, floats are not clipped.

        Raises:
            TypeError: Another kind of image.
            ValueError: Another mode, shape or range of values, or an unknown depth.
        """
        if isinstance(image, np.ndarray):
            return upscale_array(image, self.plan(depth, size=_size_of_array(image)))
        if isinstance(image, Tensor):
            _check_tensor(image)
            height, width = image.shape[-2:]
            return _upscale_tensor(image, self.plan(depth, size=(height, width)))
        from PIL import Image  # here, as arrays and tensors need none

        if not isinstance(image, Image.Image):
            raise TypeError(
                f"image is a {type(image).__name__}: expected a PIL image, a NumPy array or a "
                "tensor"
            )
        photo = _photo_of(image)
        large = upscale_photo(photo, self.plan(depth, size=photo.size))
        return _picture_of(large, image)


def _check_max_ms(max_ms: float) -> None:
    if not 0 < max_ms < float("inf"):
        raise ValueError(f"max_ms {max_ms!r}: expected a number of milliseconds above 0")


def _size_of_array(image: NDArray[Any]) -> tuple[int, int] | None:
    """Height and width; None for what is no image, which `upscale_array` refuses."""
    if image.ndim < 2 or image.size == 0:
        return None
    return image.shape[0], image.shape[1]


def _file_of(weights: str | os.PathLike[str] | None, scale: int | None) -> str | os.PathLike[str]:
    """The file that is meant by weights or a scale."""
    if weights is not None:
        return weights
    if scale is None:
        raise ValueError(f"neither weights nor scale: give one ({packaged()})")
    return weights_file(scale)


def _check_tensor(image: Tensor) -> None:
    """Raise unless a tensor holds images."""
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
        raise ValueError(
            f"image is a tensor {image.dtype} of shape {tuple(image.shape)}: "
            "expected floats in 0..1, (3, h, w) or (b, 3, h, w)"
        )


def _upscale_tensor(image: Tensor, plan: UpscalePlan) -> Tensor:
    """Images (3, h, w) or (b, 3, h, w), one after another."""
    height, width = image.shape[-2:]
    result = image.new_empty((*image.shape[:-2], height * plan.scale, width * plan.scale))
    sources = image.detach().reshape(-1, 3, height, width)
    targets = result.view(-1, 3, height * plan.scale, width * plan.scale)
    for source, target in zip(sources, targets, strict=True):
        array = source.permute(1, 2, 0).float().cpu().numpy()  # (h, w, 3)
        large = upscale_array(array, plan)
        target.copy_(torch.from_numpy(large).permute(2, 0, 1))
    return result


def _photo_of(image: Image.Image) -> Photo:
    """A PIL image, upright, with its EXIF."""
    mode = image.mode
    if mode not in MODES:
        rgb = "RGBA" if image.has_transparency_data else "RGB"
        raise ValueError(
            f"image of mode {mode}: expected {', '.join(MODES)}; use image.convert('{rgb}')"
        )
    image.load()  # a TIFF is turned upright here, and its orientation forgotten
    samples = np.asarray(image)
    alpha: NDArray[Any] | None = None
    if mode in MODES_WITH_ALPHA:
        alpha = samples[..., -1]
        samples = samples[..., 0] if mode == "LA" else samples[..., :3]
    if mode == "I":
        samples = _as_16_bits(samples)
    notes: list[str] = []  # of damaged EXIF, which is left out
    exif, orientation = read_exif(image, notes)
    photo = Photo(pixels=samples, alpha=alpha, exif=exif, dpi=image.info.get("dpi"))
    return turned_upright(photo, orientation or UPRIGHT)


def _as_16_bits(samples: NDArray[Any]) -> NDArray[np.uint16]:
    """Samples of Pillow's mode I, which holds 32 bits and is used for 16."""
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > LARGEST_16_BITS:
        raise ValueError(
            f"image of mode I with values from {low} to {high}: expected 0..{LARGEST_16_BITS}; "
            "scale them, or pass an array of floats in 0..1"
        )
    return samples.astype(np.uint16)


def _picture_of(large: Photo, image: Image.Image) -> Image.Image:
    """An enlarged photograph as a PIL image of the mode that `image` has, with its metadata."""
    from PIL import Image

    pixels = large.pixels
    if image.mode == "I":
        pixels = pixels.astype(np.int32)
    if large.alpha is not None:
        pixels = np.dstack([pixels, large.alpha])
    result = Image.fromarray(pixels)
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    if large.dpi is not None:
        result.info["dpi"] = large.dpi
    exif = exif_with_size(large)
    if exif:
        result.info["exif"] = exif
    return result
