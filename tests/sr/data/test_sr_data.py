"""Layouts, loading, pairs in memory, scikit-image's photographs."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from elasticnet.sr.data import (
    PairSet,
    find_pairs,
    load_pairs,
    noise_seed,
    pairs_from_arrays,
    scikit_image_photos,
)
from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.sr.data.images import ImageError, read_rgb
from elasticnet.sr.degrade import degrade, modcrop


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path: Path, height: int = 24, width: int = 36, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


@pytest.fixture
def div2k(tmp_path: Path) -> Path:
    """DIV2K as its zips unpack, two images a split, scales 2 and 8."""
    root = tmp_path / "DIV2K"
    for split, numbers in (("train", ("0001", "0002")), ("valid", ("0801", "0802"))):
        for number in numbers:
            put(root / f"DIV2K_{split}_HR" / f"{number}.png")
            put(root / f"DIV2K_{split}_LR_bicubic" / "X2" / f"{number}x2.png", 12, 18)
            put(root / f"DIV2K_{split}_LR_x8" / f"{number}x8.png", 3, 4)
    return root


def test_div2k(div2k: Path) -> None:
    assert find_layout(div2k) == "div2k"
    train = find_pairs(div2k, 2)
    assert [pair.name for pair in train] == ["0001", "0002"]
    assert train == find_pairs(div2k, 2, "train")
    assert train[0].hr == div2k / "DIV2K_train_HR/0001.png"
    assert train[0].lr == div2k / "DIV2K_train_LR_bicubic/X2/0001x2.png"
    valid = find_pairs(div2k, 2, "valid")
    assert [pair.name for pair in valid] == ["0801", "0802"]
    assert valid[1].lr == div2k / "DIV2K_valid_LR_bicubic/X2/0802x2.png"


def test_div2k_at_scale_8(div2k: Path) -> None:
    assert find_pairs(div2k, 8, "valid")[0].lr == div2k / "DIV2K_valid_LR_x8/0801x8.png"


def test_lr_files_serve_only_their_scale_and_degradation(div2k: Path) -> None:
    assert all(pair.lr is None for pair in find_pairs(div2k, 3))
    assert all(pair.lr is None for pair in find_pairs(div2k, 2, degradation="BD"))


def test_splits_have_caches_of_their_own(div2k: Path) -> None:
    for split, names in (
        (None, ["0001", "0002"]),
        ("valid", ["0801", "0802"]),
        ("train", ["0001", "0002"]),
    ):
        assert load_pairs(div2k, 2, split=split, progress=False).names == names
    assert len(list(div2k.parent.rglob("hr.bin"))) == 2


def test_a_missing_lr_file_is_still_named(div2k: Path) -> None:
    missing = div2k / "DIV2K_train_LR_bicubic/X2/0002x2.png"
    missing.unlink()
    assert find_pairs(div2k, 2)[1].lr == missing
    with pytest.warns(UserWarning, match=r"left out 1 of 2 images.*\n  0002: .*0002x2\.png"):
        assert load_pairs(div2k, 2, progress=False).names == ["0001"]


def test_edsr_copy_of_div2k(tmp_path: Path) -> None:
    """All 900 images in the train folders, the last hundred of them for validation."""
    for number in ("0001", "0800", "0801", "0900"):
        put(tmp_path / "DIV2K_train_HR" / f"{number}.png")
        put(tmp_path / "DIV2K_train_LR_bicubic" / "X4" / f"{number}x4.png", 6, 9)
    assert [pair.name for pair in find_pairs(tmp_path, 4)] == ["0001", "0800"]
    valid = find_pairs(tmp_path, 4, "valid")
    assert [pair.name for pair in valid] == ["0801", "0900"]
    assert valid[0].lr == tmp_path / "DIV2K_train_LR_bicubic/X4/0801x4.png"


def test_div2k_without_its_valid_images(tmp_path: Path) -> None:
    put(tmp_path / "DIV2K_train_HR" / "0001.png")
    with pytest.raises(
        ValueError,
        match=r"split 'valid' in .*DIV2K_valid_HR/ and for 0801 and later in DIV2K_train_HR/",
    ):
        find_pairs(tmp_path, 2, "valid")


def test_div2k_with_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "DIV2K_train_HR").mkdir()
    with pytest.raises(ValueError, match=r"looked in .*DIV2K_train_HR, it holds no image files"):
        find_pairs(tmp_path, 2)
    (tmp_path / "DIV2K_train_HR").rename(tmp_path / "DIV2K_valid_HR")
    with pytest.raises(ValueError, match=r"looked in .*DIV2K_train_HR, there is no such folder"):
        find_pairs(tmp_path, 2)


def test_benchmark_layout(tmp_path: Path) -> None:
    for name in ("woman", "baby"):
        put(tmp_path / "HR" / f"{name}.png")
        put(tmp_path / "LR_bicubic" / "X3" / f"{name}x3.png", 8, 12)
    assert find_layout(tmp_path) == "benchmark"
    assert find_pairs(tmp_path, 3) == [
        (name, tmp_path / f"HR/{name}.png", tmp_path / f"LR_bicubic/X3/{name}x3.png")
        for name in ("baby", "woman")
    ]
    assert [pair.lr for pair in find_pairs(tmp_path, 2)] == [None, None]


def test_selfexsr_layout(tmp_path: Path) -> None:
    for kind in ("HR", "LR", "bicubic", "SRCNN"):
        put(tmp_path / "image_SRF_2" / f"img_001_SRF_2_{kind}.png")
    (tmp_path / "image_SRF_4").mkdir()
    assert find_layout(tmp_path) == "selfexsr"
    folder = tmp_path / "image_SRF_2"
    assert find_pairs(tmp_path, 2) == [
        ("img_001", folder / "img_001_SRF_2_HR.png", folder / "img_001_SRF_2_LR.png")
    ]
    assert find_pairs(tmp_path, 2, degradation="DN")[0].lr is None
    with pytest.raises(
        ValueError, match=r"no scale 3 in .*looked for image_SRF_3/, found image_SRF_2, image_SRF_4"
    ):
        find_pairs(tmp_path, 3)
    with pytest.raises(ValueError, match=r"looked for names that end in _SRF_4_HR"):
        find_pairs(tmp_path, 4)


def test_flat_layout(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "C.PNG", ".hidden.png", "twin.png", "twin.bmp"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    put(tmp_path / "deeper" / "d.png")
    assert find_layout(tmp_path) == "flat"
    pairs = find_pairs(tmp_path, 2)
    assert [pair.name for pair in pairs] == ["C", "a", "b", "twin.bmp", "twin.png"]
    assert all(pair.lr is None for pair in pairs)


def test_no_layout_fits(tmp_path: Path) -> None:
    (tmp_path / "Set5").mkdir()
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(
        ValueError,
        match=r"looked for DIV2K_train_HR/ .*image_SRF_2/.*HR/.*\.png .*its folders are: Set5",
    ):
        find_pairs(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        find_pairs(tmp_path / "nowhere", 2)
    with pytest.raises(FileNotFoundError, match=r"readme\.txt is a file, expected a folder"):
        find_pairs(tmp_path / "readme.txt", 2)


def test_splits_are_checked(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"split 'test': expected one of 'train', 'valid' or None"):
        find_pairs(tmp_path, 2, "test")
    with pytest.raises(
        ValueError, match=r"split 'valid': .* has the layout 'flat', which has no splits"
    ):
        find_pairs(tmp_path, 2, "valid")


@pytest.mark.parametrize("degradation", ["BI", "BD", "DN"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_loaded_and_made_in_memory_are_the_same(
    tmp_path: Path, degradation: str, scale: int
) -> None:
    if degradation == "BD" and scale == 1:
        scale = 3
    images = {"a": noise(37, 50), "b": noise(24, 31, seed=1)}
    (tmp_path / "set").mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "set" / f"{name}.png")
    loaded = load_pairs(
        tmp_path / "set", scale, degradation=degradation, seed=3, border="replicate", progress=False
    )
    made = pairs_from_arrays(images, scale, degradation=degradation, seed=3, border="replicate")
    assert loaded.names == made.names == ["a", "b"]
    for index, (name, image) in enumerate(images.items()):
        hr = modcrop(image, scale)
        lr = degrade(hr, degradation, scale, seed=noise_seed(3, name), border="replicate")
        for pairs in (loaded, made):
            np.testing.assert_array_equal(pairs.hr(index), hr)
            np.testing.assert_array_equal(pairs.lr(index), lr)
            assert pairs.hr(index).shape[0] == scale * pairs.lr(index).shape[0]


def test_scale_1_keeps_the_image() -> None:
    image = noise(9, 7)
    pairs = pairs_from_arrays({"a": image}, 1)
    np.testing.assert_array_equal(pairs.lr(0), image)
    np.testing.assert_array_equal(pairs.hr(0), image)


def test_noise_differs_from_image_to_image_only() -> None:
    image = np.full((40, 40, 3), 128, dtype=np.uint8)
    both = pairs_from_arrays({"a": image, "b": image}, 2, degradation="DN", seed=1)
    assert not np.array_equal(both.lr(0), both.lr(1))
    np.testing.assert_array_equal(
        pairs_from_arrays({"b": image}, 2, degradation="DN", seed=1).lr(0), both.lr(1)
    )
    other = pairs_from_arrays({"b": image}, 2, degradation="DN", seed=2)
    assert not np.array_equal(other.lr(0), both.lr(1))


@pytest.mark.parametrize(
    ("hr_size", "lr_size", "kept"),
    [
        ((24, 36), (12, 18), (12, 18)),
        ((25, 37), (12, 18), (12, 18)),  # LR of the cropped image
        ((25, 37), (13, 19), (12, 18)),  # LR of the whole image, ceil(n / scale)
    ],
)
def test_hr_and_lr_files_are_aligned(
    tmp_path: Path, hr_size: tuple[int, int], lr_size: tuple[int, int], kept: tuple[int, int]
) -> None:
    hr, lr = noise(*hr_size), noise(*lr_size, seed=1)
    for path, image in ((tmp_path / "HR/a.png", hr), (tmp_path / "LR_bicubic/X2/ax2.png", lr)):
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    pairs = load_pairs(tmp_path, 2, progress=False, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(pairs.lr(0), lr[: kept[0], : kept[1]])
    np.testing.assert_array_equal(pairs.hr(0), hr[: kept[0] * 2, : kept[1] * 2])


def test_unusable_images_are_skipped_by_name(tmp_path: Path) -> None:
    put(tmp_path / "HR/good.png")
    put(tmp_path / "LR_bicubic/X2/goodx2.png", 12, 18)
    put(tmp_path / "HR/odd.png")
    put(tmp_path / "LR_bicubic/X2/oddx2.png", 12, 20)
    put(tmp_path / "HR/small.png", 10, 40)
    put(tmp_path / "LR_bicubic/X2/smallx2.png", 5, 20)
    whole = put(tmp_path / "HR/cut.png").read_bytes()
    (tmp_path / "HR/cut.png").write_bytes(whole[:200])
    put(tmp_path / "LR_bicubic/X2/cutx2.png", 12, 18)
    for _ in range(2):  # built, then read from the cache
        with pytest.warns(UserWarning, match="left out 3 of 4 images") as warned:
            pairs = load_pairs(
                tmp_path, 2, min_size=8, progress=False, cache_dir=tmp_path / "cache"
            )
        assert pairs.names == ["good"]
        assert [name for name, _ in pairs.skipped] == ["cut", "odd", "small"]
        (message,) = (str(warning.message) for warning in warned)
        assert "cut: cannot read image" in message
        assert "odd: LR of 20x12 pixels does not fit HR of 36x24 at scale 2" in message
        assert "small: its LR image of 20x5 pixels is smaller than 8" in message


def test_nothing_is_left(tmp_path: Path) -> None:
    put(tmp_path / "set" / "tiny.png", 1, 20)
    with pytest.raises(
        ImageError,
        match=r"none of the 1 images of .*set can be used:\n  tiny: 20x1 pixels leave none",
    ):
        load_pairs(tmp_path / "set", 2, progress=False)
    assert not list(tmp_path.rglob("*.bin"))
    put(tmp_path / "set" / "tiny.png", 8, 20)
    with pytest.raises(
        ImageError, match=r"none of the 1 .*\n  tiny: its LR image of 10x4 pixels is smaller than 5"
    ):
        load_pairs(tmp_path / "set", 2, min_size=5, progress=False)


def test_all_minimal_sizes_share_one_cache(tmp_path: Path) -> None:
    put(tmp_path / "set" / "a.png", 20, 24)
    put(tmp_path / "set" / "b.png", 40, 44, seed=1)
    assert load_pairs(tmp_path / "set", 2, progress=False).names == ["a", "b"]
    with pytest.warns(UserWarning, match="a: its LR image of 12x10 pixels is smaller than 11"):
        pairs = load_pairs(tmp_path / "set", 2, min_size=11, progress=False)
    assert pairs.names == ["b"]
    np.testing.assert_array_equal(pairs.hr(0), noise(40, 44, seed=1))
    assert len(list(tmp_path.rglob("hr.bin"))) == 1


def test_arrays_are_checked() -> None:
    with pytest.raises(
        ValueError,
        match=r"image 'flat': expected uint8 of shape \(H, W, 3\), got uint8 of \(4, 4\)",
    ):
        pairs_from_arrays({"flat": np.zeros((4, 4), dtype=np.uint8)}, 2)
    with pytest.raises(ValueError, match=r"image 'floats': .* got float64"):
        pairs_from_arrays({"floats": np.zeros((4, 4, 3))}, 2)
    with pytest.raises(
        ImageError, match=r"image 'tiny': 9x3 pixels leave none for the LR image at scale 4"
    ):
        pairs_from_arrays({"tiny": noise(3, 9)}, 4)
    with pytest.raises(ValueError, match="got an empty mapping"):
        pairs_from_arrays({}, 2)


@pytest.mark.parametrize("scale", [0, -2, 2.0, True, "2"])
def test_wrong_scales_are_named(scale: Any, tmp_path: Path) -> None:
    message = rf"scale {scale!r}: expected a whole number from 1"
    with pytest.raises(ValueError, match=message):
        load_pairs(put(tmp_path / "a.png").parent, scale)
    with pytest.raises(ValueError, match=message):
        pairs_from_arrays({"a": noise(8, 8)}, scale)


def test_wrong_degradation_is_named() -> None:
    with pytest.raises(ValueError, match="degradation 'BX': expected one of BI, BD, DN"):
        pairs_from_arrays({"a": noise(8, 8)}, 2, degradation="BX")


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


def test_progress_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "photos" / "a.png")
    load_pairs(tmp_path / "photos", 2)
    assert "decoding photos: 100%" in capsys.readouterr().err
    load_pairs(tmp_path / "photos", 3, progress=False)
    assert capsys.readouterr().err == ""


def test_photos_of_scikit_image() -> None:
    photos = scikit_image_photos()
    assert {"astronaut", "chelsea", "coffee", "motorcycle_left", "rocket"} <= photos.keys()
    assert "motorcycle_right" not in photos
    assert list(photos) == sorted(photos)
    for photo in photos.values():
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3
        assert min(photo.shape[:2]) >= 191
    skimage_data = pytest.importorskip("skimage.data")
    np.testing.assert_array_equal(photos["astronaut"], skimage_data.astronaut())
    np.testing.assert_array_equal(photos["camera"][..., 1], skimage_data.camera())


def test_photos_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r'pip install "elastic-depth\[train\]"'):
        scikit_image_photos()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("Set5", "benchmark", 5), ("Set14", "selfexsr", 14), ("B100", "flat", 100)],
)
def test_real_sets(
    data_dir: Path, tmp_path: Path, name: str, layout: str, count: int, scale: int
) -> None:
    root = data_dir / "benchmark" / name
    if name == "B100":
        root = root / "HR"
    assert find_layout(root) == layout
    pairs = load_pairs(root, scale, cache_dir=tmp_path, progress=False)
    assert len(pairs) == count
    assert pairs.skipped == []
    files = find_pairs(root, scale)
    assert [pair.name for pair in files] == pairs.names
    for index in range(0, count, 7):
        hr = read_rgb(files[index].hr)
        np.testing.assert_array_equal(pairs.hr(index), modcrop(hr, scale))
        if name == "Set5":  # made from HR, LR is what the published files hold
            made = pairs_from_arrays({"a": hr}, scale)
            np.testing.assert_array_equal(pairs.lr(index), made.lr(0))
