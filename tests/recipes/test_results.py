"""The page of results: every number comes from docs/results/, and the page is up to date with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from elasticnet.options import as_json
from loading import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path, monkeypatch) -> ModuleType:
    """The recipe, working on a copy of docs/."""
    module = load_recipe("results")
    (tmp_path / "docs").mkdir()
    for page in module.PAGES:
        shutil.copy(ROOT / "docs" / page, tmp_path / "docs")
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
