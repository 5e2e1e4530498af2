"""The retrofit recipe at a size of seconds: what it writes, from which weights, how it stops,
resumes and refuses.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import elasticnet
import warm_python
from elasticnet.sr import asrn, edsr, rcan
from elasticnet.sr.benchmark import evaluate
from elasticnet.sr.data import load_pairs
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.models.convert import official_state_dict
from elasticnet.sr.models.edsr import EDSR
from elasticnet.sr.models.heads import bicubic_upsample
from elasticnet.training.learning_rate import cosine
from elasticnet.training.options import with_values
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run
from elasticnet.training.state import pack_state
from loading import load_recipe
from small_photos import small_photos

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sr_retrofit.py"
SIZES = ["--num-blocks", "3", "--channels", "8"]
TINY = ["--patch-size", "8", "--batch-size", "2", "--num-valid", "1", "--no-tensorboard"]
TINY += ["--train-steps", "40", "--srcnn-steps", "40", "--tune-steps", "40", "--eval-every", "15"]
TINY += ["--log-every", "1", "--save-every", "6"]
TINY += ["--no-figures"]  # half of the time of a run as small as this
# for processes, of which one runs this file
IMPORTED = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORTED}
FILES = ("ordinary.safetensors", "srcnn.safetensors", "elastic.safetensors", "table.md")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("sr_retrofit")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of small HR images."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    return small_photos(folder, num_photos=4, height=64, width=72)


@pytest.fixture(scope="module")
def whole(recipe: ModuleType, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(recipe, *SIZES, "--data", photos, "--out", out)
    return out


def run(recipe: ModuleType, *arguments: object) -> None:
    recipe.main(recipe.parse([*TINY, *map(str, arguments)]))


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without the one thing that differs from run to run, its seconds."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def psnr_of(folder: Path) -> dict[tuple[str, int | None], float]:
    rows = json.loads((folder / "table.json").read_text())["rows"]
    return {(row["network"], row["depth"]): row["psnr"] for row in rows}


def assert_ended_alike(folder: Path, other: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert psnr_of(folder) == psnr_of(other)
    assert log_of(folder) == log_of(other)
    assert packed_state(folder) == packed_state(other)


def packed_state(folder: Path) -> bytes:
    with Run.resume(folder, writer=False) as stored:
        step, state = stored.load_latest() or (0, {"log": {"seconds": 0}})
    del state["log"]["seconds"]
    return pack_state(step, state)


# --- what a run does and leaves


def test_without_data_it_trains_on_the_carried_photographs(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ["--train-steps", 1, "--srcnn-steps", 1, "--tune-steps", 1]
    run(recipe, *SIZES, *steps, "--figures", "--out", "run")
    said = capsys.readouterr().out
    assert (
        "no --data: training on the photographs that scikit-image carries; held out: chelsea"
        in said
    )
    assert "phase 3 of 3: elastic, 1 steps" in said
    assert "heads at all 3 taps cost" in said
    assert "validation x2 (3 images): bicubic 32.72, SRCNN " in said
    assert Path("run/table.md").read_text() in said
    assert Image.open("run/validation_curve.png").width > 500


def test_both_curves_are_those_of_the_saved_networks(recipe, photos, tmp_path):
    out = tmp_path / "run"
    few = ["--train-steps", 2, "--srcnn-steps", 2, "--tune-steps", 2]
    run(
        recipe,
        *few,
        "--model",
        "rcan",
        "--num-groups",
        2,
        "--group-size",
        3,
        "--channels",
        8,
        "--valid",
        photos,
        "--data",
        photos,
        "--out",
        out,
    )
    pairs, found, text = (
        load_pairs(photos, 2, progress=False),
        psnr_of(out),
        (out / "table.md").read_text(),
    )
    nets = {name: elasticnet.load(out / f"{name}.safetensors") for name in ("ordinary", "elastic")}
    assert nets["elastic"].origin == rcan(2, 2, 8, group_size=3, reduction=2).origin
    assert text.startswith("rcan(scale=2, num_blocks=2, channels=8, group_size=3, reduction=2)")
    for depth in (1, 2):
        cut, elastic = (evaluate(net.truncate(depth), pairs)[depth].psnr for net in nets.values())
        assert found["ordinary, cut short", depth] == pytest.approx(cut, abs=1e-3)
        assert found["elastic", depth] == pytest.approx(elastic, abs=1e-3)
        shown = re.search(
            rf"\| +{depth} \| +([\d,]+) \| +([\d.]+) \| +([\d.]+) \| +([+-][\d.]+) \|", text
        )
        assert shown
        count = sum(parameter.numel() for parameter in nets["elastic"].truncate(depth).parameters())
        over = found["elastic", depth] - found["SRCNN", 1]
        assert shown.groups() == (f"{count:,}", f"{cut:.2f}", f"{elastic:.2f}", f"{over:+.2f}")
    assert not [*out.glob("*.png")]  # --no-figures


def test_terms_of_photographs_and_share_of_the_distillation_are_noted(recipe, tmp_path, capsys):
    folder = small_photos(tmp_path / "photos", num_photos=3, height=64, width=72)
    names = sorted(path.name for path in folder.glob("*.png"))
    rows = [f"| {name} | CC-BY-SA-4.0 | yes |" for name in names]
    header = ["| picture | licence | copyleft |", "| --- | --- | --- |"]
    (folder / "LICENSES.md").write_text("\n".join([*header, *rows]))
    out = tmp_path / "run"
    steps = ["--train-steps", 1, "--srcnn-steps", 1, "--tune-steps", 1]
    form = ["--psd-weight", 0.1, "--psd-distance", "cosine", "--log-psd-share"]
    run(recipe, *SIZES, *steps, *form, "--data", folder, "--num-valid", 1, "--out", out)
    assert [line["psd_share"] > 0 for line in log_of(out)] == [False, False, True]
    assert "terms of 2 training images: CC-BY-SA-4.0 2; copyleft: 2" in capsys.readouterr().out
    record = json.loads((out / "photographs.json").read_text())
    assert record["licences"]["CC-BY-SA-4.0"]["copyleft"]


def test_phases_train_what_they_say(whole):
    lines = log_of(whole)
    assert [line["step"] for line in lines] == [*range(1, 121)]
    assert [line["phase"] for line in lines] == [1] * 40 + [2] * 40 + [3] * 40
    for line in lines[:40]:
        assert [*line["per_depth"]] == ["3"]
        assert line["deep_supervision"] == line["distillation"] == 0
    assert [*lines[50]["per_depth"]] == ["1"]
    assert all(line["distillation"] > 0 for line in lines[80:])
    assert {depth for line in lines[80:] for depth in line["per_depth"]} == {"1", "2", "3"}
    assert [[*lines[step - 1]["psnr"]] for step in (15, 40, 80, 120)] == [
        ["3"],
        ["3"],
        ["1"],
        ["1", "2", "3"],
    ]


def test_the_ordinary_network_is_that_of_a_plain_loop(recipe, photos, whole):
    """The first phase written out, with the plain network and the authors' keys."""
    options = recipe.parse([*TINY, *SIZES, "--data", str(photos)])
    training, _ = recipe.load_images(options, 2, Processes())
    sampler = PatchSampler(training, 8, 2, seed=0)
    plain = EDSR(2, 3, 8)
    plain.load_state_dict(official_state_dict(recipe.ordinary_network(options)))
    optimizer = torch.optim.Adam(plain.parameters())
    losses = []
    for step in range(40):
        optimizer.param_groups[0]["lr"] = options.optimiser.learning_rate * cosine(step, 40, 10)
        lr, hr = sampler.batch(step)
        loss = F.l1_loss(plain(lr * 255) / 255, hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [line["total"] for line in log_of(whole)[:40]] == pytest.approx(losses, rel=1e-3)


def test_srcnn_starts_as_the_enlarged_input_and_all_of_it_learns(recipe):
    net, x = recipe.SRCNN(3), torch.rand(2, 3, 9, 7)
    torch.testing.assert_close(net(x), bicubic_upsample(x, 3).clamp(min=0))
    assert sum(parameter.numel() for parameter in net.parameters()) == 20_099
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(2):  # nothing reads the other channels before the first
        optimizer.zero_grad()
        (net(x) - 0.5).square().mean().backward()
        optimizer.step()
    assert all(conv.weight.grad[3:].any() for conv in (net.layers[0], net.layers[2]))
    assert net.layers[4].weight[:, 3:].any()


@pytest.mark.parametrize(("model", "taps"), [("edsr", 2), ("rcan", None)])
def test_taps_are_sampled_where_heads_cost_more_than_blocks(recipe, model, taps):
    options = with_values(recipe.Options(), {"model": model})
    net, line = (
        recipe.ordinary_network(options),
        recipe.tap_cost(recipe.ordinary_network(options), options),
    )
    assert recipe.sampled_taps(options) == taps
    assert (float(line.partition("cost ")[2].split()[0]) > 1) == (taps is not None)
    assert line.endswith(f"takes {len(net.taps) if taps is None else 1 + taps}")
    assert recipe.sampled_taps(with_values(options, {"sampled_taps": 1})) == 1


@pytest.mark.slow
def test_the_cut_network_collapses_and_the_elastic_one_does_not(recipe, tmp_path):
    sizes = ["--num-blocks", 4, "--channels", 24, "--patch-size", 24, "--batch-size", 8]
    steps = [
        "--train-steps",
        400,
        "--srcnn-steps",
        200,
        "--tune-steps",
        400,
        "--eval-every",
        1000,
        "--log-every",
        20,
    ]
    run(recipe, *sizes, *steps, "--out", tmp_path / "run")
    psnr = psnr_of(tmp_path / "run")
    for depth in (1, 2, 3):
        assert psnr["ordinary, cut short", depth] < psnr["bicubic", None] < psnr["elastic", depth]
    assert psnr["elastic", 4] > psnr["ordinary, cut short", 4] - 0.1
    assert psnr["SRCNN", 1] > psnr["bicubic", None]


# --- from given weights


def test_official_weights_are_read_with_their_sizes_and_not_trained(
    recipe, photos, tmp_path, capsys
):
    plain = EDSR(3, 2, 12)
    out, state = (
        tmp_path / "run",
        {f"module.{name}": tensor for name, tensor in plain.state_dict().items()},
    )
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    run(recipe, "--weights", tmp_path / "weights.pth", "--data", photos, "--out", out)
    assert {line["phase"] for line in log_of(out)} == {2, 3}
    assert "validation x3" in capsys.readouterr().out
    ordinary = official_state_dict(elasticnet.load(out / "ordinary.safetensors"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ordinary[name], tensor), name
    elastic = official_state_dict(elasticnet.load(out / "elastic.safetensors"))
    assert not torch.equal(elastic["head.0.weight"], plain.state_dict()["head.0.weight"])


def test_our_weights_of_a_net_with_one_tap_get_all(recipe, tmp_path):
    net = rcan(2, 3, 8, group_size=2, reduction=4, taps=(-1,))
    elasticnet.save(net, tmp_path / "ours.safetensors")
    read = recipe.ordinary_network(
        with_values(recipe.Options(), {"model": "rcan", "weights": tmp_path / "ours.safetensors"})
    )
    assert (read.taps, read.origin) == ((1, 2, 3), net.origin)
    assert all(
        torch.equal(tensor, net.state_dict()[name]) for name, tensor in read.state_dict().items()
    )


def test_a_resumed_run_needs_the_file_of_its_weights_no_more(recipe, photos, tmp_path):
    elasticnet.save(edsr(2, 2, 8), tmp_path / "ours.safetensors")
    arguments = ["--weights", tmp_path / "ours.safetensors", "--data", photos]
    for name in ("killed", "whole"):
        run(recipe, *arguments, "--out", tmp_path / name)
    for path in (tmp_path / "killed" / "checkpoints").iterdir():
        path.unlink()  # as if it had been killed before the first of them
    (tmp_path / "ours.safetensors").unlink()
    recipe.main(recipe.parse(["--resume", str(tmp_path / "killed")]))
    assert_ended_alike(tmp_path / "killed", tmp_path / "whole")


# --- stopped, killed, resumed


def lines_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def ctrl_c_after(log: Path, lines: int) -> None:
    """Send this process SIGINT once its log has so many lines."""
    while lines_in(log) < lines:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_every_phase_saves_and_the_resumed_run_ends_bitwise_equal(
    recipe, photos, whole, tmp_path, capsys
):
    out = tmp_path / "cut"
    where = ["--out", out]
    for lines in (9, 50, 95):
        threading.Thread(target=ctrl_c_after, args=(out / "log.jsonl", lines), daemon=True).start()
        with pytest.raises(SystemExit) as ended:
            run(recipe, *SIZES, "--data", photos, *where)
        assert ended.value.code == 128 + signal.SIGINT
        where = ["--resume", out]
        stopped = log_of(out)[-1]["step"]
        assert f"stopped and saved at step {stopped}; go on with: python" in capsys.readouterr().out
        assert lines <= stopped <= (lines + 39) // 40 * 40
        assert not (out / "table.md").exists()
    recipe.main(recipe.parse(["--resume", str(out)]))
    assert_ended_alike(out, whole)


def test_ctrl_c_at_the_end_of_a_phase_does_not_begin_the_next(
    recipe, photos, whole, tmp_path, monkeypatch
):
    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "evaluate", interrupted)
        with pytest.raises(SystemExit):
            run(recipe, *SIZES, "--data", photos, "--eval-every", 40, "--out", tmp_path / "cut")
    assert log_of(tmp_path / "cut")[-1]["step"] == 40
    run(recipe, *SIZES, "--resume", tmp_path / "cut")
    for name in FILES[:3]:
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()


def kill_in_every_phase(photos: Path, out: Path) -> None:
    """Run in child processes, each killed once it has come further than the one before; the last
    one ends.
    """
    recipe = load_recipe("sr_retrofit")
    torch.set_num_threads(1)
    log = out / "log.jsonl"

    def child() -> None:
        where = (
            ["--resume", out]
            if (out / "options.json").exists()
            else [*SIZES, "--data", photos, "--out", out]
        )
        with contextlib.redirect_stdout(None):
            run(recipe, *where)

    context = multiprocessing.get_context("fork")
    for goal in (1, 15, 30, 50, 65, 95, None):
        process = context.Process(target=child)
        process.start()
        while process.is_alive() and (goal is None or lines_in(log) < goal):
            time.sleep(0.001)
        process.kill()
        process.join()
        print(process.exitcode, log_of(out)[-1]["phase"], flush=True)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_ends_bitwise_equal(photos, whole, tmp_path):
    # a script: it forks
    command = [sys.executable, __file__, str(photos), str(tmp_path / "killed")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed, ended = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    assert ({*killed}, ended) == ({"-9 1", "-9 2", "-9 3"}, "0 3"), done.stdout
    assert_ended_alike(tmp_path / "killed", whole)


def test_a_resumed_run_keeps_its_sizes_and_cannot_go_back(recipe, whole):
    with pytest.raises(ValueError, match=r"--channels 16: --channels was 8 when this run started"):
        run(recipe, *SIZES[:2], "--channels", 16, "--resume", whole)
    with pytest.raises(
        ValueError, match=r"--tune-steps 30: the run in .*whole has done 40 of them already"
    ):
        run(recipe, *SIZES, "--tune-steps", 30, "--resume", whole)


# --- refused, in one line, before there is a run folder


BAD = {
    "channels": 0,
    "tune_steps": 0,
    "sampled_taps": -1,
    "num_groups": 2,
    "group_size": 2,
    "precision": "float64",
    "learning_rate": 0.0,
    "psd_weight": -1.0,
}


@pytest.mark.parametrize(("name", "value"), BAD.items())
def test_options_out_of_range_are_refused(recipe, name, value):
    with pytest.raises(
        ValueError, match=f"--{name.replace('_', '-')} {value}: (expected |EDSR has no groups)"
    ):
        with_values(recipe.Options(), {name: value})


def test_blocks_of_rcan_are_given_by_groups(recipe):
    with pytest.raises(ValueError, match=r"--num-blocks 3: RCAN has groups .*--group-size"):
        with_values(recipe.Options(), {"model": "rcan", "num_blocks": 3})


def test_an_old_run_of_rcan_whose_group_size_was_called_num_blocks_goes_on(
    recipe, photos, tmp_path, capsys
):
    out = tmp_path / "run"
    sizes = ["--model", "rcan", "--num-groups", 2, "--group-size", 3, "--channels", 8]
    few = ["--train-steps", 2, "--srcnn-steps", 2, "--tune-steps", 2]
    run(recipe, *sizes, *few, "--data", photos, "--out", out)
    stored = json.loads((out / "options.json").read_text())
    stored["num_blocks"] = stored.pop("group_size")
    (out / "options.json").write_text(json.dumps(stored))
    capsys.readouterr()

    recipe.main(recipe.parse(["--resume", str(out), "--tune-steps", "4"]))

    said = capsys.readouterr().out
    assert "note: --tune-steps was 2" in said
    assert said.count("note: ") == 1
    assert log_of(out)[-1]["step"] == 8
    with pytest.raises(ValueError, match=r"--group-size 4: --group-size was 3 when"):
        recipe.main(recipe.parse(["--resume", str(out), "--group-size", "4"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch-size", 999], r"smaller than 999"),
        (["--num-valid", 4], r"--num-valid 4: expected at least 1 and fewer than the 4"),
        (["--valid", "nowhere"], r"nowhere does not exist"),
        (["--weights", "nowhere.pth"], r"nowhere\.pth"),
        (["--weights", "damaged.pth"], r"damaged\.pth: damaged, or not a checkpoint"),
        (
            ["--weights", "asrn.safetensors"],
            r"asrn\.safetensors: holds asrn, expected edsr or rcan",
        ),
        (["--weights", "foreign.pth"], r"--weights foreign\.pth: missing: head\.0\.weight"),
        (
            ["--weights", "edsr.safetensors", "--model", "rcan"],
            r"edsr\.safetensors: holds edsr, and --model is rcan",
        ),
        (
            ["--weights", "edsr.safetensors", "--scale", 4],
            r"--scale 4: --weights edsr\.safetensors has 2; leave",
        ),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(
    recipe, photos, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path("damaged.pth").write_bytes(b"not a checkpoint")
    torch.save({"a.weight": torch.zeros(1)}, "foreign.pth")
    elasticnet.save(asrn(2, 1, 8), "asrn.safetensors")
    elasticnet.save(edsr(2, 2, 8), "edsr.safetensors")
    with pytest.raises((OSError, ValueError), match=message):
        run(recipe, "--data", photos, "--out", "run", *arguments)
    assert not Path("run").exists()


def test_help_and_errors_on_the_command_line(tmp_path):
    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(RECIPE), *map(str, arguments)]
        return warm_python.run(words, env=ENVIRONMENT, capture_output=True, text=True)

    shown = command("--help")
    assert shown.returncode == 0
    assert all(
        word in shown.stdout
        for word in ("--model", "--weights", "--tune-steps", "--resume", "--group-size")
    )
    missing = command("--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert missing.returncode == 1
    assert missing.stderr.splitlines() == [f"error: data set {tmp_path / 'nowhere'} does not exist"]
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    kill_in_every_phase(Path(sys.argv[1]), Path(sys.argv[2]))


def test_several_processes_are_refused_in_a_line(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process, and a launcher started 2"):
        recipe.main(recipe.parse([]))
