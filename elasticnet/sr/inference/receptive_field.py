"""How far a network sees, and what it takes: found by running it on narrow strips of pixels.

The reach is what tiles of an image must overlap by so that together they are the whole image.
"""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, evaluating

STRIP_WIDTH = 8
# the first that is longer than what the network sees is enough
STRIP_LENGTHS = (64, 128, 256, 512, 1024)
SQUARE = 48
# of the largest output: what two passes may differ by and still be the same up to rounding
SAME = 1e-3


class Footprint(NamedTuple):
    """What one depth of a network needs of its surroundings.

    scale: by how much it enlarges. reach: how many LR pixels beyond its own place an output pixel
    can depend on; None where that has no end (global pooling), passes 511, or changes with the
    place (windows, strides): no tiles can equal the whole image then. memory: bytes that the
    tensors of a pass hold at most, for each LR pixel, in the network's own precision.
    """

    scale: int
    reach: int | None
    memory: float


_FOUND: weakref.WeakKeyDictionary[ElasticWrapper, dict[int, Footprint]] = (
    weakref.WeakKeyDictionary()
)
_LOCK = threading.Lock()  # so that threads which share a network measure it once


def footprint(net: ElasticWrapper, depth: int | None = None) -> Footprint:
    """Measure one depth of an image network (b, 3, h, w) -> (b, 3, scale h, scale w); once, then
    remembered.

    One NaN in the middle of a strip of pixels comes out wherever the output depends on that pixel,
    because neither convolutions nor activations lose it. Strips lie along both axes. The reach is
    then tried on a strip that is cut shorter. Runs on the CPU in float32: there no kernel spreads
    the NaN further than the network's own sums do. Raises ValueError for a network that does not
    make an image a whole number larger.
    """
    depth = net.default_depth if depth is None else resolve_depth(depth, net.taps)
    with _LOCK:
        known = _FOUND.setdefault(net, {})
        # what a shallow depth shows of a deep one saves running that one
        for each in (net.taps[0], depth):
            if each not in known:
                known[each] = _measure(net, each, known.get(net.taps[0]))
        return known[depth]


def _measure(net: ElasticWrapper, depth: int, shallowest: Footprint | None) -> Footprint:
    sample = next(net.parameters(), torch.zeros(()))
    if sample.device.type != "cpu" or sample.dtype != torch.float32:
        net = copy.deepcopy(net).to("cpu", torch.float32)
    with evaluating(net), torch.inference_mode():
        with _Live() as live:
            shape = tuple(net(_random(SQUARE, SQUARE), depth=depth).shape)
        scale = shape[-1] // SQUARE
        if shape != (1, 3, SQUARE * scale, SQUARE * scale) or not scale:
            given = (1, 3, SQUARE, SQUARE)
            raise ValueError(
                f"a network that makes {shape} of {given}: expected an image a whole number larger"
            )
        # deeper networks contain the blocks of shallower ones
        reach = 0 if shallowest is None else shallowest.reach
        for axis in (2, 3):
            if reach is not None:
                found = _reach(net, depth, scale, axis)
                reach = None if found is None else max(reach, found)
    return Footprint(scale, reach, live.peak * sample.element_size() / 4 / SQUARE**2)


def _random(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def _strip(length: int, axis: int) -> Tensor:
    return _random(length, STRIP_WIDTH) if axis == 2 else _random(STRIP_WIDTH, length)


def _reach(net: ElasticWrapper, depth: int, scale: int, axis: int) -> int | None:
    for length in STRIP_LENGTHS:
        middle, x = length // 2, _strip(length, axis)
        x.select(axis, middle)[:, :, STRIP_WIDTH // 2] = torch.nan
        lost = (
            net(x, depth=depth)
            .isnan()
            .any(1, keepdim=True)
            .any(5 - axis)
            .flatten()
            .nonzero()
            .flatten()
        )
        if not len(lost):
            return 0 if _holds(net, depth, scale, axis, length, 0) else None
        first, last = int(lost[0]) // scale, int(lost[-1]) // scale
        if first > 0 and last < length - 1:
            reach = max(middle - first, last - middle)
            return reach if _holds(net, depth, scale, axis, length, reach) else None
    return None


def _holds(net: ElasticWrapper, depth: int, scale: int, axis: int, length: int, reach: int) -> bool:
    """Whether a strip with one pixel cut off at each end gives the same at `reach` pixels from the
    cuts.
    """
    x = _strip(length, axis)
    whole, cut = net(x, depth=depth), net(x.narrow(axis, 1, length - 2), depth=depth)
    kept = (length - 2 - 2 * reach) * scale
    difference = whole.narrow(axis, (1 + reach) * scale, kept) - cut.narrow(
        axis, reach * scale, kept
    )
    return bool(difference.abs().max() <= SAME * whole.abs().max())


class _Live(TorchDispatchMode):
    """Follows the memory that operators' results hold inside a `with` block; `peak` is the most at
    any time, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.now = self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch imports its compiler for this class, which takes two seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # one of a view is known
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.held:
                storage = leaf.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata).atexit = False
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int) -> None:
        self.now -= self.held.pop(key)
