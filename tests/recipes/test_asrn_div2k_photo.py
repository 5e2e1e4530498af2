"""The recipe with --degradation photo: JPEG for each patch, validated at several qualities."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import elasticnet
from elasticnet.checkpoint import read_header
from elasticnet.sr import asrn
from tiny_training import trained_log

TINY = ["--num-blocks", "2", "--channels", "8", "--patch-size", "8", "--batch-size", "2"]
TINY += ["--eval-every", "2", "--log-every", "2", "--num-valid", "1", "--degradation", "photo"]
TINY += ["--preset", "demo", "--no-tensorboard", "--precision", "float32", "--device", "cpu"]
TINY += ["--no-figures", "--no-costs"]  # most of the time of a run as small as this
QUALITIES = ("clean", "q30", "q50", "q75", "q90")


def train(recipe: ModuleType, photos: Path, folder: Path, *options: object) -> list[dict[str, Any]]:
    """Run the recipe and return the lines of its log."""
    return trained_log(recipe, TINY, photos, folder, *options)


def test_every_quality_is_validated_and_their_mean_chooses_the_best(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    lines = train(recipe, photos, folder, "--steps", 2)

    for depth, mean in lines[-1]["psnr"].items():
        of_depth = [lines[-1][f"psnr_{name}"][depth] for name in QUALITIES]
        assert mean == pytest.approx(sum(of_depth) / len(of_depth))
        assert len(set(of_depth)) == len(QUALITIES)
    kept = read_header(folder / "best.safetensors")["notes"]["psnr"]
    assert list(kept.values()) == pytest.approx(list(lines[-1]["psnr"].values()))
    table = json.loads((folder / "table.json").read_text())
    assert [row["psnr"] for row in table["rows"]] == pytest.approx(
        list(lines[-1]["psnr_clean"].values())
    )
    of_q30 = [row for row in table["compressed"] if row["data"] == "validation-q30"]
    bicubic_row, *rows = of_q30
    assert bicubic_row["network"] == "bicubic"
    assert [row["psnr"] for row in rows] == pytest.approx(list(lines[-1]["psnr_q30"].values()))
    assert "JPEG quality 75:" in (folder / "table.md").read_text()


def test_a_resumed_run_ends_with_the_same_bits(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    train(recipe, photos, tmp_path / "straight", "--steps", 4)
    train(recipe, photos, tmp_path / "cut", "--steps", 2)
    recipe.main(recipe.parse(["--resume", str(tmp_path / "cut"), "--steps", "4"]))
    straight = elasticnet.load(tmp_path / "straight" / "last.safetensors").state_dict()
    resumed = elasticnet.load(tmp_path / "cut" / "last.safetensors").state_dict()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


def test_patches_are_compressed_and_earlier_weights_are_the_start(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.safetensors"
    elasticnet.save(asrn(2, 2, 8, skip="bicubic"), earlier)
    with_jpeg = train(recipe, photos, tmp_path / "a", "--steps", 2, "--init", earlier)
    without = train(
        recipe, photos, tmp_path / "b", "--steps", 2, "--init", earlier, "--degradation", "BI"
    )
    # Step 0 is the start: the same weights on the same images as they are.
    assert with_jpeg[0]["psnr_clean"] == without[0]["psnr"]
    assert with_jpeg[0]["psnr"] != without[0]["psnr"]
    # Both train on the same crops, with JPEG in front or not.
    assert with_jpeg[-1]["total"] != without[-1]["total"]


def test_a_share_of_the_patches_stays_as_it_is(
    recipe: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_clean = train(recipe, photos, tmp_path / "a", "--steps", 2, "--uncompressed-share", 1)
    assert "or none (100%)" in capsys.readouterr().out
    bicubic = train(recipe, photos, tmp_path / "b", "--steps", 2, "--degradation", "BI")
    default = train(recipe, photos, tmp_path / "c", "--steps", 2)
    a_fifth = train(recipe, photos, tmp_path / "d", "--steps", 2, "--uncompressed-share", 0.2)
    assert all_clean[-1]["total"] == bicubic[-1]["total"]
    assert default[-1]["total"] == a_fifth[-1]["total"] != bicubic[-1]["total"]


def test_the_range_of_qualities_can_be_given(
    recipe: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default = train(recipe, photos, tmp_path / "a", "--steps", 2)
    written_out = ("--lowest-quality", 30, "--highest-quality", 95)
    same = train(recipe, photos, tmp_path / "b", "--steps", 2, *written_out)
    capsys.readouterr()
    low = train(recipe, photos, tmp_path / "c", "--steps", 2, "--highest-quality", 40)
    assert "JPEG of quality 30 to 40 or none (20%)" in capsys.readouterr().out
    assert same[-1]["total"] == default[-1]["total"] != low[-1]["total"]
