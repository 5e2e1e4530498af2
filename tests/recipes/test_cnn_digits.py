"""The recipe of the convolutional network: what it trains, changes and writes, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet.training.options import with_values
from loading import load_recipe

TINY = {"num_blocks": 3, "width": 4, "steps": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("cnn_digits")


def tiny(recipe: ModuleType, **options: Any) -> Any:
    """The recipe's options at tiny size."""
    return with_values(recipe.Options(), {**TINY, **options})


def built(recipe: ModuleType, variant: str = "elastic", **options: Any) -> ElasticWrapper:
    return recipe.build(tiny(recipe, **options).network, variant)


def kinds_in(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(each, kind) for each in module.modules())


def test_table_and_log_hold_the_same_accuracies(recipe: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe.main(tiny(recipe, seeds=2, out=folder))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = json.loads((folder / "table.json").read_text())

    assert [(line["seed"], line["variant"]) for line in lines] == [
        (seed, variant) for seed in (0, 1) for variant in ("elastic", "ordinary", "single")
    ]
    elastic, ordinary, single = lines[:3]
    assert list(elastic["accuracy"]) == ["1", "2", "3"]
    assert list(ordinary["accuracy"]) == ["3"]
    assert list(single["accuracy"]) == ["1"]
    assert found["accuracy"]["elastic"]["2"]["seeds"][0] == elastic["accuracy"]["2"]
    full = found["differences"]["full depth"]["seeds"]
    assert full[0] == elastic["accuracy"]["3"] - ordinary["accuracy"]["3"]
    first = found["differences"]["depth 1"]["seeds"]
    assert first[0] == elastic["accuracy"]["1"] - single["accuracy"]["1"]
    assert f"| 2 | {found['accuracy']['elastic']['2']['mean']:.1f} ±" in (
        (folder / "table.md").read_text()
    )


def test_a_seed_gives_the_same_again(recipe: ModuleType) -> None:
    options = tiny(recipe)
    digits = recipe.read_digits(seed=1)
    first = recipe.train(options, "elastic", 1, digits)
    second = recipe.train(options, "elastic", 1, digits)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_each_option_changes_its_own_part(recipe: ModuleType) -> None:
    usual = built(recipe)
    assert usual.taps == (1, 2, 3)
    assert kinds_in(usual.blocks, nn.BatchNorm2d) == 6
    assert kinds_in(usual.head, nn.BatchNorm2d) == 0
    assert usual.head[-1].in_features == 4  # pyright: ignore - the Linear at the end
    assert kinds_in(built(recipe, norm="group").blocks, nn.GroupNorm) == 6
    assert kinds_in(built(recipe, norm="none").blocks, nn.BatchNorm2d) == 0
    assert built(recipe, positions=True).head[-1].in_features == 4 * 64  # pyright: ignore
    assert kinds_in(built(recipe, head_norm="shared").head, nn.BatchNorm2d) == 1
    assert list(built(recipe, adapters=True).adapters) == ["1", "2", "3"]
    assert built(recipe, "ordinary").taps == (3,)
    assert len(built(recipe, "single").blocks) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normalised", {1: 0.5, 2: 0.5}),
        ("equal", {1: 1, 2: 1}),
        ("deepest-half", {1: 0.5, 2: 0.5}),
        ("deepest-most", {1: pytest.approx(0.1), 2: 0.9}),
    ],
)
def test_weights_of_the_taps(recipe: ModuleType, name: str, expected: dict[int, float]) -> None:
    assert recipe.weights_of(tiny(recipe, tap_weights=name).training, (1, 2)) == expected


def test_recalibrated_statistics_are_those_of_each_depth(recipe: ModuleType) -> None:
    options = tiny(recipe, head_norm="recalibrated")
    net = recipe.train(options, "elastic", 0, recipe.read_digits(seed=0))
    assert list(net.head_statistics) == ["1", "2", "3"]
