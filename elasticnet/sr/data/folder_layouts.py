"""The folder layouts of super-resolution data sets, DIV2K's among them, and where their files lie.

A layout is told by looking at the folder: nobody has to name it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from elasticnet.sr.data.image_files import (
    by_stem,
    folders_in,
    image_files_in,
    images_in,
    some_images_in,
)
from elasticnet.sr.data.lr_folders import (
    MAX_NAMED,
    TRACKS,
    find_lr_folder,
    given_lr_folder,
    image_size,
    looks_like_hr,
    lr_files_without_hr,
    lr_folders_in,
    match_lr_files,
    refuse_half_copied,
    refuse_lr_as_hr,
    refuse_mixed_images,
    unlabelled_lr_folders,
)
from elasticnet.sr.data.read_rgb import EXTENSIONS

SPLITS = ("train", "valid")  # of DIV2K; the other layouts have none
LAST_TRAINING_IMAGE = 800  # of DIV2K; those from 801 on are for validation


class Pair(NamedTuple):
    """An HR image file and its LR file.

    Attributes:
        name: The image's name in its data set.
        hr: The HR file.
        lr: The LR file; None if LR is to be made from HR.
    """

    name: str
    hr: Path
    lr: Path | None


class ValidationImages(NamedTuple):
    """The validation images that a copy of DIV2K holds.

    Attributes:
        folder: The name of the folder that they lie in.
        beside_training: Whether the training images lie in the same folder, as in EDSR's copies.
    """

    folder: str
    beside_training: bool


class FoundPairs(NamedTuple):
    """The pairs of a data set, and where they come from.

    Attributes:
        pairs: Sorted by file.
        lr_source: "from files (FOLDER)", or "made (BI)", with the degradation in brackets.
        notes: What a user must know: files that were taken from another place than the usual one.
    """

    pairs: list[Pair]
    lr_source: str
    notes: list[str]


class _Wanted(NamedTuple):
    """Which LR images are asked for: `kind` is a degradation or a track of DIV2K."""

    scale: int
    kind: str
    track: str | None
    lr_root: Path | None


def find_layout(root: str | os.PathLike[str]) -> str:
    """Return the layout of a data set: "div2k", "selfexsr", "benchmark", "flat" or another one.

    - "div2k": `DIV2K_train_HR/0001.png`, `DIV2K_train_LR_bicubic/X2/0001x2.png` (scale 8:
      `DIV2K_train_LR_x8/0001x8.png`), and `valid` in place of `train`;
    - "selfexsr": `image_SRF_2/img_001_SRF_2_HR.png` and `image_SRF_2/img_001_SRF_2_LR.png`;
    - "benchmark": a folder of HR images, such as `HR`, `gt` or `GTmod12`, and, if it is there, one
      of LR images, such as `LR_bicubic/X2`, `LR`, `lq` or `LRbicx4`;
    - "listed": `meta_info.txt` whose lines are `HR file, LR file`, as Real-ESRGAN writes it;
    - "realsr": `Canon_001_HR.png` and `Canon_001_LR4.png` in one folder, or in a folder `4` of it;
    - "flat": image files directly in the folder, all of them HR, and perhaps a folder of LR images;
    - "nested": Manga109's `images/TITLE/000.jpg`.

    Args:
        root: The data set's folder.

    Returns:
        The layout's name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder has another layout, or holds LR images; the message says what
            was looked for.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, expected a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data set {root} {kind}")
    folders = [path.name for path in folders_in(root)]
    if any(f"DIV2K_{split}_HR" in folders for split in SPLITS):
        return "div2k"
    if any(name.startswith("image_SRF_") for name in folders):
        return "selfexsr"
    if _listed_pairs(root):
        return "listed"
    if any(looks_like_hr(name) for name in folders):
        return "benchmark"
    layout = _layout_of_images(root)
    if layout is not None:
        return layout
    raise ValueError(
        f"no images found in {root}: looked for DIV2K_train_HR/ or DIV2K_valid_HR/ (DIV2K), "
        "image_SRF_2/ and the like (SelfExSR), HR/, gt/ or GTmod12/ (sets with HR and LR images), "
        "images/TITLE/ (Manga109) and image files directly in it "
        f"({' '.join(EXTENSIONS)}); its folders are: {', '.join(folders) or 'none'}"
    )


def _layout_of_images(root: Path) -> str | None:
    """The layout of a folder without one for HR images; None if no images are found."""
    files = image_files_in(root).values()
    if files:
        may_be_realsr = any(_is_lr_of_realsr(os.path.splitext(file)[0]) for file in files)
        return "realsr" if may_be_realsr and _realsr_names(images_in(root)) else "flat"
    for folder in folders_in(root):
        if folder.name.isdecimal() and _realsr_names(images_in(folder)):
            return "realsr"
    return "nested" if _nested_root(root) is not None else None


def find_validation(root: str | os.PathLike[str]) -> ValidationImages | None:
    """Say where the validation images of DIV2K lie, those of the split "valid".

    Args:
        root: A data set's folder.

    Returns:
        Where they lie: in `DIV2K_valid_HR`, or with numbers from 801 on in `DIV2K_train_HR`, as in
        EDSR's copies. None if there are none, or if the folder has another layout.

    Raises:
        FileNotFoundError: As `find_layout` does.
        ValueError: As `find_layout` does.
    """
    if find_layout(root) != "div2k":
        return None
    own_folder = Path(root) / "DIV2K_valid_HR"
    if own_folder.is_dir():
        return ValidationImages(own_folder.name, beside_training=False)
    training_folder = Path(root) / "DIV2K_train_HR"
    if _of_split(some_images_in(training_folder), "valid"):
        return ValidationImages(training_folder.name, beside_training=True)
    return None


def find_pairs(
    root: str | os.PathLike[str],
    scale: int,
    split: str | None = None,
    degradation: str = "BI",
    *,
    track: str | None = None,
    lr_root: str | os.PathLike[str] | None = None,
) -> list[Pair]:
    """List the pairs of a data set, as `find_files` does, without what is to be said of them.

    Args:
        root: The data set's folder.
        scale: Side of an HR image over the side of its LR image.
        split: "train" (also meant by None) or "valid", of DIV2K only; None for other layouts.
        degradation: How LR is made of HR: "BI", "BD", "DN", "HAZE" or "photo".
        track: Which of DIV2K's LR images, such as "mild".
        lr_root: The folder of the LR images, in place of one that the layout has.

    Returns:
        The pairs, sorted by file.

    Raises:
        FileNotFoundError: As `find_files` does.
        ValueError: As `find_files` does.
    """
    found = find_files(root, scale, split, degradation, track=track, lr_root=lr_root)
    return found.pairs


def find_files(
    root: str | os.PathLike[str],
    scale: int,
    split: str | None = None,
    degradation: str = "BI",
    *,
    track: str | None = None,
    lr_root: str | os.PathLike[str] | None = None,
) -> FoundPairs:
    """Find the files of a data set in one of the layouts of `find_layout`.

    As in EDSR's copies of DIV2K, images from 801 on in the train folders belong to "valid". They
    are used if there is no `DIV2K_valid_HR`.

    Args:
        root: The data set's folder.
        scale: Side of an HR image over the side of its LR image.
        split: "train" (also meant by None) or "valid", of DIV2K only; None for other layouts.
        degradation: How LR is made of HR. LR files serve if they are of this degradation ("BI" if
            their folder does not say) and of this scale; otherwise LR is to be made from HR.
        track: Which of DIV2K's LR images: "bicubic", "unknown", "mild", "difficult", "wild" or
            "x8". They have to be there. None for those of `degradation`, if they are there.
        lr_root: The folder of the LR images, in place of one that the layout has.

    Returns:
        The pairs, and what to say of them.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder has no known layout, no images at this scale, or no such split; LR
            files are missing, or there are some that would not be used.
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
    wanted = _wanted(scale, degradation, track, lr_root)
    notes: list[str] = []
    pairs = _pairs_of_layout(layout, root, split or "train", wanted, notes)
    _check_track_is_there(track, scale, root, pairs)
    # A part of DIV2K's LR images, and of those of a list, belongs to HR images that are left out.
    if layout != "div2k" and not _meta_lines(root):
        notes += _note_lr_without_hr(pairs)
    if pairs[0].lr is None and degradation != "BI":
        notes += _notes_of_unused_lr(root, layout, scale, degradation)
    return FoundPairs(pairs, _lr_source(root, pairs, degradation), notes)


def _check_track_is_there(track: str | None, scale: int, root: Path, pairs: list[Pair]) -> None:
    """Raise if LR images of a track are asked for and none were found."""
    if track is None or pairs[0].lr is not None:
        return
    present = ", ".join(path.name for path in lr_folders_in(root)) or "none"
    raise ValueError(
        f"track {track!r}: no LR images of it at scale {scale} in {root}; its folders of LR "
        f"images are: {present}"
    )


def _notes_of_unused_lr(root: Path, layout: str, scale: int, degradation: str) -> list[str]:
    """What to say of LR images that nothing calls bicubic, where others are made in their place."""
    if layout in ("listed", "realsr"):
        unused = [f"the LR files that belong to the HR files of {root}"]
    else:
        unused = [str(folder) for folder in unlabelled_lr_folders(root, scale)]
    return [
        f"{each}: not used, as nothing says that these LR images were made by {degradation}; to "
        "use them, give them by --data-lr, or leave the degradation out"
        for each in unused
    ]


def _pairs_of_layout(
    layout: str, root: Path, split: str, wanted: _Wanted, notes: list[str]
) -> list[Pair]:
    """The pairs of a data set whose layout is known; what to say of them is added to the notes."""
    if layout == "div2k":
        return _div2k_pairs(root, split, wanted)
    if layout == "selfexsr":
        return _selfexsr_pairs(root, wanted, notes)
    if layout == "listed":
        return _pairs_of_list(root, wanted)
    if layout == "benchmark":
        return _benchmark_pairs(root, wanted, notes)
    if layout == "realsr":
        return _realsr_pairs(root, wanted)
    if layout == "nested":
        return _nested_pairs(root, wanted)
    return _flat_pairs(root, wanted, notes)


def _wanted(
    scale: int,
    degradation: str,
    track: str | None,
    lr_root: str | os.PathLike[str] | None,
) -> _Wanted:
    """Check which LR images are asked for."""
    if track is not None:
        _check_track(track, scale)
    if track is not None and lr_root is not None:
        raise ValueError(f"track {track!r} beside the LR images {lr_root}: give one of the two")
    if track is not None and degradation != "BI":
        raise ValueError(
            f"degradation {degradation!r} beside track {track!r}: a track's LR images are files, "
            "and nothing is made; leave the degradation out"
        )
    is_bicubic = track in (None, "bicubic", "x8")
    kind = degradation if track is None or is_bicubic else track
    return _Wanted(scale, kind, track, None if lr_root is None else Path(lr_root))


def _check_track(track: str, scale: int) -> None:
    if track not in TRACKS:
        raise ValueError(f"track {track!r}: expected one of {', '.join(TRACKS)}")
    if track == "x8" and scale != 8:
        raise ValueError(f"track 'x8' is of scale 8, and scale {scale} was asked for")


def _note_lr_without_hr(pairs: Sequence[Pair]) -> list[str]:
    """A line if LR images have no HR image, as where those were copied by half."""
    lr_files = [pair.lr for pair in pairs if pair.lr is not None]
    if not lr_files or lr_files[0].parent == pairs[0].hr.parent:
        return []
    others = lr_files_without_hr(lr_files)
    if not others:
        return []
    names = ", ".join(path.name for path in others[:MAX_NAMED])
    etc = ", ..." if len(others) > MAX_NAMED else ""
    return [f"{len(others)} LR images in {lr_files[0].parent} have no HR image: {names}{etc}"]


def _lr_source(root: Path, pairs: list[Pair], degradation: str) -> str:
    lr = pairs[0].lr
    if lr is None:
        return f"made ({degradation})"
    return f"from files ({os.path.relpath(lr.parent, root)})"


# --- the layouts


def _flat_pairs(root: Path, wanted: _Wanted, notes: list[str]) -> list[Pair]:
    """The pairs of a folder of HR images."""
    images = images_in(root)
    place = Path(os.path.abspath(root))
    refuse_lr_as_hr(place, images)
    refuse_mixed_images(root, images)
    beside = lr_folders_in(place.parent) if looks_like_hr(place.name) else []
    if beside and wanted.lr_root is None:
        listed = ", ".join(path.name for path in beside)
        notes.append(
            f"{root} is read alone, and LR images beside it are not used: {listed}; to use them, "
            "give the folder above, or one of them by --data-lr"
        )
    return _with_lr_files(_of_meta_info(root, images), root, "", wanted)


def _div2k_pairs(root: Path, split: str, wanted: _Wanted) -> list[Pair]:
    source = split
    if split == "valid" and not (root / "DIV2K_valid_HR").is_dir():
        source = "train"
    hr_name = f"DIV2K_{source}_HR"
    images = some_images_in(root / hr_name)
    if source == "train":
        images = _of_split(images, split)
        if not images:
            numbers = "0801 and later" if split == "valid" else "0001 to 0800"
            raise ValueError(
                f"no images for split {split!r} in {root}: "
                f"looked for DIV2K_{split}_HR/ and for {numbers} in DIV2K_train_HR/"
            )
    return _with_lr_files(images, root, hr_name, wanted, prefix=f"DIV2K_{source}_")


def _of_split(images: dict[str, Path], split: str) -> dict[str, Path]:
    """Return those of DIV2K's images in the train folder that belong to a split, by their number.

    Images whose name is no number are taken for training.
    """
    chosen: dict[str, Path] = {}
    for name, path in images.items():
        number = path.stem  # a name has its extension where two files differ in nothing else
        is_for_validation = number.isdecimal() and int(number) > LAST_TRAINING_IMAGE
        if is_for_validation == (split == "valid"):
            chosen[name] = path
    return chosen


def _benchmark_pairs(root: Path, wanted: _Wanted, notes: list[str]) -> list[Pair]:
    """HR images in a folder of their own, LR images beside it."""
    names = [path.name for path in folders_in(root)]
    hr_names = [name for name in names if looks_like_hr(name)]
    hr_name = "HR" if "HR" in hr_names else hr_names[0]
    if len(hr_names) > 1 and hr_name != "HR":
        raise ValueError(
            f"several folders of HR images in {root}: {', '.join(hr_names)}; give one of them as "
            "the data set, and its LR images, if it has some, by --data-lr"
        )
    images = _of_meta_info(root, some_images_in(root / hr_name))
    num_beside = len(images_in(root))
    if num_beside > 0:
        notes.append(
            f"{num_beside} images that lie in {root} itself are not used: its HR images are those "
            f"in {hr_name}"
        )
    return _with_lr_files(images, root, hr_name, wanted)


def _selfexsr_pairs(root: Path, wanted: _Wanted, notes: list[str]) -> list[Pair]:
    scale = wanted.scale
    folder = root / f"image_SRF_{scale}"
    if not folder.is_dir():
        present = ", ".join(sorted(path.name for path in root.glob("image_SRF_*")))
        raise ValueError(f"no scale {scale} in {root}: looked for {folder.name}/, found {present}")
    # The folder also holds other methods' results, such as img_001_SRF_2_SRCNN.png.
    own = _selfexsr_images(folder, scale, "HR")
    if not own:
        raise ValueError(f"no images in {folder}: looked for names that end in _SRF_{scale}_HR")
    full_size = _full_size_images(root, scale, own)
    replaced = [name for name in own if full_size[name] != own[name]]
    if replaced:
        folders = sorted({full_size[name].parent.name for name in replaced})
        notes.append(
            f"{len(replaced)} of {len(own)} HR images of {root} are smaller in {folder.name} than "
            f"elsewhere, and are taken from {', '.join(folders)}; their LR images are made"
        )
    if wanted.lr_root is not None:
        return _with_lr_files(full_size, root, folder.name, wanted)
    lr_files = _selfexsr_images(folder, scale, "LR")
    if wanted.kind != "BI" or not lr_files or replaced:
        return [Pair(name, hr, None) for name, hr in full_size.items()]
    matched = {name: [lr_files[name]] if name in lr_files else [] for name in own}
    refuse_half_copied(matched, folder)
    return [Pair(name, hr, lr_files[name]) for name, hr in full_size.items()]


def _selfexsr_images(folder: Path, scale: int, kind: str) -> dict[str, Path]:
    """The images `<name>_SRF_<scale>_<kind>` of a folder by name."""
    ending = f"_SRF_{scale}_{kind}"
    found: dict[str, Path] = {}
    paths = [path for path in images_in(folder).values() if path.stem.endswith(ending)]
    for stem, path in by_stem(paths).items():
        found[stem.removesuffix(ending)] = path
    return found


def _full_size_images(root: Path, scale: int, own: Mapping[str, Path]) -> dict[str, Path]:
    """Each HR image from the folder where it is largest; its own where sizes are alike.

    Urban100 has half-size HR images in image_SRF_2. Sizes that differ by fewer pixels than the
    scale are of one image, whose borders were cut to a multiple of the scale.
    """
    others: dict[int, dict[str, Path]] = {}
    for folder in sorted(root.glob("image_SRF_*")):
        digits = folder.name.removeprefix("image_SRF_")
        if folder.is_dir() and digits.isdecimal() and int(digits) != scale:
            others[int(digits)] = _selfexsr_images(folder, int(digits), "HR")
    chosen: dict[str, Path] = {}
    for name, path in own.items():
        chosen[name] = path
        largest = image_size(path)
        for other_scale, images in others.items():
            size = image_size(images[name]) if name in images else None
            if size is None or largest is None:
                continue
            margin = max(scale, other_scale)
            if size[0] - largest[0] >= margin or size[1] - largest[1] >= margin:
                chosen[name] = images[name]
                largest = size
    return chosen


def _is_lr_of_realsr(stem: str) -> bool:
    """Whether a file's name without extension ends as those of RealSR's LR images do."""
    return "_lr" in stem.lower() and re.search(r"_LR\d*$", stem, re.IGNORECASE) is not None


def _realsr_names(images: Mapping[str, Path]) -> dict[str, Path]:
    """The HR images of a folder that holds HR and LR images, by the name without HR."""
    if not any(_is_lr_of_realsr(path.stem) for path in images.values()):
        return {}
    found: dict[str, Path] = {}
    paths = [path for path in images.values() if path.stem.lower().endswith("_hr")]
    for stem, path in by_stem(paths).items():
        found[stem[: -len("_hr")]] = path
    return found


def _realsr_pairs(root: Path, wanted: _Wanted) -> list[Pair]:
    images = images_in(root)
    if not images:  # RealSR has a folder for each scale
        root = root / f"{wanted.scale}"
        images = some_images_in(root)
    hr_images = _realsr_names(images)
    others = [
        path.name
        for path in images.values()
        if not re.search(r"_(HR|LR\d*)$", path.stem, re.IGNORECASE)
    ]
    if others:
        raise ValueError(
            f"{root} holds images NAME_HR and NAME_LR{wanted.scale}, and others that are neither: "
            f"{', '.join(others[:MAX_NAMED])}; move one kind away"
        )
    if wanted.lr_root is not None:
        return _with_lr_files(hr_images, root, "", wanted)
    by_lower_stem = {stem.lower(): path for stem, path in by_stem(images.values()).items()}
    matched: dict[str, list[Path]] = {}
    for name in hr_images:
        matched[name] = []
        for ending in (f"_lr{wanted.scale}", "_lr"):
            stem = name.lower() + ending
            if stem in by_lower_stem and not matched[name]:
                matched[name].append(by_lower_stem[stem])
    has_none = not any(matched.values())  # they are of another scale
    if has_none or wanted.kind != "BI":
        return [Pair(name, hr, None) for name, hr in hr_images.items()]
    refuse_half_copied(matched, root)
    return [Pair(name, hr, matched[name][0]) for name, hr in hr_images.items()]


def _nested_root(root: Path) -> Path | None:
    """The folder whose folders hold the images, as Manga109 has one for each title."""
    inside = root / "images"
    is_named_so = re.search("images|manga109", Path(os.path.abspath(root)).name, re.IGNORECASE)
    for place in (inside, root if is_named_so else None):
        if place is None or not place.is_dir():
            continue
        if images_in(place):
            return place
        if any(images_in(path) for path in folders_in(place)):
            return place
    return None


def _nested_pairs(root: Path, wanted: _Wanted) -> list[Pair]:
    place = _nested_root(root)
    assert place is not None
    images = images_in(place)
    for folder in folders_in(place):
        if not folder.name.startswith("."):
            refuse_lr_as_hr(folder.absolute(), images_in(folder))
            for name, path in images_in(folder).items():
                images[f"{folder.name}/{name}"] = path
    return _with_lr_files(images, root, "", wanted)


# --- lists of images


def _meta_lines(root: Path) -> list[str]:
    """The lines of the one file meta_info*.txt of a folder; none if there is no such file."""
    files = sorted(root.glob("meta_info*.txt"))
    if len(files) > 1:
        listed = ", ".join(path.name for path in files)
        raise ValueError(f"several lists of images in {root}: {listed}; leave one there")
    if not files:
        return []
    try:
        text = files[0].read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{files[0]} is no list of images in UTF-8: {error.reason}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _listed_pairs(root: Path) -> dict[str, tuple[Path, Path]]:
    """The HR and LR files of Real-ESRGAN's list by name; empty if there is no such list."""
    found: dict[str, tuple[Path, Path]] = {}
    for line in _meta_lines(root):
        parts = [part.strip() for part in line.split(", ")]
        are_files = [Path(part).suffix.lower() in EXTENSIONS for part in parts]
        if are_files != [True, True]:
            return {}
        hr, lr = parts
        name = Path(hr).stem
        found[hr if name in found else name] = (root / hr, root / lr)
    return found


def _pairs_of_list(root: Path, wanted: _Wanted) -> list[Pair]:
    listed = _listed_pairs(root)
    hr_images = {name: hr for name, (hr, _) in listed.items()}
    if wanted.lr_root is not None:
        return _with_lr_files(hr_images, root, "", wanted)
    if wanted.kind != "BI":
        return [Pair(name, hr, None) for name, hr in hr_images.items()]
    refuse_half_copied(
        {name: [lr] if lr.exists() else [] for name, (_, lr) in listed.items()}, root
    )
    return [Pair(name, hr, lr) for name, (hr, lr) in listed.items()]


def _of_meta_info(root: Path, images: dict[str, Path]) -> dict[str, Path]:
    """Return the images that BasicSR's list names, all of them if there is no list."""
    lines = _meta_lines(root)
    if not lines:
        return images
    # A line is the file, its shape and its number of channels, such as "a.png (480,480,3) 1".
    listed = {Path(line.split(" (")[0]).name for line in lines}
    missing = sorted(listed - {path.name for path in images.values()})
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(listed)} images of the list meta_info in {root} are missing: "
            f"{', '.join(missing[:5])}"
        )
    return {name: path for name, path in images.items() if path.name in listed}


# --- LR files


def _with_lr_files(
    images: Mapping[str, Path], root: Path, hr_name: str, wanted: _Wanted, *, prefix: str = ""
) -> list[Pair]:
    """Pair HR images with the LR files that are asked for, or with none if there are none."""
    scale = wanted.scale
    kind = wanted.kind
    if wanted.lr_root is not None:
        lr_folder = given_lr_folder(wanted.lr_root, scale)
        matched = match_lr_files(images, lr_folder, scale, kind)
        if not matched:
            raise ValueError(f"the LR images in {lr_folder} are not of scale {scale}")
    else:
        found = find_lr_folder(root, hr_name, scale, kind, prefix=prefix)
        matched = match_lr_files(images, found, scale, kind) if found is not None else {}
    pairs: list[Pair] = []
    for name, hr in images.items():
        lr_files = matched.get(name, [])
        if len(lr_files) > 1:  # the four variants of the track "wild"
            pairs += [Pair(lr.stem, hr, lr) for lr in lr_files]
        else:
            pairs.append(Pair(name, hr, lr_files[0] if lr_files else None))
    return pairs
