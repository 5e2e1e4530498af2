"""Training and validation pairs: split, repeatable, alive without their disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import contents, flat, noise, put

from elasticnet.sr.data import PairSet, load_pairs, pair_set, scikit_image_photos
from elasticnet.sr.data.splits import HELD_OUT_PHOTOS, training_pairs
from elasticnet.sr.options import DataOptions

SCALE = 2


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
        [folders[count]], None, SCALE, num_valid=num_valid, progress=False
    )
    everything = [f"image{index:02}" for index in range(count)]
    assert len(valid) == num_valid
    assert sorted(training.names + valid.names) == everything, "disjoint and complete"
    places = [everything.index(name) for name in valid.names]
    gaps = np.diff([*places, count + places[0]])
    assert gaps.max() - gaps.min() <= 1, "evenly spread"
    whole = contents(load_pairs(folders[count], SCALE, progress=False))
    assert {**contents(training), **contents(valid)} == whole
    again = training_pairs([folders[count]], None, SCALE, num_valid=num_valid, progress=False)
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
        training_pairs([folders[count]], None, SCALE, num_valid=num_valid, progress=False)


def test_validation_images_of_their_own(folders: dict[int, Path]) -> None:
    training, valid = training_pairs([folders[5]], folders[1], SCALE, num_valid=99, progress=False)
    assert (len(training), len(valid)) == (5, 1)


def test_the_patch_size_leaves_out_small_training_images_alone(folders: dict[int, Path]) -> None:
    """folders[1] holds one image, with an LR side of 4 pixels."""
    with pytest.warns(
        UserWarning, match=r"left out 1 of 5 images .*\n  image00: .*10x4 pixels is smaller than 6"
    ):
        training, valid = training_pairs(
            [folders[5]], folders[1], SCALE, min_size=6, progress=False
        )
    assert training.names == ["image01", "image02", "image03", "image04"]
    assert valid.names == ["image00"]


def test_div2k_brings_its_own_splits(tmp_path: Path) -> None:
    """Its validation images are taken, also without --valid; or some of its training images."""
    root = tmp_path / "DIV2K"
    for number in (1, 2, 3, 801, 802):
        put(root / "DIV2K_train_HR" / f"{number:04}.png", 16, 20, seed=number)
        lr_folder = root / "DIV2K_train_LR_bicubic" / "X2"
        put(lr_folder / f"{number:04}x2.png", 8, 10, seed=10 * number)

    training, valid = training_pairs([root], root, SCALE, progress=False)
    assert (training.names, valid.names) == (["0001", "0002", "0003"], ["0801", "0802"])
    assert np.array_equal(valid.lr(1), noise(8, 10, 8020)), "the LR files are used"

    training, valid = training_pairs([root], None, SCALE, num_valid=1, progress=False)
    assert (training.names, valid.names) == (["0001", "0002", "0003"], ["0801"])
    assert np.array_equal(valid.lr(0), noise(8, 10, 8010)), "the LR files are used"

    training, valid = training_pairs(
        [root], None, SCALE, num_valid=1, published_split=False, progress=False
    )
    assert (training.names, valid.names) == (["0002", "0003"], ["0001"])


def test_without_data_the_carried_photographs_are_split(folders: dict[int, Path]) -> None:
    training, valid = training_pairs(None, None, 4)
    assert valid.names == list(HELD_OUT_PHOTOS)
    assert sorted(training.names + valid.names) == sorted(scikit_image_photos())
    training, valid = training_pairs(None, folders[1], 4, progress=False)
    assert training.names == list(scikit_image_photos()), "none has to be held out"
    assert valid.names == ["image00"]


def test_scale_degradation_and_seed_reach_the_pairs(folders: dict[int, Path]) -> None:
    def noisy(seed: int) -> tuple[PairSet, PairSet]:
        return training_pairs([folders[2]], folders[1], 3, "DN", seed=seed, progress=False)

    for first, again, other in zip(noisy(5), noisy(5), noisy(6), strict=True):
        assert first.scale == 3
        assert np.array_equal(first.lr_pixels, again.lr_pixels)
        assert not np.array_equal(first.lr_pixels, other.lr_pixels)
        assert np.array_equal(first.hr_pixels, other.hr_pixels), "HR has no noise"


# --- where decoded images are kept


@pytest.mark.parametrize("as_options", [{"cache": False}, {"cache_dir": "cache"}])
def test_training_pairs_keep_decoded_images_where_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "valid"):
        flat(tmp_path / name, 2)
    training, valid = training_pairs(["train"], "valid", SCALE, progress=False, **as_options)
    assert (len(training), len(valid)) == (2, 2)
    there = sorted(path.name for path in tmp_path.iterdir())
    kept = ["cache"] if "cache_dir" in as_options else []
    assert there == sorted([*kept, "train", "valid"])


def test_a_cache_that_is_placed_and_not_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="--cache-dir kept with --no-cache: give one of the two"):
        DataOptions(cache_dir=Path("kept"), cache=False)


# --- pixels in memory


def test_the_disk_may_go_away(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 5)
    with pytest.warns(UserWarning, match="left out 1 of 5 images"):
        pairs = load_pairs(root, SCALE, min_size=5, cache_dir=tmp_path / "cache", progress=False)
    before = contents(pairs)
    copied = pairs.in_memory()
    training, valid = training_pairs([root], None, SCALE, num_valid=2, progress=False)
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
    together = {**contents(training), **contents(valid)}
    assert {name: together[name] for name in before} == before


def test_processes_of_one_host_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a copy of its own: what fits once does not fit eight times."""
    root = flat(tmp_path / "images", 3)
    pairs = load_pairs(root, SCALE, progress=False)
    size = pairs.lr_pixels.nbytes + pairs.hr_pixels.nbytes
    monkeypatch.setattr(pair_set, "free_memory", lambda: 4 * size)
    for count, fits in ((None, True), ("2", True), ("3", False)):
        if count is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        training, _ = training_pairs([root], None, SCALE, num_valid=1, progress=False)
        assert isinstance(training.hr_pixels, np.memmap) is not fits
