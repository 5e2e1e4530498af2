"""The depth for a budget: by the fastest of several rounds, the same in every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet.card import DepthCard, measure
from elasticnet.sr import asrn
from elasticnet.sr.inference import depth_choice
from elasticnet.sr.inference.depth_choice import DepthChooser, measured_card, with_fastest_times
from elasticnet.sr.inference.upscale_plan import plan_upscale

PLAN = plan_upscale(asrn(2, num_blocks=2, channels=8).eval(), tile=None)


def made_card(**numbers: Any) -> DepthCard:
    """100 ms and 200 ms for an image of 100x100 pixels."""
    card = measure(PLAN.net, torch.rand(1, 3, 8, 8), repeats=1, memory=False)
    rows = [
        replace(row, latency_ms=100.0 * row.depth, latency_p95_ms=300.0, **numbers)
        for row in card.rows
    ]
    return replace(card, rows=tuple(rows), input_shape=(1, 3, 100, 100))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_fastest_round_counts() -> None:
    card = with_fastest_times(made_card(), {1: [30.0, 10.0, 50.0], 2: [90.0, 20.0, 25.0]})
    assert [row.latency_ms for row in card.rows] == [10.0, 20.0]
    assert [row.latency_p95_ms for row in card.rows] == [50.0, 90.0]
    assert card.repeats == 3


def test_a_measured_card_is_of_every_depth() -> None:
    card = measured_card(PLAN, with_memory=False)
    assert [row.depth for row in card.rows] == [1, 2]
    assert card.input_shape == (1, 3, *depth_choice.EXAMPLE_SIZE)


def test_one_measurement_decides_for_all_later_choosers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[DepthCard] = []

    def measured(*arguments: Any, **keywords: Any) -> DepthCard:
        card = made_card()
        # a busy machine: each measurement finds other times
        rows = [replace(row, latency_ms=row.latency_ms + 150 * len(calls)) for row in card.rows]
        calls.append(card)
        return replace(card, rows=tuple(rows))

    monkeypatch.setattr(depth_choice, "measured_card", measured)
    choices = [DepthChooser(PLAN, max_ms=210)((100, 100)) for _ in range(4)]
    assert [choice.plan.depth for choice in choices] == [2, 2, 2, 2]
    assert len(calls) == 1
    assert [choice.instability for choice in choices] == [""] * 4


def test_a_kept_card_without_memory_does_not_answer_for_a_memory_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depth_choice, "measured_card", lambda *_, **__: made_card())
    DepthChooser(PLAN, max_ms=210)((100, 100))
    monkeypatch.setattr(depth_choice, "measured_card", lambda *_, **__: made_card(memory_mb=9.0))
    choice = DepthChooser(PLAN, max_memory=10)((100, 100))
    assert choice.source == "measured now and kept"
    assert choice.cost.endswith("ms and 9 MB")


def test_what_is_beside_the_network_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_choice, "measured_card", lambda *_, **__: made_card())
    chooser = DepthChooser(PLAN, max_ms=210)
    assert chooser((100, 100)).plan.depth == 2
    assert chooser((100, 100), other_ms=20).plan.depth == 1
    with pytest.raises(ValueError, match=r"latency_ms 220 ms, 10 ms too much"):
        chooser((100, 100), other_ms=120)


def test_a_network_of_no_architecture_says_that_its_card_is_not_kept(cache: Path) -> None:
    net = ElasticWrapper([nn.Identity()], nn.Upsample(scale_factor=2)).eval()
    choice = DepthChooser(plan_upscale(net), max_ms=1e9)((10, 10))
    assert choice.instability.startswith("the network has no registered architecture")
    assert list(cache.iterdir()) == []
