"""The folder layouts in which super-resolution data sets come, told apart by looking at the
folder.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from elasticnet.sr.data.images import EXTENSIONS

SPLITS = ("train", "valid")
_LAST_TRAINING_IMAGE = 800


class Pair(NamedTuple):
    """An HR image file and its LR file; `lr` is None where LR is to be made from HR."""

    name: str
    hr: Path
    lr: Path | None


def find_layout(root: str | os.PathLike[str]) -> str:
    """Return the layout of a data set: "div2k", "selfexsr", "benchmark" or "flat".

    - "div2k": `DIV2K_train_HR/0001.png`, `DIV2K_train_LR_bicubic/X2/0001x2.png` (scale 8:
      `DIV2K_train_LR_x8/0001x8.png`), and `valid` in place of `train`;
    - "selfexsr": `image_SRF_2/img_001_SRF_2_HR.png` and `..._LR.png`;
    - "benchmark": `HR/baby.png` and, as far as it is there, `LR_bicubic/X2/babyx2.png`;
    - "flat": image files directly in the folder, all of them HR.

    Raises `FileNotFoundError` when there is no such folder and `ValueError`, saying what was looked
    for, when none fits.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, expected a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data set {root} {kind}")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if any(f"DIV2K_{split}_HR" in folders for split in SPLITS):
        return "div2k"
    if any(name.startswith("image_SRF_") for name in folders):
        return "selfexsr"
    if "HR" in folders:
        return "benchmark"
    if _images(root):
        return "flat"
    raise ValueError(
        f"no images found in {root}: looked for DIV2K_train_HR/ or DIV2K_valid_HR/ (DIV2K), image_SRF_2/ and "
        f"the like (SelfExSR), HR/ (benchmark sets) and image files directly in it ({' '.join(EXTENSIONS)}); "
        f"its folders are: {', '.join(folders) or 'none'}"
    )


def find_pairs(
    root: str | os.PathLike[str], scale: int, split: str | None = None, degradation: str = "BI"
) -> list[Pair]:
    """List the pairs of a data set in one of the layouts of `find_layout`, sorted by name.

    `split` is "train" (also meant by None) or "valid" and exists in DIV2K only; for another layout
    it must be None. As in EDSR's copies of DIV2K, images from 801 on in the train folders belong to
    "valid" and are used where there is no `DIV2K_valid_HR`. LR files are named for degradation "BI"
    where the layout has them at this scale, also single ones that are missing, so that a
    half-copied set is noticed; for anything else LR is to be made from HR.
    """
    if split not in (None, *SPLITS):
        raise ValueError(f"split {split!r}: expected one of {', '.join(map(repr, SPLITS))} or None")
    root = Path(root)
    layout = find_layout(root)
    if split is not None and layout != "div2k":
        raise ValueError(
            f"split {split!r}: {root} has the layout {layout!r}, which has no splits; leave split out"
        )
    if layout == "div2k":
        return _div2k(root, scale, split or "train", degradation)
    if layout == "selfexsr":
        return _selfexsr(root, scale, degradation)
    if layout == "benchmark":
        images = _some_images(root / "HR")
        return _paired(images, root / "LR_bicubic" / f"X{scale}", scale, degradation)
    return [Pair(name, path, None) for name, path in _images(root).items()]


def _div2k(root: Path, scale: int, split: str, degradation: str) -> list[Pair]:
    source = split
    if split == "valid" and not (root / "DIV2K_valid_HR").is_dir():
        source = "train"
    images = _some_images(root / f"DIV2K_{source}_HR")
    if source == "train":
        late = {name for name in images if name.isdecimal() and int(name) > _LAST_TRAINING_IMAGE}
        images = {
            name: path for name, path in images.items() if (name in late) == (split == "valid")
        }
        if not images:
            numbers = "0801 and later" if split == "valid" else "0001 to 0800"
            raise ValueError(
                f"no images for split {split!r} in {root}: "
                f"looked for DIV2K_{split}_HR/ and for {numbers} in DIV2K_train_HR/"
            )
    lr = root / (f"DIV2K_{source}_LR_x8" if scale == 8 else f"DIV2K_{source}_LR_bicubic/X{scale}")
    return _paired(images, lr, scale, degradation)


def _selfexsr(root: Path, scale: int, degradation: str) -> list[Pair]:
    folder = root / f"image_SRF_{scale}"
    if not folder.is_dir():
        present = ", ".join(sorted(path.name for path in root.glob("image_SRF_*")))
        raise ValueError(f"no scale {scale} in {root}: looked for {folder.name}/, found {present}")
    suffix = f"_SRF_{scale}_"
    images = _images(folder)
    pairs = []
    for name, path in images.items():
        if name.endswith(suffix + "HR"):
            stem = name.removesuffix("HR")
            lr = images.get(stem + "LR", folder / f"{stem}LR{path.suffix}")
            pairs.append(
                Pair(name.removesuffix(suffix + "HR"), path, lr if degradation == "BI" else None)
            )
    if not pairs:
        raise ValueError(f"no images in {folder}: looked for names that end in {suffix}HR")
    return pairs


def _paired(images: dict[str, Path], lr_folder: Path, scale: int, degradation: str) -> list[Pair]:
    if degradation != "BI" or not lr_folder.is_dir():
        return [Pair(name, path, None) for name, path in images.items()]
    lr_files = _images(lr_folder)
    pairs = []
    for name, path in images.items():
        lr_name = f"{path.stem}x{scale}"
        pairs.append(Pair(name, path, lr_files.get(lr_name, lr_folder / f"{lr_name}.png")))
    return pairs


def _some_images(folder: Path) -> dict[str, Path]:
    images = _images(folder) if folder.is_dir() else {}
    if not images:
        state = "it holds no image files" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"no images found: looked in {folder}, {state}")
    return images


def _images(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name, without extension unless two differ in nothing
    else.
    """
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    stems = Counter(path.stem for path in paths)
    return {path.stem if stems[path.stem] == 1 else path.name: path for path in paths}
