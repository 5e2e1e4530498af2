"""peft: LoRA on the blocks of a net of one's own, and on a split transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elasticnet
import split_nets
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.recalibration import recalibrate
from plain_loop import Block, assert_equal, batches, make_net, make_objective, make_optimizer, train

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.slow


def with_lora(net: nn.Module, **options: Any) -> Any:
    """Return a net with LoRA matrices of rank 2, none of them zero."""
    torch.manual_seed(1)
    return peft.get_peft_model(net, peft.LoraConfig(r=2, init_lora_weights=False, **options))


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in net.named_parameters() if each.requires_grad}


def test_layers_of_lora_s_matrices_are_those_of_their_blocks() -> None:
    adapted = with_lora(make_net(), target_modules=["linear"])
    objective = make_objective(adapted)
    match = objective.group_matcher()
    for name, _ in objective.named_parameters():
        inner = name.removeprefix("net.base_model.model.")
        layer = {"stem": 0, "head": 4}.get(inner.split(".")[0])
        expected = int(inner.split(".")[1]) + 1 if layer is None else layer
        assert match(name) == (expected,), name


class LowRank(nn.Module):
    """LoRA written out: a linear layer that stays, plus two small matrices (alpha / r = 4)."""

    def __init__(self, base: Any, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(down.detach().clone())  # (r, channels)
        self.up = nn.Parameter(up.detach().clone())  # (channels, r)

    def forward(self, x: Tensor) -> Tensor:
        change = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.base(x) + 4 * change


def test_lora_on_own_blocks_trains_as_the_matrices_written_out() -> None:
    adapted = with_lora(make_net(), target_modules=["linear"], lora_alpha=8)
    by_hand = make_net()
    for parameter in by_hand.parameters():
        parameter.requires_grad_(False)
    for index, block in enumerate(by_hand.blocks):
        lora: Any = adapted.get_submodule(f"base_model.model.blocks.{index}.linear")
        matrices = (lora.lora_A["default"].weight, lora.lora_B["default"].weight)
        block.linear = LowRank(block.linear, *matrices)

    for net in (adapted, by_hand):
        train(make_objective(net), make_optimizer(trainable(net).values()))
    trained = list(trainable(adapted).values())
    expected = list(trainable(by_hand).values())
    assert len(trained) == 6
    torch.testing.assert_close(trained, expected)


def test_an_adapted_net_runs_at_every_depth_and_merges_into_a_plain_one(tmp_path: Path) -> None:
    adapted = with_lora(make_net(), target_modules=["linear"], modules_to_save=["head"]).eval()
    x, _ = batches()[0]
    taps = adapted(x, taps=adapted.taps)
    for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
        assert_equal({"y": adapted(x, depth=depth)}, {"y": prediction})
    with pytest.raises(TypeError, match=r"net is a PeftModel.*net = net\.merge_and_unload\(\)"):
        elasticnet.save(adapted, tmp_path / "net.safetensors")

    merged = adapted.merge_and_unload()
    assert type(merged) is ElasticWrapper
    assert set(merged.state_dict()) == set(make_net().state_dict())
    for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
        torch.testing.assert_close(merged.truncate(depth)(x), prediction)
    elasticnet.save(merged, tmp_path / "net.safetensors")


class Gain(nn.Module):
    """A stem with an argument of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 8)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return gain * self.project(x)


def scaled(block: nn.Module, x: Tensor, context: dict[str, Any], index: int) -> tuple[Tensor, Any]:
    return context["scale"] * block(x), context


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["stem"]},
        {"target_modules": ["linear"], "modules_to_save": ["stem"]},
        {"target_modules": ["project"]},
    ],
    ids=["the stem", "a copy of the stem", "inside the stem"],
)
def test_an_adapted_stem_leaves_the_blocks_their_keyword_arguments(options: Any) -> None:
    plain_stem = "stem" in options["target_modules"]
    stem = nn.Linear(5, 8) if plain_stem else Gain()
    net = ElasticWrapper(
        [Block(8), Block(8)], nn.Linear(8, 4), stem, layout="b n c", call_block=scaled
    )
    adapted = with_lora(net, **options)
    x, target = batches()[0]

    make_objective(adapted)(x, target, scale=2.0).total.backward()

    assert not torch.equal(adapted(x, scale=2.0), adapted(x, scale=3.0))
    if not plain_stem:
        assert not torch.equal(adapted(x, scale=2.0), adapted(x, scale=2.0, gain=3.0))


def test_an_adapted_net_is_recalibrated() -> None:
    net = make_net()
    net.head = nn.Sequential(TokenNorm(), net.head)
    adapted = with_lora(net, target_modules=["linear"])
    inputs = [x for x, _ in batches()]
    assert recalibrate(adapted, inputs) == ["head.0.norm"]
    features = adapted.eval()(inputs[0], taps=[2]).features[1]
    recalibrate(adapted, inputs[:1])
    found = net.head_statistics["2"].get_submodule("0.norm").get_buffer("running_mean")
    torch.testing.assert_close(found, features.mean(dim=(0, 1)))


def test_batch_norm_in_a_head_that_peft_copies_is_measured_after_the_merge() -> None:
    net = make_net()
    net.head = nn.Sequential(TokenNorm(), net.head)
    adapted = with_lora(net, target_modules=["linear"], modules_to_save=["head"])
    inputs = [x for x, _ in batches()]
    with pytest.raises(ValueError, match="copy of the head that peft trains: merge first"):
        recalibrate(adapted, inputs)
    assert recalibrate(adapted.merge_and_unload(), inputs) == ["head.0.norm"]


class TokenNorm(nn.Module):
    """BatchNorm of tokens (b, n, c)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def test_lora_around_a_split_model_is_lora_inside_it() -> None:
    """The same training, whether peft or the split comes first."""
    from elasticnet.retrofit.transformers import split

    mask: dict[str, Any] = {"attention_mask": split_nets.mask()}
    ids = split_nets.words()
    lora: dict[str, Any] = {"target_modules": ["query", "value"]}
    split_first = with_lora(split(split_nets.bert_model(), ids, **mask).wrap(), **lora)
    peft_first = split(with_lora(split_nets.bert_model(), **lora).model, ids, **mask).wrap()

    losses: list[list[float]] = []
    for adapted in (split_first, peft_first):
        objective = ElasticObjective(adapted, nn.CrossEntropyLoss(), psd_weight=0.1)
        optimizer = make_optimizer(trainable(adapted).values())
        of_this_net: list[float] = []
        for _ in range(4):
            optimizer.zero_grad()
            total = objective(ids, split_nets.labels(), **mask).total
            total.backward()
            optimizer.step()
            of_this_net.append(total.item())
        losses.append(of_this_net)
    assert len(trainable(split_first)) == len(trainable(peft_first)) == 12
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
