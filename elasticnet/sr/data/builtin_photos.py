"""The photographs that scikit-image carries: what is trained on where no data set is given."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np

from elasticnet.sr.data.read_rgb import read_rgb

# Of the stereo pair `motorcycle` only the left view is taken, so that no scene falls on two sides
# of a split. Drawings, test charts and out-of-focus frames are left out.
PHOTO_FILES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)

logger = logging.getLogger(__name__)


def scikit_image_photos() -> dict[str, np.ndarray]:
    """Return the photographs that scikit-image carries in its wheel, by name.

    The files are read directly, and nothing is ever downloaded.

    Returns:
        Name -> uint8 of shape (height, width, 3), RGB, 0..255, sorted by name.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        FileNotFoundError: It is installed, but none of the photographs is there.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            'the built-in photographs come with scikit-image: pip install "elastic-depth[train]"'
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    photos: dict[str, np.ndarray] = {}
    absent: list[str] = []
    for file_name in PHOTO_FILES:
        path = folder / file_name
        if path.is_file():
            photos[path.stem] = read_rgb(path)
        else:
            absent.append(file_name)
    if not photos:
        raise FileNotFoundError(
            f"none of scikit-image's photographs in {folder}; reinstall scikit-image"
        )
    if absent:
        logger.warning(
            "%d of %d photographs are not part of this scikit-image: %s",
            len(absent),
            len(PHOTO_FILES),
            ", ".join(absent),
        )
    return photos
