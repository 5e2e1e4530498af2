"""The packaged weights: found by scale, missing ones named with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from elasticnet import load, save
from elasticnet.sr import asrn
from elasticnet.sr.pretrained import WEIGHTS, weights_file


def test_weights_are_found_by_scale(tmp_path: Path) -> None:
    save(asrn(3, num_blocks=1, channels=8), tmp_path / "asrn_x3.safetensors")
    assert weights_file(3, tmp_path) == tmp_path / "asrn_x3.safetensors"
    assert load(weights_file(3, tmp_path)).taps == (1,)
    with pytest.raises(
        ValueError, match="scale 2: weights are packaged for 3; name a checkpoint of your own with --wei"
    ):
        weights_file(2, tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale 4: no weights are packaged yet; name a checkpoint of your own"):
        weights_file(4, tmp_path)


def test_the_package_has_a_place_for_them() -> None:
    assert WEIGHTS.parts[-3:] == ("elasticnet", "sr", "weights")
    with pytest.raises(ValueError, match=r"scale 7: .*--weights"):
        weights_file(7)
