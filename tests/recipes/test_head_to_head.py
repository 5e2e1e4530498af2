"""The head-to-head: each method's loss is the one that its source describes, written out here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.training.options import with_values
from loading import load_recipe

TINY = {"num_blocks": 3, "width": 8, "steps": 2, "batch_size": 8}
STEPS, SEED = 12, 5


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("head_to_head")


class Case:
    """A tiny network, a batch, and what it makes of it at each depth."""

    def __init__(self, recipe: ModuleType, name: str) -> None:
        torch.manual_seed(0)
        options = with_values(recipe.Options(), TINY)
        method = recipe.METHODS[name]
        self.net: ElasticWrapper = recipe.build_network(options.network, 3, method.is_elastic)
        self.objective: ElasticObjective = method.build(self.net, STEPS, SEED)
        self.x = torch.randn(8, 1, 8, 8)
        self.y = torch.randint(10, (8,))
        taps = self.net.with_taps(None).forward_taps(self.x)
        self.logits = dict(zip(taps.depths, taps.predictions, strict=True))
        self.features = dict(zip(taps.depths, taps.features, strict=True))

    def total(self, step: int) -> Tensor:
        return self.objective(self.x, self.y, step=step).total

    def loss(self, depth: int) -> Tensor:
        return F.cross_entropy(self.logits[depth], self.y)

    def divergence(self, depth: int, temperature: float) -> Tensor:
        """KL of a depth from the deepest, the mean over the batch."""
        teacher = (self.logits[3] / temperature).softmax(1)
        student = (self.logits[depth] / temperature).log_softmax(1)
        return (teacher * (teacher.log() - student)).sum(1).mean()


def by_deepest_alone(case: Case, step: int) -> Tensor:
    return case.loss(3)


def by_deep_supervision(case: Case, step: int) -> Tensor:
    return (case.loss(1) + case.loss(2) + case.loss(3)) / 3


def by_rotation(case: Case, step: int) -> Tensor:
    return (case.loss(1 + step % 2) + case.loss(3)) / 2


def by_gradual_exits(case: Case, step: int) -> Tensor:
    trained = [3]
    for index in (0, 1):
        if step / STEPS >= 0.5 * (3 - index) / 3:
            trained.append(index + 1)
    return torch.stack([case.loss(depth) for depth in trained]).mean()


def by_adaptive_layers(case: Case, step: int) -> Tensor:
    drawn = random.Random(f"{SEED}:{step}").choice([1, 2])
    return case.loss(3) + case.loss(drawn) / drawn + 0.3 * case.divergence(drawn, 0.3)


def by_own_teacher(case: Case, step: int) -> Tensor:
    total = case.loss(3)
    for depth in (1, 2):
        total = total + 0.9 * case.loss(depth) + 0.1 * 3**2 * case.divergence(depth, 3)
    return total


def by_own_teacher_of_features(case: Case, step: int) -> Tensor:
    total = by_own_teacher(case, step)
    for depth in (1, 2):
        difference = case.features[depth][:, 1:] - case.features[3][:, 1:]  # no class token
        total = total + 0.03 * difference.square().mean()
    return total


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cut", by_deepest_alone),
        ("dsl", by_deep_supervision),
        ("rotating", by_rotation),
        ("gradual", by_gradual_exits),
        ("adaptive", by_adaptive_layers),
        ("own-output", by_own_teacher),
        ("own-feature", by_own_teacher_of_features),
    ],
)
def test_the_loss_is_that_of_its_source(
    recipe: ModuleType, name: str, expected: Callable[[Case, int], Tensor]
) -> None:
    case = Case(recipe, name)
    for step in (0, 1, 3, 5, 11):
        torch.testing.assert_close(case.total(step), expected(case, step), rtol=1e-5, atol=1e-6)


def test_table_and_log_hold_the_same_accuracies(recipe: ModuleType, tmp_path: Path) -> None:
    options = with_values(
        recipe.Options(), {**TINY, "seeds": 2, "methods": ("alone", "psd"), "out": tmp_path / "run"}
    )
    recipe.main(options)
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    lines: list[dict[str, Any]] = [json.loads(line) for line in log]
    found = json.loads((tmp_path / "run" / "table.json").read_text())["methods"]
    assert [(line["seed"], line["method"]) for line in lines] == [
        (0, "alone"),
        (0, "psd"),
        (1, "alone"),
        (1, "psd"),
    ]
    for depth in ("1", "2", "3"):
        expected = [line["accuracy"][depth] for line in lines if line["method"] == "psd"]
        assert found["psd"]["accuracy"][depth]["seeds"] == expected
    assert "| DSL + PSD |" in (tmp_path / "run" / "table.md").read_text()


def test_an_unknown_method_is_refused_by_name(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"--methods own: expected some of alone, cut, dsl"):
        with_values(recipe.Options(), {"methods": ("own",)})
