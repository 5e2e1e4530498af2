"""The packaged weights: found by scale, missing ones named with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elasticnet import load, save
from elasticnet.sr import asrn
from elasticnet.sr.models import pretrained
from elasticnet.sr.models.pretrained import WEIGHTS, variant_for, weights_file


def test_weights_are_found_by_scale(tmp_path: Path) -> None:
    save(asrn(3, num_blocks=1, channels=8), tmp_path / "asrn_x3.safetensors")
    assert weights_file(3, tmp_path) == tmp_path / "asrn_x3.safetensors"
    assert load(weights_file(3, tmp_path)).taps == (1,)
    with pytest.raises(
        ValueError,
        match=r"scale 2: weights are packaged for 3; take a checkpoint of your own \(--weights",
    ):
        weights_file(2, tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="scale 4: no weights are packaged; take a checkpoint of your own"
    ):
        weights_file(4, tmp_path)


def test_the_package_has_a_place_for_them() -> None:
    assert WEIGHTS.parts[-3:] == ("elasticnet", "sr", "weights")
    with pytest.raises(ValueError, match=r"scale 7: .*--weights"):
        weights_file(7)


def test_asrn_takes_them_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, published = (
        asrn(3, num_blocks=3, channels=8, skip="bicubic"),
        asrn(3, num_blocks=2, channels=8),
    )
    save(default, tmp_path / "asrn_x3.safetensors")
    save(published, tmp_path / "asrn_x3_published.safetensors")
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    x = torch.rand(1, 3, 5, 7)
    for depth in (1, 2, 3):
        net = asrn(3, pretrained=True, depth=depth)
        assert len(net.blocks) == depth
        assert not net.training
        assert torch.equal(net(x), default.eval()(x, depth=depth))
    assert torch.equal(asrn(scale=3, pretrained="published")(x), published.eval()(x))
    with pytest.raises(
        ValueError, match=r"scale 2 \(published\): weights are packaged for 3; take"
    ):
        asrn(2, pretrained="published")


def test_asrn_refuses_what_the_file_decides() -> None:
    with pytest.raises(
        ValueError,
        match=r"asrn\(pretrained=True, channels=64, skip='bicubic'\): leave out what the file",
    ):
        asrn(4, channels=64, skip="bicubic", pretrained=True)
    with pytest.raises(
        ValueError, match="pretrained weights 'best': expected one of default, photo, published"
    ):
        asrn(4, pretrained="best")
    assert asrn(4, channels=8, num_blocks=1, pretrained=None).training
    with pytest.raises(ValueError, match="depth 2: only with pretrained=True"):
        asrn(4, depth=2)


@pytest.mark.parametrize(
    ("image_format", "scale", "variant"),
    [
        ("JPEG", 4, "photo"),
        ("MPO", 4, "photo"),
        ("JPEG", 2, "default"),  # there are no such weights for x2
        ("PNG", 4, "default"),
        (None, 4, "default"),
    ],
)
def test_a_jpeg_image_gets_the_weights_for_photographs_where_there_are_some(
    tmp_path: Path, image_format: str | None, scale: int, variant: str
) -> None:
    for name in ("asrn_x2", "asrn_x4", "asrn_x4_photo"):
        (tmp_path / f"{name}.safetensors").touch()
    found = variant_for(image_format, scale, tmp_path)
    assert found == variant
    assert weights_file(scale, tmp_path, found).exists()
