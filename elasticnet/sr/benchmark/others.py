"""Images that other methods have made of a benchmark's data sets, to be scored beside networks."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from elasticnet.sr.benchmark.kept_scores import digest_of_images
from elasticnet.sr.benchmark.scores import Image
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.data.read_rgb import EXTENSIONS, read_rgb

MAX_NAMED = 3  # missing images that a message names

logger = logging.getLogger(__name__)


class OtherImage(NamedTuple):
    """One image that another method has made.

    Attributes:
        path: Of the file.
        digest: `digest_of_images` of its pixels.
    """

    path: Path
    digest: str


class OtherMethod(NamedTuple):
    """All images of another method that a benchmark scores.

    Attributes:
        name: Its label in the tables.
        images: By data set, scale and the image's name.
    """

    name: str
    images: dict[tuple[str, int, str], OtherImage]

    def has(self, data: str, scale: int) -> bool:
        """Return whether there are images of a data set.

        Args:
            data: The data set's name.
            scale: At which it is loaded.
        """
        return any(key[:2] == (data, scale) for key in self.images)

    def scales(self) -> list[int]:
        """Return the scales of which there are images, smallest first."""
        return sorted({scale for _, scale, _ in self.images})


def find_others(
    name: str, folder: str | os.PathLike[str], sets: Sequence[tuple[str, PairSet]]
) -> OtherMethod:
    """Find what another method has made of data sets, and read every image once.

    Of a data set `Set5` at scale 4, the images lie in the first of these that holds any of them:
    `Set5/x4`, `x4/Set5`, `Set5`, `x4` (also with a capital X) or the folder itself. The file of an
    image `baby` is called `baby`, and after it may stand the scale (`x4`, `SRF_4`), `SR` and the
    method's name, as in `baby_x4.png`, `babyx4.png`, `baby_RCAN_x4.png` or `img_001_SRF_4_SR.png`.

    A data set of which there is no image is left out, which the log says.

    Args:
        name: The method's label in the tables.
        folder: Of its images.
        sets: (name, pairs) each, as `load_sets` gives them.

    Returns:
        The files, and digests of their pixels.

    Raises:
        NotADirectoryError: `folder` is no folder.
        ValueError: There is no image of any set, one is missing, two files could be meant, or one
            has another size than the true image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{name}: {folder} is not a folder of images")
    images: dict[tuple[str, int, str], OtherImage] = {}
    for data, pairs in sets:
        files = _files_of_set(name, root, data, pairs)
        if not files:
            logger.warning(
                "%s: %s has no image of %s x%d: not scored there", name, folder, data, pairs.scale
            )
            continue
        _refuse_missing(name, root, data, pairs, files)
        for index, image in enumerate(pairs.names):
            pixels = _read(name, files[image], pairs, index, data)
            digest = digest_of_images(pixels)
            images[data, pairs.scale, image] = OtherImage(files[image], digest)
    if not images:
        wanted = ", ".join(f"{data} x{pairs.scale}" for data, pairs in sets)
        first_data, first_pairs = sets[0]
        example = f"{first_pairs.names[0]}_x{first_pairs.scale}.png"
        raise ValueError(
            f"{name}: {folder} has no image of {wanted}: expected files such as {example} there or "
            f"in {first_data}/x{first_pairs.scale}"
        )
    return OtherMethod(name, images)


def _files_of_set(name: str, root: Path, data: str, pairs: PairSet) -> dict[str, Path]:
    """The file of each image of a set, in the first folder that holds any; empty without."""
    for folder in _folders_of_set(root, data, pairs.scale):
        files: dict[str, Path] = {}
        present = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
        for image in pairs.names:
            pattern = _pattern(image, pairs.scale, name)
            found = [path for path in present if pattern.fullmatch(path.stem)]
            if len(found) > 1:
                raise ValueError(
                    f"{name}: {found[0]} and {found[1].name} could both be {image} of {data} "
                    f"x{pairs.scale}: leave one"
                )
            if found:
                files[image] = found[0]
        if files:
            return files
    return {}


def _folders_of_set(root: Path, data: str, scale: int) -> Iterator[Path]:
    """Yield the folders that may hold a set's images, those that say most of it first."""
    lower, upper = f"x{scale}", f"X{scale}"
    candidates = [root / data / lower, root / data / upper, root / lower / data]
    candidates += [root / upper / data, root / data, root / lower, root / upper, root]
    for folder in candidates:
        if folder.is_dir():
            yield folder


def _pattern(image: str, scale: int, method: str) -> re.Pattern[str]:
    """What the name of an image's file may be, without its ending."""
    marks = "|".join((f"x{scale}", f"srf[_-]?{scale}", "sr", re.escape(method)))
    return re.compile(rf"{re.escape(image)}(?:[_-]?(?:{marks}))*", re.IGNORECASE)


def _refuse_missing(
    name: str, root: Path, data: str, pairs: PairSet, files: dict[str, Path]
) -> None:
    """Refuse a set of which some images are missing: its means would be over fewer images."""
    missing = [image for image in pairs.names if image not in files]
    if not missing:
        return
    named = ", ".join(missing[:MAX_NAMED])
    etc = ", ..." if len(missing) > MAX_NAMED else ""
    raise ValueError(
        f"{name}: {root} lacks {len(missing)} of the {len(pairs)} images of {data} x{pairs.scale} "
        f"({named}{etc}): means over the others would not compare"
    )


def _read(name: str, path: Path, pairs: PairSet, index: int, data: str) -> Image:
    """Read an image, and refuse one that has not the size of the true image."""
    pixels = read_rgb(path)
    height, width = pixels.shape[:2]
    expected_height, expected_width = pairs.hr(index).shape[:2]
    if (height, width) != (expected_height, expected_width):
        raise ValueError(
            f"{name}: {path} has {width}x{height} pixels: {pairs.names[index]} of {data} "
            f"x{pairs.scale} has {expected_width}x{expected_height}"
        )
    return pixels
