"""The recipe of the digits at a size of seconds: what it trains, writes, repeats and refuses."""

from __future__ import annotations

import json
import re
import runpy
import signal
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
from tqdm import tqdm

import elasticnet
from elasticnet.checkpoint import read_header
from elasticnet.distillation import attention_map
from elasticnet.retrofit.timm import split
from elasticnet.training.learning_rate import cosine
from elasticnet.training.options import with_values
from elasticnet.training.run_folder import Run
from elasticnet.training.stop_signal import StopSignal
from loading import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "vit_digits.py"
TINY = [
    "--num-blocks",
    "3",
    "--width",
    "8",
    "--batch-size",
    "16",
    "--steps",
    "6",
    "--log-every",
    "4",
]
LABELS = ["ordinary, cut short", "DSL", "DSL + PSD", "each depth alone"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("vit_digits")


@pytest.fixture(scope="module")
def done(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two seeds."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    recipe.main(recipe.parse([*TINY, "--seeds", "2", "--out", str(folder)]))
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def accuracies(folder: Path) -> dict[tuple[int, str, int], dict[str, float]]:
    """The accuracy per depth of every training in the log, by its seed, variant and depth."""
    return {
        (line["seed"], line["variant"], line["depth"]): line["accuracy"]
        for line in log_of(folder)
        if "accuracy" in line
    }


def tiny(recipe: ModuleType, **options: Any) -> Any:
    """The recipe's options at tiny size, or at that of `options`."""
    size = {"num_blocks": 3, "width": 8, "batch_size": 16, "steps": 6, **options}
    return with_values(recipe.Options(), size)


def trained(
    recipe: ModuleType, folder: Path, variant: str, depth: int, **options: Any
) -> elasticnet.ElasticWrapper:
    """Train one network of the recipe, of tiny size."""
    chosen = tiny(recipe, **options)
    digits = recipe.read_digits(chosen.experiment.num_test, seed=0)
    with Run.create(folder, {}) as run:
        session = recipe.Session(chosen, run, tqdm(disable=True), StopSignal())
        return recipe.train(session, recipe.Case(variant, depth, seed=0), digits)


def loaded(recipe: ModuleType, folder: Path, depth: int | None = None) -> elasticnet.ElasticWrapper:
    """Load the elastic network of a tiny run."""
    options = tiny(recipe)
    return elasticnet.load(
        folder / "elastic.safetensors", depth, build=lambda: split(recipe.build(options)).wrap()
    )


# --- a whole run


def test_the_table_has_every_depth_and_variant(done):
    result = json.loads((done / "table.json").read_text())
    assert set(result["accuracy"]) == {"cut", "dsl", "psd", "alone"}
    text = (done / "table.md").read_text()
    assert f"| depth | {' | '.join(LABELS)} |" in text
    for depth in ("1", "2", "3"):
        row = next(line for line in text.splitlines() if line.startswith(f"| {depth} |"))
        cells = [result["accuracy"][variant][depth] for variant in ("cut", "dsl", "psd", "alone")]
        assert (
            row
            == f"| {depth} | "
            + " | ".join(f"{c['mean']:.1f} ± {c['spread']:.1f}" for c in cells)
            + " |"
        )
    assert set(result["attention_distance"]) == set(LABELS[:3])
    names = {file.stem for file in done.glob("*.safetensors")}
    assert names == {"elastic", "dsl", "ordinary", "alone_1", "alone_2"}
    assert read_header(done / "alone_2.safetensors")["notes"]["accuracy"].keys() == {"1", "2"}
    assert Image.open(done / "accuracy.png").width > 500
    assert (
        json.loads((done / "options.json").read_text())["psd_weight"]
        == result["options"]["psd_weight"]
    )


def test_the_table_is_the_log_averaged(done):
    found, result = accuracies(done), json.loads((done / "table.json").read_text())
    assert len(found) == 2 * (3 + 2)
    for variant in ("cut", "dsl", "psd"):
        for depth in ("1", "2", "3"):
            first, second = (found[seed, variant, 3][depth] for seed in (0, 1))
            entry = result["accuracy"][variant][depth]
            assert entry["seeds"] == [first, second]
            assert entry["mean"] == pytest.approx((first + second) / 2)
            assert entry["spread"] == pytest.approx(abs(first - second) / 2**0.5)
    for depth in (1, 2):
        assert result["accuracy"]["alone"][str(depth)]["seeds"] == [
            found[seed, "alone", depth][str(depth)] for seed in (0, 1)
        ]
    assert result["accuracy"]["alone"]["3"] == result["accuracy"]["cut"]["3"]
    gained = [found[seed, "psd", 3]["2"] - found[seed, "dsl", 3]["2"] for seed in (0, 1)]
    assert result["differences"]["DSL + PSD − DSL"]["2"]["seeds"] == pytest.approx(gained)


def test_each_variant_has_its_taps_and_terms_and_the_same_number_of_steps(done):
    lines = [line for line in log_of(done) if "total" in line]
    assert [line["step"] for line in lines] == [
        6 * run + step for run in range(2 * 5) for step in (4, 6)
    ]
    for line in lines:
        elastic = line["variant"] in ("dsl", "psd")
        assert (
            list(line["per_depth"]) == [str(d) for d in range(1, 4)]
            if elastic
            else [str(line["depth"])]
        )
        assert (line["deep_supervision"] > 0) == elastic
        assert (line["distillation"] > 0) == (line["variant"] == "psd")


def test_the_form_of_the_distillation_is_an_option_and_its_share_is_logged(recipe, done, tmp_path):
    form = ["--psd-distance", "squared", "--psd-weight", "3", "--log-psd-share"]
    out = ["--out", str(tmp_path / "run")]
    recipe.main(recipe.parse([*TINY, "--seeds", "1", "--only-elastic", *form, *out]))
    lines = [line for line in log_of(tmp_path / "run") if "total" in line]
    assert {line["variant"] for line in lines} == {"dsl", "psd"}
    for line in lines:
        share = line.get("psd_share")
        assert (share is not None and 0 < share < 1) == (line["variant"] == "psd")
    before = [line for line in log_of(done) if "total" in line and line["variant"] != "cut"]
    by_variant = {"psd": [], "dsl": []}
    for line, other in zip(lines, before, strict=False):
        if line["variant"] in by_variant:
            by_variant[line["variant"]].append(line["total"] == other["total"])
    assert all(by_variant["dsl"])
    assert not any(by_variant["psd"])
    text = (tmp_path / "run/table.md").read_text()
    assert "PSD weight 3 (squared, power 1, teacher next)" in text
    assert "| depth | DSL | DSL + PSD |\n" in text
    assert "| depth | DSL + PSD − DSL |\n" in text


def test_the_saved_elastic_network_loads_and_gives_the_same_accuracy(recipe, done):
    notes, found = read_header(done / "elastic.safetensors")["notes"], accuracies(done)[0, "psd", 3]
    assert (notes["seed"], notes["accuracy"]) == (0, found)
    digits = recipe.read_digits(600, 0)
    for depth in (None, 2):
        measured, _ = recipe.evaluate(loaded(recipe, done, depth).eval(), digits)
        assert {str(at): value for at, value in measured.items()} == {
            at: found[at] for at in list(found)[:depth]
        }


def test_the_same_seed_gives_the_same_bits_whatever_else_runs(recipe, done, tmp_path):
    recipe.main(
        recipe.parse([*TINY, "--seeds", "1", "--seed", "1", "--out", str(tmp_path / "second")])
    )
    both, second = log_of(done), log_of(tmp_path / "second")
    assert [{**line, "step": line["step"] + 30} for line in second] == [
        line for line in both if line["seed"] == 1
    ]
    assert [line["accuracy"] for line in second if "accuracy" in line] != [
        line["accuracy"] for line in both if "accuracy" in line and line["seed"] == 0
    ]
    again = trained(recipe, tmp_path / "again", "psd", 3).state_dict()
    stored = loaded(recipe, done).state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.items())


# --- what the variants are


def test_the_ordinary_network_is_timms_own_trained_by_a_plain_loop(recipe, tmp_path):
    net = trained(recipe, tmp_path / "cut", "cut", 3)
    options = tiny(recipe)
    digits = recipe.read_digits(options.experiment.num_test, 0)
    torch.manual_seed(0)
    model = recipe.build(options).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = options.training.learning_rate * cosine(step, 6, 20)
        chosen = torch.randint(len(digits.x), (16,), generator=generator)
        loss = F.cross_entropy(model(digits.x[chosen]), digits.y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for depth in (3, 2, 1):
            del model.blocks[depth:]  # cut short: its final norm and head behind fewer blocks
            assert torch.equal(net(digits.test_x, depth=depth), model(digits.test_x))


def test_alone_at_the_deepest_exit_is_the_ordinary_network(recipe, tmp_path):
    cut = trained(recipe, tmp_path / "cut", "cut", 3)
    alone = trained(recipe, tmp_path / "alone", "alone", 3)
    assert all(
        torch.equal(tensor, alone.state_dict()[name]) for name, tensor in cut.state_dict().items()
    )
    shallow = trained(recipe, tmp_path / "shallow", "alone", 2)
    assert shallow.taps == (1, 2)
    assert len(shallow.blocks) == 2
    assert not torch.equal(
        shallow.state_dict()["head.norm.weight"], cut.state_dict()["head.norm.weight"]
    )


def test_the_distillation_compares_patch_tokens_and_leaves_the_class_token_out(recipe, tmp_path):
    net = trained(recipe, tmp_path / "psd", "psd", 3, patch_size=2)
    assert (net.layout, net.prefix_tokens) == ("b n c", 1)
    digits = recipe.read_digits(600, 0)
    with torch.no_grad():
        features = net.forward_taps(digits.test_x).features
        assert features[0].shape == (600, 1 + 16, 8)
        assert attention_map(features[0], net.layout, prefix_tokens=net.prefix_tokens).shape == (
            600,
            16,
        )
        maps = [feature[:, 1:].abs().sum(2) for feature in features]
        maps = [each / each.square().sum(1, keepdim=True).sqrt() for each in maps]
        distances = [(maps[d] - maps[d + 1]).square().sum(1).sqrt().mean() for d in (0, 1)]
    assert recipe.evaluate(net, digits)[1] == pytest.approx(
        torch.stack(distances).mean().item(), rel=1e-4
    )


def test_deep_supervision_holds_where_the_cut_network_falls(recipe, tmp_path):
    size = {"width": 16, "batch_size": 64, "steps": 120, "learning_rate": 1e-2, "psd_weight": 0.1}
    digits = recipe.read_digits(600, 0)
    cut, dsl, psd = (
        recipe.evaluate(trained(recipe, tmp_path / variant, variant, 3, **size), digits)
        for variant in ("cut", "dsl", "psd")
    )
    assert dsl[0][1] > cut[0][1] + 20
    assert min(cut[0][3], *dsl[0].values(), *psd[0].values()) > 80
    # what the distillation is for: neighbours' attention maps come closer
    assert psd[1] < 0.9 * dsl[1]


def test_the_split_is_stratified_and_its_parts_have_nothing_in_common(recipe):
    digits = recipe.read_digits(600, 3)
    assert (len(digits.x), len(digits.test_x)) == (1197, 600)
    assert (digits.x.amin(), digits.x.amax(), digits.x.shape[1:]) == (-1, 1, (1, 8, 8))
    shares = [torch.bincount(y, minlength=10) / len(y) for y in (digits.y, digits.test_y)]
    assert (shares[0] - shares[1]).abs().max() < 0.002
    images = torch.cat([digits.x, digits.test_x]).flatten(1)
    assert len(images.unique(dim=0)) == 1797
    again, other = recipe.read_digits(600, 3), recipe.read_digits(600, 4)
    assert torch.equal(again.test_x, digits.test_x)
    assert not torch.equal(other.test_x, digits.test_x)


def test_the_table_puts_what_is_within_its_spread_in_brackets(recipe):
    columns = {
        "gain": {
            1: recipe.spread([2.0, 4.0]),
            2: recipe.spread([-1.0, 2.0]),
            3: recipe.spread([0.26]),
        }
    }
    assert recipe.depth_table(columns, "+.1f").splitlines() == [
        *("| depth | gain |", "| --- | ---: |"),
        *("| 1 | +3.0 ± 1.4 |", "| 2 | (+0.5 ± 2.1) |", "| 3 | +0.3 |"),
    ]
    assert "| 2 | 0.5 ± 2.1 |" in recipe.depth_table(columns, ".1f")


# --- stopping and refusing


def test_ctrl_c_ends_with_one_line_and_keeps_what_was_measured(recipe, tmp_path, capsys):
    log = tmp_path / "run" / "log.jsonl"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log.exists() and "accuracy" in log.read_text()):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    options = recipe.parse(
        [*TINY, "--steps", "40", "--seeds", "30", "--out", str(tmp_path / "run")]
    )
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        recipe.main(options)
    thread.join()
    assert ended.value.code == 128 + signal.SIGINT
    last = capsys.readouterr().out.splitlines()[-1]
    stopped = re.fullmatch(
        rf"stopped at step (\d+) of {30 * 5 * 40}; what was measured so far is in (.*)", last
    )
    assert stopped, last
    assert Path(stopped[2]) == log
    assert 40 <= int(stopped[1]) < 30 * 5 * 40
    assert accuracies(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("seeds", 0, "at least 1"),
        ("num_blocks", 1, "at least 2"),
        ("width", 30, "multiple of the 4 attention heads"),
        ("num_test", 1790, "from 10 to 1787"),
        ("learning_rate", float("nan"), "above 0"),
        ("psd_weight", -0.5, "at least 0"),
        ("seed", -1, "at least 0"),
    ],
)
def test_options_out_of_range_are_refused(recipe, name, value, expected):
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} {value}: .*{expected}"):
        with_values(recipe.Options(), {name: value})


def test_a_loss_that_is_not_finite_names_the_training(recipe, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"DSL, seed 0: the loss became \w+ at step [1-5]; .*1e\+30"
    ):
        trained(recipe, tmp_path / "run", "dsl", 3, learning_rate=1e30)


def test_help_and_errors_on_the_command_line(recipe, done, monkeypatch, capsys):
    def command(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RECIPE), run_name="__main__")
        return ended.value.code

    assert command("--help") == 0
    shown = capsys.readouterr().out
    for word in ("--psd-weight", "--seeds", "--out", "trained alone", "cross-entropy"):
        assert word in shown
    assert command("--steps", "0") == 2
    assert "--steps 0: expected at least 1" in capsys.readouterr().err
    assert re.fullmatch(
        r"error: .*run is not empty \(.*\): use .* another --out", command("--out", str(done))
    )
    assert command("--blocks", "9") == 2
    assert "--blocks" in capsys.readouterr().err
