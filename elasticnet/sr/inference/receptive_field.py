"""How far a network sees and how much memory it takes, measured by running it on small images.

The reach is the number of pixels by which tiles of an image must overlap, so that together they are
the same as the whole image. It is found in these steps:

1. A NaN is put into the middle of a long narrow strip of pixels. The outputs that become NaN are
   those that depend on the middle pixel, and the farthest of them shows the reach.
2. The same strip without NaN is cut shorter at both ends. Outputs that are at least the reach away
   from the cuts must stay the same. If they change, the network has no reach that tiles could use.
3. Where NaN is replaced on the way, as by `nan_to_num`, step 1 shows nothing. Only a reach of 0, of
   a network that mixes no pixel with another, can be confirmed there: by step 2, on the longest
   strip, where a wrong guess shows in the most pixels.

Where the result is too small:

- A network sees near pixels, and pixels that are more than `LONGEST_STRIP // 2` (512) away, but
  none between them: the strip ends before the far ones.
- A network replaces NaN, and a layer in front of that sees far pixels faintly, as global pooling
  does: cutting two pixels changes too little for step 2. A depth that is fooled in this way may
  contain a shallower one that is not. Therefore `footprint` takes the larger of the reaches of the
  depth and of the shallowest one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elasticnet._modules.copies import detached_copy
from elasticnet._modules.evaluating import evaluating
from elasticnet.sr.inference.scale import scale_of
from elasticnet.sr.structure import structure_of
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper

STRIP_HEIGHT = 8  # pixels
LONGEST_STRIP = 1024  # pixels
STRIP_LENGTHS = (64, 128, 256, 512, LONGEST_STRIP)  # pixels; what _length_to_cut chooses from
# A strip to cut is at least 1 + reach + 1 + reach + 1 pixels long, as `_is_same_when_cut` draws it:
# the outer ones are cut off, and the one in the middle, out of reach of both cuts, is compared.
PIXELS_BESIDE_REACH = 3
LARGEST_REACH = (LONGEST_STRIP - PIXELS_BESIDE_REACH) // 2  # 510 pixels
SQUARE = 48  # pixels a side of the image on which memory is measured
TOLERANCE = 1e-3  # how far two equal passes may differ by rounding, as a part of the largest output

Predict = Callable[[Tensor], Tensor]  # from (1, 3, h, w) to (1, 3, scale h, scale w)


class Footprint(NamedTuple):
    """How one depth of a network enlarges an image, how far it sees, and what memory it takes.

    Attributes:
        depth: The number of blocks that run.
        scale: How many times as long each side of the output is.
        reach: How many LR pixels away an input pixel can be and still change an output pixel. The
            top of this file says where it may be too small. None: no tiles can equal the whole
            image, because there is no bound, as with global pooling, or it is more than
            `LARGEST_REACH` (510), or it changes with the place, as with windows and strides.
        bytes_per_pixel: The most bytes that the tensors of a pass hold at any time, for each LR
            pixel, in the network's own precision.
    """

    depth: int
    scale: int
    reach: int | None
    bytes_per_pixel: float


def footprint(net: ElasticWrapper, depth: int | None = None) -> Footprint:
    """Measure how far one depth of an image network sees and how much memory it takes.

    Each depth of a network is measured once and then remembered, as long as the network has the
    same layers in the same dtype. The measurement runs on the CPU in float32, because kernels of
    other devices may spread a NaN further than the network's sums do.

    Args:
        net: A network (b, 3, h, w) -> (b, 3, scale h, scale w). Its weights, device, dtype and mode
            stay as they are.
        depth: A depth that carries a tap. Default: that of the net.

    Returns:
        The footprint of this depth.

    Raises:
        ValueError: The network does not enlarge an image by a whole number, or has no tap at this
            depth.
    """
    measured_depth = net.default_depth if depth is None else resolve_depth(depth, net.taps)
    shallowest = net.taps[0]
    with _lock:
        footprints = _footprints_so_far(net)  # by depth
        if shallowest not in footprints:
            footprints[shallowest] = _measure(net, shallowest)
        if measured_depth not in footprints:
            measured = _measure(net, measured_depth)
            reach = _larger_reach(measured.reach, footprints[shallowest].reach)
            footprints[measured_depth] = measured._replace(reach=reach)
        return footprints[measured_depth]


def _larger_reach(of_depth: int | None, of_shallowest: int | None) -> int | None:
    """The reach of a depth: at least that of the shallowest depth, whose blocks it contains."""
    if of_depth is None or of_shallowest is None:
        return None  # what has no bound in a part has none in the whole
    return max(of_depth, of_shallowest)


def _measure(net: ElasticWrapper, depth: int) -> Footprint:
    """The footprint of a depth, as a pass shows it."""
    scale = scale_of(net)
    runnable = _on_cpu_in_float32(net)

    def predict(image: Tensor) -> Tensor:
        return runnable(image, depth=depth)

    # Not in inference mode, because what a net keeps from such a pass cannot be trained with.
    with evaluating(runnable), torch.no_grad():
        peak_bytes = _peak_bytes(predict, scale)
        reach = _reach(predict, scale)
    bytes_in_own_dtype = peak_bytes * _first_parameter(net).element_size() / torch.float32.itemsize
    bytes_per_pixel = bytes_in_own_dtype / SQUARE**2
    return Footprint(depth=depth, scale=scale, reach=reach, bytes_per_pixel=bytes_per_pixel)


# --- the reach


def _reach(predict: Predict, scale: int) -> int | None:
    """The reach along the axis along which the network sees further; None as in `Footprint`."""

    def predict_turned(image: Tensor) -> Tensor:
        """Predict with the axes exchanged, so that the net's height lies along the strip."""
        turned = image.transpose(2, 3).contiguous()  # (1, 3, w, h)
        return predict(turned).transpose(2, 3)  # (1, 3, scale h, scale w)

    vertical = _reach_along_width(predict_turned, scale)
    if vertical is None:
        return None
    horizontal = _reach_along_width(predict, scale)
    if horizontal is None:
        return None
    return max(vertical, horizontal)


def _reach_along_width(predict: Predict, scale: int) -> int | None:
    """The reach to the left and to the right; None as in `Footprint`."""
    # 1. Measure it by a NaN. A shorter strip would not show a layer that sees a pixel far away and
    # none of those between, such as a dilated convolution.
    distances = _distances_of_nan(predict, scale, length=LONGEST_STRIP)  # (number of NaN pixels,)
    nan_was_replaced = len(distances) == 0  # on the way, as `nan_to_num` does
    if nan_was_replaced:
        return _reach_without_nan(predict, scale)
    reach = int(distances.max())
    if reach > LARGEST_REACH:
        return None  # beyond this, no strip is long enough for the cut

    # 2. Confirm it by a comparison of two passes.
    if _is_same_when_cut(predict, scale, length=_length_to_cut(reach), reach=reach):
        return reach
    return None  # the reach changes with the place


def _reach_without_nan(predict: Predict, scale: int) -> int | None:
    """The reach where NaN is replaced, step 3 at the top: 0 if confirmed, or else None."""
    if _is_same_when_cut(predict, scale, length=LONGEST_STRIP, reach=0):
        return 0
    return None


def _length_to_cut(reach: int) -> int:
    """The length of the shortest, and so fastest, strip to cut; see `PIXELS_BESIDE_REACH`."""
    needed = 2 * reach + PIXELS_BESIDE_REACH
    return min(length for length in STRIP_LENGTHS if length >= needed)


def _distances_of_nan(predict: Predict, scale: int, length: int) -> Tensor:
    """How far from a strip's middle the output is NaN if its middle pixel is: (NaN pixels,).

    A sum with a NaN in it is NaN, whatever the weights and the other values are, and activations
    pass a NaN on. So the output is NaN exactly where a chain of sums leads from the middle pixel to
    it. A small change instead of the NaN could vanish in rounding, or behind a ReLU.
    """
    strip = _strip(length)  # (1, 3, 8, length)
    middle = length // 2
    strip[:, :, STRIP_HEIGHT // 2, middle] = torch.nan
    output = predict(strip)  # (1, 3, scale * 8, scale * length)
    is_nan_in_column = output.isnan().any(dim=(0, 1, 2))  # (scale * length,)
    is_nan_at_pixel = is_nan_in_column.reshape(length, scale).any(dim=1)  # (length,), LR pixels
    positions = is_nan_at_pixel.nonzero().flatten()  # (number of NaN pixels,)
    return (positions - middle).abs()


def _is_same_when_cut(predict: Predict, scale: int, length: int, reach: int) -> bool:
    """Whether the output that is `reach` pixels inside a strip stays the same if its ends are cut.

    The output changes if it depends on where a pixel lies in the image, or if the network sees
    further than `reach`. Cutting off one pixel at each end is enough: one pixel changes the phase
    of every stride and window. Here are the strips of reach=2 and length=7; "=" is where their
    outputs are compared, and "-" is the rest:

        pixel of whole   0 1 2 3 4 5 6
        whole            - - - = - - -
        cut                - - = - -      => cut[2:3]
        pixel of cut       0 1 2 3 4
    """
    whole = _strip(length)  # (1, 3, 8, length)
    cut = whole[..., 1:-1]  # (1, 3, 8, length - 2)
    output_of_whole = predict(whole)  # (1, 3, scale * 8, scale * length)
    output_of_cut = predict(cut)  # (1, 3, scale * 8, scale * (length - 2))
    same_pixels = output_of_whole[..., scale:-scale]  # of the shape of output_of_cut

    # Compare the pixels that are at least `reach` away from the ends of the cut.
    cut_length = length - 2
    inside = slice(reach * scale, (cut_length - reach) * scale)
    difference = (same_pixels[..., inside] - output_of_cut[..., inside]).abs().max()
    largest_output = output_of_whole.abs().max()
    # False also if the network itself gives NaN or infinity: this strip has no NaN in it.
    return bool(difference <= TOLERANCE * largest_output)


def _strip(length: int) -> Tensor:
    """A long and narrow image: (1, 3, 8, length)."""
    return _random_image(STRIP_HEIGHT, length)


def _random_image(height: int, width: int) -> Tensor:
    """An image (1, 3, height, width) of values in 0..1, the same each time."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- the memory


def _peak_bytes(predict: Predict, scale: int) -> int:
    """The most bytes that tensors hold at any time of a float32 pass over a square image."""
    with _MemoryMeter() as meter:
        image = _random_image(SQUARE, SQUARE)  # made here so that the meter counts the image, too
        output = predict(image)
    _check_output_shape(image, output, scale)
    return meter.peak_bytes


def _check_output_shape(image: Tensor, output: Tensor, scale: int) -> None:
    """Raise unless the output is an image `scale` times as large."""
    batch, channels, height, width = image.shape
    if output.shape != (batch, channels, height * scale, width * scale):
        raise ValueError(
            f"a network that makes {tuple(output.shape)} of {tuple(image.shape)}: "
            f"expected an image {scale} times as large"
        )


class _MemoryMeter(TorchDispatchMode):
    """Counts the bytes that results of operators hold inside a `with` block.

    `peak_bytes` is the most at any time. A storage counts once, however many views it has. It is
    known by its address, which another storage can have only after it is freed and taken out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_by_address: dict[int, int] = {}  # of the storages that are alive
        self.held_bytes = 0  # the sum of these
        self.peak_bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping would make PyTorch import its compiler, which takes two seconds

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that is not counted yet, until it is freed."""
        address = storage.data_ptr()
        if address in self.bytes_by_address:
            return
        self.bytes_by_address[address] = storage.nbytes()
        self.held_bytes += storage.nbytes()
        # PyTorch keeps one Python object for a storage as long as the storage lives.
        finalizer = weakref.finalize(storage, self._remove, address)
        finalizer.atexit = False  # nothing to count at exit

    def _remove(self, address: int) -> None:
        self.held_bytes -= self.bytes_by_address.pop(address)


# --- the network that is measured, and what is remembered of it


def _on_cpu_in_float32(net: ElasticWrapper) -> ElasticWrapper:
    """The network itself if that is where and how it computes, or else a copy."""
    parameter = _first_parameter(net)
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        return net
    return detached_copy(net).to("cpu", torch.float32)


def _first_parameter(net: ElasticWrapper) -> Tensor:
    """The parameter that tells dtype and device; without one a network counts as float32 on CPU."""
    return next(net.parameters(), torch.zeros(()))


class _Remembered(NamedTuple):
    """What is remembered of a network: its footprints by depth, and how it was built then."""

    structure: str
    footprints: dict[int, Footprint]


_remembered: weakref.WeakKeyDictionary[ElasticWrapper, _Remembered] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # threads that share a network measure it once


def _footprints_so_far(net: ElasticWrapper) -> dict[int, Footprint]:
    """What is remembered of a network; nothing if its layers or its dtype have changed since."""
    structure = f"{_first_parameter(net).dtype} {structure_of(net)}"
    remembered = _remembered.get(net)
    if remembered is None or remembered.structure != structure:
        remembered = _Remembered(structure=structure, footprints={})
        _remembered[net] = remembered
    return remembered.footprints
