"""Training and validation pairs: split, repeatable, alive without their disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from elasticnet.sr.data import (
    PairSet,
    load_pairs,
    noise_seed,
    pair_set,
    pairs_from_arrays,
    scikit_image_photos,
)
from elasticnet.sr.data.splits import HELD_OUT_PHOTOS, training_pairs
from elasticnet.sr.degrade import degrade

SCALE = 2


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(folder: Path, name: str, seed: int, height: int = 16, width: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(folder / f"{name}.png")


def flat(root: Path, count: int) -> Path:
    """A folder of images, the first one smaller than the others."""
    for index in range(count):
        put(root, f"image{index:02}", index, height=16 if index else 8)
    return root


def contents(pairs: PairSet) -> dict[str, tuple[bytes, bytes]]:
    return {
        name: (pairs.lr(index).tobytes(), pairs.hr(index).tobytes())
        for index, name in enumerate(pairs.names)
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Flat folders by their number of images."""
    root = tmp_path_factory.mktemp("images")
    return {count: flat(root / f"of{count}", count) for count in (1, 2, 5, 11)}


# --- splits


@given(st.sampled_from([2, 5, 11]), st.data())
def test_exactly_so_many_images_are_held_out(
    folders: dict[int, Path], count: int, draw: st.DataObject
) -> None:
    num_valid = draw.draw(st.integers(1, count - 1))
    training, valid = training_pairs(
        folders[count], None, SCALE, num_valid=num_valid, progress=False
    )
    everything = [f"image{index:02}" for index in range(count)]
    assert len(valid) == num_valid
    assert sorted(training.names + valid.names) == everything, "disjoint and complete"
    places = [everything.index(name) for name in valid.names]
    gaps = np.diff([*places, count + places[0]])
    assert gaps.max() - gaps.min() <= 1, "evenly spread"
    whole = contents(load_pairs(folders[count], SCALE, progress=False))
    assert {**contents(training), **contents(valid)} == whole
    again = training_pairs(folders[count], None, SCALE, num_valid=num_valid, progress=False)
    assert [pairs.names for pairs in again] == [training.names, valid.names]


@pytest.mark.parametrize(("count", "num_valid"), [(5, 0), (5, 5), (5, -1), (2, 10), (1, 1)])
def test_a_bad_number_of_images_to_hold_out(
    folders: dict[int, Path], count: int, num_valid: int
) -> None:
    message = (
        rf"--num-valid {num_valid}: expected at least 1 and fewer than "
        rf"the {count} training images; .*--valid"
    )
    with pytest.raises(ValueError, match=message):
        training_pairs(folders[count], None, SCALE, num_valid=num_valid, progress=False)


def test_validation_images_of_their_own(folders: dict[int, Path]) -> None:
    training, valid = training_pairs(folders[5], folders[1], SCALE, num_valid=99, progress=False)
    assert (len(training), len(valid)) == (5, 1)


def test_the_patch_size_leaves_out_small_training_images_alone(folders: dict[int, Path]) -> None:
    """folders[1] holds one image, with an LR side of 4 pixels."""
    with pytest.warns(
        UserWarning, match=r"left out 1 of 5 images .*\n  image00: .*10x4 pixels is smaller than 6"
    ):
        training, valid = training_pairs(folders[5], folders[1], SCALE, min_size=6, progress=False)
    assert training.names == ["image01", "image02", "image03", "image04"]
    assert valid.names == ["image00"]


def test_div2k_brings_its_own_splits(tmp_path: Path) -> None:
    """With --valid its validation images, without it some of the training images; numbers from 801
    are validation's.
    """
    for number in (1, 2, 3, 801, 802):
        put(tmp_path / "DIV2K/DIV2K_train_HR", f"{number:04}", number)
        put(tmp_path / "DIV2K/DIV2K_train_LR_bicubic/X2", f"{number:04}x2", 10 * number, 8, 10)
    training, valid = training_pairs(tmp_path / "DIV2K", tmp_path / "DIV2K", SCALE, progress=False)
    assert (training.names, valid.names) == (["0001", "0002", "0003"], ["0801", "0802"])
    assert np.array_equal(valid.lr(1), noise(8, 10, 8020)), "the LR files are used"
    training, valid = training_pairs(tmp_path / "DIV2K", None, SCALE, num_valid=1, progress=False)
    assert (training.names, valid.names) == (["0002", "0003"], ["0001"])


def test_without_data_the_carried_photographs_are_split(folders: dict[int, Path]) -> None:
    training, valid = training_pairs(None, None, 4)
    assert valid.names == list(HELD_OUT_PHOTOS)
    assert sorted(training.names + valid.names) == sorted(scikit_image_photos())
    training, valid = training_pairs(None, folders[1], 4, progress=False)
    assert training.names == list(scikit_image_photos()), "none has to be held out"
    assert valid.names == ["image00"]


def test_scale_degradation_and_seed_reach_the_pairs(folders: dict[int, Path]) -> None:
    def noisy(seed: int) -> dict[str, tuple[bytes, bytes]]:
        training, valid = training_pairs(folders[2], folders[1], 3, "DN", seed=seed, progress=False)
        assert training.scale == valid.scale == 3
        return {
            **contents(training),
            **{f"valid {name}": content for name, content in contents(valid).items()},
        }

    first, other = noisy(5), noisy(6)
    assert first == noisy(5)
    assert all(
        first[name][0] != other[name][0] and first[name][1] == other[name][1] for name in first
    )


# --- pixels in memory


def test_the_disk_may_go_away(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 5)
    with pytest.warns(UserWarning, match="left out 1 of 5 images"):
        pairs = load_pairs(root, SCALE, min_size=5, cache_dir=tmp_path / "cache", progress=False)
    before = contents(pairs)
    copied = pairs.in_memory()
    training, valid = training_pairs(root, None, SCALE, num_valid=2, progress=False)
    for held in (copied, training, valid):
        # (reading a file that is cut off would end this process, and not only the test)
        assert not isinstance(held.lr_pixels, np.memmap)
        assert not isinstance(held.hr_pixels, np.memmap)
    files = list(tmp_path.rglob("*.bin"))
    assert len(files) == 4, "two caches of LR and HR"
    for path in files:
        path.write_bytes(b"")
        path.unlink()
    for path in root.iterdir():
        path.unlink()
    assert contents(copied) == before
    assert (copied.names, copied.skipped, copied.scale) == (pairs.names, pairs.skipped, SCALE)
    assert len(copied.skipped) == 1
    assert {
        name: content
        for name, content in {**contents(training), **contents(valid)}.items()
        if name in before
    } == (before)


def test_a_set_that_does_not_fit_stays_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flat(tmp_path / "images", 3)
    pairs = load_pairs(root, SCALE, progress=False)
    size = pairs.lr_pixels.nbytes + pairs.hr_pixels.nbytes
    for free, limit, fits in (
        (2 * size, 0.5, True),
        (2 * size - 1, 0.5, False),
        (4 * size, 0.25, True),
        (0, 1, False),
    ):
        monkeypatch.setattr(pair_set, "free_memory", lambda free=free: free)
        held = pairs.in_memory(limit)
        assert (held is not pairs) is fits
        assert isinstance(held.hr_pixels, np.memmap) is not fits
    assert contents(pairs.in_memory(1e9)) == contents(pairs)


def test_a_set_in_memory_is_returned_itself() -> None:
    pairs = pairs_from_arrays({"image": noise(8, 8)}, SCALE)
    assert pairs.in_memory(0) is pairs


def test_processes_of_one_host_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a copy of its own: what fits once does not fit eight times."""
    root = flat(tmp_path / "images", 3)
    size = (lambda pairs: pairs.lr_pixels.nbytes + pairs.hr_pixels.nbytes)(
        load_pairs(root, SCALE, progress=False)
    )
    monkeypatch.setattr(pair_set, "free_memory", lambda: 4 * size)
    for count, fits in ((None, True), ("2", True), ("3", False)):
        if count is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        training, _ = training_pairs(root, None, SCALE, num_valid=1, progress=False)
        assert isinstance(training.hr_pixels, np.memmap) is not fits


# --- sigmas


def test_sigmas_reach_the_images_and_have_a_cache_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "photos", "a", 0)
    hr = noise(16, 20)
    for sigma in (None, 5.0, 25.0):
        pairs = load_pairs(
            tmp_path / "photos", 1, degradation="DN", noise_sigma=sigma, progress=False
        )
        expected = degrade(hr, "DN", 1, seed=noise_seed(0, "a"), noise_sigma=sigma or 30.0)
        assert np.array_equal(pairs.lr(0), expected)
        in_memory = pairs_from_arrays({"a": hr}, 1, degradation="DN", noise_sigma=sigma)
        assert np.array_equal(in_memory.lr(0), expected)
    with pytest.raises(ValueError, match=r"blur_sigma 2\.0: degradation 'DN' has no such setting"):
        load_pairs(tmp_path / "photos", 1, degradation="DN", blur_sigma=2.0)
