"""The packaged weights: what docs/results/ says of them is true of these very files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticnet import load
from elasticnet.checkpoint import read_header
from elasticnet.cli import main
from elasticnet.sr import Upscaler, asrn
from elasticnet.sr.benchmark import benchmark, evaluate, load_sets, scale_of
from elasticnet.sr.data import pairs_from_arrays, scikit_image_photos
from elasticnet.sr.models.pretrained import WEIGHTS

RESULTS = Path(__file__).parents[3] / "docs" / "results"
FILES = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def weights(request) -> Path:
    return request.param


@pytest.fixture
def record(weights) -> dict:
    return json.loads(
        (RESULTS / f"{weights.stem.removeprefix('asrn_').replace('_', '-')}.json").read_text()
    )


def test_each_has_its_model_card_and_nothing_else_lies_there():
    cards = (RESULTS.parent / "models.md").read_text()
    files = [path.name for path in WEIGHTS.iterdir() if not path.name.startswith(".")]
    files.remove("dtype_losses.json")  # what each loses in a narrower dtype
    assert {f"asrn_x{scale}.safetensors" for scale in (2, 3, 4)} <= {*files}
    assert sorted(re.findall(r"^## `(.*)`$", cards, re.MULTILINE)) == sorted(files)


def test_they_are_small_and_know_their_scale(weights, record):
    net = load(weights)
    assert weights.stat().st_size < 1.2 * 2**20
    assert f"asrn_x{scale_of(net)}" in weights.stem
    assert scale_of(net) == record["options"]["scale"]
    assert net.taps == (1, 2, 3, 4, 5)
    assert (net.head.skip is None) == ("published" in weights.stem)


def test_every_depth_beats_bicubic_on_a_photograph_and_depth_pays(weights):
    photo = scikit_image_photos()["coffee"][100:340, 100:340]
    net = load(weights)
    pairs = pairs_from_arrays({"coffee": photo}, scale_of(net))
    baseline, *rows = benchmark([("net", net)], [("coffee", pairs)], costs=False).rows
    gains = [row.psnr - baseline.psnr for row in rows]
    assert min(gains) == gains[0] > 1
    assert gains[-1] > gains[0] + 0.2


def test_they_are_the_best_step_of_the_run_that_the_results_record(weights, record):
    notes = read_header(weights)["notes"]
    if "interpolated" in record:  # it lies on the way to the best step (recipes/interpolate.py)
        assert notes["interpolated"] == record["interpolated"]
        notes = notes["interpolated"]["tuned_notes"]
    # a run that starts from trained weights scores them first, as step 0; it does not keep them
    validations = [line for line in record["scores"] if line["step"] > 0]
    best = max(validations, key=lambda line: sum(line["psnr"].values()))
    assert (notes["step"], notes["psnr"]) == (best["step"], best["psnr"])


@pytest.mark.parametrize("scale", [2, 4])
def test_those_for_compressed_photographs_keep_what_they_promise(scale):
    photo, clean = recorded_scores(f"x{scale}-photo"), recorded_scores(f"x{scale}")
    compressed = [data for data, depth in photo if "-q" in data and depth is None]
    assert {f"B100-q{quality}" for quality in (30, 50, 75, 90)} <= {*compressed}
    assert {"Set5-q30", "Urban100-q30"} <= {*compressed}
    for depth in (1, 2, 3, 4, 5):
        for data in compressed:
            assert photo[data, depth] > photo[data, None], f"{data}, depth {depth}: bicubic"
        for data in ("Set5", "Set14", "B100", "Urban100"):
            loss = clean[data, depth] - photo[data, depth]
            assert loss <= 0.15, f"{data} as it is, depth {depth}: {loss:.3f} dB lost"


def recorded_scores(name: str) -> dict[tuple[str, int | None], float]:
    """Return PSNR by data set and depth; that of bicubic interpolation is without depth."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["sets"]
    return {(row["data"], row["depth"]): row["psnr"] for row in rows}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_command_takes_them(scale, tmp_path):
    photo = scikit_image_photos()["coffee"][100:130, 100:140]
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(photo).save(small)
    assert (
        main(["upscale", str(small), "-o", str(large), "--scale", str(scale), "--depth", "2"]) == 0
    )
    expected = Upscaler(asrn(scale, pretrained=True, depth=2))(photo)
    assert np.array_equal(np.asarray(Image.open(large)), expected)


def test_scores_on_set5_are_those_of_the_results(weights, record, data_dir, tmp_path):
    net = load(weights)
    ((_, pairs),) = load_sets(
        [data_dir / "benchmark" / "Set5"], [scale_of(net)], cache_dir=tmp_path, progress=False
    )
    kept = {row["depth"]: row for row in record["sets"] if row["data"] == "Set5" and row["depth"]}
    scores = evaluate(net, pairs)
    assert scores.keys() == kept.keys()
    for depth, found in scores.items():
        assert found.psnr == pytest.approx(kept[depth]["psnr"], abs=0.005)
        assert found.ssim == pytest.approx(kept[depth]["ssim"], abs=0.0005)
