"""What networks cost: counts against those worked out by hand, and what the command writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from elasticnet.card.counting import count_macs
from loading import load_recipe

STEM = 3 * 8 * 9 + 8 * 96 * 9  # multiply-accumulates a pixel of LR
BLOCK = 39_168
PLAIN_HEAD_X3 = 58_560


@pytest.fixture
def complexity() -> ModuleType:
    return load_recipe("complexity")


def weights_of(net: nn.Module) -> int:
    """The parameters of convolutions, without biases and slopes."""
    return sum(value.numel() for value in net.parameters() if value.dim() > 1)


def test_networks_of_the_field_have_their_published_weights(complexity: ModuleType) -> None:
    assert weights_of(complexity.srcnn()) == 57_184
    assert weights_of(complexity.fsrcnn(4)) == 12_464
    assert weights_of(complexity.vdsr()) == 664_704  # published: 665K


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_fsrcnn_enlarges_and_the_others_keep_the_size(complexity: ModuleType, scale: int) -> None:
    luma = torch.rand(1, 1, 7, 9)
    with torch.no_grad():
        assert complexity.fsrcnn(scale)(luma).shape == (1, 1, 7 * scale, 9 * scale)
        assert complexity.srcnn()(luma).shape == luma.shape
        assert complexity.vdsr()(luma).shape == luma.shape


def test_a_pixel_of_fsrcnn_costs_as_many_macs_as_it_has_weights(complexity: ModuleType) -> None:
    net = complexity.as_elastic(complexity.fsrcnn(3))
    assert count_macs(net, torch.rand(1, 1, 6, 5), 1) == 12_464 * 6 * 5


def test_the_explaining_counts_are_those_worked_out_by_hand(complexity: ModuleType) -> None:
    counts = {
        (row["scale"], row["blocks"], row["lr_side"], row["fold"]): row["macs"]
        for row in complexity.explaining_counts()
    }
    assert len(counts) == 3 * 2 * 2 * 2
    a_pixel = STEM + 25 * BLOCK + PLAIN_HEAD_X3
    assert counts[3, 25, 64, False] == 64 * 64 * a_pixel
    assert counts[3, 25, 1024 // 3, False] == 341 * 341 * a_pixel
    assert counts[4, 5, 256, True] < counts[4, 5, 256, False]


def test_the_contenders_have_every_depth_and_inputs_of_one_output(complexity: ModuleType) -> None:
    networks = complexity.contenders(4, 16)
    labels = [network.label for network in networks]
    assert labels[:5] == ["ASRN, 1 block", *(f"ASRN, {depth} blocks" for depth in range(2, 6))]
    assert {"ASRN, 25 blocks", "EDSR-baseline", "RCAN", "FSRCNN", "SRCNN", "VDSR"} <= set(labels)
    with torch.no_grad():
        for network in networks:
            if network.label != "RCAN":  # the others show it, and it takes long
                output = network.net(network.example, depth=network.depth)
                assert output.shape[-2:] == (16, 16), network.label


def test_the_command_writes_counts_and_times(
    complexity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_networks(scale: int, side: int) -> list[Any]:
        net = complexity.as_elastic(complexity.srcnn())
        example = torch.rand(1, 1, side, side)
        return [complexity.Measured(f"SRCNN {index}", net, 1, example) for index in range(scale)]

    monkeypatch.setattr(complexity, "contenders", two_networks)
    monkeypatch.setattr(complexity, "explaining_counts", list)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    out = tmp_path / "c.json"
    words = ["passes", "--scale", "2", "--side", "12", "--repeats", "2", "--out", str(out)]
    complexity.main(complexity.parse(words))
    record = json.loads(out.read_text())
    assert record["settings"] == {"scale": 2, "output_side": 12, "repeats": 2}
    assert [row["network"] for row in record["rows"]] == ["SRCNN 0", "SRCNN 1"]
    for row in record["rows"]:
        assert (row["parameters"], row["macs"]) == (57_281, 57_184 * 12 * 12)
        low, high = row["ms_range"]
        assert low <= row["ms"] <= high


def test_the_command_measures_a_training_step_of_each_depth_both_ways(
    complexity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InThisProcess:
        """Stands for the process of its own that each measurement has."""

        def Pool(self, _: int) -> InThisProcess:
            return self

        def __enter__(self) -> InThisProcess:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def apply(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
            return function(*arguments)

    monkeypatch.setattr(complexity.multiprocessing, "get_context", lambda _: InThisProcess())
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(complexity, "BATCH_SIZE", 1)
    monkeypatch.setattr(complexity, "PATCH_SIZE", 4)
    out = tmp_path / "steps.json"
    words = ["steps", "--blocks", "1", "2", "--repeats", "1", "--out", str(out)]
    complexity.main(complexity.parse(words))
    rows = json.loads(out.read_text())["rows"]
    assert [(row["blocks"], row["checkpoint_blocks"]) for row in rows] == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]
    assert [row["parameters"] for row in rows] == [87_235, 87_235, 126_403, 126_403]
    assert all(row["ms"] > 0 for row in rows)
    assert all(row["bytes"] >= 0 for row in rows)


def test_no_repeats_are_refused(complexity: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        complexity.parse(["steps", "--repeats", "0"])
    assert "--repeats 0: expected at least 1" in capsys.readouterr().err
