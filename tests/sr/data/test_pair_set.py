"""PairSet: images in their place, subsets, pickling, pixels in memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from made_images import contents, flat, noise, put

from elasticnet.sr.data import (
    PairSet,
    load_pairs,
    pair_set,
    pairs_from_arrays,
)
from elasticnet.sr.data.pair_set import listing
from elasticnet.sr.degrade import modcrop


@given(
    sizes=st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=5),
    scale=st.integers(1, 4),
)
def test_images_keep_their_place(sizes: list[tuple[int, int]], scale: int) -> None:
    images = {f"image{i}": noise(height, width, seed=i) for i, (height, width) in enumerate(sizes)}
    pairs = pairs_from_arrays(images, scale)
    assert len(pairs) == len(sizes)
    for index, image in enumerate(images.values()):
        np.testing.assert_array_equal(pairs.hr(index), modcrop(image, scale))
    names = pairs.names[::-2]
    part = pairs.subset(names)
    assert part.names == names
    for index, name in enumerate(names):
        np.testing.assert_array_equal(part.hr(index), modcrop(images[name], scale))
        np.testing.assert_array_equal(part.lr(index), pairs.lr(pairs.names.index(name)))


def test_unknown_names_and_indices() -> None:
    pairs = pairs_from_arrays({"a": noise(8, 8)}, 2)
    with pytest.raises(KeyError, match="no image named 'b' among these 1"):
        pairs.subset(["a", "b"])
    for index in (1, -1):
        with pytest.raises(IndexError, match=rf"image {index}: this set has images 0 to 0"):
            pairs.hr(index)


def test_pickled_pairs(tmp_path: Path) -> None:
    put(tmp_path / "set" / "a.png")
    mapped = load_pairs(tmp_path / "set", 2, progress=False)
    for pairs in (mapped, mapped.subset(["a"]), pairs_from_arrays({"a": noise(24, 36)}, 2)):
        copy: PairSet = pickle.loads(pickle.dumps(pairs))
        np.testing.assert_array_equal(copy.hr(0), noise(24, 36))
        np.testing.assert_array_equal(copy.lr(0), pairs.lr(0))
    assert isinstance(pickle.loads(pickle.dumps(mapped)).hr_pixels, np.memmap)


def test_pairs_without_a_cache_are_pickled_although_their_files_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "set" / "a.png")
    monkeypatch.setattr(pair_set, "free_memory", lambda: 0)  # so that they stay mapped
    mapped = load_pairs(tmp_path / "set", 2, progress=False, cache=False)
    assert isinstance(mapped.hr_pixels, np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    copy: PairSet = pickle.loads(pickle.dumps(mapped))
    assert contents(copy) == contents(mapped)
    np.testing.assert_array_equal(copy.hr(0), noise(24, 36))


def test_a_set_that_does_not_fit_stays_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flat(tmp_path / "images", 3)
    pairs = load_pairs(root, 2, progress=False)
    size = pairs.lr_pixels.nbytes + pairs.hr_pixels.nbytes
    cases = (
        (2 * size, 0.5, True),
        (2 * size - 1, 0.5, False),
        (4 * size, 0.25, True),
        (0, 1, False),
    )
    for free, limit, fits in cases:
        monkeypatch.setattr(pair_set, "free_memory", lambda free=free: free)
        held = pairs.in_memory(limit)
        assert (held is not pairs) is fits
        assert isinstance(held.hr_pixels, np.memmap) is not fits
    assert contents(pairs.in_memory(1e9)) == contents(pairs)


def test_images_are_read_only_and_sizes_are_the_set_s_own() -> None:
    lr_sizes = np.array([[2, 3]])
    pixels = np.zeros((6, 3), np.uint8)
    pairs = PairSet(["a"], 1, lr_sizes, pixels, pixels, starts=np.zeros(1, np.int64))

    for image in (pairs.lr(0), pairs.hr(0)):
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0] = 255
    lr_sizes[0] = 1

    assert pairs.lr(0).shape == (2, 3, 3)
    assert not pixels.any()


def test_a_set_in_memory_is_returned_itself() -> None:
    pairs = pairs_from_arrays({"image": noise(8, 8)}, 2)
    assert pairs.in_memory(0) is pairs


def test_a_listing_names_the_first_five_and_counts_the_others():
    many = [(f"s{index:04}", "too small") for index in range(4000)]
    lines = listing(many).splitlines()
    assert lines[1:] == [*(f"  s000{index}: too small" for index in range(5)), "  and 3995 more"]
    assert listing(many[:5]).count("\n") == 5
    assert listing([]) == ""
