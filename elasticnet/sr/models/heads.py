"""Shared heads that turn LR features into an HR image, and their exact folding into one
convolution.

Images are RGB floats in 0..1, NCHW. ASRN's head is linear, so that it equals one 3x3 convolution on
the LR grid and a pixel shuffle. The kernel is the head's impulse response, computed from the
canonical parameters once a pass, with autograd through it: state dict and function stay what they
are, and only the cost changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SKIPS = (None, "bicubic")


def bicubic_upsample(image: Tensor | None, scale: int) -> Tensor:
    """Return `image` (b, c, h, w) enlarged by `scale` with the cubic kernel of a = -0.5, in the
    image's own dtype.

    The same kernel as `resize.imresize` away from the border, where weights outside the image are
    renormalised instead of mirrored. (Without antialias=True PyTorch takes a = -0.75.)
    """
    if image is None:
        raise ValueError(
            "a head with skip='bicubic' is called as head(features, image): the input image is missing"
        )
    enlarged = F.interpolate(_wide(image), scale_factor=scale, mode="bicubic", antialias=True)
    return enlarged.to(image.dtype)


def add_to(fresh: Tensor, x: Tensor) -> Tensor:
    """Return `fresh` + `x`, of any dtypes; in place where the dtypes allow it.

    fresh: what a convolution or a concatenation has just made and nobody else holds: a new tensor
    of an image's size costs more than the addition.
    """
    return fresh.add_(x) if torch.promote_types(fresh.dtype, x.dtype) == fresh.dtype else fresh + x


class DeconvHead(nn.Module):
    """ASRN's shared head: conv1x1 `channels` -> `hidden`, deconvolution with kernel = stride =
    scale, conv3x3 -> 3.

    scale 4 takes two deconvolutions of 2, scale 1 none. (b, channels, h, w) -> (b, 3, scale h,
    scale w); all layers have biases and there is no activation. skip="bicubic" adds the enlarged
    input image: call head(features, image). fold: compute by the folded kernel; False runs the
    layers one by one.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        hidden: int = 64,
        fold: bool = True,
        skip: str | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.fold = fold
        self.skip = skip
        self.reduce = nn.Conv2d(channels, hidden, 1)
        steps = {1: [], 2: [2], 3: [3], 4: [2, 2]}[scale]
        self.deconvs = nn.Sequential(
            *(nn.ConvTranspose2d(hidden, hidden, step, stride=step) for step in steps)
        )
        self.output = nn.Conv2d(hidden, 3, 3, padding=1)

    def forward(self, features: Tensor, image: Tensor | None = None) -> Tensor:
        return self.prepare()(features, image)

    def prepare(self) -> Callable[..., Tensor]:
        """Return a callable that serves every tap of one pass: the folded head, or the plain one
        with fold=False.
        """
        add_skip = _shared_skip(self.skip, self.scale)
        if not self.fold:
            return lambda features, image=None: add_skip(
                self.output(self.deconvs(self.reduce(features))), image
            )
        kernel, bias_kernel = self.folded_kernels()
        planes: list[Tensor] = []  # the last size's bias plane: the taps of one pass share it

        def head(features: Tensor, image: Tensor | None = None) -> Tensor:
            folded = F.conv2d(features, kernel.to(features.dtype), padding=1)
            if not planes or planes[0].shape[1:] != folded.shape[1:]:
                planes[:] = [self._bias_plane(bias_kernel, folded)]
            folded = add_to(folded, planes[0].to(folded.dtype))
            return add_skip(F.pixel_shuffle(folded, self.scale), image)

        return head

    def folded_kernels(self) -> tuple[Tensor, Tensor]:
        """Return the kernels (3 scale^2, channels, 3, 3) of the features and (3 scale^2, 1, 3, 3)
        of a plane of ones.

        The second one carries the inner biases: at a border it adds nothing for a position in the
        padding, just as the last conv of the plain head sees zeros there. The last conv's own bias
        is not in it. In at least float32, outside autocast.
        """
        channels = self.reduce.in_channels
        with torch.autocast(self.reduce.weight.device.type, enabled=False):
            # One image of 1x1 for each input channel, holding that channel's response; the last
            # carries the biases. Matrix products, channels last: for convolutions of such a size
            # CUDA would round to TF32, and torch.compile would expect their gradients in another
            # memory format than they come in.
            response = torch.cat(
                [_wide(self.reduce.weight).flatten(1).t(), _wide(self.reduce.bias)[None]]
            )
            response = response[:, None, None]  # (channels + 1, height, width, hidden)
            for deconv in self.deconv_layers():
                pieces = (response @ _wide(deconv.weight).flatten(1)).unflatten(
                    3, deconv.weight.shape[1:]
                )
                response = rearrange(pieces, "i h w o kh kw -> i (h kh) (w kw) o")
                response = (
                    response + F.pad(_wide(deconv.bias)[None], (0, 0, channels, 0))[:, None, None]
                )
            # Each pixel adds what the last conv makes of it to the 3x3 pixels around it.
            weight = rearrange(_wide(self.output.weight).flip(2, 3), "o c kh kw -> c (o kh kw)")
            pieces = response.flatten(1, 2) @ weight
            response = F.fold(pieces.mT, response.shape[1] + 2, kernel_size=3)
            response = F.pad(response, (self.scale - 1,) * 4)
            kernel = rearrange(
                response, "i o (kh sh) (kw sw) -> (o sh sw) i kh kw", kh=3, kw=3
            ).flip(2, 3)
        return kernel[:, :channels], kernel[:, channels:]

    def folded(self) -> FoldedHead:
        """Return this head as plain layers that hold the folded kernel, for inference and
        export.
        """
        return FoldedHead(self)

    def deconv_layers(self) -> list[nn.ConvTranspose2d]:
        """Return the deconvolutions, in order."""
        return [layer for layer in self.deconvs if isinstance(layer, nn.ConvTranspose2d)]

    def _bias_plane(self, bias_kernel: Tensor, folded: Tensor) -> Tensor:
        # In the memory format of `folded`: an addition across formats takes five times as long.
        plane = torch.zeros_like(folded[:1], dtype=bias_kernel.dtype)
        with torch.autocast(bias_kernel.device.type, enabled=False):
            inner = F.conv2d(torch.ones_like(plane[:, :1]), bias_kernel, padding=1)
            return (
                plane
                + inner
                + _wide(self.output.bias).repeat_interleave(self.scale**2)[:, None, None]
            )


class FoldedHead(nn.Module):
    """A DeconvHead as plain layers: one conv3x3 on the LR grid, with the last conv's bias, and a
    pixel shuffle.

    Shapes and skip are the DeconvHead's. The inner biases come from a second conv, over a plane of
    ones whose zero padding gets the border right; where they are all zero there is none. Its
    weights no longer follow the head's.
    """

    def __init__(self, head: DeconvHead) -> None:
        super().__init__()
        self.scale = head.scale
        self.skip = head.skip
        with torch.no_grad():
            kernel, bias_kernel = head.folded_kernels()
            last_bias = _wide(head.output.bias).repeat_interleave(head.scale**2)
            dtype = head.reduce.weight.dtype
            self.conv = _conv3x3(kernel.to(dtype), last_bias.to(dtype))
            self.inner = _conv3x3(bias_kernel.to(dtype)) if bias_kernel.any() else None

    def forward(self, features: Tensor, image: Tensor | None = None) -> Tensor:
        output = self.conv(features)
        if self.inner is not None:
            output = add_to(output, self.inner(features.new_ones((1, 1, *features.shape[-2:]))))
        return _shared_skip(self.skip, self.scale)(F.pixel_shuffle(output, self.scale), image)


class SubpixelHead(nn.Module):
    """The paper's module A: conv3x3 `channels` -> channels scale^2, pixel shuffle, conv3x3 -> 3.

    (b, channels, h, w) -> (b, 3, scale h, scale w). Two padded convs in a row fold exactly only
    inside, so this head runs as it is.
    """

    def __init__(self, channels: int, scale: int, skip: str | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.skip = skip
        self.expand = nn.Conv2d(channels, channels * scale**2, 3, padding=1)
        self.output = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, features: Tensor, image: Tensor | None = None) -> Tensor:
        return self.prepare()(features, image)

    def prepare(self) -> Callable[..., Tensor]:
        """Return a callable that serves every tap of one pass, which enlarges the image for the
        skip once.
        """
        add_skip = _shared_skip(self.skip, self.scale)
        return lambda features, image=None: add_skip(
            self.output(F.pixel_shuffle(self.expand(features), self.scale)), image
        )


def _shared_skip(skip: str | None, scale: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a function that adds the enlarged image to an output; for the same image it enlarges
    only once.
    """
    if skip is None:
        return lambda output, image: output
    last: list[tuple[Tensor | None, Tensor]] = []

    def add(output: Tensor, image: Tensor | None) -> Tensor:
        if not last or last[0][0] is not image:
            last[:] = [(image, bicubic_upsample(image, scale))]
        return add_to(output, last[0][1])

    return add


def _conv3x3(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A zero-padded 3x3 convolution that holds these values."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.contiguous())
    conv.bias = None if bias is None else nn.Parameter(bias)
    return conv


def _wide(x: Tensor | None) -> Tensor:
    """`x` in at least float32."""
    assert x is not None
    return x.to(torch.promote_types(x.dtype, torch.float32))
