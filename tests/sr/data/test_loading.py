"""Loading: the same pairs from files and from arrays; what cannot be used is left out by name."""

from __future__ import annotations

import builtins
import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import noise, put
from PIL import Image

from elasticnet.sr.data import (
    find_pairs,
    load_pairs,
    noise_seed,
    pairs_from_arrays,
)
from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.sr.data.read_rgb import ImageError, read_rgb
from elasticnet.sr.degrade import degrade, modcrop


def test_splits_have_caches_of_their_own(div2k: Path) -> None:
    for split, names in (
        (None, ["0001", "0002"]),
        ("valid", ["0801", "0802"]),
        ("train", ["0001", "0002"]),
    ):
        assert load_pairs(div2k, 2, split=split, progress=False).names == names
    assert len(list(div2k.parent.rglob("hr.bin"))) == 2


def test_a_missing_lr_file_is_an_error_and_not_made_anew(div2k: Path) -> None:
    (div2k / "DIV2K_train_LR_bicubic/X2/0002x2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 LR images are missing in .*X2: those of 0002"):
        load_pairs(div2k, 2, progress=False)


@pytest.mark.parametrize("degradation", ["BI", "BD", "DN", "HAZE", "photo"])
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


def test_images_of_formats_that_are_not_read_are_skipped_by_name(tmp_path: Path) -> None:
    put(tmp_path / "both.png")
    (tmp_path / "both.cr2").write_bytes(b"raw")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match="left out 1 of 2 images"):
        pairs = load_pairs(tmp_path, 2, progress=False)
    assert pairs.names == ["both"]
    ((name, reason),) = pairs.skipped
    assert name == "phone"
    assert "phone.heic: a HEIC (HEIF) file, which is not read" in reason


def test_an_image_that_may_be_read_again_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its permissions change neither its size nor its time, by which the cache knows it."""
    put(tmp_path / "set/a.png")
    locked = put(tmp_path / "set/b.png")
    opened = builtins.open

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:  # root may read all files, so that chmod does not do
        patch.setattr(os, "access", lambda path, mode: path != locked)
        patch.setattr(builtins, "open", refuse)
        with pytest.warns(UserWarning, match="Permission denied"):
            pairs = load_pairs(tmp_path / "set", 2, progress=False)
    assert pairs.names == ["a"]
    assert load_pairs(tmp_path / "set", 2, progress=False).names == ["a", "b"]


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


def test_progress_is_shown_on_request_and_only_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "photos" / "a.png")
    load_pairs(tmp_path / "photos", 4)
    assert capsys.readouterr().err == "", "standard error is no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_pairs(tmp_path / "photos", 2)
    assert "decoding photos: 100%" in capsys.readouterr().err
    load_pairs(tmp_path / "photos", 3, progress=False)
    assert capsys.readouterr().err == ""


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


def test_sigmas_reach_the_images_and_have_a_cache_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", 16, 20)
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


# --- the noise of published numbers


def test_matlab_s_noise_is_that_of_degrade_whatever_the_seed_is(tmp_path: Path) -> None:
    for index in range(2):
        put(tmp_path / "photos" / f"{index}.png", 24, 30, seed=index)
    root = tmp_path / "photos"
    options = {"degradation": "DN", "noise": "matlab", "progress": False}
    pairs = load_pairs(root, 2, seed=1, **options)
    assert pairs.lr_source == "made (DN, noise of matlab)"
    for index in range(2):
        made = degrade(pairs.hr(index), "DN", 2, noise="matlab")
        np.testing.assert_array_equal(pairs.lr(index), made)
    np.testing.assert_array_equal(load_pairs(root, 2, seed=2, **options).lr(0), pairs.lr(0))
    numpys = load_pairs(root, 2, degradation="DN", progress=False)
    assert (numpys.lr(0) != pairs.lr(0)).any()


@pytest.mark.parametrize(
    ("degradation", "source", "message"),
    [
        ("BI", "matlab", "noise 'matlab': degradation 'BI' has no noise"),
        ("DN", "octave", "noise 'octave': expected one of numpy, matlab"),
    ],
)
def test_noise_that_does_not_fit_is_refused(
    tmp_path: Path, degradation: str, source: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path, 2, degradation=degradation, noise=source, progress=False)
