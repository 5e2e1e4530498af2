"""The page of results: every number comes from docs/results/, and the page is up to date with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

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
    lines = [{"step": 1, "seconds": 0.5}, {"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}, "total": 0.1}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "table.json").write_text(json.dumps({"rows": []}))
    assert results.main(["--add", "new", str(run)]) == 0
    assert json.loads((tmp_path / "docs" / "results" / "new.json").read_text()) == {
        "options": {"data": "photos", "valid": None, "steps": 3},
        "table": {"rows": []},
        "scores": [{"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}}],
    }


def test_nothing_kept_names_a_path_of_a_machine():
    for path in (ROOT / "docs" / "results").glob("*.json"):
        assert not re.search(r'"(/|[A-Z]:\\)', path.read_text()), path
