"""The photographs of scikit-image."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from elasticnet.sr.data import (
    scikit_image_photos,
)


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
