"""Patches that the device cuts by itself are those that the host asks for, to the bit."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from elasticnet.sr.data import PairSet
from elasticnet.sr.data.device_crops import (
    DeviceCropStream,
    as_signed,
    device_grid,
    mix64,
    shifted_right,
    unsigned_remainder,
)
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.random_crops import CropStream
from elasticnet.sr.data.random_crops import mix64 as host_mix64
from elasticnet.sr.jpeg import PHOTO_JPEG

AUGMENTATIONS = ["none", "flips", "flips+rotations"]
UINT64 = st.integers(0, 2**64 - 1)
CPU = torch.device("cpu")


def noise_pairs(sizes: list[tuple[int, int]], scale: int) -> PairSet:
    """Noise, so that no two patches are alike."""
    generator = np.random.default_rng(0)
    num_pixels = sum(height * width for height, width in sizes)
    return PairSet(
        [f"image{number}" for number in range(len(sizes))],
        scale,
        np.array(sizes),
        generator.integers(0, 256, (num_pixels, 3), dtype=np.uint8),
        generator.integers(0, 256, (num_pixels * scale**2, 3), dtype=np.uint8),
    )


def signed_tensor(numbers: list[int]) -> torch.Tensor:
    return torch.tensor([as_signed(number) for number in numbers])


@given(numbers=st.lists(UINT64, min_size=1, max_size=9), count=st.integers(1, 63))
def test_a_shift_fills_up_with_zeros(numbers, count):
    shifted = shifted_right(signed_tensor(numbers), count)
    assert shifted.tolist() == [number >> count for number in numbers]


@given(numbers=st.lists(UINT64, min_size=1, max_size=9), divisor=st.integers(1, 2**62))
def test_a_remainder_is_that_of_the_unsigned_number(numbers, divisor):
    remainders = unsigned_remainder(signed_tensor(numbers), divisor)
    assert remainders.tolist() == [number % divisor for number in numbers]


@given(numbers=st.lists(UINT64, min_size=1, max_size=9))
def test_the_hash_is_that_of_the_host(numbers):
    on_host = host_mix64(np.array(numbers, dtype=np.uint64))
    on_device = mix64(signed_tensor(numbers))
    assert on_device.tolist() == on_host.view(np.int64).tolist()


@given(
    seed=st.integers(-(2**70), 2**70),
    first=st.integers(0, 2**50),
    count=st.integers(1, 40),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    patch_size=st.integers(1, 12),
    augment=st.sampled_from(AUGMENTATIONS),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore:patch_size")  # images that are too small
def test_crops_are_those_of_the_host(seed, first, count, sizes, patch_size, augment):
    sizes = [*sizes, (12, 17)]  # one image is large enough in any case
    host = CropStream(noise_pairs(sizes, scale=1), patch_size, seed, augment)
    device = DeviceCropStream(host, CPU)
    on_host = host.crops(first, count)
    on_device = device.crops(torch.tensor(first), count)
    for wanted, found in zip(on_host, on_device, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)


@given(
    step=st.integers(0, 10**9),
    seed=st.integers(0, 2**64),
    share=st.integers(1, 5),
    num_parts=st.integers(1, 3),
    sizes=st.lists(st.tuples(st.integers(9, 30), st.integers(9, 30)), min_size=1, max_size=4),
    scale=st.integers(1, 4),
    augment=st.sampled_from(AUGMENTATIONS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_patches_are_those_of_the_host(step, seed, share, num_parts, sizes, scale, augment, dtype):
    sampler = PatchSampler(
        noise_pairs(sizes, scale),
        patch_size=9,
        batch_size=share * num_parts,
        seed=seed,
        augment=augment,
        dtype=dtype,
        memory_format=torch.channels_last,
    )
    for part in range(num_parts):
        lr, hr = sampler.batch(step, part, num_parts)
        device_lr, device_hr = sampler.batch_on_device(torch.tensor(step), part, num_parts)
        assert torch.equal(device_lr, lr)
        assert torch.equal(device_hr, hr)
        assert device_lr.dtype == dtype
        assert device_lr.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", [0, 1, 123_456_789])
def test_patches_cut_on_cuda_are_those_of_the_host(step):
    pairs = noise_pairs([(30, 20), (41, 50)], scale=2)
    on_cpu = PatchSampler(pairs, patch_size=9, batch_size=64)
    on_cuda = PatchSampler(pairs, patch_size=9, batch_size=64, device="cuda")
    lr, hr = on_cpu.batch(step)
    cuda_lr, cuda_hr = on_cuda.batch_on_device(torch.tensor(step, device="cuda"))
    assert torch.equal(cuda_lr.cpu(), lr)
    assert torch.equal(cuda_hr.cpu(), hr)


def test_a_step_that_is_changed_in_place_cuts_the_next_batch():
    sampler = PatchSampler(noise_pairs([(20, 20)], scale=2), patch_size=8, batch_size=2)
    step = torch.tensor(0)
    for number in range(3):
        device_lr, _ = sampler.batch_on_device(step)
        lr, _ = sampler.batch(number)
        assert torch.equal(device_lr, lr)
        step.add_(1)


def test_nothing_is_computed_on_the_host():
    """Meta tensors have no values: what the host would read is an error."""
    stream = CropStream(noise_pairs([(20, 20), (9, 30)], scale=1), 8, 0, "flips+rotations")
    meta = torch.device("meta")
    crops = DeviceCropStream(stream, meta).crops(torch.zeros((), dtype=torch.int64, device=meta), 4)
    assert [entry.device for entry in crops] == [meta] * 4
    grid = device_grid(crops.top, crops.left, 8, crops.symmetry)
    assert grid.device == meta
    assert grid.shape == (3, 4)


def test_a_part_that_is_not_there_is_refused():
    sampler = PatchSampler(noise_pairs([(20, 20)], scale=2), patch_size=8, batch_size=4)
    with pytest.raises(ValueError, match="num_parts 3: expected a divisor of 4"):
        sampler.batch_on_device(torch.tensor(0), part=0, num_parts=3)
    with pytest.raises(ValueError, match="part 2: expected 0 to 1"):
        sampler.batch_on_device(torch.tensor(0), part=2, num_parts=2)


def test_compressed_patches_are_refused():
    sampler = PatchSampler(
        noise_pairs([(20, 20)], scale=2), patch_size=8, batch_size=4, jpeg=PHOTO_JPEG
    )
    with pytest.raises(ValueError, match="compressed as JPEG are made on the CPU"):
        sampler.batch_on_device(torch.tensor(0))
