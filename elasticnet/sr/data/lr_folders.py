"""LR images beside HR images: which folders hold them, and which file belongs to which HR image.

The names are those of DIV2K, BasicSR (`GTmod12`, `LRbicx4`, `X4_sub`), neosr and traiNNer (`hr`,
`lr`, `gt`, `lq`) and KAIR (`trainH`, `trainL`). Upper and lower case are the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from elasticnet.sr.data.image_files import (
    by_stem,
    folders_and_links_in,
    folders_in,
    images_in,
    is_broken_link,
)

TRACKS = ("bicubic", "unknown", "mild", "difficult", "wild", "x8")  # of DIV2K's LR images
# Behind the scale in the names of DIV2K's files: 0001x4m.png, 0001x4w1.png.
TRACK_LETTERS = {"mild": "m", "difficult": "d", "wild": "w"}
# What a word in a folder's name says of how its LR images were made.
KIND_OF_WORD = {
    "bicubic": "BI",
    "bic": "BI",
    "bi": "BI",
    "bd": "BD",
    "blur": "BD",
    "dn": "DN",
    "noise": "DN",
    "haze": "HAZE",
    "hazy": "HAZE",
    "unknown": "unknown",
    "mild": "mild",
    "difficult": "difficult",
    "wild": "wild",
}
# Words that say nothing of how LR images were made.
EMPTY_WORDS = {"sub", "images", "image", "imgs", "img", "png"}
WHOLE_LR_NAMES = {"l", "low"}
HAZY_FOLDER = "hazy"  # of degraded images at equal size, beside GT: O-HAZE, I-HAZE, Dense-Haze
WHOLE_HR_NAMES = {"h", "high"}
# The same words written out: low_res, lowresolution, high-res, ground_truth.
LONG_WORDS = {
    re.compile(r"(?<![a-z])low[ _-]?res(olution)?s?"): "lr",
    re.compile(r"(?<![a-z])high[ _-]?res(olution)?s?"): "hr",
    re.compile(r"(?<![a-z])ground[ _-]?truths?"): "gt",
}
# A scale may stand in front of LR or behind it, with an x on either side: x4, 4x, 4.
LR_WORD = re.compile(
    r"(?:x?(?P<before>\d+)x?)?(?:lr|lq)(?P<kind>[a-z]*?)(?:x?(?P<behind>\d+)x?)?"
    r"|(?:train|valid|val|test)l"
)
HR_WORD = re.compile(r"(?:x?\d+x?)?(?:hr|gt|hq)(?:mod)?(?:x?\d+x?)?|(?:train|valid|val|test)h")
SCALE_WORD = re.compile(r"(?P<kind>[a-z]*?)x?(?P<behind>\d+)x?")
SCALE_ENDING = re.compile(r"[_-]?(?:LR)?x?[2348][mdw]?\d?$")  # of the names of LR files
LR_STEM = re.compile(r"(.*?)[_-]?(?:x[2348][mdw]?\d?|[_-]l[rq](?:bi)?x?[2348]?(?:_x[2348])?)")
LR_FILE_NAME = re.compile(r"\d{4}x[2348][mdw]?\d?")  # of DIV2K
OTHER_SCALES = (2, 3, 4, 8)  # that data sets have LR images of
MAX_NAMED = 5  # files that one message names


class LrFolder(NamedTuple):
    """What the name of a folder of LR images says.

    Attributes:
        scale: Side of an HR image over the side of its LR image; None if the name has none.
        kind: "BI", "BD", "DN", "HAZE" or a track of DIV2K; "BI" where the name does not say.
        says_kind: Whether the name does say.
        strange: Words that say something else.
    """

    scale: int | None
    kind: str
    says_kind: bool
    strange: list[str]


def looks_like_lr(name: str) -> bool:
    """Return whether a folder of this name holds LR images.

    Args:
        name: The last part of the folder's path.
    """
    if name.lower() in WHOLE_LR_NAMES or name.lower() == HAZY_FOLDER:
        return True
    return any(LR_WORD.fullmatch(word) for word in _words(name))


def looks_like_hr(name: str) -> bool:
    """Return whether a folder of this name holds HR images, and stands beside LR images.

    Args:
        name: The last part of the folder's path.
    """
    if looks_like_lr(name):
        return False
    if name.lower() in WHOLE_HR_NAMES:
        return True
    return any(HR_WORD.fullmatch(word) for word in _words(name))


def refuse_lr_as_hr(folder: Path, images: Mapping[str, Path]) -> None:
    """Raise if a folder whose images would be taken for HR holds LR images.

    Args:
        folder: An absolute path.
        images: The image files in it, by name.

    Raises:
        ValueError: The name of the folder, of a folder `X4` and the one above it, or of all files
            is one of LR images.
    """
    is_lr = looks_like_lr(folder.name)
    if re.fullmatch(r"x?\d+(_sub)?", folder.name.lower()):
        is_lr = is_lr or looks_like_lr(folder.parent.name)
    if images and all(LR_FILE_NAME.fullmatch(path.stem) for path in images.values()):
        is_lr = True
    if is_lr:
        raise ValueError(
            f"{folder} holds LR images by its name, or by the names of its files, and they would "
            "be taken for HR; give the folder of HR images as the data set and this one as "
            "--data-lr, or rename it"
        )


def find_lr_folder(
    parent: Path, hr_name: str, scale: int, kind: str, *, prefix: str = ""
) -> Path | None:
    """Return the folder of the LR images that are asked for, None if there is none.

    LR images of another scale, of DIV2K's other tracks, and of another degradation are passed over.

    Args:
        parent: Where the folders of LR images lie.
        hr_name: The name of the folder of HR images; words that both have say nothing.
        scale: Side of an HR image over the side of its LR image.
        kind: "BI", "BD", "DN", "HAZE" or a track of DIV2K.
        prefix: What the folders' names begin with; others do not belong to these HR images.

    Returns:
        The folder that holds the image files themselves.

    Raises:
        ValueError: A folder looks like LR images and could not be asked for, is a link that leads
            nowhere, or two are what is asked for.
    """
    found = _named_by_scale_alone(parent, scale) if hr_name else []
    for folder in lr_folders_in(parent):
        if not folder.name.startswith(prefix):
            continue
        if is_broken_link(folder):
            raise ValueError(f"{folder} is a link that leads nowhere, to LR images by its name")
        described = _described(folder.name, hr_name)
        if described.strange:
            words = ", ".join(repr(word) for word in described.strange)
            raise ValueError(
                f"{folder.name} in {parent} looks like LR images, and would not be used: "
                f"{words} is no scale, no degradation and no track that is known; to use it, give "
                "--data-lr DIR with the folder of HR images as --data, otherwise move it away"
            )
        if described.kind != kind or described.scale not in (None, scale):
            continue
        images_folder = _of_scale(folder, scale, prefers_sub="sub" in _words(hr_name))
        if images_folder is not None:
            found.append(images_folder)
    if len(found) > 1:
        listed = ", ".join(str(folder.relative_to(parent)) for folder in found)
        raise ValueError(
            f"several folders of LR images at scale {scale} in {parent}: {listed}; give one by "
            "--data-lr, or move the others away"
        )
    return found[0] if found else None


def _named_by_scale_alone(parent: Path, scale: int) -> list[Path]:
    """The folders of the name `X4` or `x4`."""
    return [path for path in folders_in(parent) if path.name.lower() == f"x{scale}"]


def lr_folders_in(parent: Path) -> list[Path]:
    """Return the folders that look like LR images, and links that lead nowhere of such names.

    Args:
        parent: An existing folder.
    """
    found: list[Path] = []
    for path in folders_and_links_in(parent):
        is_hidden = path.name.startswith(".")
        if looks_like_lr(path.name) and not is_hidden and (path.is_dir() or _may_be_folder(path)):
            found.append(path)
    return found


def unlabelled_lr_folders(parent: Path, scale: int) -> list[Path]:
    """Return folders of LR images at a scale whose names do not say how they were made.

    They are taken for bicubic ones, and are therefore passed over where other ones are asked for.

    Args:
        parent: Where the folders of LR images lie.
        scale: Side of an HR image over the side of its LR image.
    """
    found: list[Path] = []
    for folder in lr_folders_in(parent):
        described = _described(folder.name, hr_name="")
        is_of_scale = described.scale in (None, scale)
        if is_of_scale and not described.says_kind and not described.strange:
            found.append(folder)
    return found


def given_lr_folder(folder: Path, scale: int) -> Path:
    """Return the folder with the image files in a folder of LR images that the user gave.

    Args:
        folder: With image files, or with a folder for each scale, such as `X4`.
        scale: Side of an HR image over the side of its LR image.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image files.
    """
    if not folder.is_dir():
        kind = "is a file, expected a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"LR images {folder} {kind}")
    inside = _of_scale(folder, scale, prefers_sub=False)
    if inside is None or not images_in(inside):
        raise ValueError(f"no LR images of scale {scale} found: looked in {folder} and X{scale}/")
    return inside


def match_lr_files(
    images: Mapping[str, Path], lr_folder: Path, scale: int, kind: str
) -> dict[str, list[Path]]:
    """Return the LR files of each HR image: one, or of the track "wild" several.

    An LR file has its HR file's name, with or without the scale (`0001x4`, `0001_x4`), a letter
    for the track (`0001x4m`), or LR in the place of HR (`a_HR`, `a_LR4`).

    Args:
        images: The HR files by name.
        lr_folder: Holds the LR files.
        scale: Side of an HR image over the side of its LR image.
        kind: "BI", "BD", "DN", "HAZE" or a track of DIV2K.

    Returns:
        LR files by the name of the HR image; empty where all of them are of another scale.

    Raises:
        ValueError: Some are missing, and the message counts them; or two HR images have one file.
    """
    lr_files = _LrFiles(lr_folder)
    matched = {name: lr_files.of(path.stem, scale, kind) for name, path in images.items()}
    nothing_fits = not any(matched.values())
    if nothing_fits and _are_named_for_another_scale(images, lr_files, kind):
        return {}
    if _is_of_another_scale(images, matched, scale):
        return {}
    refuse_half_copied(matched, lr_folder)
    _refuse_shared_files(matched)
    return matched


def refuse_half_copied(matched: Mapping[str, Sequence[Path]], lr_folder: Path) -> None:
    """Raise if HR images have no LR file.

    Args:
        matched: The LR files by the name of the HR image.
        lr_folder: Where they were looked for.

    Raises:
        ValueError: At least one has none; the message counts them and names the first ones.
    """
    missing = [name for name, files in matched.items() if not files]
    if not missing:
        return
    named = ", ".join(missing[:MAX_NAMED])
    more = ", ..." if len(missing) > MAX_NAMED else ""
    raise ValueError(
        f"{len(missing)} of {len(matched)} LR images are missing in {lr_folder}: those of {named}"
        f"{more}; copy them there, or move the folder away so that all are made of the HR images"
    )


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height by the file's header alone, None where it cannot be read.

    Args:
        path: An image file.
    """
    try:
        image = Image.open(path)
        with image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return width, height


def _words(name: str) -> list[str]:
    """The words of a folder's name in small letters, those that are written out in short."""
    name = name.lower()
    for long_word, short_word in LONG_WORDS.items():
        name = long_word.sub(short_word, name)
    return [word for word in re.split(r"[^a-z0-9]+", name) if word]


def _described(name: str, hr_name: str) -> LrFolder:
    """What the name of a folder of LR images says of them."""
    scale: int | None = None
    kind = "BI"
    says_kind = False
    strange: list[str] = []
    says_nothing = EMPTY_WORDS | set(_words(hr_name)) | WHOLE_LR_NAMES
    for word in _words(name):
        if word in says_nothing:
            continue
        # "lrbicx4" is "bic" and 4, as are "bicx4" and, in two words, "bic" and "x4".
        match = LR_WORD.fullmatch(word) or SCALE_WORD.fullmatch(word)
        kind_word: str | None = word
        digits: str | None = None
        if match is not None:
            found = match.groupdict()
            kind_word = found["kind"]
            digits = found.get("before") or found["behind"]
        if kind_word and kind_word not in KIND_OF_WORD:
            strange.append(word)
            continue
        if kind_word:
            kind = KIND_OF_WORD[kind_word]
            says_kind = True
        if digits:
            scale = int(digits)
    return LrFolder(scale, kind, says_kind, strange)


def _of_scale(folder: Path, scale: int, *, prefers_sub: bool) -> Path | None:
    """The folder itself if it has image files or nothing; inside it, the one of this scale."""
    inside = {path.name.lower(): path for path in folders_in(folder)}
    names = [f"x{scale}", f"{scale}", f"lr_x{scale}", f"x{scale}_sub"]
    if prefers_sub:
        names.reverse()
    for name in names:
        if name in inside:
            return inside[name]
    has_other_scales = any(re.fullmatch(r"(lr_)?x?\d+(_sub)?", name) for name in inside)
    if has_other_scales and not images_in(folder):
        return None
    return folder


class _LrFiles:
    """The image files of a folder of LR images, to be found by the names of HR images."""

    def __init__(self, folder: Path) -> None:
        self._by_stem = by_stem(images_in(folder).values())
        self._by_lower_stem = {stem.lower(): path for stem, path in self._by_stem.items()}

    def of(self, hr_stem: str, scale: int, kind: str) -> list[Path]:
        """The LR files of an HR image: at most one, or of the track "wild" several."""
        letter = TRACK_LETTERS.get(kind, "")
        if kind == "wild":
            variants = [self._find(f"{hr_stem}x{scale}{letter}{number}") for number in range(1, 10)]
            found = [path for path in variants if path is not None]
            if found:
                return found
        for stem in _lr_stems(hr_stem, scale, kind, letter):
            path = self._find(stem)
            if path is not None:
                return [path]
        return []

    def _find(self, stem: str) -> Path | None:
        """The file of this name; one whose letters are of another case only if there is no such."""
        return self._by_stem.get(stem) or self._by_lower_stem.get(stem.lower())


def _lr_stems(hr_stem: str, scale: int, kind: str, letter: str) -> Iterator[str]:
    """Yield the names that an HR image's LR file may have, the likeliest first.

    A scale stands behind an x or behind LR, as 14 is not 1 at scale 4.
    """
    # DRealSR has a_x1 and a_x4, RCAN's sets a_HR_x4 and a_LRBI_x4, O-HAZE a_GT and a_hazy.
    without_hr = re.sub(r"[_-]((hr|gt|h)(_x\d)?|x1)$", "", hr_stem, flags=re.IGNORECASE)
    for base in dict.fromkeys([hr_stem, without_hr]):
        for ending in ("", f"x{scale}{letter}", f"_x{scale}{letter}", f"-x{scale}{letter}"):
            yield base + ending
        for lr_word in ("_lr", "-lr", "_lq", "-lq", "_l", "_hazy", f"_lr{kind}"):
            for ending in ("", f"{scale}", f"x{scale}", f"_x{scale}"):
                yield base + lr_word + ending


def _refuse_shared_files(matched: Mapping[str, Sequence[Path]]) -> None:
    """Raise if two HR images have the same LR file."""
    owners: dict[Path, str] = {}
    for name, files in matched.items():
        for path in files:
            if path in owners:
                raise ValueError(
                    f"{path} belongs to two HR images by its name, {owners[path]} and {name}; "
                    "rename one"
                )
            owners[path] = name


def _are_named_for_another_scale(images: Mapping[str, Path], lr_files: _LrFiles, kind: str) -> bool:
    """Whether an HR image has LR files whose name has another scale."""
    for path in images.values():
        if any(lr_files.of(path.stem, scale, kind) for scale in OTHER_SCALES):
            return True
    return False


def _is_of_another_scale(
    images: Mapping[str, Path], matched: Mapping[str, Sequence[Path]], scale: int
) -> bool:
    """Whether all pairs are those of another scale, by the sizes of their files.

    A pair of equal sizes does not count as one of another scale: it is refused when it is read. So
    is a pair of another scale among pairs of this one.
    """
    has_another_scale = False
    for name, files in matched.items():
        if not files:
            continue
        hr_size = image_size(images[name])
        lr_size = image_size(files[0])
        if hr_size is None or lr_size is None:
            continue
        ratios = {round(high / low) for high, low in zip(hr_size, lr_size, strict=True)}
        has_another_scale = len(ratios) == 1 and scale not in ratios and min(ratios) > 1
        if not has_another_scale:
            return False
    return has_another_scale


def lr_files_without_hr(lr_files: Sequence[Path]) -> list[Path]:
    """Return the image files beside some LR files that belong to no HR image.

    Args:
        lr_files: Of one folder, each of an HR image.

    Returns:
        The others; those of the same HR images at other scales are not among them.
    """
    used = {SCALE_ENDING.sub("", path.stem) for path in lr_files}
    others: list[Path] = []
    for path in images_in(lr_files[0].parent).values():
        if path not in lr_files and SCALE_ENDING.sub("", path.stem) not in used:
            others.append(path)
    return others


def refuse_mixed_images(folder: Path, images: Mapping[str, Path]) -> None:
    """Raise if images that would all be taken for HR are HR and LR images by their names.

    Args:
        folder: Where they lie.
        images: The image files in it, by name.

    Raises:
        ValueError: The name of one is that of another with a scale, or with LR, behind it.
    """
    by_lower_stem = {path.stem.lower(): path for path in images.values()}
    for stem, path in by_lower_stem.items():
        found = LR_STEM.fullmatch(stem)
        if found is None:
            continue
        for hr_stem in (found[1], f"{found[1]}_hr", f"{found[1]}_gt", f"{found[1]}_x1"):
            if hr_stem in by_lower_stem:
                raise ValueError(
                    f"{folder} holds {by_lower_stem[hr_stem].name} and {path.name}, HR and LR "
                    "images by their names, and all would be taken for HR; move the LR images "
                    "into a folder of their own, and give it by --data-lr"
                )


def _may_be_folder(path: Path) -> bool:
    """Whether a link that leads nowhere may have led to a folder: its name has no ending."""
    return is_broken_link(path) and not path.suffix
