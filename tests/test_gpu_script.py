"""tests/benchmarks/gpu.sh as a dry run on the CPU: it must work where a GPU is lent for minutes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
SCRIPT = TESTS / "benchmarks" / "gpu.sh"
DOCS = TESTS.parent / "docs"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(folder: Path, *words: object, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(folder / "out"),
        "WORK": str(folder / "work"),
        "ELASTICNET_DATA": "",
    }
    command = ["bash", str(SCRIPT), *map(str, words)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def test_an_unknown_option_is_named(tmp_path):
    done = run(tmp_path, "--dry")
    assert done.returncode == 2
    assert "gpu.sh: --dry: there is no such option" in done.stderr


def test_an_option_without_a_value_is_named(tmp_path):
    done = run(tmp_path, "--until")
    assert done.returncode == 2
    assert "gpu.sh: --until: expected a value" in done.stderr


def test_a_folder_that_is_not_there_is_named(tmp_path):
    done = run(tmp_path, "--data", tmp_path / "none")
    assert done.returncode == 2
    assert f"--data {tmp_path / 'none'}: there is no such folder" in done.stderr


def test_an_unknown_part_is_named(tmp_path):
    done = run(tmp_path, "--parts", "losses speed")
    assert done.returncode == 2
    assert "--parts speed: expected some of losses, steps, upscale, train" in done.stderr


def test_the_help_lists_the_parts(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for word in ("losses", "steps", "upscale", "train", "--until", "PYTHONPATH=carried"):
        assert word in done.stdout
    assert "pipefail" not in done.stdout


def test_a_training_without_photographs_fails_by_name(tmp_path):
    done = run(tmp_path, "--device", "cpu", "--parts", "train")
    assert done.returncode == 1
    assert "train: FAILED: it needs photographs" in done.stdout
    assert "gpu.sh: FAILED: train" in done.stderr


def test_what_was_well_before_is_left_out(tmp_path):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "upscale.json").write_text('{"ok": true}')
    done = run(tmp_path, "--device", "cpu", "--parts", "upscale", "--from", earlier)
    assert done.returncode == 0
    assert "upscale: done before" in done.stdout


def test_a_missing_package_is_named_with_its_remedy(tmp_path):
    """A folder in front of all others hides a package by one that cannot be found."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in ('tyro', 'timm') else find(name)\n"
    )
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    environment.update(OUT=str(tmp_path / "out"), WORK=str(tmp_path / "work"))
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "tyro is not installed, and the part train needs it: carry its wheel" in done.stdout
    assert "timm is not installed, and every part needs it: pip install timm" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_machine_without_a_gpu_is_named(tmp_path):
    done = run(tmp_path, "--parts", "upscale")
    assert done.returncode == 2
    assert "--device cuda: torch" in done.stderr
    assert "sees no GPU; a dry run: --device cpu --quick" in done.stderr


def test_the_page_of_speed_shows_the_recorded_steps():
    rows = json.loads((DOCS / "results" / "gpu-steps.json").read_text())["rows"]
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    labels = {
        "bfloat16": "kernel by kernel",
        "graph": "one CUDA graph",
        "graph, compiled": "one CUDA graph, compiled",
    }
    assert rows.keys() == labels.keys()
    for name, row in rows.items():
        rate = f"{row['steps_a_second']:.1f}"
        first_steps = f"{row['warm_up_seconds']:.0f} s"
        assert f"| {labels[name]} | {rate} | {row['peak_mb']} | {first_steps} |" in page


def test_the_peak_of_a_row_is_without_what_earlier_rows_left(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "benchmarks"))
    gpu_training = importlib.import_module("gpu_training")
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    gpu_training.forget_peak(torch.device("cuda"))
    assert calls == ["empty", "reset"]
    gpu_training.forget_peak(torch.device("cpu"))
    assert calls == ["empty", "reset"]


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others(tmp_path):
    (tmp_path / "out" / "losses.json").mkdir(parents=True)  # no report can be written there
    done = run(tmp_path, "--device", "cpu", "--quick", "--parts", "losses upscale")
    assert done.returncode == 1
    assert "losses: FAILED" in done.stdout
    assert "gpu.sh: FAILED: losses" in done.stderr
    assert json.loads((tmp_path / "out" / "upscale.json").read_text())["ok"] is True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_does_every_part_and_goes_on(tmp_path):
    words = ["--device", "cpu", "--quick", "--until", "800"]
    done = run(tmp_path, *words, seconds=800)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    reports = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert sorted(reports) == ["losses", "steps", "upscale"]
    for report in reports.values():
        assert report["ok"] is True
        assert report["machine"]
    assert reports["losses"]["differences"] == {"step by step": 0, "graph": 0}
    assert len(reports["steps"]["rows"]) == 6
    assert [row["depth"] for row in reports["upscale"]["upscale"]] == [1, 2, 3, 4, 5] * 2
    assert "no graph on cpu, its function is called" in done.stdout

    # On a machine that is empty again.
    again = tmp_path / "again"
    done = run(again, *words, "--from", out, seconds=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done before") == 3
    assert f"resumed {again / 'work' / 'run'} at step 20" in done.stdout
