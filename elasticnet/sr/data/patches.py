"""Random training patches as a pure function of (seed, sample index).

`PatchSampler` cuts whole batches on the device that holds the images; `PatchDataset` cuts the same
patches one by one for a `DataLoader`. Nothing is stored between batches, so resuming at a step is
exact.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from elasticnet.sr.data import PairSet

_DIHEDRAL_BITS = {"none": 0, "flips": 0b011, "flips+rotations": 0b111}
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class _Crops(NamedTuple):
    """Where patches lie in the LR images, each entry an int64 array of shape (number of
    samples,).
    """

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    # bit 0: mirror left-right, bit 1: mirror top-bottom, bit 2: then transpose
    dihedral: np.ndarray


def mix64(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values with the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a
    bijection.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def random_bits(seed: int, counters: np.ndarray) -> np.ndarray:
    """Return 64 random bits per uint64 counter: that entry of the SplitMix64 stream that `seed`
    selects.
    """
    key = mix64(np.array([(seed * _GOLDEN + 1) & _MASK], dtype=np.uint64))
    return mix64(key + (counters + np.uint64(1)) * np.uint64(_GOLDEN))


class _CropStream:
    """The endless sequence of crops that (pairs, patch_size, seed, augment) define."""

    def __init__(self, pairs: PairSet, patch_size: int, seed: int, augment: str) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size {patch_size}: expected at least 1 LR pixel")
        if augment not in _DIHEDRAL_BITS:
            raise ValueError(
                f"augment {augment!r}: expected one of {', '.join(map(repr, _DIHEDRAL_BITS))}"
            )
        self.seed = seed
        self.dihedral_bits = _DIHEDRAL_BITS[augment]
        room = pairs.lr_sizes - patch_size + 1
        small = [pairs.names[i] for i in np.flatnonzero((room < 1).any(axis=1))]
        if len(small) == len(pairs):
            raise ValueError(
                f"patch_size {patch_size}: none of the {len(pairs)} LR images is that large "
                f"(first: {pairs.names[0]}, {_size(pairs, 0)}); use a smaller patch or larger images"
            )
        if small:
            warnings.warn(
                f"patch_size {patch_size}: left out {len(small)} smaller LR images: {', '.join(small)}",
                stacklevel=3,
            )
        self.columns = np.maximum(room[:, 1], 1)
        self.ends = np.cumsum(np.where((room < 1).any(axis=1), 0, room[:, 0] * room[:, 1]))

    def crops(self, first: int, count: int) -> _Crops:
        """Return crops number `first` to `first + count - 1`."""
        if first < 0:
            raise IndexError(f"sample index {first}: expected 0 or more")
        counters = (np.arange(count, dtype=np.uint64) + np.uint64(first)) * np.uint64(2)
        # The remainder favours some positions by less than (number of positions) / 2**64.
        position = (random_bits(self.seed, counters) % np.uint64(self.ends[-1])).astype(np.int64)
        dihedral = random_bits(self.seed, counters + np.uint64(1)) & np.uint64(self.dihedral_bits)
        image = np.searchsorted(self.ends, position, side="right")
        before = np.where(image > 0, self.ends[image - 1], 0)
        top, left = np.divmod(position - before, self.columns[image])
        return _Crops(image, top, left, dihedral.astype(np.int64))


def _size(pairs: PairSet, index: int) -> str:
    height, width = pairs.lr_sizes[index]
    return f"{height}x{width}"


class PatchSampler:
    """Batches of aligned LR and HR patches, cut on the device that holds every image.

    Every position at which a patch fits into an LR image of the set is equally likely, so an image
    is drawn in proportion to its number of positions; images without any are left out with a
    warning that names them. Sample `i` of the endless sequence is a pure function of (seed, i), and
    batch `step` holds samples `step * batch_size` and following.

    The uint8 images are held once, flat, on `device`: about 3 bytes per LR and per HR pixel. On the
    CPU that memory is shared with `pairs`, also when it is a file mapped into memory.

    patch_size: side of the LR patch in pixels; the HR patch is `scale` times larger. augment:
    "none", "flips" (left-right and top-bottom, each with probability 1/2) or "flips+rotations" (and
        transposition, which makes the eight symmetries of the square), the same for LR and HR.
    memory_format: of the batches; `torch.channels_last` costs nothing here.
    """

    def __init__(
        self,
        pairs: PairSet,
        patch_size: int,
        batch_size: int,
        *,
        seed: int = 0,
        augment: str = "flips+rotations",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.scale = pairs.scale
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = memory_format
        self._stream = _CropStream(pairs, patch_size, seed, augment)
        self._starts = pairs.starts
        self._widths = pairs.lr_sizes[:, 1]
        with warnings.catch_warnings():
            # nobody writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._lr = torch.from_numpy(pairs.lr_pixels).to(self.device)  # (all LR pixels, 3)
            self._hr = torch.from_numpy(pairs.hr_pixels).to(self.device)
        # By a tensor CUDA divides exactly; for a number it multiplies by the rounded reciprocal.
        self._white = torch.tensor(255.0, dtype=dtype, device=self.device)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return (lr, hr) of batch `step`, in 0..1, shapes (b, 3, p, p) and (b, 3, p * scale, p *
        scale).

        Of `world_size` processes, each takes its contiguous share b = batch_size / world_size by
        its `rank`.
        """
        if world_size < 1 or self.batch_size % world_size:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by world_size {world_size}: it must be a multiple"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank}: expected 0 to {world_size - 1}")
        if step < 0:
            raise IndexError(f"step {step}: expected 0 or more")
        share = self.batch_size // world_size
        crops = self._stream.crops(step * self.batch_size + rank * share, share)
        plan = np.concatenate(
            [
                _affine(crops, self._starts, self._widths, self.patch_size, scale)
                for scale in (1, self.scale)
            ]
        )
        on_device = self._to_device(plan)
        lr = self._cut(self._lr, on_device[:3], self.patch_size)
        hr = self._cut(self._hr, on_device[3:], self.patch_size * self.scale)
        return lr, hr

    def _to_device(self, plan: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(plan)
        # pinned, so that the copy does not wait for the work already queued
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _cut(self, pixels: Tensor, plan: Tensor, side: int) -> Tensor:
        origin, down, right = plan.unsqueeze(-1)  # each (b, 1)
        steps = torch.arange(side, device=self.device)
        # (b, side, side)
        index = (origin + steps * down).unsqueeze(2) + (steps * right).unsqueeze(1)
        patches = pixels.index_select(0, index.flatten()).view(*index.shape, 3).permute(0, 3, 1, 2)
        return patches.to(self.dtype, memory_format=self.memory_format).div_(self._white)


def _affine(
    crops: _Crops, starts: np.ndarray, widths: np.ndarray, patch_size: int, scale: int
) -> np.ndarray:
    """Return (origin, down, right), shape (3, b): patch pixel (i, j) is row origin + i * down + j *
    right of the flat pixels at `scale`. Mirroring and transposing change only these three numbers.
    """
    width = widths[crops.image] * scale
    last = patch_size * scale - 1
    mirror_columns, mirror_rows, transpose = (crops.dihedral >> bit & 1 for bit in range(3))
    origin = starts[crops.image] * scale**2 + crops.top * scale * width + crops.left * scale
    origin = origin + mirror_columns * last + mirror_rows * last * width
    down = np.where(mirror_rows, -width, width)
    right = np.where(mirror_columns, -1, 1)
    return np.stack([origin, np.where(transpose, right, down), np.where(transpose, down, right)])


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """The patches of `PatchSampler` one by one: item `index` is sample `index` of the same (seed,
    augment).

    For a `DataLoader`, whose number of workers changes nothing: read it in order (`shuffle=False`,
    the order is random as it is), or resume with `sampler=range(step * batch_size, num_samples)`.
    Each item is (lr, hr), float32 in 0..1, shapes (3, p, p) and (3, p * scale, p * scale). Workers
    read the mapped file, not a copy of it.

    num_samples: the length; its default is the paper's training of 1,000 epochs of 1,000 batches of
    16.
    """

    def __init__(
        self,
        pairs: PairSet,
        patch_size: int,
        *,
        seed: int = 0,
        augment: str = "flips+rotations",
        num_samples: int = 16_000_000,
    ) -> None:
        self.pairs = pairs
        self.patch_size = patch_size
        self.num_samples = num_samples
        self._stream = _CropStream(pairs, patch_size, seed, augment)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample index {index}: expected 0 to {self.num_samples - 1}")
        image, top, left, dihedral = (int(entry[0]) for entry in self._stream.crops(index, 1))
        side, scale = self.patch_size, self.pairs.scale
        lr = self.pairs.lr(image)[top : top + side, left : left + side]
        top, left, side = top * scale, left * scale, side * scale
        hr = self.pairs.hr(image)[top : top + side, left : left + side]
        return _to_tensor(lr, dihedral), _to_tensor(hr, dihedral)


def _to_tensor(patch: np.ndarray, dihedral: int) -> Tensor:
    if dihedral & 1:
        patch = patch[:, ::-1]
    if dihedral & 2:
        patch = patch[::-1]
    if dihedral & 4:
        patch = patch.transpose(1, 0, 2)
    return torch.from_numpy(patch.transpose(2, 0, 1).copy()).to(torch.float32).div_(255.0)
