"""`elasticnet convert`: networks of others become ours and back, and errors say what to give."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import elasticnet
from basicsr_nets import basic_edsr, basic_rcan
from elasticnet.checkpoint import read_header
from elasticnet.cli import main
from elasticnet.sr import asrn
from elasticnet.sr.models.carried import CARRIER, load_carried
from elasticnet.sr.models.edsr import EDSR


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error that the command ends with."""
    assert main(["convert", *words]) == 2
    return capsys.readouterr().err


@torch.no_grad()
def test_a_pth_of_others_becomes_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = basic_edsr(2, 3, 8)
    torch.save({"params": theirs.state_dict()}, "edsr.pth")

    assert main(["convert", "edsr.pth"]) == 0

    assert capsys.readouterr().out.startswith("edsr.safetensors: edsr(scale=2, num_blocks=3")
    net = elasticnet.load("edsr.safetensors")
    x = torch.rand(1, 3, 8, 9)
    torch.testing.assert_close(net(x), theirs(x), rtol=0, atol=2e-6)
    assert read_header("edsr.safetensors")["notes"] == {"converted_from": "edsr.pth"}


def test_safetensors_of_others_keep_their_file() -> None:
    save_file(EDSR(3, 2, 8).state_dict(), "edsr.safetensors")
    assert main(["convert", "edsr.safetensors"]) == 0
    assert elasticnet.load("edsr_elastic.safetensors").taps == (1, 2)


def test_depth_and_scale_of_residuals_are_taken() -> None:
    torch.save(EDSR(2, 3, 8).state_dict(), "edsr.pth")
    assert (
        main(["convert", "edsr.pth", "--depth", "2", "--res-scale", "0.5", "-o", "x.safetensors"])
        == 0
    )
    header = read_header("x.safetensors")
    assert header["taps"] == [1, 2]
    assert header["arguments"]["res_scale"] == 0.5


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_ours_become_the_authors_and_back(suffix: str) -> None:
    state = EDSR(2, 3, 8).state_dict()
    torch.save(state, "edsr.pth")
    assert main(["convert", "edsr.pth"]) == 0
    assert main(["convert", "edsr.safetensors", "--to", "authors", "-o", f"back{suffix}"]) == 0
    is_pickle = suffix == ".pth"
    back = torch.load("back.pth", weights_only=True) if is_pickle else load_file("back.safetensors")
    EDSR(2, 3, 8).load_state_dict(back, strict=True)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor)


def test_a_packaged_net_becomes_a_file_for_spandrel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "asrn-x4:published", "--to", "spandrel", "--depth", "2"]) == 0
    state = load_file("asrn-x4_published_spandrel.safetensors")
    assert load_carried(state).taps == (1, 2)
    content = io.BytesIO(state[CARRIER].numpy().tobytes())
    notes = read_header("asrn-x4:published")["notes"]
    assert read_header(content)["notes"] == {**notes, "converted_from": "asrn-x4:published"}
    assert "asrn(" in capsys.readouterr().out


def test_errors_name_what_is_wrong_and_write_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elasticnet.save(asrn(2, 2, 8), "ours.safetensors")
    torch.save(basic_rcan(2, 2, 8, 2, 4).state_dict(), "rcan.pth")
    torch.save({"other.weight": torch.zeros(3)}, "other.pth")
    before = sorted(path.name for path in place.iterdir())

    assert "ours.safetensors: no file of others; --to authors" in said(capsys, "ours.safetensors")
    assert "gone.safetensors: there is no such file" in said(capsys, "gone.safetensors")
    assert "missing: head.0.weight" in said(capsys, "other.pth")
    assert "absent.pth" in said(capsys, "absent.pth")
    refused = said(capsys, "rcan.pth", "--res-scale", "0.1")
    assert "--res-scale 0.1: rcan.pth is RCAN, whose blocks have none" in refused
    refused = said(capsys, "ours.safetensors", "--to", "spandrel", "--res-scale", "0.1")
    assert "--res-scale 0.1: ours.safetensors says itself" in refused
    refused = said(capsys, "rcan.pth", "-o", "x.pth")
    assert "-o x.pth: --to elasticnet writes a file that ends in .safetensors" in refused
    refused = said(capsys, "rcan.pth", "-o", "ours.safetensors")
    assert "ours.safetensors exists: give another name by -o, or --force" in refused
    assert "expected a net that edsr(), rcan()" in said(
        capsys, "ours.safetensors", "--to", "authors"
    )

    assert sorted(path.name for path in place.iterdir()) == before
