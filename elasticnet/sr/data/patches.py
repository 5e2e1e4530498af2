"""Random training patches: whole batches on the images' device, or one by one for a `DataLoader`.

`PatchSampler` and `PatchDataset` give the same patches, each a pure function of (seed, sample
index). `random_crops` draws them, `augmentation` mirrors and transposes them, and `compression`
compresses them where that is asked for.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from elasticnet.sr.data.augmentation import augmented, augmented_grid
from elasticnet.sr.data.compression import BatchPart, JpegStream, OneStepAhead
from elasticnet.sr.data.device_crops import DeviceCrops, DeviceCropStream, device_grid
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.data.random_crops import Crops, CropStream
from elasticnet.sr.data.read_ahead import ReadAhead
from elasticnet.sr.jpeg import RandomJpeg

WHITE = 255.0
# As many as the preset paper of recipes/asrn_div2k.py draws: 1,000,000 batches of 16. The batch is
# published; the number of batches is an assumption, as the paper prints no total.
DEFAULT_NUM_SAMPLES = 1_000_000 * 16


class PatchSampler:
    """Batches of aligned LR and HR patches, cut on the device that holds every image.

    Every position at which a patch fits into an LR image of the set is equally likely. Images that
    are smaller than a patch are left out, with a warning that names them. Sample `i` of the endless
    sequence is a pure function of (seed, i), and batch `step` holds the samples from
    `step * batch_size` on.

    The uint8 images are held once, flat, on the device: 3 bytes for each LR and each HR pixel. On
    the CPU that memory is shared with `pairs`, also if it is a file mapped into memory; of such a
    file the system is asked to read what the next batch needs.

    Args:
        pairs: The images.
        patch_size: Side of the LR patch, in pixels; the HR patch is `scale` times larger.
        batch_size: Samples in a batch, those of all its parts together.
        seed: Which sequence, any whole number.
        augment: "none", "flips" (left-right and top-bottom, each with probability 1/2) or
            "flips+rotations" (the eight symmetries of the square); the same for LR and HR.
        device: Where the images are held and the patches are cut.
        dtype: Of the batches.
        memory_format: Of the batches; `torch.channels_last` costs nothing here.
        jpeg: How LR patches are compressed, each as drawn by (seed, i) too: `PHOTO_JPEG` of
            `elasticnet.sr.jpeg` for the degradation "photo". LR images are then held in the CPU's
            memory, and a thread compresses the next batch while one is trained on. Default: they
            are not compressed.

    Raises:
        ValueError: An argument is wrong, or no image is as large as a patch.

    Example:
        >>> import numpy as np
        >>> from elasticnet.sr.data import pairs_from_arrays
        >>> pairs = pairs_from_arrays({"gray": np.full((40, 60, 3), 128, np.uint8)}, scale=2)
        >>> lr, hr = PatchSampler(pairs, patch_size=8, batch_size=4).batch(step=0)
        >>> lr.shape, hr.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3, 16, 16]))
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
        jpeg: RandomJpeg | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.scale = pairs.scale
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = memory_format
        self._crop_stream = CropStream(pairs, patch_size, seed, augment)
        self._starts: np.ndarray = pairs.starts
        self._widths: np.ndarray = pairs.lr_sizes[:, 1]
        # Pillow compresses on the CPU, so LR patches are cut there.
        lr_device = self.device if jpeg is None else torch.device("cpu")
        self.lr_pixels = _on_device(pairs.lr_pixels, lr_device)  # (LR pixels of all, 3)
        self.hr_pixels = _on_device(pairs.hr_pixels, self.device)  # (HR pixels of all, 3)
        # By a tensor CUDA divides exactly; for a number it multiplies by the rounded reciprocal.
        self._white = torch.tensor(WHITE, dtype=dtype, device=self.device)
        # For `batch_on_device`: the same as above, where the patches are cut.
        self._device_crop_stream = DeviceCropStream(self._crop_stream, self.device)
        self._device_starts = torch.from_numpy(self._starts).to(self.device)  # (images,)
        self._device_widths = torch.from_numpy(self._widths).to(self.device)  # (images,)
        # Of files that are mapped into memory, with how much finer than LR their pixels are.
        self._read_ahead: list[tuple[int, ReadAhead]] = []
        for factor, pixels in ((1, pairs.lr_pixels), (self.scale, pairs.hr_pixels)):
            read_ahead = ReadAhead(pixels)
            if read_ahead.is_needed and self.device.type == "cpu":
                self._read_ahead.append((factor, read_ahead))
        self._compressed: OneStepAhead | None = None
        if jpeg is not None:
            stream = JpegStream(jpeg, seed)
            self._compressed = OneStepAhead(partial(self._compress_part, stream))

    def batch(self, step: int, part: int = 0, num_parts: int = 1) -> tuple[Tensor, Tensor]:
        """Return one batch, or one part of it.

        Args:
            step: The number of the batch, from 0.
            part: Which part, from 0.
            num_parts: How many parts the batch is cut into, such as one for each process; each has
                b = batch_size / num_parts consecutive samples.

        Returns:
            LR of shape (b, 3, p, p) and HR of shape (b, 3, p * scale, p * scale), RGB in 0..1,
            where p is the patch size.

        Raises:
            ValueError: The batch cannot be cut into so many parts, or there is no such part.
            IndexError: `step` is negative.
        """
        self._check_part(part, num_parts)
        if step < 0:
            raise IndexError(f"step {step}: expected 0 or more")
        wanted = BatchPart(step=step, part=part, num_parts=num_parts)
        if self._read_ahead:
            self._advise(wanted._replace(step=step + 1))
        if self._compressed is not None:
            lr_patches = self._copy_to_device(self._compressed.get(wanted))  # (b, p, p, 3)
            hr_grid = self._copy_to_device(self._grid(self._crops(wanted), self.scale))
            return self._finished(lr_patches), self._cut_hr(hr_grid)
        crops = self._crops(wanted)
        # Both grids travel to the device in one copy.
        lr_grid = self._grid(crops, factor=1)  # (3, b)
        hr_grid = self._grid(crops, factor=self.scale)
        grids = self._copy_to_device(np.stack([lr_grid, hr_grid]))  # (2, 3, b)
        lr_patches = _cut(self.lr_pixels, grids[0], self.patch_size)
        return self._finished(lr_patches), self._cut_hr(grids[1])

    def batch_on_device(
        self, step: Tensor, part: int = 0, num_parts: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return what `batch` does, for a step that is a tensor on the device: the same bits.

        Everything is computed on the device and nothing is waited for, so that a CUDA graph can
        hold it, and cuts another batch each time.

        Args:
            step: The number of the batch, from 0: int64 of shape ().
            part: Which part, from 0.
            num_parts: How many parts the batch is cut into.

        Returns:
            LR and HR, as `batch`.

        Raises:
            ValueError: There is no such part, or LR patches are compressed, which the CPU does.
        """
        self._check_part(part, num_parts)
        if self._compressed is not None:
            raise ValueError("patches that are compressed as JPEG are made on the CPU: call batch")
        part_size = self.batch_size // num_parts
        first_sample = step * self.batch_size + part * part_size
        crops = self._device_crop_stream.crops(first_sample, part_size)
        lr_grid = self._device_grid(crops, factor=1)  # (3, b)
        hr_grid = self._device_grid(crops, factor=self.scale)
        lr_patches = _cut(self.lr_pixels, lr_grid, self.patch_size)
        return self._finished(lr_patches), self._cut_hr(hr_grid)

    def _check_part(self, part: int, num_parts: int) -> None:
        """Raise unless a batch can be cut so, and there is such a part."""
        if num_parts < 1 or self.batch_size % num_parts != 0:
            raise ValueError(
                f"num_parts {num_parts}: expected a divisor of {self.batch_size}, the batch_size"
            )
        if not 0 <= part < num_parts:
            raise ValueError(f"part {part}: expected 0 to {num_parts - 1}")

    def _compress_part(self, stream: JpegStream, wanted: BatchPart) -> np.ndarray:
        """Return the LR patches of one part of a batch, compressed: uint8 (b, p, p, 3)."""
        grid = torch.from_numpy(self._grid(self._crops(wanted), factor=1))
        patches = _cut(self.lr_pixels, grid, self.patch_size)
        return stream.compress(patches.numpy(), self._first_sample(wanted))

    def _advise(self, following: BatchPart) -> None:
        """Let the system read a part of the next batch from the disk while this one is used."""
        crops = self._crops(following)
        for factor, read_ahead in self._read_ahead:
            width = self._widths[crops.image] * factor
            image_start = self._starts[crops.image] * factor**2
            first = image_start + crops.top * factor * width  # the left end of a patch's top row
            read_ahead.rows(first, self.patch_size * factor * width)

    def _first_sample(self, wanted: BatchPart) -> int:
        """Return the number of a part's first sample in the endless sequence."""
        part_size = self.batch_size // wanted.num_parts
        return wanted.step * self.batch_size + wanted.part * part_size

    def _crops(self, wanted: BatchPart) -> Crops:
        """Return where the patches of a part lie in the LR images."""
        part_size = self.batch_size // wanted.num_parts
        return self._crop_stream.crops(self._first_sample(wanted), part_size)

    def _grid(self, crops: Crops, factor: int) -> np.ndarray:
        """Return the `PatchGrid` in the pixels that are `factor` times as fine as LR: (3, b)."""
        width = self._widths[crops.image] * factor
        image_start = self._starts[crops.image] * factor**2
        first = image_start + crops.top * factor * width + crops.left * factor
        grid = augmented_grid(first, width, self.patch_size * factor, crops.symmetry)
        return np.stack(grid)

    def _device_grid(self, crops: DeviceCrops, factor: int) -> Tensor:
        """Return what `_grid` does, from tensors."""
        width = self._device_widths.index_select(0, crops.image) * factor
        image_start = self._device_starts.index_select(0, crops.image) * factor**2
        first = image_start + crops.top * factor * width + crops.left * factor
        return device_grid(first, width, self.patch_size * factor, crops.symmetry)

    def _copy_to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            # From pinned memory the copy does not wait for the work that is queued already.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _cut_hr(self, grid: Tensor) -> Tensor:
        """Return the HR patches of a grid, in 0..1."""
        return self._finished(_cut(self.hr_pixels, grid, self.patch_size * self.scale))

    def _finished(self, patches: Tensor) -> Tensor:
        """Return uint8 patches (b, side, side, 3) as floats (b, 3, side, side) in 0..1."""
        planes = patches.permute(0, 3, 1, 2)  # (b, 3, side, side)
        return planes.to(self.dtype, memory_format=self.memory_format).div_(self._white)


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """The patches of `PatchSampler` one by one, for a `DataLoader`.

    Item `index` is sample `index` of the sequence with the same (seed, augment). The number of the
    loader's workers changes nothing. Read it in order (`shuffle=False`: the order is random as it
    is), or resume with `sampler=range(step * batch_size, num_samples)`. Each item is (lr, hr),
    float32 in 0..1, of the shapes (3, p, p) and (3, p * scale, p * scale). Workers read the mapped
    file, not a copy of it.

    Args:
        pairs: The images.
        patch_size: Side p of the LR patch, in pixels; the HR patch is `scale` times larger.
        seed: Which sequence, any whole number.
        augment: "none", "flips" or "flips+rotations"; see `PatchSampler`.
        num_samples: The length; default: 16,000,000, a million batches of 16.
        jpeg: How LR patches are compressed; see `PatchSampler`. The workers compress them.

    Raises:
        ValueError: An argument is wrong, or no image is as large as a patch.
    """

    def __init__(
        self,
        pairs: PairSet,
        patch_size: int,
        *,
        seed: int = 0,
        augment: str = "flips+rotations",
        num_samples: int = DEFAULT_NUM_SAMPLES,
        jpeg: RandomJpeg | None = None,
    ) -> None:
        self.pairs = pairs
        self.patch_size = patch_size
        self.num_samples = num_samples
        self._crop_stream = CropStream(pairs, patch_size, seed, augment)
        self._jpeg_stream = None if jpeg is None else JpegStream(jpeg, seed)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample index {index}: expected 0 to {self.num_samples - 1}")
        crops = self._crop_stream.crops(index, 1)
        image = int(crops.image[0])
        top = int(crops.top[0])
        left = int(crops.left[0])
        symmetry = int(crops.symmetry[0])
        lr = augmented(_square(self.pairs.lr(image), top, left, self.patch_size), symmetry)
        if self._jpeg_stream is not None:
            (lr,) = self._jpeg_stream.compress(lr[None], index)
        scale = self.pairs.scale
        hr = _square(self.pairs.hr(image), top * scale, left * scale, self.patch_size * scale)
        return _to_tensor(lr), _to_tensor(augmented(hr, symmetry))


def _cut(pixels: Tensor, grid: Tensor, side: int) -> Tensor:
    """Return the patches of a grid (3, b), as they are: uint8 (b, side, side, 3)."""
    origin, down, right = grid.unsqueeze(-1)  # each (b, 1)
    steps = torch.arange(side, device=pixels.device)  # (side,)
    rows = origin + steps * down  # (b, side)
    columns = steps * right  # (b, side)
    index = rows.unsqueeze(2) + columns.unsqueeze(1)  # (b, side, side)
    flat = pixels.index_select(0, index.flatten())  # (b * side * side, 3)
    return flat.view(*index.shape, 3)  # (b, side, side, 3)


def _on_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Return the pixels as a tensor; on the CPU it shares their memory."""
    with warnings.catch_warnings():
        # A mapped file is read-only, and nobody writes to this tensor.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels).to(device)


def _square(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]


def _to_tensor(patch: np.ndarray) -> Tensor:
    """Return uint8 of shape (side, side, 3) as float32 of shape (3, side, side) in 0..1."""
    # A copy, as torch takes no negative strides.
    planes = np.array(np.moveaxis(patch, 2, 0), order="C")
    return torch.from_numpy(planes).to(torch.float32).div_(WHITE)
