"""A folder of small photographs, which the tests of the recipes train on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from elasticnet.sr.data import scikit_image_photos


def small_photos(folder: Path, num_photos: int, height: int, width: int) -> Path:
    """Return a new flat folder with pieces of this size of the first packaged photographs."""
    folder.mkdir()
    photos = list(scikit_image_photos().items())
    for name, image in photos[:num_photos]:
        Image.fromarray(image[:height, :width]).save(folder / f"{name}.png")
    return folder
