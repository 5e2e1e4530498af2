"""The recipe with --freeze: what is frozen keeps its bits, and all else learns."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from tiny_training import trained_log

TINY = ["--num-blocks", "2", "--channels", "8", "--patch-size", "8", "--batch-size", "2"]
TINY += ["--eval-every", "2", "--log-every", "1", "--num-valid", "1", "--steps", "2"]
TINY += ["--preset", "demo", "--no-tensorboard", "--precision", "float32", "--device", "cpu"]
TINY += ["--variant", "dsl", "--tap-fusion", "--no-figures", "--no-costs"]
PARTS = {"stem", "blocks", "adapters", "head"}


@pytest.fixture(scope="module")
def start(recipe: ModuleType, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end of a training of all parts."""
    folder = tmp_path_factory.mktemp("start") / "run"
    trained_log(recipe, TINY, photos, folder)
    return folder / "last.safetensors"


def changed_parts(before: Path, after: Path) -> set[str]:
    """Return the parts of the network in which a weight differs between two files."""
    old, new = load_file(before), load_file(after)
    assert old.keys() == new.keys()
    return {name.split(".")[0] for name in old if not old[name].equal(new[name])}


@pytest.mark.parametrize(
    "frozen", [["head"], ["stem", "blocks"], ["adapters"], ["stem", "blocks", "head"]], ids="+".join
)
def test_frozen_parts_keep_their_bits_and_all_others_learn(
    recipe: ModuleType, photos: Path, start: Path, tmp_path: Path, frozen: list[str]
) -> None:
    folder = tmp_path / "run"
    trained_log(recipe, TINY, photos, folder, "--init", start, "--freeze", *frozen, "--ema", 0.5)
    assert changed_parts(start, folder / "last.safetensors") == PARTS - set(frozen)
    assert json.loads((folder / "options.json").read_text())["freeze"] == frozen


def test_a_single_block_and_a_single_adapter_can_be_frozen(
    recipe: ModuleType, photos: Path, start: Path, tmp_path: Path
) -> None:
    given = ["--init", start, "--freeze", "stem", "blocks.0", "adapters.1", "head"]
    trained_log(recipe, TINY, photos, tmp_path / "run", *given)
    old, new = load_file(start), load_file(tmp_path / "run" / "last.safetensors")
    kept = ("stem.", "blocks.0.", "adapters.1.", "head.")
    for name in old:
        assert old[name].equal(new[name]) == name.startswith(kept)


def test_a_resumed_run_stays_frozen_and_ends_at_the_same_bits(
    recipe: ModuleType, photos: Path, start: Path, tmp_path: Path
) -> None:
    given = ["--init", start, "--freeze", "stem", "blocks", "head", "--steps", 4]
    trained_log(recipe, TINY, photos, tmp_path / "whole", *given)
    cut = tmp_path / "cut"
    trained_log(recipe, TINY, photos, cut, *given, "--steps", 2)
    recipe.main(recipe.parse(["--resume", str(cut), "--steps", "4"]))
    whole = load_file(tmp_path / "whole" / "last.safetensors")
    resumed = load_file(cut / "last.safetensors")
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert changed_parts(start, cut / "last.safetensors") == {"adapters"}


@pytest.mark.parametrize(
    "how",
    [["--cuda-graph", "on"], ["--checkpoint-blocks"], ["--tap-gradients", "balanced"]],
    ids=lambda how: how[0],
)
def test_other_ways_to_make_a_step_leave_frozen_parts_alone(
    recipe: ModuleType, photos: Path, start: Path, tmp_path: Path, how: list[str]
) -> None:
    given = ["--init", start, "--freeze", "stem", "blocks.0", "head", *how]
    trained_log(recipe, TINY, photos, tmp_path / "run", *given)
    assert changed_parts(start, tmp_path / "run" / "last.safetensors") == {"blocks", "adapters"}


def test_with_all_else_frozen_a_tap_learns_apart_from_the_others(
    recipe: ModuleType, photos: Path, start: Path, tmp_path: Path
) -> None:
    given = ["--init", start, "--freeze", "stem", "blocks", "head", "--clip-norm", 1e9]
    trained_log(recipe, TINY, photos, tmp_path / "a", *given, "--tap-weights", 0.5, 0.5)
    trained_log(recipe, TINY, photos, tmp_path / "b", *given, "--tap-weights", 0.5, 0.001)
    first = load_file(tmp_path / "a" / "last.safetensors")
    second = load_file(tmp_path / "b" / "last.safetensors")
    assert first["adapters.1.weight"].equal(second["adapters.1.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", "head"], "--freeze head: it keeps the weights of --init, and there is none"),
        (["--init", "START", "--freeze", *sorted(PARTS)], "nothing is left to train"),
        (["--init", "START", "--freeze", "blocks.2"], "--freeze blocks.2: the network has no"),
        (
            ["--init", "START", "--freeze", "stem", "blocks", "--tap-gradients", "projected"],
            "--tap-gradients projected with --freeze stem blocks: gradients are joined in",
        ),
        (
            ["--init", "START", "--no-tap-fusion", "--freeze", "adapters"],
            "--freeze adapters: the network has no such part; it has stem, blocks, head",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused(
    recipe: ModuleType,
    photos: Path,
    start: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    given = [str(start) if word == "START" else word for word in options]
    with pytest.raises((ValueError, SystemExit)) as raised:
        trained_log(recipe, TINY, photos, tmp_path / "run", *given)
    said = " ".join(f"{raised.value} {capsys.readouterr().err}".replace("│", " ").split())
    assert message in said
