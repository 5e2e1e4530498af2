"""BasicSR's EDSR and RCAN are loaded strictly, and give what BasicSR's own networks give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basicsr_nets import BasicFrame, basic_edsr, basic_rcan
from elasticnet.sr.models.basicsr_keys import from_basicsr, has_basicsr_keys
from elasticnet.sr.models.convert import load_official
from elasticnet.sr.models.edsr import EDSR
from elasticnet.sr.models.rcan import RCAN

# A rounding of values near 0.5: BasicSR subtracts the mean before it multiplies by 255.
TOLERANCE = 2e-6


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_edsr_gives_what_it_gives_in_basicsr(scale: int, tmp_path: Path) -> None:
    theirs = basic_edsr(scale, num_blocks=3, channels=8)
    torch.save({"params_ema": theirs.state_dict()}, tmp_path / "edsr.pth")
    x = torch.rand(2, 3, 9, 12)

    ours = load_official(tmp_path / "edsr.pth", fold=False)

    assert len(ours.blocks) == 3
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_rcan_gives_what_it_gives_in_basicsr(scale: int, tmp_path: Path) -> None:
    theirs = basic_rcan(scale, num_groups=3, channels=8, group_size=2, reduction=4)
    torch.save({"params": theirs.state_dict()}, tmp_path / "rcan.pth")
    x = torch.rand(2, 3, 9, 12)

    ours = load_official(tmp_path / "rcan.pth", fold=False)

    assert len(ours.blocks) == 3
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_the_scale_of_residuals_is_given_where_no_tensor_tells_it() -> None:
    theirs = basic_edsr(2, num_blocks=2, channels=8, res_scale=0.1)
    x = torch.rand(1, 3, 9, 12)
    ours = load_official(theirs.state_dict(), fold=False, res_scale=0.1)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=TOLERANCE)
    assert not torch.allclose(load_official(theirs.state_dict())(x), theirs(x), atol=1e-3)


@pytest.mark.parametrize(
    ("theirs", "plain"),
    [
        (basic_edsr(4, 11, 4), EDSR(4, 11, 4)),
        (basic_rcan(3, 2, 8, 12, 4), RCAN(3, 2, 8, 12, 4)),
    ],
)
def test_the_names_are_those_of_the_authors(theirs: BasicFrame, plain: torch.nn.Module) -> None:
    state = theirs.state_dict()
    assert has_basicsr_keys(state)
    assert not has_basicsr_keys(plain.state_dict())
    plain.load_state_dict(from_basicsr(state), strict=True)


def test_other_networks_of_basicsr_are_refused_by_name() -> None:
    swin = {"conv_first.weight": torch.zeros(8, 3, 3, 3), "conv_after_body.weight": torch.zeros(1)}
    assert not has_basicsr_keys(swin)
    with pytest.raises(ValueError, match="expected the authors' or BasicSR's keys of EDSR or RCAN"):
        load_official(swin)


def test_a_tensor_too_many_is_named() -> None:
    state = {**basic_edsr(2, 2, 8).state_dict(), "conv_extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"unexpected: conv_extra\.weight"):
        load_official(state)
