"""Folder layouts: told by their folders; files found by name, or named in the error."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_images import put

from elasticnet.sr.data import (
    find_pairs,
)
from elasticnet.sr.data.folder_layouts import find_files, find_layout


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


@pytest.mark.parametrize("scale", [2, 3])
def test_selfexsr_takes_full_size_hr_images(tmp_path: Path, scale: int) -> None:
    small = put(tmp_path / f"image_SRF_{scale}/img_001_SRF_{scale}_HR.png", 24, 36)
    put(tmp_path / f"image_SRF_{scale}/img_001_SRF_{scale}_LR.png", 12, 18)
    large = put(tmp_path / "image_SRF_4/img_001_SRF_4_HR.png", 48, 72)
    lr = put(tmp_path / "image_SRF_4/img_001_SRF_4_LR.png", 12, 18)
    found = find_files(tmp_path, scale)
    assert found.pairs == [("img_001", large, None)]
    assert found.lr_source == "made (BI)"
    (note,) = found.notes
    assert note.startswith("1 of 1 HR images of ")
    assert note.endswith("taken from image_SRF_4; their LR images are made")
    assert find_files(tmp_path, 4) == ([("img_001", large, lr)], "from files (image_SRF_4)", [])
    assert small.exists()


def test_selfexsr_keeps_images_whose_borders_alone_were_cut(tmp_path: Path) -> None:
    own = put(tmp_path / "image_SRF_3/a_SRF_3_HR.png", 48, 72)
    lr = put(tmp_path / "image_SRF_3/a_SRF_3_LR.png", 16, 24)
    put(tmp_path / "image_SRF_4/a_SRF_4_HR.png", 51, 75)
    assert find_files(tmp_path, 3) == ([("a", own, lr)], "from files (image_SRF_3)", [])


def test_selfexsr_without_lr_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"image_SRF_2/{name}_SRF_2_HR.png", 24, 36)
    assert [pair.lr for pair in find_pairs(tmp_path, 2)] == [None, None]
    put(tmp_path / "image_SRF_2/a_SRF_2_LR.png", 12, 18)
    with pytest.raises(ValueError, match=r"1 of 2 LR images are missing .*: those of b; copy them"):
        find_pairs(tmp_path, 2)


@pytest.mark.parametrize("root", ["set", "set/images", "Manga109"])
def test_nested_layout(tmp_path: Path, root: str) -> None:
    place = tmp_path / ("Manga109" if root == "Manga109" else "set/images")
    for title in ("ARMS", "Belmondo"):
        put(place / title / "000.jpg")
        put(place / title / "001.jpg")
    assert find_layout(tmp_path / root) == "nested"
    names = ["ARMS/000", "ARMS/001", "Belmondo/000", "Belmondo/001"]
    assert [pair.name for pair in find_pairs(tmp_path / root, 2)] == names


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
