"""What is kept of a finished run: nothing of the machine's paths, every depth scored."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image

from elasticnet import LossTerms, save
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate, evaluate_bicubic
from elasticnet.sr.data import load_pairs
from elasticnet.training.log import TrainingLog
from elasticnet.training.run_folder import Run
from loading import load_recipe


@pytest.fixture
def record(tmp_path, monkeypatch) -> ModuleType:
    """The recipe, writing into a temporary folder."""
    module = load_recipe("record")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_run_is_taken_without_the_paths_of_its_machine(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text(
        json.dumps(
            {
                "data": str(tmp_path / "photos"),
                "valid": "../elsewhere/Set5",
                "init": "runs/x4/best.safetensors",
                "steps": 3,
            }
        )
    )
    lines = [
        {"step": 1, "seconds": 0.5},
        {"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}, "total": 0.1, "routine": 0.1},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "table.json").write_text(json.dumps({"rows": []}))
    record.main(["new", str(run)])
    assert json.loads((tmp_path / "new.json").read_text()) == {
        "options": {
            "data": "photos",
            "valid": "Set5",
            "init": "runs/x4/best.safetensors",
            "steps": 3,
        },
        "table": {"rows": []},
        "scores": [{"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}, "total": 0.1}],
    }


def test_a_run_that_was_stopped_while_its_table_was_made_is_finished(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text(json.dumps({"steps": 3}))
    last = {"step": 3, "seconds": 1.5, "psnr": {"1": 30.0}}
    for lines in ([], [last | {"step": 2}], [{"step": 3, "seconds": 1.5}]):
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ValueError, match=r"run has no table\.json: expected the folder of a f"):
            record.record_of(run)
    (run / "log.jsonl").write_text(json.dumps(last) + "\n")
    assert record.record_of(run) == {"options": {"steps": 3}, "scores": [last]}


def test_a_run_that_names_its_machine_keeps_it_also_without_data_sets(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text(json.dumps({"steps": 3}))
    last = {"step": 3, "psnr": {"1": 30.0}, "machine": "one core"}
    (run / "log.jsonl").write_text(json.dumps(last) + "\n")
    assert record.record_of(run)["machine"] == "one core"
    assert record.record_of(run, machine="two cores")["machine"] == "two cores"


def test_shares_on_lines_without_scores_are_kept(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text("{}")
    lines = [
        {"step": 1, "psd_share": 0.25, "per_depth": {"1": 2.0}},
        {"step": 2, "accuracy": {"1": 90.0}, "psd_share": 0.5},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "table.json").write_text("{}")
    kept = record.record_of(run)
    assert kept["psd_shares"] == [0.25]
    assert kept["scores"] == [lines[1]]


def test_a_record_counts_the_photographs_of_each_licence(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text(json.dumps({"data": [str(tmp_path / "photos")]}))
    (run / "log.jsonl").write_text("")
    (run / "table.json").write_text("{}")
    licences = {"CC0-1.0": {"copyleft": False, "names": ["a", "b"]}}
    counts = {"photographs": 3, "copyleft": 0, "unknown": 1}
    (run / "photographs.json").write_text(json.dumps({**counts, "licences": licences}))

    kept = record.record_of(run)
    assert kept["photographs"] == {
        **counts,
        "licences": {"CC0-1.0": {"copyleft": False, "photographs": 2}},
    }
    assert kept["options"]["data"] == "photos", "one folder is a word, as in older records"


def test_further_sets_are_added_to_a_record_and_scored_anew(record, tmp_path):
    photo = skimage.data.astronaut()[:48, :48]
    for name in ("Old", "New"):
        (tmp_path / name).mkdir()
        Image.fromarray(photo).save(tmp_path / name / "photo.png")
    weights = tmp_path / "net.safetensors"
    net = asrn(2, num_blocks=2)
    save(net, weights)
    costs = {None: None, 1: net.truncate(1), 2: net}
    rows = [
        {"data": "Old", "depth": depth, "parameters": cut and count(cut), "psnr": 1.0, "ssim": 0.5}
        for depth, cut in costs.items()
    ]
    other = [{**row, "data": "Other"} for row in rows]
    file = tmp_path / "x2.json"
    file.write_text(json.dumps({"options": {"degradation": "BI"}, "sets": rows + other}))

    folders = [str(tmp_path / "Old"), str(tmp_path / "New")]
    record.main(["x2", "--weights", str(weights), "--data", *folders])

    kept = json.loads(file.read_text())
    assert kept["options"] == {"degradation": "BI"}
    assert [row["data"] for row in kept["sets"]] == ["Other"] * 3 + ["Old"] * 3 + ["New"] * 3
    pairs = load_pairs(tmp_path / "New", 2)
    expected = evaluate(net, pairs)
    assert [row["psnr"] for row in kept["sets"][7:]] == [expected[1].psnr, expected[2].psnr]
    assert kept["sets"][6]["psnr"] == evaluate_bicubic(pairs).psnr


def test_another_networks_weights_are_not_added_to_a_record(record, tmp_path):
    (tmp_path / "Set").mkdir()
    Image.fromarray(skimage.data.astronaut()[:48, :48]).save(tmp_path / "Set" / "photo.png")
    weights = tmp_path / "net.safetensors"
    save(asrn(2, num_blocks=1), weights)
    rows = [{"data": "Set", "depth": 1, "parameters": 5, "psnr": 1.0, "ssim": 0.5}]
    (tmp_path / "x2.json").write_text(json.dumps({"options": {"degradation": "BI"}, "sets": rows}))

    words = ["x2", "--weights", str(weights), "--data", str(tmp_path / "Set")]
    with pytest.raises(ValueError, match=r"70787\}, and \{1: 5\} in the record: expected"):
        record.main(words)


def count(net: torch.nn.Module) -> int:
    """The parameters of a network."""
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", ["psnr", "accuracy", "bits_per_byte", "a_score_of_ones_own"])
def test_a_score_is_kept_by_the_name_that_the_run_gives_it(record, tmp_path, name):
    run = Run.create(tmp_path / "run", {"steps": 2})
    zero = torch.zeros(())
    losses = LossTerms(zero, zero, zero, zero, per_depth={1: zero, 2: zero})
    with run, TrainingLog(run, total=2, score_name=name) as log:
        log.add(losses)
        log.write(1, learning_rate=0.1)  # no validation
        log.add(losses)
        log.write(2, {1: 0.5, 2: 0.25}, learning_rate=0.2)
    (run.folder / "table.json").write_text("{}")

    record.main(["new", str(run.folder)])

    (kept,) = json.loads((tmp_path / "new.json").read_text())["scores"]
    assert kept.pop("seconds") >= 0
    assert kept == {"step": 2, "learning_rate": 0.2, "total": 0.0, name: {"1": 0.5, "2": 0.25}}


def test_a_run_with_one_exit_is_scored_at_every_depth(record, tmp_path):
    torch.manual_seed(0)
    net = asrn(2, 3, 8, skip="bicubic", taps=(-1,)).eval()
    run, data = tmp_path / "run", tmp_path / "photos"
    run.mkdir()
    data.mkdir()
    Image.fromarray(skimage.data.astronaut()[:96, :120]).save(data / "astronaut.png")
    save(net, run / "best.safetensors")
    options = {
        "scale": 2,
        "degradation": "BD",
        "blur_sigma": 1.0,
        "noise_sigma": None,
        "precision": "bfloat16",
    }
    (run / "options.json").write_text(json.dumps(options))
    (run / "log.jsonl").write_text("")
    (run / "table.json").write_text("{}")
    with pytest.raises(ValueError, match="names no machine: say with --machine"):
        record.main(["new", str(run), "--data", str(data)])
    record.main(["new", str(run), "--data", str(data), "--machine", "a computer"])
    kept = json.loads((tmp_path / "new.json").read_text())
    assert kept["machine"] == "a computer"
    pairs = load_pairs(data, 2, degradation="BD", blur_sigma=1.0)
    every = asrn(2, 3, 8, skip="bicubic")
    every.load_state_dict(net.state_dict())
    expected = {None: evaluate_bicubic(pairs), **evaluate(every, pairs)}
    assert {row["depth"]: (row["psnr"], row["ssim"]) for row in kept["sets"]} == expected
    assert [row["parameters"] for row in kept["sets"][1:]] == [
        sum(p.numel() for p in every.truncate(depth).parameters()) for depth in (1, 2, 3)
    ]
    log = [
        {"step": 1},
        *({"step": step, "psnr": {"3": 30.0}, "machine": "AABA"[step - 2]} for step in range(2, 6)),
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    record.main(["new", str(run), "--data", str(data)])
    assert json.loads((tmp_path / "new.json").read_text())["machine"] == "A, then B, then A"


def test_what_stands_between_a_tap_and_the_head_is_scored_with_it(record, tmp_path):
    torch.manual_seed(0)
    net = asrn(2, 2, 8, skip="bicubic", tap_affine=True).eval()
    for parameter in net.adapters.parameters():
        torch.nn.init.normal_(parameter)
    Image.fromarray(skimage.data.astronaut()[:48, :60]).save(tmp_path / "astronaut.png")
    save(net, tmp_path / "best.safetensors")
    rows = record.scored(tmp_path / "best.safetensors", {"degradation": "BI"}, [tmp_path])
    expected = evaluate(net, load_pairs(tmp_path, 2))
    assert {row["depth"]: (row["psnr"], row["ssim"]) for row in rows[1:]} == expected


def test_an_image_that_is_left_out_of_the_record_is_named(record, tmp_path, capsys):
    data = tmp_path / "photos"
    data.mkdir()
    Image.fromarray(skimage.data.astronaut()[:48, :60]).save(data / "astronaut.png")
    Image.new("RGB", (48, 60)).save(data / "black.png")
    save(asrn(2, 1, 8), tmp_path / "best.safetensors")
    record.scored(tmp_path / "best.safetensors", {"degradation": "BI"}, [data])
    assert "image left out: photos black: it has one colour" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(record, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run has no options\.json: expected the folder of a fin"):
        record.main(["new", str(tmp_path / "run")])


def test_a_damaged_file_of_a_run_is_named(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text("{")
    (run / "log.jsonl").write_text("")
    (run / "table.json").write_text("{}")
    with pytest.raises(ValueError, match=r"options\.json: expected JSON: Expecting property name"):
        record.main(["new", str(run)])


def test_weights_without_a_record_or_sets_are_refused(record, tmp_path, capsys):
    with pytest.raises(SystemExit):
        record.main(["new", "--weights", "net.safetensors", "--data", "Set5"])
    assert "there is no " + str(tmp_path / "new.json") in " ".join(capsys.readouterr().err.split())
    (tmp_path / "new.json").write_text("{}")
    with pytest.raises(SystemExit):
        record.main(["new", "--weights", "net.safetensors"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--weights net.safetensors: name the sets to score it on by --data" in said
    with pytest.raises(SystemExit):
        record.main(["new", "--weights", "net.safetensors", "--scores", "table.json"])
    assert "--weights and --scores without RUN: expected one of the two" in capsys.readouterr().err


def test_scores_of_a_benchmark_are_taken_and_the_share_of_the_distillation(record, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text("{}")
    line = {"step": 3, "psd_share": 0.02, "psnr": {"1": 30.0}, "machine": "one core"}
    (run / "log.jsonl").write_text(json.dumps(line) + "\n")
    (run / "table.json").write_text("{}")
    row = {"data": "Set5", "depth": 1, "parameters": 9, "psnr": 30.5, "ssim": 0.9, "ms": None}
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"rows": [row], "images": []}))

    record.main(["new", str(run), "--scores", str(scores)])

    kept = json.loads((tmp_path / "new.json").read_text())
    del row["ms"]
    assert kept["sets"] == [row]
    assert kept["machine"] == "one core"
    assert kept["scores"] == [{"step": 3, "psd_share": 0.02, "psnr": {"1": 30.0}}]
    with pytest.raises(SystemExit):
        record.main(["new", str(run), "--scores", str(scores), "--data", str(tmp_path)])


def benchmark_table(file: Path, psnr: dict[str, float], parameters: int = 9) -> dict[str, Any]:
    """Write a table of one depth with these scores, and return what is kept of it by set."""
    rows = [
        {"data": data, "depth": 1, "parameters": parameters, "psnr": each, "ssim": 0.9}
        for data, each in psnr.items()
    ]
    file.write_text(json.dumps({"rows": rows}))
    return {row["data"]: row for row in rows}


def test_of_several_tables_the_last_one_counts(record, tmp_path):
    first = benchmark_table(tmp_path / "1.json", {"Set5": 30.0, "B100": 27.0})
    second = benchmark_table(tmp_path / "2.json", {"B100": 27.5, "B100-q30": 25.0})
    rows = record.rows_of_tables([tmp_path / "1.json", tmp_path / "2.json"])
    assert rows == [first["Set5"], second["B100"], second["B100-q30"]]


def test_a_benchmark_that_still_runs_is_refused(record, tmp_path):
    benchmark_table(tmp_path / "1.json", {"Set5": 30.0})
    part = json.loads((tmp_path / "1.json").read_text()) | {"remaining": 12}
    (tmp_path / "2.json").write_text(json.dumps(part))
    with pytest.raises(ValueError, match=r"2\.json: 12 images are not scored yet; wait"):
        record.rows_of_tables([tmp_path / "1.json", tmp_path / "2.json"])


def test_scores_of_further_sets_are_added_to_a_record(record, tmp_path):
    known = benchmark_table(tmp_path / "1.json", {"Set5": 30.0, "B100": 27.0})
    (tmp_path / "x4.json").write_text(json.dumps({"options": {}, "sets": [*known.values()]}))
    more = benchmark_table(tmp_path / "2.json", {"B100": 27.5, "B100-q30": 25.0})

    record.main(["x4", "--scores", str(tmp_path / "2.json")])

    kept = json.loads((tmp_path / "x4.json").read_text())
    assert kept["sets"] == [known["Set5"], more["B100"], more["B100-q30"]]
    benchmark_table(tmp_path / "3.json", {"B100": 27.5}, parameters=10)
    with pytest.raises(ValueError, match=r"3\.json: parameters by depth {1: 10}, and {1: 9} in"):
        record.main(["x4", "--scores", str(tmp_path / "3.json")])


def test_weights_between_two_networks_are_scored_and_say_where_they_lie(record, tmp_path):
    data, run, between = tmp_path / "photos", tmp_path / "run", tmp_path / "between.safetensors"
    data.mkdir()
    run.mkdir()
    Image.fromarray(skimage.data.astronaut()[:48, :60]).save(data / "astronaut.png")
    torch.manual_seed(0)
    net, best = asrn(2, 1, 8).eval(), asrn(2, 1, 8)
    save(best, run / "best.safetensors")
    way = {"start": "asrn-x2", "tuned": "best.safetensors", "share": 0.5}
    save(net, between, notes={"interpolated": way})
    (run / "options.json").write_text(json.dumps({"degradation": "BI"}))
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "machine": "a computer"}) + "\n")
    (run / "table.json").write_text("{}")

    record.main(["new", str(run), "--weights", str(between), "--data", str(data)])

    kept = json.loads((tmp_path / "new.json").read_text())
    assert kept["interpolated"] == way
    assert kept["sets"][1]["psnr"] == evaluate(net, load_pairs(data, 2))[1].psnr
    with pytest.raises(ValueError, match=r"expected what recipes/interpolate\.py made of its best"):
        record.main(["new", str(run), "--weights", str(run / "best.safetensors")])


def test_a_run_that_went_on_from_another_names_its_record(record, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "options.json").write_text(json.dumps({"degradation": "photo"}))
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "machine": "a computer"}) + "\n")
    (run / "table.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--after first: there is no .*first\.json; record that"):
        record.main(["second", str(run), "--after", "first"])
    record.main(["first", str(run)])
    record.main(["second", str(run), "--after", "first"])

    assert json.loads((tmp_path / "second.json").read_text())["after"] == "first"
    assert "after" not in json.loads((tmp_path / "first.json").read_text())
    for words in (["second", "--after", "first"], ["first", str(run), "--after", "first"]):
        with pytest.raises(SystemExit):
            record.main(words)
        assert "error: --after" in capsys.readouterr().err
