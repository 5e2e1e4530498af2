"""The page of results: every number comes from docs/results/, and the page is up to date with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import skimage.data
import torch
from PIL import Image

from elasticnet import save
from elasticnet.options import as_json
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate, evaluate_bicubic
from elasticnet.sr.data import load_pairs
from loading import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path, monkeypatch) -> ModuleType:
    """The recipe, working on a copy of docs/."""
    module = load_recipe("results")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "results.md", tmp_path / "docs")
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def test_the_page_is_up_to_date(results, capsys):
    assert results.main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_measurement_is_noticed_and_written(results, tmp_path, capsys):
    file = tmp_path / "docs" / "results" / "denoise.json"
    record = json.loads(file.read_text())
    record["table"]["rows"][-1]["psnr"] = 47.114
    file.write_text(json.dumps(record))
    assert results.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert results.main([]) == 0
    assert "| 47.11 |" in (tmp_path / "docs" / "results.md").read_text()
    assert results.main(["--check"]) == 0


def test_a_lost_marker_is_an_error_that_names_its_section(results, tmp_path):
    page = tmp_path / "docs" / "results.md"
    page.write_text(page.read_text().replace("<!-- end: growth -->", ""))
    with pytest.raises(ValueError, match="markers of section 'growth'"):
        results.main([])


def test_a_run_is_taken_without_the_paths_of_its_machine(results, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text(json.dumps({"data": str(tmp_path / "photos"), "valid": None, "steps": 3}))
    lines = [
        {"step": 1, "seconds": 0.5},
        {"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}, "total": 0.1, "routine": 0.1},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "table.json").write_text(json.dumps({"rows": []}))
    assert results.main(["--add", "new", str(run)]) == 0
    assert json.loads((tmp_path / "docs" / "results" / "new.json").read_text()) == {
        "options": {"data": "photos", "valid": None, "steps": 3},
        "table": {"rows": []},
        "scores": [{"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}, "total": 0.1}],
    }


def test_a_run_with_one_exit_is_scored_at_every_depth(results, tmp_path):
    torch.manual_seed(0)
    net = asrn(2, 3, 8, skip="bicubic", taps=(-1,)).eval()
    run, data = tmp_path / "run", tmp_path / "photos"
    run.mkdir()
    data.mkdir()
    Image.fromarray(skimage.data.astronaut()[:96, :120]).save(data / "astronaut.png")
    save(net, run / "best.safetensors")
    options = {"scale": 2, "degradation": "BD", "blur_sigma": 1.0, "noise_sigma": None}
    (run / "options.json").write_text(json.dumps(options))
    (run / "log.jsonl").write_text("")
    (run / "table.json").write_text("{}")
    assert results.main(["--add", "new", str(run), "--data", str(data)]) == 0
    record = json.loads((tmp_path / "docs" / "results" / "new.json").read_text())
    pairs = load_pairs(data, 2, degradation="BD", blur_sigma=1.0)
    every = asrn(2, 3, 8, skip="bicubic")
    every.load_state_dict(net.state_dict())
    expected = {None: evaluate_bicubic(pairs), **evaluate(every, pairs)}
    assert {row["depth"]: (row["psnr"], row["ssim"]) for row in record["sets"]} == expected
    assert results.score(record, "photos", 2, "ssim") == expected[2].ssim
    assert [row["parameters"] for row in record["sets"][1:]] == [
        sum(p.numel() for p in every.truncate(depth).parameters()) for depth in (1, 2, 3)
    ]
    assert "torch" in record["machine"]


def test_a_command_names_what_differs_from_its_preset(results):
    recipe = load_recipe("asrn_div2k")
    given = [
        "--preset",
        "paper",
        "--scale",
        "4",
        "--loss",
        "l1",
        "--psd-weight",
        "8e-5",
        "--data",
        "train",
        "--keep",
        "2",
    ]
    options = as_json(recipe.parse(given))
    assert results.changed(options) == "--preset paper --data train --scale 4 --loss l1 --psd-weight 8e-05"
    assert results.changed(options, "data", "preset") == "--scale 4 --loss l1 --psd-weight 8e-05"


def test_nothing_kept_names_a_path_of_a_machine():
    for path in (ROOT / "docs" / "results").glob("*.json"):
        assert not re.search(r'"(/|[A-Z]:\\)', path.read_text()), path
