"""How far a network sees, and what it takes: found by running it on narrow strips of pixels.

The reach is what tiles of an image must overlap by so that together they are the whole image.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elasticnet.sr.inference.scale import scale_of
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, evaluating

STRIP_WIDTH = 8
STRIP_LENGTHS = (64, 128, 256, 512, 1024)  # tried in this order, until one is longer than the reach
SQUARE = 48  # pixels a side of the image on which memory is measured
# Two passes are the same up to rounding if they differ by no more than this part of the largest
# output.
TOLERANCE = 1e-3
HEIGHT, WIDTH = 2, 3  # the axes of an image (b, c, h, w)


class Footprint(NamedTuple):
    """What one depth of a network makes of an image, and what it needs for that.

    Attributes:
        depth: The number of blocks that run.
        scale: How many times as long each side of the output is.
        reach: How many LR pixels beyond its own place an output pixel can depend on. None if that
            has no end (global pooling), is more than 511, or changes with the place (windows,
            strides): no tiles can equal the whole image then.
        memory: Bytes that the tensors of a pass hold at most, for each LR pixel, in the network's
            own precision.
    """

    depth: int
    scale: int
    reach: int | None
    memory: float


_measured: weakref.WeakKeyDictionary[ElasticWrapper, dict[int, Footprint]] = (
    weakref.WeakKeyDictionary()
)
_lock = threading.Lock()  # threads that share a network measure it once


def footprint(net: ElasticWrapper, depth: int | None = None) -> Footprint:
    """Measure how far one depth of an image network sees and what memory it takes.

    Each depth of a network is measured once and then remembered. It runs on the CPU in float32:
    there no kernel spreads a NaN further than the network's own sums do.

    Args:
        net: A network (b, 3, h, w) -> (b, 3, scale h, scale w), which is left as it is.
        depth: A depth that carries a tap. Default: that of the net.

    Returns:
        What was measured, now or when this depth was asked for first.

    Raises:
        ValueError: The network does not make an image a whole number larger, or has no such depth.
    """
    depth = net.default_depth if depth is None else resolve_depth(depth, net.taps)
    shallowest = net.taps[0]
    with _lock:
        known = _measured.setdefault(net, {})
        if shallowest not in known:
            known[shallowest] = _measure(net, shallowest, reach_of_shallower=0)
        if depth not in known:
            known[depth] = _measure(net, depth, reach_of_shallower=known[shallowest].reach)
        return known[depth]


def _measure(net: ElasticWrapper, depth: int, reach_of_shallower: int | None) -> Footprint:
    scale = scale_of(net)
    sample = next(net.parameters(), torch.zeros(()))
    if sample.device.type != "cpu" or sample.dtype != torch.float32:
        net = copy.deepcopy(net).to("cpu", torch.float32)
    with evaluating(net), torch.inference_mode():
        held_in_float32 = _memory_of_a_pass(net, depth, scale)
        reach = _reach(net, depth, scale, at_least=reach_of_shallower)
    held = held_in_float32 * sample.element_size() / torch.float32.itemsize
    return Footprint(depth=depth, scale=scale, reach=reach, memory=held / SQUARE**2)


def _memory_of_a_pass(net: ElasticWrapper, depth: int, scale: int) -> int:
    """The most bytes that tensors, the image included, hold at any time of a pass over a square."""
    with _MemoryMeter() as meter:
        image = _random_image(SQUARE, SQUARE)
        output = net(image, depth=depth)
    if output.shape != (1, 3, SQUARE * scale, SQUARE * scale):
        raise ValueError(
            f"a network that makes {tuple(output.shape)} of {tuple(image.shape)}: "
            f"expected an image {scale} times as large"
        )
    return meter.peak


def _reach(net: ElasticWrapper, depth: int, scale: int, at_least: int | None) -> int | None:
    """The reach along the axis along which the network sees further.

    A depth contains the blocks of every shallower one. So it sees at least as far as those do, and
    if one of them has no bounded reach (None), neither has this.
    """
    reach = at_least
    for axis in (HEIGHT, WIDTH):
        if reach is None:
            return None
        along_axis = _reach_along(net, depth, scale, axis)
        reach = None if along_axis is None else max(reach, along_axis)
    return reach


def _reach_along(net: ElasticWrapper, depth: int, scale: int, axis: int) -> int | None:
    """The reach along one axis: shown by a NaN, and tried by cutting the strip shorter."""
    for length in STRIP_LENGTHS:
        lost = _positions_lost_to_a_nan(net, depth, scale, axis, length)
        if lost and (lost[0] == 0 or lost[-1] == length - 1):
            continue  # the NaN came to an end of the strip: only a longer one shows how far it goes
        middle = length // 2
        # No lost position at all: something in the network swallows a NaN, and cutting decides.
        reach = max(middle - lost[0], lost[-1] - middle) if lost else 0
        return reach if _cutting_keeps(net, depth, scale, axis, length, reach) else None
    return None


def _positions_lost_to_a_nan(
    net: ElasticWrapper, depth: int, scale: int, axis: int, length: int
) -> list[int]:
    """The positions along a strip, in LR pixels, whose output depends on its middle pixel; sorted.

    That pixel is made NaN. A sum with a NaN in it is NaN, whatever the weights and the other
    values are, and activations pass a NaN on. So the output is NaN exactly where a chain of sums
    leads from the middle pixel to it. A small change instead of the NaN could vanish in rounding,
    or behind a ReLU.
    """
    strip = _strip(length, axis)  # (1, 3, length, 8), or (1, 3, 8, length)
    middle_line = strip.select(axis, length // 2)  # (1, 3, 8), a view into the strip
    middle_line[:, :, STRIP_WIDTH // 2] = torch.nan
    is_nan = net(strip, depth=depth).isnan()  # (1, 3, scale h, scale w)
    other_axis = WIDTH if axis == HEIGHT else HEIGHT
    in_any_channel = is_nan.any(dim=1, keepdim=True)  # (1, 1, scale h, scale w)
    along_axis = in_any_channel.any(dim=other_axis).flatten()  # (scale * length,)
    positions = along_axis.nonzero().flatten()  # of the lost outputs, ascending
    return [int(position) // scale for position in positions]


def _cutting_keeps(
    net: ElasticWrapper, depth: int, scale: int, axis: int, length: int, reach: int
) -> bool:
    """Whether a strip without its two end pixels gives the same, `reach` pixels away from the cuts.

    It does not if what the network makes of a pixel depends on where the pixel lies in the image.
    """
    whole = _strip(length, axis)
    cut_length = length - 2
    cut = whole.narrow(axis, start=1, length=cut_length)  # cut's pixel i is whole's pixel i + 1
    output_of_whole = net(whole, depth=depth)
    output_of_cut = net(cut, depth=depth)
    # The cut's pixels from `first` on, `count` of them, see neither of its ends.
    first = reach
    count = cut_length - 2 * reach
    kept_of_cut = output_of_cut.narrow(axis, first * scale, count * scale)
    kept_of_whole = output_of_whole.narrow(axis, (first + 1) * scale, count * scale)
    difference = (kept_of_whole - kept_of_cut).abs().max()
    return bool(difference <= TOLERANCE * output_of_whole.abs().max())


def _random_image(height: int, width: int) -> Tensor:
    """Values in 0..1, the same each time."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def _strip(length: int, axis: int) -> Tensor:
    """An image that is long along one axis and STRIP_WIDTH pixels wide along the other."""
    if axis == HEIGHT:
        return _random_image(length, STRIP_WIDTH)
    return _random_image(STRIP_WIDTH, length)


class _MemoryMeter(TorchDispatchMode):
    """Follows the memory that results of operators hold inside a `with` block.

    `peak` is the most at any time, in bytes. A storage counts once, however many views it has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_of: dict[int, int] = {}  # of each storage that lives, by its address
        self.held = 0
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch imports its compiler for this class, which takes two seconds

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
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.held)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address in self.bytes_of:
            return
        self.bytes_of[address] = storage.nbytes()
        self.held += storage.nbytes()
        # PyTorch keeps one Python object for a storage as long as the storage lives.
        finalizer = weakref.finalize(storage, self._forget, address)
        finalizer.atexit = False

    def _forget(self, address: int) -> None:
        self.held -= self.bytes_of.pop(address)
