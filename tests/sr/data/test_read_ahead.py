"""Of mapped files the system is told what the next batch needs, and batches stay the same."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import noise

from elasticnet.sr.data import PairSet
from elasticnet.sr.data.pair_set import open_pixels
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.read_ahead import ReadAhead

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_WILLNEED"), reason="this system cannot be told"
)

SIZES = ((20, 30), (41, 17), (25, 25))  # height and width of LR images
PATCH_SIZE = 6
BATCH_SIZE = 4


def a_set(folder: Path, scale: int, *, mapped: bool) -> PairSet:
    """Three images of random pixels, in memory or in files."""
    pixels: list[np.ndarray] = []
    for name, factor in (("lr", 1), ("hr", scale)):
        images = [noise(h * factor, w * factor, seed=h + factor).reshape(-1, 3) for h, w in SIZES]
        flat = np.concatenate(images)
        if mapped:
            path = folder / f"{name}.bin"
            flat.tofile(path)
            flat = open_pixels(path)
        pixels.append(flat)
    names = [str(index) for index in range(len(SIZES))]
    return PairSet(names, scale, np.array(SIZES), pixels[0], pixels[1])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows that the system was told of, as `ReadAhead.rows` got them."""
    calls: list[tuple[np.ndarray, np.ndarray]] = []
    tell = ReadAhead.rows

    def noting(self: ReadAhead, first: np.ndarray, count: np.ndarray) -> None:
        calls.append((first, count))
        tell(self, first, count)

    monkeypatch.setattr(ReadAhead, "rows", noting)
    return calls


def only(pixels: np.ndarray, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The pixels in these rows, and black elsewhere."""
    kept = np.zeros_like(pixels)
    for first, count in zip(*rows, strict=True):
        kept[first : first + count] = pixels[first : first + count]
    return kept


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_system_is_told_of_all_that_the_next_batch_reads(
    tmp_path: Path, told: list[tuple[np.ndarray, np.ndarray]], scale: int
) -> None:
    pairs = a_set(tmp_path, scale, mapped=True)
    sampler = PatchSampler(pairs, PATCH_SIZE, BATCH_SIZE)
    sampler.batch(step=7, part=1, num_parts=2)
    of_lr, of_hr = told
    assert of_hr[1].sum() < len(pairs.hr_pixels) / 2  # not of everything

    told_of = PairSet(
        pairs.names,
        scale,
        pairs.lr_sizes,
        only(np.array(pairs.lr_pixels), of_lr),
        only(np.array(pairs.hr_pixels), of_hr),
    )
    expected = sampler.batch(step=8, part=1, num_parts=2)
    found = PatchSampler(told_of, PATCH_SIZE, BATCH_SIZE).batch(step=8, part=1, num_parts=2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_batches_of_mapped_files_are_those_of_memory(tmp_path: Path) -> None:
    mapped = PatchSampler(a_set(tmp_path, 2, mapped=True), PATCH_SIZE, BATCH_SIZE)
    in_memory = PatchSampler(a_set(tmp_path, 2, mapped=False), PATCH_SIZE, BATCH_SIZE)
    for step in range(5):
        for one, other in zip(mapped.batch(step), in_memory.batch(step), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_of_pixels_in_memory_nothing_is_told(
    tmp_path: Path, told: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    pairs = a_set(tmp_path, 2, mapped=False)
    PatchSampler(pairs, PATCH_SIZE, BATCH_SIZE).batch(0)
    assert told == []
    assert not ReadAhead(pairs.hr_pixels).is_needed


def test_a_part_of_a_mapped_file_counts_as_memory(tmp_path: Path) -> None:
    """Its rows do not lie where those of the file do."""
    pixels = a_set(tmp_path, 2, mapped=True).hr_pixels
    assert ReadAhead(pixels).is_needed
    assert not ReadAhead(pixels[5:]).is_needed
