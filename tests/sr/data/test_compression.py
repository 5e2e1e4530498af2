"""Compressed LR images: of a whole set alike, and of training patches as their numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from elasticnet.sr.data import PairSet, load_pairs, pairs_from_arrays
from elasticnet.sr.data.compression import (
    BatchPart,
    JpegStream,
    OneStepAhead,
    with_compressed_lr,
)
from elasticnet.sr.data.patches import PatchDataset, PatchSampler
from elasticnet.sr.data.random_crops import random_bits
from elasticnet.sr.jpeg import PHOTO_JPEG, JpegSetting, RandomJpeg, compressed


def noisy_pairs(num_images: int = 3) -> PairSet:
    generator = np.random.default_rng(0)
    images = {
        f"image{number}": generator.integers(0, 256, (40 + 2 * number, 52, 3), dtype=np.uint8)
        for number in range(num_images)
    }
    return pairs_from_arrays(images, 2)


def as_bytes(lr: torch.Tensor) -> np.ndarray:
    """Patches (b, 3, p, p) in 0..1 as uint8 (b, p, p, 3)."""
    return (lr * 255).round().byte().permute(0, 2, 3, 1).numpy()


# --- whole sets


def test_every_lr_image_is_compressed_and_hr_is_shared() -> None:
    pairs = noisy_pairs()
    setting = JpegSetting(30)
    found = with_compressed_lr(pairs, setting)
    assert found.names == pairs.names
    assert found.lr_source == "made (BI), JPEG quality 30"
    assert found.lr_jpeg == setting
    assert found.hr_pixels is pairs.hr_pixels
    for index in range(len(pairs)):
        np.testing.assert_array_equal(found.lr(index), compressed(pairs.lr(index), setting))


def test_a_part_of_a_set_keeps_its_images_and_its_setting() -> None:
    part = noisy_pairs().subset(["image2", "image0"])
    found = with_compressed_lr(part, JpegSetting(50)).subset(["image0"]).in_memory()
    np.testing.assert_array_equal(found.lr(0), compressed(part.lr(1), JpegSetting(50)))
    np.testing.assert_array_equal(found.hr(0), part.hr(1))
    assert found.lr_jpeg == JpegSetting(50)


# --- patches


@pytest.mark.parametrize("augment", ["none", "flips+rotations"])
def test_a_patch_is_compressed_after_it_was_turned_as_its_number_says(augment: str) -> None:
    pairs = noisy_pairs()
    plain_lr, plain_hr = PatchSampler(pairs, 16, 6, seed=4, augment=augment).batch(7)
    lr, hr = PatchSampler(pairs, 16, 6, seed=4, augment=augment, jpeg=PHOTO_JPEG).batch(7)
    assert torch.equal(hr, plain_hr)
    for place in range(6):
        counter = np.array([2**63 + 7 * 6 + place], dtype=np.uint64)
        (bits,) = random_bits(4, counter).tolist()
        expected = compressed(as_bytes(plain_lr)[place], PHOTO_JPEG.setting(bits))
        np.testing.assert_array_equal(as_bytes(lr)[place], expected)


def test_a_later_step_draws_other_settings() -> None:
    stream = JpegStream(PHOTO_JPEG, seed=0)
    patches = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert not np.array_equal(stream.compress(patches, 0), stream.compress(patches, 4))


def test_a_resume_and_any_order_give_the_same_patches() -> None:
    pairs = noisy_pairs()
    straight = PatchSampler(pairs, 8, 4, jpeg=PHOTO_JPEG)
    batches = [straight.batch(step)[0] for step in range(5)]
    resumed = PatchSampler(pairs, 8, 4, jpeg=PHOTO_JPEG)
    for step in (4, 0, 3, 3, 1, 2):
        assert torch.equal(resumed.batch(step)[0], batches[step])


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_any_number_of_processes_or_parts_gives_the_same_patches(num_parts: int) -> None:
    pairs = noisy_pairs()
    whole = PatchSampler(pairs, 8, 4, jpeg=PHOTO_JPEG)
    sampler = PatchSampler(pairs, 8, 4, jpeg=PHOTO_JPEG)
    for step in range(3):
        parts = [sampler.batch(step, part, num_parts)[0] for part in range(num_parts)]
        assert torch.equal(torch.cat(parts), whole.batch(step)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_gives_the_patches_of_the_sampler(
    tmp_path: Path, workers: int
) -> None:
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    pairs = load_pairs(tmp_path / "photos", 2, progress=False)
    sampler = PatchSampler(pairs, 8, 4, seed=9, jpeg=PHOTO_JPEG)
    dataset = PatchDataset(pairs, 8, seed=9, num_samples=12, jpeg=PHOTO_JPEG)
    for step, (lr, hr) in enumerate(DataLoader(dataset, batch_size=4, num_workers=workers)):
        expected_lr, expected_hr = sampler.batch(step)
        assert torch.equal(lr, expected_lr)
        assert torch.equal(hr, expected_hr)


def test_without_compression_the_patches_are_the_plain_ones() -> None:
    pairs = noisy_pairs()
    never = RandomJpeg(uncompressed_share=1.0)
    for found, expected in zip(
        PatchSampler(pairs, 8, 4, jpeg=never).batch(2),
        PatchSampler(pairs, 8, 4).batch(2),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_dtype_and_memory_format_are_those_that_were_asked_for() -> None:
    lr, _ = PatchSampler(
        noisy_pairs(),
        8,
        4,
        dtype=torch.float64,
        memory_format=torch.channels_last,
        jpeg=PHOTO_JPEG,
    ).batch(0)
    assert lr.dtype == torch.float64
    assert lr.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_batches() -> None:
    pairs = noisy_pairs()
    on_cuda = PatchSampler(pairs, 8, 4, jpeg=PHOTO_JPEG, device="cuda")
    on_cpu = PatchSampler(pairs, 8, 4, jpeg=PHOTO_JPEG)
    for found, expected in zip(on_cuda.batch(3), on_cpu.batch(3), strict=True):
        assert torch.equal(found.cpu(), expected)


# --- one step ahead


def test_the_next_step_is_made_before_it_is_asked_for() -> None:
    made: list[BatchPart] = []

    def make(wanted: BatchPart) -> np.ndarray:
        made.append(wanted)
        return np.array(wanted)

    ahead = OneStepAhead(make)
    for step in range(3):
        np.testing.assert_array_equal(ahead.get(BatchPart(step, 0, 1)), [step, 0, 1])
    ahead.get(BatchPart(2, 0, 1))  # once more, as it is no longer kept
    steps = [wanted.step for wanted in made]
    assert steps[:3] == [0, 1, 2]
    assert steps.count(2) == 2
    assert steps.count(1) == 1


def test_an_error_of_the_thread_reaches_the_caller() -> None:
    def make(wanted: BatchPart) -> np.ndarray:
        if wanted.step == 1:
            raise OSError("the disk is gone")
        return np.zeros(1)

    ahead = OneStepAhead(make)
    ahead.get(BatchPart(0, 0, 1))
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.get(BatchPart(1, 0, 1))
