"""The folder layouts of super-resolution data sets, DIV2K's among them, and where their files lie.

A layout is told by looking at the folder: nobody has to name it.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from elasticnet.sr.data.read_rgb import EXTENSIONS

SPLITS = ("train", "valid")  # of DIV2K; the other layouts have none
LAST_TRAINING_IMAGE = 800  # of DIV2K; those from 801 on are for validation


class Pair(NamedTuple):
    """An HR image file and its LR file.

    Attributes:
        name: The image's name in its data set.
        hr: The HR file.
        lr: The LR file, which need not exist; None if LR is to be made from HR.
    """

    name: str
    hr: Path
    lr: Path | None


def find_layout(root: str | os.PathLike[str]) -> str:
    """Return the layout of a data set: "div2k", "selfexsr", "benchmark" or "flat".

    - "div2k": `DIV2K_train_HR/0001.png`, `DIV2K_train_LR_bicubic/X2/0001x2.png` (scale 8:
      `DIV2K_train_LR_x8/0001x8.png`), and `valid` in place of `train`;
    - "selfexsr": `image_SRF_2/img_001_SRF_2_HR.png` and `image_SRF_2/img_001_SRF_2_LR.png`;
    - "benchmark": `HR/baby.png` and, if it is there, `LR_bicubic/X2/babyx2.png`;
    - "flat": image files directly in the folder, all of them HR.

    Args:
        root: The data set's folder.

    Returns:
        The layout's name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder has none of the layouts; the message says what was looked for.
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
        f"no images found in {root}: looked for DIV2K_train_HR/ or DIV2K_valid_HR/ (DIV2K), "
        "image_SRF_2/ and the like (SelfExSR), HR/ (benchmark sets) and image files directly in it "
        f"({' '.join(EXTENSIONS)}); its folders are: {', '.join(folders) or 'none'}"
    )


def find_pairs(
    root: str | os.PathLike[str],
    scale: int,
    split: str | None = None,
    degradation: str = "BI",
) -> list[Pair]:
    """List the pairs of a data set in one of the layouts of `find_layout`.

    As in EDSR's copies of DIV2K, images from 801 on in the train folders belong to "valid". They
    are used if there is no `DIV2K_valid_HR`.

    Args:
        root: The data set's folder.
        scale: Side of an HR image over the side of its LR image.
        split: "train" (also meant by None) or "valid", of DIV2K only; None for other layouts.
        degradation: How LR is made of HR. For "BI" the LR files are named if the layout has a
            folder for this scale, single missing ones too, so that a half-copied set is noticed.
            For "BD" and "DN" LR is to be made from HR.

    Returns:
        The pairs, sorted by name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder has no known layout or no images at this scale, or the split is
            none that it has.
    """
    if split is not None and split not in SPLITS:
        expected = ", ".join(repr(name) for name in SPLITS)
        raise ValueError(f"split {split!r}: expected one of {expected} or None")
    root = Path(root)
    layout = find_layout(root)
    if split is not None and layout != "div2k":
        raise ValueError(
            f"split {split!r}: {root} has the layout {layout!r}, which has no splits; "
            "leave split out"
        )
    if layout == "div2k":
        pairs = _div2k_pairs(root, scale, split or "train")
    elif layout == "selfexsr":
        pairs = _selfexsr_pairs(root, scale)
    elif layout == "benchmark":
        lr_folder = root / "LR_bicubic" / f"X{scale}"
        pairs = _with_lr_files(_some_images(root / "HR"), lr_folder, scale)
    else:
        pairs = [Pair(name, path, None) for name, path in _images(root).items()]
    if degradation != "BI":
        return [pair._replace(lr=None) for pair in pairs]
    return pairs


def _div2k_pairs(root: Path, scale: int, split: str) -> list[Pair]:
    source = split
    if split == "valid" and not (root / "DIV2K_valid_HR").is_dir():
        source = "train"
    images = _some_images(root / f"DIV2K_{source}_HR")
    if source == "train":
        images = _of_split(images, split)
        if not images:
            numbers = "0801 and later" if split == "valid" else "0001 to 0800"
            raise ValueError(
                f"no images for split {split!r} in {root}: "
                f"looked for DIV2K_{split}_HR/ and for {numbers} in DIV2K_train_HR/"
            )
    if scale == 8:
        return _with_lr_files(images, root / f"DIV2K_{source}_LR_x8", scale)
    return _with_lr_files(images, root / f"DIV2K_{source}_LR_bicubic" / f"X{scale}", scale)


def _of_split(images: dict[str, Path], split: str) -> dict[str, Path]:
    """Return those of DIV2K's images in the train folder that belong to a split, by their number.

    Images whose name is no number are taken for training.
    """
    chosen: dict[str, Path] = {}
    for name, path in images.items():
        is_for_validation = name.isdecimal() and int(name) > LAST_TRAINING_IMAGE
        if is_for_validation == (split == "valid"):
            chosen[name] = path
    return chosen


def _selfexsr_pairs(root: Path, scale: int) -> list[Pair]:
    folder = root / f"image_SRF_{scale}"
    if not folder.is_dir():
        present = ", ".join(sorted(path.name for path in root.glob("image_SRF_*")))
        raise ValueError(f"no scale {scale} in {root}: looked for {folder.name}/, found {present}")
    # The folder also holds other methods' results, such as img_001_SRF_2_SRCNN.png.
    hr_ending = f"_SRF_{scale}_HR"
    lr_ending = f"_SRF_{scale}_LR"
    images = _images(folder)
    pairs: list[Pair] = []
    for file_name, hr in images.items():
        if not file_name.endswith(hr_ending):
            continue
        name = file_name.removesuffix(hr_ending)
        lr = images.get(name + lr_ending, folder / f"{name}{lr_ending}{hr.suffix}")
        pairs.append(Pair(name, hr, lr))
    if not pairs:
        raise ValueError(f"no images in {folder}: looked for names that end in {hr_ending}")
    return pairs


def _with_lr_files(images: dict[str, Path], lr_folder: Path, scale: int) -> list[Pair]:
    """Pair HR images with the files `<name>x<scale>` of a folder, or with none if there is none."""
    if not lr_folder.is_dir():
        return [Pair(name, path, None) for name, path in images.items()]
    lr_files = _images(lr_folder)
    pairs: list[Pair] = []
    for name, path in images.items():
        lr_name = f"{path.stem}x{scale}"
        lr = lr_files.get(lr_name, lr_folder / f"{lr_name}.png")
        pairs.append(Pair(name, path, lr))
    return pairs


def _some_images(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name; an error if there are none."""
    if not folder.is_dir():
        raise ValueError(f"no images found: looked in {folder}, there is no such folder")
    images = _images(folder)
    if not images:
        raise ValueError(f"no images found: looked in {folder}, it holds no image files")
    return images


def _images(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name, sorted.

    The name has no extension, unless two files differ in nothing but their extension.
    """
    paths = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    stems = Counter(path.stem for path in paths)
    images: dict[str, Path] = {}
    for path in paths:
        is_unique = stems[path.stem] == 1
        images[path.stem if is_unique else path.name] = path
    return images


def _is_image(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in EXTENSIONS and not is_hidden and path.is_file()
