"""The photographs of scikit-image."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr.data import scikit_image_photos


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


def test_photographs_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "skimage" / "data"
    data.mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").touch()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(data / "astronaut.png")
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(scikit_image_photos()) == ["astronaut"]
    (message,) = caplog.messages
    assert message.startswith("14 of 15 photographs are not part of this scikit-image: brick.png")
