"""What a net tells optimisers about its parameters: the layer of each, and those without decay."""

from __future__ import annotations

from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.parameter_groups import ParameterGroups
from tiny_nets import conv_blocks, conv_net

optim: Any = timm.optim  # which does not say what it exports
DECAY = 0.05
LAYER_DECAY = 0.5


class StemWithPositions(nn.Module):
    """A stem that keeps its positions out of the weight decay, as timm's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.conv = nn.Conv2d(3, 4, 1)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.pos_embed


def own_net() -> ElasticWrapper:
    adapters: dict[int, nn.Module] = {1: nn.Conv2d(4, 4, 1)}
    return conv_net(3, stem=StemWithPositions(), adapters=adapters)


def by_name(net: nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Return what an optimiser's groups say of each parameter, by its name."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(each)]: group[key] for group in groups for each in group["params"]}


def expected_scale(name: str, num_blocks: int) -> float:
    """Return the factor of the learning rate: 1 at the head, less for each layer before it."""
    part, *rest = name.split(".")
    layer = {"stem": 0, "blocks": 1}.get(part, num_blocks + 1)
    if part == "blocks":
        layer = 1 + int(rest[0])
    return LAYER_DECAY ** (num_blocks + 1 - layer)


def test_layers_of_a_net_are_stem_blocks_and_head() -> None:
    net = own_net()
    groups = optim.param_groups_layer_decay(net, DECAY, layer_decay=LAYER_DECAY)
    scales = by_name(net, groups, "lr_scale")
    assert scales == {name: expected_scale(name, 3) for name, _ in net.named_parameters()}


def test_what_a_part_keeps_out_of_the_decay_stays_out() -> None:
    net = own_net()
    assert net.no_weight_decay() == {"stem.pos_embed"}
    groups = optim.param_groups_weight_decay(net, DECAY, no_weight_decay_list=net.no_weight_decay())
    decays = by_name(net, groups, "weight_decay")
    assert decays["stem.pos_embed"] == 0
    assert decays["stem.conv.weight"] == DECAY


def test_names_are_those_of_a_net_with_compiled_blocks() -> None:
    blocks = [torch.compile(block, backend="eager") for block in conv_blocks(2)]
    net = ElasticWrapper(blocks, nn.Conv2d(4, 2, 1), stem=StemWithPositions())  # pyright: ignore[reportArgumentType]
    groups = optim.param_groups_layer_decay(net, DECAY, layer_decay=LAYER_DECAY)
    scales = by_name(net, groups, "lr_scale")
    assert len(set(scales.values())) == 4
    assert scales == {name: expected_scale(name, 2) for name, _ in net.named_parameters()}


def test_an_objective_answers_for_its_net_and_for_learned_weights() -> None:
    net = own_net()
    learned = nn.Parameter(torch.ones(3, 1))
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)
    objective.register_parameter("learned", learned)
    optimizer = optim.create_optimizer_v2(
        objective, "adamw", lr=1.0, weight_decay=DECAY, layer_decay=LAYER_DECAY
    )
    scales = by_name(objective, optimizer.param_groups, "lr_scale")
    decays = by_name(objective, optimizer.param_groups, "weight_decay")
    expected = {f"net.{name}": expected_scale(name, 3) for name, _ in net.named_parameters()}
    assert scales == {**expected, "learned": 1.0}
    assert decays["learned"] == decays["net.stem.pos_embed"] == 0
    assert decays["net.stem.conv.weight"] == DECAY


# --- what a model says that was split


def split_net() -> ElasticWrapper:
    """Return a net whose model counts the layers 0, 1, 1, 2: two blocks are one layer."""
    net = conv_net(3, stem=nn.Conv2d(3, 4, 1))
    layers: dict[str, int] = {}
    for name, _ in net.named_parameters():
        part, *rest = name.split(".")
        layers[name] = {"stem": 0, "head": 3}.get(part, 1)
        if part == "blocks" and rest[0] == "2":
            layers[name] = 2
    net.parameter_groups = ParameterGroups(layers, frozenset({"blocks.0.first.weight"}))
    return net


def zero_last_layer(block: Any) -> None:
    block.init_identity()


@pytest.mark.parametrize("what", ["whole", "cut", "grown"])
def test_a_model_s_answers_stay_when_its_net_is_cut_or_grown(what: str) -> None:
    net = split_net()
    matched = net.group_matcher()
    if what == "cut":
        net = net.truncate(2)
    if what == "grown":
        net = net.grow(conv_blocks(2), torch.zeros(1, 3, 5, 5), init=zero_last_layer)
    match = net.group_matcher()
    known = [name for name, _ in net.named_parameters() if name.split(".")[:2] < ["blocks", "3"]]
    assert [match(name) for name in known] == [matched(name) for name in known]
    if what == "grown":
        order = ["blocks.2.first.weight", "blocks.3.x", "blocks.4.x", "head.weight"]
        places = [match(name) for name in order]
        assert places == sorted(places)
        assert len(set(places)) == 4
    assert net.no_weight_decay() == {"blocks.0.first.weight"}


def test_what_was_put_into_a_part_since_the_split_belongs_to_its_layer() -> None:
    match = split_net().group_matcher()
    assert match("blocks.1.first.lora_A.weight") == (1,)
    assert match("stem.lora_A.weight") == (0,)
    assert match("adapters.1.weight") == match("head.weight") == (3,)
