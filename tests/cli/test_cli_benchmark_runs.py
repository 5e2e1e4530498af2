"""Runs of `elasticnet benchmark`: stopped and gone on with, piped, with and without a cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import elasticnet
import warm_python
from elasticnet.cli import main
from elasticnet.sr import asrn

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "elasticnet"]
TABLES = ("images.csv", "table.csv", "table.json", "table.md")
NUM_IMAGES = 6


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: net.safetensors (x2, 2 depths) and photos, six noisy images."""
    monkeypatch.chdir(tmp_path)
    elasticnet.save(asrn(2, 2, 8), "net.safetensors")
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(NUM_IMAGES):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(photos / f"image{index}.png")
    return tmp_path


def score(*words: str) -> int:
    """Run the command on the photographs."""
    return main(["benchmark", "--data", "photos", "--no-cost", "--device", "cpu", *words])


def test_scores_of_another_dtype_are_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("net.safetensors", "--out", "out") == 0
    assert score("net.safetensors", "--out", "narrow", "--dtype", "bfloat16") == 0
    exact = json.loads((place / "out" / "table.json").read_text())
    narrow = json.loads((place / "narrow" / "table.json").read_text())
    assert narrow["settings"]["dtype"] == "bfloat16"
    assert "; computed in bfloat16" in (place / "narrow" / "table.md").read_text()
    assert "dtype" not in exact["settings"]
    assert narrow["rows"][0] == exact["rows"][0], "bicubic"
    assert narrow["rows"][1]["psnr"] != exact["rows"][1]["psnr"]
    assert narrow["rows"][1]["psnr"] == pytest.approx(exact["rows"][1]["psnr"], abs=0.1)
    capsys.readouterr()
    assert score("net.safetensors", "--dtype", "auto") == 0
    assert "net: dtype float32 (what bfloat16 loses is not known" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_benchmark_has_tables_and_goes_on_to_the_same_bits(place: Path) -> None:
    words = [*COMMAND, "benchmark", "net.safetensors", "--data", "photos", "--no-cost"]
    process = warm_python.Popen(
        [*words, "--out", "out"], env=ENVIRONMENT, stdout=warm_python.DEVNULL
    )
    tables = place / "out" / "table.json"
    while not tables.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert json.loads(tables.read_text())["remaining"] > 0
    kept = (place / "out" / "scores.jsonl").read_bytes()

    for out in ("out", "undisturbed"):
        done = warm_python.run(
            [*words, "--out", out], env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        assert ("scored by an earlier run" in done.stderr) == (out == "out")

    assert (place / "out" / "scores.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n")])
    for name in TABLES:
        assert (place / "out" / name).read_bytes() == (place / "undisturbed" / name).read_bytes()


def test_tables_stand_in_out_while_it_runs(place, monkeypatch):
    seen: list[int] = []

    def write_and_look(folder, result, title):
        write_tables(folder, result, title)
        content = json.loads((place / "out" / "table.json").read_text())
        assert content["settings"]["degradation"] == "BI"
        seen.append(content.get("remaining", 0))

    from elasticnet.sr.benchmark.report import write_tables

    monkeypatch.setattr("elasticnet.sr.benchmark.report.write_tables", write_and_look)
    assert score("net.safetensors", "--out", "out") == 0
    assert seen == [5, 4, 3, 2, 1, 0]


def test_a_stopped_benchmark_says_how_to_go_on(place, monkeypatch, capsys):
    from elasticnet.sr.benchmark import contestants

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(contestants, "bicubic", interrupted)
    assert score("--scale", "2", "--out", "out") == 130
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("what was scored is in out, and the same command goes on")
    assert second == "elasticnet: interrupted"


def test_rescore_forgets_what_was_scored(place, caplog):
    assert score("--scale", "2", "--out", "out") == 0
    assert score("--scale", "2", "--out", "out") == 0
    assert caplog.text.count("6 of 6 images were scored by an earlier run into out") == 1
    assert score("--scale", "2", "--out", "out", "--rescore") == 0
    assert caplog.text.count("scored by an earlier run") == 1


@pytest.mark.parametrize(
    "words", [["--data", "photos", "net.safetensors"], ["--data", "net.safetensors", "photos"]]
)
def test_a_checkpoint_behind_data_is_scored(place, words, capsys):
    assert main(["benchmark", *words, "--no-cost", "--device", "cpu"]) == 0
    assert "net, BI; photos (6 images)" in capsys.readouterr().out


def test_a_checkpoint_in_the_place_of_data_is_refused(place, capsys):
    assert main(["benchmark", "--data", "net.safetensors"]) == 2
    expected = "write elasticnet benchmark net.safetensors --data DIR\n"
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize("option", ["--out", "--save-images"])
@pytest.mark.parametrize("folder", ["net.safetensors", "net.safetensors/inside"])
def test_a_folder_that_cannot_be_made_is_named(place, capsys, option, folder):
    assert score("--scale", "2", option, folder) == 2
    expected = f"elasticnet: {folder}: cannot make this folder ("
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected)


def test_a_track_as_degradation_is_told_how_to_be_written(place, capsys):
    with pytest.raises(SystemExit):
        score("--degradation", "unknown")
    assert "'unknown' is one of DIV2K's tracks: write --track unknown" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="shells are POSIX's here")
@pytest.mark.parametrize(
    "words",
    [
        "benchmark --data photos --scale 2 --no-cache",
        "benchmark --help",
        "info net.safetensors",
        "info missing.safetensors 2>&1",
    ],
)
def test_a_closed_pipe_is_quiet(place, words):
    command = " ".join([*COMMAND, words])
    # Output stays in Python's buffer until the end, as it does unless somebody says otherwise.
    buffered = {name: text for name, text in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"],
        env=buffered,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout == "141\n"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_beside_the_data_is_said(place, caplog):
    before = names(place)
    assert score("--scale", "2") == 0
    assert names(place) == sorted([*before, "photos.elasticnet-cache"])
    assert f"decoded images are written to {place / 'photos.elasticnet-cache'}" in caplog.text
    caplog.clear()
    assert score("--scale", "2") == 0
    assert "decoded images" not in caplog.text  # they are there


def test_the_cache_goes_where_cache_dir_says(place, capsys):
    before = names(place)
    assert score("--scale", "2", "--cache-dir", "elsewhere") == 0
    assert names(place) == sorted([*before, "elsewhere"])
    assert list((place / "elsewhere").rglob("hr.bin"))


def test_without_a_cache_nothing_is_written_and_the_scores_are_the_same(place, capsys, caplog):
    before = names(place)
    assert score("net.safetensors", "--no-cache") == 0
    without_cache = capsys.readouterr().out
    assert names(place) == before
    assert "decoded images" not in caplog.text
    assert score("net.safetensors") == 0
    assert capsys.readouterr().out == without_cache


@pytest.mark.parametrize(
    "command",
    [
        ["profile", "--size", "8x8", "--repeats", "1", "--no-store", "--no-memory"],
        ["export", "--int8", "-o", "small.onnx"],
    ],
)
def test_other_commands_that_read_data_say_where_lr_images_come_from(place, command, capsys):
    name, *options = command
    data = ["--data", "photos", "--cache-dir", "elsewhere"]
    if name == "export":
        pytest.importorskip("onnxruntime")
    assert main([name, "net.safetensors", *options, *data]) == 0
    assert "photos x2, LR: made (BI)\n" in capsys.readouterr().out
    assert "photos.elasticnet-cache" not in names(place)
    assert "elsewhere" in names(place)


def test_qualities_of_jpeg_are_tables_beside_that_of_the_images_as_they_are(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("net.safetensors", "--jpeg-quality", "30", "75", "--out", "out") == 0
    said = capsys.readouterr().out
    headings = ("not compressed:", "JPEG quality 30:", "JPEG quality 75:")
    assert [heading in said for heading in headings] == [True, True, True]
    assert said.count("bicubic |") == 3
    rows = json.loads((place / "out" / "table.json").read_text())["rows"]
    assert {row["data"] for row in rows} == {"photos", "photos-q30", "photos-q75"}


def test_images_of_other_methods_are_scored_as_they_are_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "made").mkdir()
    for path in sorted((place / "photos").iterdir()):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(255 - pixels).save(place / "made" / path.name)
    arguments = ("--scale", "2", "--jpeg-quality", "30", "--others", "inverse=made")

    assert score(*arguments, "--out", "out") == 0

    rows = json.loads((place / "out" / "table.json").read_text())["rows"]
    assert [row["data"] for row in rows if row["network"] == "inverse"] == ["photos"]


def test_the_old_name_of_a_protocol_is_still_taken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--scale", "2", "--protocol", "imdn") == 0
    assert "protocol rounded-y" in capsys.readouterr().out


@pytest.mark.parametrize("quality", ["0", "101", "best", "75.5"])
def test_what_is_no_quality_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], quality: str
) -> None:
    with pytest.raises(SystemExit):
        score("--scale", "2", "--jpeg-quality", "30", quality)
    message = f"argument --jpeg-quality: '{quality}': expected a whole number from 1 to 100"
    assert message in capsys.readouterr().err
