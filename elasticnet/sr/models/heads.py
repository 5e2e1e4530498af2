"""Shared heads that turn LR features into an HR image, and their exact folding into one conv.

Images are RGB floats in 0..1, NCHW. ASRN's head is linear, so that it equals one 3x3 convolution on
the LR grid and a pixel shuffle. The kernel is the head's impulse response, computed from the
canonical parameters once a pass, with autograd through it: state dict and function stay what they
are, and only the cost changes. Where a layer is hooked, pruned, parametrized or replaced, the
layers run one by one (`folding`).

The heads have `takes_all_taps`: one call makes the predictions of all taps of a pass, which share
the kernel and the enlarged image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from elasticnet._autocast import without_autocast
from elasticnet._modules.copies import detached_copy
from elasticnet.sr.models.folding import (
    is_plain_conv,
    is_plain_deconv,
    own_output,
    runs_as_built,
)
from elasticnet.sr.models.graph_heads import GraphFoldedHead, GraphSkipHead
from elasticnet.sr.models.pieces import subpixels_of_image, subpixels_of_pieces

SKIPS = (None, "bicubic")
# kernel = stride of each deconvolution, by scale; two of 2 at x4, as the published counts need
DECONV_STEPS = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}


def bicubic_upsample(image: Tensor | None, scale: int) -> Tensor:
    """Return an image enlarged with the cubic kernel of a = -0.5.

    It is the kernel of `resize.imresize` away from the border, where weights outside the image are
    renormalised instead of mirrored. (Without antialias=True PyTorch takes a = -0.75.)

    Args:
        image: (b, c, h, w), of any range.
        scale: How many times as long each side becomes.

    Returns:
        (b, c, scale h, scale w), in the image's own dtype; computed in at least float32.

    Raises:
        ValueError: The image is None: the head was called without it.
    """
    if image is None:
        raise ValueError(
            "a head with skip='bicubic' is called as head(features, image): the input image is "
            "missing"
        )
    enlarged = F.interpolate(_wide(image), scale_factor=scale, mode="bicubic", antialias=True)
    return enlarged.to(image.dtype)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the floating type itself if it has at least 32 bits, otherwise float32.

    `torch.promote_types` gives the same, but torch 2.6 records its call in an exported program,
    which can then not be read back.

    Args:
        dtype: A floating type.
    """
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32


def add_to(fresh: Tensor, x: Tensor) -> Tensor:
    """Return `fresh` + `x`, of any dtypes; in place where the dtypes allow it.

    A new tensor of an image's size costs more than the addition.

    Args:
        fresh: What a convolution or a concatenation has just made and nobody else holds.
        x: Of a shape that broadcasts to that of `fresh`.
    """
    # float16 and bfloat16 are equally wide, and their sum is float32
    if fresh.dtype == x.dtype or fresh.dtype.itemsize > x.dtype.itemsize:
        return fresh.add_(x)
    return fresh + x


def predict_taps(
    predict: Callable[..., Tensor], features: Tensor | tuple[Tensor, ...], skip: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    """Return the prediction of one tap, or the tuple of those of several taps.

    Args:
        predict: `predict(features, skip)` returns the prediction of one tap.
        features: The features of one tap, or the tuple of those of several taps.
        skip: What `predict` gets beside the features of each tap.
    """
    if isinstance(features, tuple):
        # One tap after the other: joined in one batch, their last bits could differ.
        return tuple(predict(each, skip) for each in features)
    return predict(features, skip)


class DeconvHead(nn.Module):
    """ASRN's published head: conv1x1, deconvolution with kernel = stride = scale, conv3x3.

    All layers have biases, and there is no activation between them. Scale 4 takes two
    deconvolutions of 2, scale 1 none. At x2, with 96 channels, it has 24,387 parameters.

    Args:
        channels: Of the features.
        scale: 1, 2, 3 or 4.
        hidden: Channels between the convolutions.
        fold: Whether it runs as the folded kernel, as long as its layers are those built here;
            False runs the layers one by one.
        skip: "bicubic" adds the enlarged input image, which the head is then called with; None
            adds nothing.
    """

    takes_all_taps = True  # see ElasticWrapper

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
        self._fold = fold
        self.skip = skip
        # private, as no file records it: a loaded network is the same with it and without
        self._subpixels_in_training = False
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.deconvs = nn.Sequential()
        for step in DECONV_STEPS[scale]:
            self.deconvs.append(nn.ConvTranspose2d(hidden, hidden, step, stride=step))
        self.output = nn.Conv2d(hidden, 3, 3, padding=1)

    @property
    def fold(self) -> bool:
        """Whether the head runs as the folded kernel now; False where that is not its function."""
        return self._fold and self.layers_are_plain()

    @fold.setter
    def fold(self, fold: bool) -> None:
        """Set whether it is to run folded.

        Args:
            fold: False runs the layers as written.
        """
        self._fold = fold

    @property
    def subpixels_in_training(self) -> bool:
        """Whether predictions in training mode stay on the LR grid; False at first.

        They are (b, 3 scale^2, h, w) then, as `F.pixel_unshuffle(image, scale)` orders an image. A
        loss that is a mean over pixels is the same, if its target is unshuffled too. A training on
        a CPU is faster so, because the folded head is computed in `pieces`.
        """
        return self._subpixels_in_training

    @subpixels_in_training.setter
    def subpixels_in_training(self, subpixels_in_training: bool) -> None:
        """Set in which order the head predicts in training mode.

        Args:
            subpixels_in_training: False makes images, as in eval mode.
        """
        self._subpixels_in_training = subpixels_in_training

    def layers_are_plain(self) -> bool:
        """Return whether the layers are those built here, so that the fold is their function."""
        if not runs_as_built(self.deconvs, nn.Sequential):
            return False
        if not all(is_plain_deconv(layer) for layer in self.deconvs):
            return False
        steps = [layer.stride[0] for layer in self.deconv_layers()]
        return (
            math.prod(steps) == self.scale
            and is_plain_conv(self.reduce, side=1)
            and is_plain_conv(self.output, side=3)
        )

    def forward(
        self, features: Tensor | tuple[Tensor, ...], image: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the prediction (b, 3, scale h, scale w), or a tuple with one for each tap.

        Args:
            features: (b, channels, h, w), or a tuple of those of several taps.
            image: The network's input (b, 3, h, w); needed with a skip.
        """
        if self.subpixels_in_training and self.training:
            return predict_taps(self._subpixel_predictor(), features, image)
        return predict_taps(self._tap_predictor(), features, image)

    def _subpixel_predictor(self) -> Callable[..., Tensor]:
        """Return a function as `_tap_predictor` does, whose predictions stay on the LR grid."""
        if not self.fold:
            predict = self._tap_predictor()
            return lambda *inputs: subpixels_of_image(predict(*inputs), self.scale)
        response = self._impulse_response()  # (channels + 1, 3, side, side)
        kernel = response[:-1].flatten(1).t()  # (3 side^2, channels)
        bias_kernel = self._as_kernel(response[-1:])  # (3 scale^2, 1, 3, 3)
        last_image: Tensor | None = None
        base: Tensor | None = None

        def add_pieces(features: Tensor, image: Tensor | None = None) -> Tensor:
            nonlocal last_image, base
            # What does not depend on the features: the taps of one pass share it.
            grid = (3, self.scale, self.scale, *features.shape[-2:])
            if base is None or image is not last_image or base.shape[1:] != grid:
                last_image = image
                one_sample = features.new_empty(1, *grid).flatten(1, 3)
                base = self._bias_plane(bias_kernel, one_sample)  # (1, 3 scale^2, h, w)
                if self.skip is not None:
                    base = base + self._skip_subpixels(image)
                base = base.reshape(-1, *grid)
            return subpixels_of_pieces(features, kernel, base).flatten(1, 3)

        return add_pieces

    def _skip_subpixels(self, image: Tensor | None) -> Tensor:
        """The enlarged image on the LR grid (b, 3 scale^2, h, w)."""
        if image is not None:
            image = image.contiguous()  # PyTorch takes twice as long to enlarge channels-last ones
        enlarged = bicubic_upsample(image, self.scale)
        return subpixels_of_image(enlarged, self.scale)

    def _tap_predictor(self) -> Callable[..., Tensor]:
        """Return a function of one tap's features and the image, for all taps of one pass."""
        add_skip = _shared_skip(self.skip, self.scale)
        if self.fold:
            return self._folded_tap_predictor(add_skip)

        def run_layers(features: Tensor, image: Tensor | None = None) -> Tensor:
            output = self.output(self.deconvs(self.reduce(features)))
            return add_skip(own_output(self.output, output), image)

        return run_layers

    def _folded_tap_predictor(
        self, add_skip: Callable[[Tensor, Tensor | None], Tensor]
    ) -> Callable[..., Tensor]:
        kernel, bias_kernel = self.folded_kernels()
        # The bias plane of the features' size: the taps of one pass share it.
        plane: Tensor | None = None

        def run_folded(features: Tensor, image: Tensor | None = None) -> Tensor:
            nonlocal plane
            # (b, 3 scale^2, h, w)
            folded = F.conv2d(features, kernel.to(features.dtype), padding=1)
            if plane is None or plane.shape[1:] != folded.shape[1:]:
                plane = self._bias_plane(bias_kernel, folded)
            folded = add_to(folded, plane.to(folded.dtype))
            return add_skip(F.pixel_shuffle(folded, self.scale), image)

        return run_folded

    def folded_kernels(self) -> tuple[Tensor, Tensor]:
        """Return the head's kernels on the LR grid, in at least float32, outside autocast.

        Returns:
            The kernel of the features (3 scale^2, channels, 3, 3), and that of a plane of ones
            (3 scale^2, 1, 3, 3). The second one carries the inner biases: at a border it adds
            nothing for a position in the padding, just as the last conv of the plain head sees
            zeros there. The last conv's own bias is not in it.
        """
        channels = self.reduce.in_channels
        kernel = self._as_kernel(self._impulse_response())  # (3 scale^2, channels + 1, 3, 3)
        return kernel[:, :channels], kernel[:, channels:]

    def _impulse_response(self) -> Tensor:
        """What one LR pixel adds to the image, (channels + 1, 3, side, side), side = scale + 2.

        One image for each input channel; the last one is that of the inner biases.
        """
        with without_autocast(self.reduce.weight.device):
            response = self._response_before_output()  # (channels + 1, scale, scale, hidden)
            # Each pixel adds what the last conv makes of it to the 3x3 pixels around it.
            weight = rearrange(_wide(self.output.weight).flip(2, 3), "o c kh kw -> c (o kh kw)")
            pieces = response.flatten(1, 2) @ weight  # (channels + 1, scale^2, 3 * 9)
            side = response.shape[1] + 2
            return F.fold(pieces.mT, side, kernel_size=3)  # (channels + 1, 3, side, side)

    def _as_kernel(self, response: Tensor) -> Tensor:
        """The convolution on the LR grid (3 scale^2, inputs, 3, 3) of impulse responses."""
        # Padded to 3 scale pixels a side: the LR pixel itself and its eight neighbours.
        response = F.pad(response, (self.scale - 1,) * 4)
        kernel = rearrange(response, "i o (kh sh) (kw sw) -> (o sh sw) i kh kw", kh=3, kw=3)
        return kernel.flip(2, 3)  # a convolution's kernel is the response turned round

    def folded(self) -> FoldedHead | DeconvHead:
        """Return the head that computes the same with the fewest operations, for export.

        Returns:
            Plain layers that hold the folded kernel. Where they would not be this head's function,
            because it or a layer is hooked, replaced or the like: a copy of this head, not folded.
        """
        if self.layers_are_plain() and runs_as_built(self, DeconvHead):
            return FoldedHead(self)
        unfolded = detached_copy(self)
        unfolded.fold = False
        return unfolded

    def after(self, adapter: nn.Module) -> DeconvHead | None:
        """Return a head that makes of features what this one makes of the adapter's output.

        Args:
            adapter: A tap's own layer in front of this head.

        Returns:
            A copy whose first convolution is the product of both, with no more parameters than this
            head; None where that would be another function: the adapter is no conv1x1 without bias,
            or a layer is hooked, replaced or the like.
        """
        if not is_plain_conv(adapter, side=1, has_bias=False) or not self.layers_are_plain():
            return None
        merged = detached_copy(self)
        merged.reduce = _after(adapter, merged.reduce)
        return merged

    def for_export(self) -> nn.Module:
        """Return what stands for this head in an exported file, if it has a skip; else itself."""
        return _with_skip_of_convs(self, DeconvHead)

    def deconv_layers(self) -> list[nn.ConvTranspose2d]:
        """Return the deconvolutions, in order."""
        return [layer for layer in self.deconvs if isinstance(layer, nn.ConvTranspose2d)]

    def _response_before_output(self) -> Tensor:
        """What comes before the last conv of one LR pixel: (channels + 1, scale, scale, hidden).

        One image of 1x1 for each input channel, holding that channel's response; the last one
        carries the biases. Matrix products, channels last: for convolutions of such a size CUDA
        would round to TF32, and torch.compile would expect their gradients in another memory
        format than they come in.
        """
        of_channels = _wide(self.reduce.weight).flatten(1).t()  # (channels, hidden)
        of_biases = _wide(self.reduce.bias)[None]  # (1, hidden)
        response = torch.cat([of_channels, of_biases])[:, None, None]
        for deconv in self.deconv_layers():
            weight = _wide(deconv.weight)  # (hidden, hidden, step, step)
            _, _, step, _ = weight.shape
            pieces = response @ weight.flatten(1)  # (channels + 1, h, w, hidden step^2)
            response = rearrange(pieces, "i h w (o kh kw) -> i (h kh) (w kw) o", kh=step, kw=step)
            # a row of zeros for each channel, and the bias for the image of the biases
            bias = F.pad(_wide(deconv.bias)[None], (0, 0, self.reduce.in_channels, 0))
            response = response + bias[:, None, None]
        return response

    def _bias_plane(self, bias_kernel: Tensor, folded: Tensor) -> Tensor:
        """What all biases add up to, (1, 3 scale^2, h, w), for the taps of one pass."""
        # In the memory format of `folded`: an addition across formats takes five times as long.
        plane = torch.zeros_like(folded[:1], dtype=bias_kernel.dtype)
        with without_autocast(bias_kernel.device):
            inner = F.conv2d(torch.ones_like(plane[:, :1]), bias_kernel, padding=1)
            last = _wide(self.output.bias).repeat_interleave(self.scale**2)
            return plane + inner + last[:, None, None]


class FoldedHead(nn.Module):
    """A DeconvHead as plain layers: one conv3x3 on the LR grid and a pixel shuffle.

    Shapes and skip are the DeconvHead's. The inner biases come from a second conv, over a plane of
    ones whose zero padding gets the border right; where they are all zero there is none. The
    weights do not follow the head's any more.

    Args:
        head: The head to fold; it is not changed.

    Raises:
        ValueError: A layer of the head is not as it was built.
    """

    def __init__(self, head: DeconvHead) -> None:
        super().__init__()
        if not head.layers_are_plain():
            raise ValueError(
                "a layer of the head is hooked, parametrized or replaced: its folded kernel would "
                "be another function"
            )
        self.scale = head.scale
        self.skip = head.skip
        with torch.no_grad():
            kernel, bias_kernel = head.folded_kernels()
            last_bias = _wide(head.output.bias).repeat_interleave(head.scale**2)
            dtype = head.reduce.weight.dtype
            self.conv = _conv3x3(kernel.to(dtype), last_bias.to(dtype))
            self.inner = None
            if bias_kernel.any():
                self.inner = _conv3x3(bias_kernel.to(dtype))

    def forward(self, features: Tensor, image: Tensor | None = None) -> Tensor:
        """Return the prediction (b, 3, scale h, scale w).

        Args:
            features: (b, channels, h, w).
            image: The network's input (b, 3, h, w); needed with a skip.
        """
        output = own_output(self.conv, self.conv(features))  # (b, 3 scale^2, h, w)
        if self.inner is not None:
            height, width = features.shape[-2:]
            ones = features.new_ones((1, 1, height, width))
            output = add_to(output, self.inner(ones))
        add_skip = _shared_skip(self.skip, self.scale)
        return add_skip(F.pixel_shuffle(output, self.scale), image)

    def for_export(self) -> nn.Module:
        """Return what stands for this head in an exported file: the same without a resize."""
        if not runs_as_built(self, FoldedHead):
            return self
        has_skip = self.skip is not None
        return GraphFoldedHead(self.conv, self.inner, scale=self.scale, has_skip=has_skip)


class SubpixelHead(nn.Module):
    """The paper's module A: conv3x3 to channels scale^2, pixel shuffle, conv3x3 to 3.

    Two padded convolutions in a row fold exactly only inside an image, so this head runs as it is.

    Args:
        channels: Of the features.
        scale: How many times as long each side becomes.
        skip: As in `DeconvHead`.
    """

    takes_all_taps = True  # see ElasticWrapper

    def __init__(self, channels: int, scale: int, skip: str | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.skip = skip
        self.expand = nn.Conv2d(channels, channels * scale**2, 3, padding=1)
        self.output = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(
        self, features: Tensor | tuple[Tensor, ...], image: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the prediction (b, 3, scale h, scale w), or a tuple with one for each tap.

        Args:
            features: (b, channels, h, w), or a tuple of those of several taps.
            image: The network's input (b, 3, h, w); needed with a skip.
        """
        return predict_taps(self._tap_predictor(), features, image)

    def _tap_predictor(self) -> Callable[..., Tensor]:
        """Return a function of one tap's features and the image, for all taps of one pass.

        It enlarges the image for the skip once.
        """
        add_skip = _shared_skip(self.skip, self.scale)

        def run_layers(features: Tensor, image: Tensor | None = None) -> Tensor:
            enlarged = F.pixel_shuffle(self.expand(features), self.scale)
            output = self.output(enlarged)
            return add_skip(own_output(self.output, output), image)

        return run_layers

    def after(self, adapter: nn.Module) -> SubpixelHead | None:
        """Return a head that makes of features what this one makes of the adapter's output.

        Args:
            adapter: A tap's own layer in front of this head.

        Returns:
            As in `DeconvHead`.
        """
        if not is_plain_conv(adapter, side=1, has_bias=False):
            return None
        if not is_plain_conv(self.expand, side=3):
            return None
        merged = detached_copy(self)
        merged.expand = _after(adapter, merged.expand)
        return merged

    def for_export(self) -> nn.Module:
        """Return what stands for this head in an exported file, if it has a skip; else itself."""
        return _with_skip_of_convs(self, SubpixelHead)


@torch.no_grad()
def _after(adapter: nn.Module, conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution whose kernel is changed, in place, to do first what a conv1x1 does."""
    mix = _wide(adapter.get_parameter("weight")).flatten(1)  # (channels, channels)
    kernel = torch.einsum("o c h w, c i -> o i h w", _wide(conv.weight), mix)
    conv.weight.copy_(kernel)
    return conv


def _with_skip_of_convs(
    head: DeconvHead | SubpixelHead, kind: type[nn.Module]
) -> GraphSkipHead | DeconvHead | SubpixelHead:
    """A head whose skip is made of convolutions; the head itself where it has none or is hooked.

    A hook on the head would be called with other arguments and another output.
    """
    if head.skip is None or not runs_as_built(head, kind):
        return head
    without_skip = detached_copy(head)
    without_skip.skip = None
    return GraphSkipHead(without_skip, scale=head.scale)


def _shared_skip(skip: str | None, scale: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a function that adds the enlarged image to an output.

    It keeps the last image that it enlarged, because the taps of one pass share their image.
    """
    if skip is None:
        return _add_nothing
    last_image: Tensor | None = None
    enlarged: Tensor | None = None

    def add(output: Tensor, image: Tensor | None) -> Tensor:
        nonlocal last_image, enlarged
        if enlarged is None or image is not last_image:
            last_image = image
            enlarged = bicubic_upsample(image, scale)
        return add_to(output, enlarged)

    return add


def _add_nothing(output: Tensor, _image: Tensor | None) -> Tensor:
    return output


def _conv3x3(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A zero-padded 3x3 convolution that holds these values."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.contiguous())
    conv.bias = None if bias is None else nn.Parameter(bias)
    return conv


def _wide(x: Tensor | None) -> Tensor:
    """`x` in at least float32."""
    assert x is not None
    return x.to(wide_dtype(x.dtype))
