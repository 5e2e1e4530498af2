"""Patch sampling: both modes against a plain loop, uniform positions, shares, resuming, workers."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch.utils.data import DataLoader

from elasticnet.sr.data import PairSet, load_pairs, pairs_from_arrays
from elasticnet.sr.data.patches import PatchDataset, PatchSampler
from elasticnet.sr.data.random_crops import mix64, random_bits

MASK = 2**64 - 1


def coordinate_pairs(sizes: list[tuple[int, int]], scale: int = 1) -> PairSet:
    """LR pixel (image, row, column) holds these three numbers, and so do its HR pixels."""
    lr = [
        np.stack(np.broadcast_arrays(number, *np.ogrid[:height, :width]), axis=2).astype(np.uint8)
        for number, (height, width) in enumerate(sizes)
    ]
    return PairSet(
        [f"image{number}" for number in range(len(sizes))],
        scale,
        np.array(sizes),
        np.concatenate([image.reshape(-1, 3) for image in lr]),
        np.concatenate(
            [image.repeat(scale, axis=0).repeat(scale, axis=1).reshape(-1, 3) for image in lr]
        ),
    )


def random_pairs(scale: int, sizes: list[tuple[int, int]] | None = None, seed: int = 0) -> PairSet:
    """Noise, so that no two patches are alike."""
    generator = np.random.default_rng(seed)
    sizes = sizes or [(19, 31), (12, 12), (25, 14)]
    areas = [height * width for height, width in sizes]
    return PairSet(
        [f"image{number}" for number in range(len(sizes))],
        scale,
        np.array(sizes),
        generator.integers(0, 256, (sum(areas), 3), dtype=np.uint8),
        generator.integers(0, 256, (sum(areas) * scale**2, 3), dtype=np.uint8),
    )


def naive_bits(seed: int, counter: int) -> int:
    """SplitMix64 in Python integers."""

    def mix(value: int) -> int:
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
        return value ^ value >> 31

    golden = 0x9E3779B97F4A7C15
    return mix((mix((seed * golden + 1) & MASK) + (counter + 1) * golden) & MASK)


def naive_patch(
    pairs: PairSet, size: int, seed: int, index: int, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample `index` by listing every position of every image, one at a time."""
    positions = [
        (image, top, left)
        for image, (height, width) in enumerate(pairs.lr_sizes)
        for top in range(height - size + 1)
        for left in range(width - size + 1)
    ]
    image, top, left = positions[naive_bits(seed, 2 * index) % len(positions)]
    dihedral = naive_bits(seed, 2 * index + 1) & bits
    patches = []
    for whole, factor in ((pairs.lr(image), 1), (pairs.hr(image), pairs.scale)):
        patch = whole[top * factor : (top + size) * factor, left * factor : (left + size) * factor]
        if dihedral & 1:
            patch = np.fliplr(patch)
        if dihedral & 2:
            patch = np.flipud(patch)
        if dihedral & 4:
            patch = patch.swapaxes(0, 1)
        patches.append(np.moveaxis(patch, 2, 0).astype(np.float32) / np.float32(255))
    return patches[0], patches[1]


def test_splitmix64_known_values() -> None:
    """The first outputs of the published generator from seed 1234567."""
    positions = np.arange(1, 4, dtype=np.uint64)
    states = np.uint64(1234567) + positions * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seed=st.integers(-(2**70), 2**70), counter=st.integers(0, 2**64 - 2))
def test_random_bits_against_python_integers(seed: int, counter: int) -> None:
    found = random_bits(seed, np.array([counter], dtype=np.uint64))
    assert found.tolist() == [naive_bits(seed, counter)]


@settings(max_examples=25)
@given(
    scale=st.integers(1, 4),
    size=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**40),
    augment=st.sampled_from([("none", 0), ("flips", 3), ("flips+rotations", 7)]),
    sizes=st.lists(st.tuples(st.integers(6, 11), st.integers(6, 11)), min_size=1, max_size=3),
)
def test_both_modes_against_a_plain_loop(
    scale: int,
    size: int,
    seed: int,
    step: int,
    augment: tuple[str, int],
    sizes: list[tuple[int, int]],
) -> None:
    pairs = random_pairs(scale, sizes)
    name, bits = augment
    lr, hr = PatchSampler(pairs, size, 5, seed=seed, augment=name).batch(step)
    dataset = PatchDataset(pairs, size, seed=seed, augment=name, num_samples=2**50)
    assert lr.shape == (5, 3, size, size)
    assert hr.shape == (5, 3, size * scale, size * scale)
    for place in range(5):
        expected_lr, expected_hr = naive_patch(pairs, size, seed, step * 5 + place, bits)
        np.testing.assert_array_equal(lr[place].numpy(), expected_lr)
        np.testing.assert_array_equal(hr[place].numpy(), expected_hr)
        item_lr, item_hr = dataset[step * 5 + place]
        np.testing.assert_array_equal(item_lr.numpy(), expected_lr)
        np.testing.assert_array_equal(item_hr.numpy(), expected_hr)


def test_every_position_is_equally_likely() -> None:
    """Chi-squared over all 7 * 4 + 3 * 9 + 1 positions of three images."""
    pairs = coordinate_pairs([(9, 6), (5, 11), (3, 3)])
    draws = 40_000
    lr, _ = PatchSampler(pairs, 3, draws, augment="none").batch(0)
    corners = (lr[:, :, 0, 0] * 255).round().long()
    counts = torch.unique(corners, dim=0, return_counts=True)[1].double()
    assert len(counts) == 7 * 4 + 3 * 9 + 1
    expected = draws / len(counts)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    # 55 degrees of freedom: above 100 with probability 2e-4, and this seed is fixed
    assert chi_squared < 100


def test_the_eight_symmetries_are_equally_likely() -> None:
    patches, _ = PatchSampler(coordinate_pairs([(4, 4)]), 4, 16_000).batch(0)
    orientations, counts = torch.unique(patches[:, 1:, 0, :2].flatten(1), dim=0, return_counts=True)
    assert len(orientations) == 8
    assert float(((counts - 2000.0) ** 2 / 2000).sum()) < 29  # 7 degrees of freedom: p = 1e-4
    flips, _ = PatchSampler(coordinate_pairs([(4, 4)]), 4, 1000, augment="flips").batch(0)
    assert len(torch.unique(flips[:, 1:, 0, :2].flatten(1), dim=0)) == 4


def test_symmetry_does_not_depend_on_position() -> None:
    """Mirrored in the two images equally often, as the two draws are independent."""
    lr, _ = PatchSampler(coordinate_pairs([(5, 5), (5, 5)]), 4, 20_000, augment="flips").batch(3)
    second = lr[:, 0, 0, 0] > 0
    mirrored = lr[:, 2, 0, 0] > lr[:, 2, 0, -1]
    assert float(mirrored[second].double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(mirrored[~second].double().mean()) == pytest.approx(0.5, abs=0.02)


@given(scale=st.integers(1, 4), step=st.integers(0, 1000))
def test_hr_shows_what_lr_shows(scale: int, step: int) -> None:
    lr, hr = PatchSampler(coordinate_pairs([(9, 13), (20, 8)], scale), 5, 8).batch(step)
    torch.testing.assert_close(
        hr, lr.repeat_interleave(scale, 2).repeat_interleave(scale, 3), rtol=0, atol=0
    )


@given(num_parts=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 2**30))
def test_parts_are_one_batch(num_parts: int, step: int) -> None:
    sampler = PatchSampler(random_pairs(2), 4, 12)
    parts = [sampler.batch(step, part, num_parts) for part in range(num_parts)]
    whole_lr, whole_hr = sampler.batch(step)
    assert torch.equal(torch.cat([lr for lr, _ in parts]), whole_lr)
    assert torch.equal(torch.cat([hr for _, hr in parts]), whole_hr)


def test_a_step_depends_on_no_other() -> None:
    pairs = random_pairs(2)
    straight = PatchSampler(pairs, 6, 4, seed=5)
    batches = [straight.batch(step) for step in range(6)]
    resumed = PatchSampler(pairs, 6, 4, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(resumed.batch(5), batches[5], strict=True))
    assert not torch.equal(batches[4][0], batches[5][0])
    assert not torch.equal(PatchSampler(pairs, 6, 4, seed=6).batch(5)[0], batches[5][0])


def test_the_stream_is_what_it_was() -> None:
    """A change to the sampling would make resumed runs differ without a word."""
    lr, _ = PatchSampler(coordinate_pairs([(40, 50), (30, 60)]), 8, 6, seed=1).batch(10)
    corners = (lr[:, :, 0, 0] * 255).round().int().tolist()
    assert corners == [[1, 6, 42], [1, 2, 7], [1, 29, 8], [1, 18, 44], [1, 11, 17], [1, 7, 45]]


@pytest.fixture
def cached_pairs(tmp_path: Path) -> PairSet:
    """Pairs in mapped files."""
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(3)
    for name, shape in (("a", (40, 50, 3)), ("b", (62, 36, 3))):
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(
            tmp_path / "photos" / f"{name}.png"
        )
    return load_pairs(tmp_path / "photos", 2, progress=False)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_batches_of_the_sampler(
    cached_pairs: PairSet, workers: int
) -> None:
    sampler = PatchSampler(cached_pairs, 8, 4, seed=9)
    dataset = PatchDataset(cached_pairs, 8, seed=9, num_samples=24)
    loaded = list(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert len(loaded) == 6
    for step, (lr, hr) in enumerate(loaded):
        expected_lr, expected_hr = sampler.batch(step)
        assert torch.equal(lr, expected_lr)
        assert torch.equal(hr, expected_hr)


def test_loader_resumes_by_a_range(cached_pairs: PairSet) -> None:
    dataset = PatchDataset(cached_pairs, 8, num_samples=24)
    (lr, _), *_ = DataLoader(dataset, batch_size=4, sampler=range(3 * 4, 24))
    assert torch.equal(lr, PatchSampler(cached_pairs, 8, 4).batch(3)[0])


def test_spawned_worker_maps_the_file_again(cached_pairs: PairSet) -> None:
    dataset = PatchDataset(cached_pairs, 8, num_samples=4)
    assert len(pickle.dumps(dataset)) < 10_000  # not the pixels
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )
    (lr, hr), *_ = loader
    expected = PatchSampler(cached_pairs, 8, 4).batch(0)
    assert torch.equal(lr, expected[0])
    assert torch.equal(hr, expected[1])


def test_memory_is_shared_on_the_cpu(cached_pairs: PairSet) -> None:
    sampler = PatchSampler(cached_pairs, 8, 4)
    address_of_pairs = cached_pairs.hr_pixels.__array_interface__["data"][0]
    assert sampler.hr_pixels.data_ptr() == address_of_pairs


def test_a_subset_gives_only_its_images() -> None:
    pairs = coordinate_pairs([(9, 9), (8, 12), (10, 7)], scale=2)
    part = pairs.subset(["image2", "image0"])
    lr, hr = PatchSampler(part, 4, 200).batch(0)
    assert set((lr[:, 0] * 255).round().unique().tolist()) == {0, 2}
    assert torch.equal(hr, lr.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_dtype_and_memory_format() -> None:
    pairs = random_pairs(2)
    reference = PatchSampler(pairs, 6, 4).batch(0)
    assert reference[1].is_contiguous()
    assert reference[1].dtype == torch.float32
    last = PatchSampler(pairs, 6, 4, memory_format=torch.channels_last).batch(0)
    assert last[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last[1], reference[1])
    half = PatchSampler(pairs, 6, 4, dtype=torch.bfloat16).batch(0)
    assert torch.equal(half[1], reference[1].bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_batches() -> None:
    pairs = random_pairs(3)
    for expected, found in zip(
        PatchSampler(pairs, 6, 64).batch(7),
        PatchSampler(pairs, 6, 64, device="cuda").batch(7),
        strict=True,
    ):
        assert torch.equal(found.cpu(), expected)


def test_small_images_are_left_out_by_name() -> None:
    pairs = coordinate_pairs([(4, 30), (9, 9), (30, 4)])
    with pytest.warns(
        UserWarning, match=r"patch_size 5: left out 2 smaller LR images: image0, image2"
    ):
        sampler = PatchSampler(pairs, 5, 64)
    assert (sampler.batch(0)[0][:, 0] * 255).round().unique().tolist() == [1]


def test_many_small_images_are_counted_and_the_first_five_named() -> None:
    pairs = coordinate_pairs([(9, 9), *[(4, 4)] * 7])
    message = "left out 7 smaller LR images: image1, image2, image3, image4, image5, ...$"
    with pytest.warns(UserWarning, match=message):
        PatchSampler(pairs, 5, 64)


def test_no_image_is_large_enough() -> None:
    with pytest.raises(ValueError, match=r"patch_size 48: none of the 1 LR images .*image0, 20x20"):
        PatchSampler(coordinate_pairs([(20, 20)]), 48, 4)


@pytest.mark.parametrize(
    ("patch_size", "batch_size", "augment", "message"),
    [
        (0, 4, "none", r"patch_size 0: expected at least 1"),
        (4, 0, "none", r"batch_size 0: expected at least 1"),
        (
            4,
            4,
            "rotations",
            r"augment 'rotations': expected one of 'none', 'flips', 'flips\+rotations'",
        ),
    ],
)
def test_wrong_options_are_named(
    patch_size: int, batch_size: int, augment: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PatchSampler(random_pairs(2), patch_size, batch_size, augment=augment)


def test_wrong_parts_and_steps_are_named() -> None:
    sampler = PatchSampler(random_pairs(2), 4, 16)
    with pytest.raises(ValueError, match=r"num_parts 3: expected a divisor of 16"):
        sampler.batch(0, 0, 3)
    with pytest.raises(ValueError, match=r"part 2: expected 0 to 1"):
        sampler.batch(0, 2, 2)
    with pytest.raises(IndexError, match=r"step -1: expected 0 or more"):
        sampler.batch(-1)
    with pytest.raises(IndexError, match=r"sample index 3: expected 0 to 2"):
        PatchDataset(random_pairs(2), 4, num_samples=3)[3]
    with pytest.raises(IndexError, match=r"sample index -1"):
        PatchDataset(random_pairs(2), 4)[-1]


def test_made_from_arrays() -> None:
    image = np.random.default_rng(4).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    pairs = pairs_from_arrays({"noise": image}, 2)
    _, hr = PatchSampler(pairs, 16, 1, augment="none").batch(0)
    patch = (hr[0] * 255).round().byte().permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(image, patch.shape)
    assert (windows == patch).all(axis=(-3, -2, -1)).any()
