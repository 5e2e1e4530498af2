"""Parameters that no step uses: found by one backward pass, named, and no obstacle to training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from contract import same
from elasticnet import ElasticObjective, ElasticWrapper
from tiny_nets import conv_blocks, conv_net

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(2))


class StemWithMaskToken(nn.Module):
    """A stem with a parameter that its forward reads only if it is asked to, and with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(4, 1, 1))
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor, is_masked: bool = False) -> Tensor:
        if is_masked:
            x = x + self.mask_token
        return self.dropout(self.norm(x))


def masked_objective(**options: Any) -> ElasticObjective:
    net = ElasticWrapper(conv_blocks(3), nn.Conv2d(4, 2, 1), StemWithMaskToken())
    return ElasticObjective(net, nn.L1Loss(), 0.1, **options)


def train_two_steps(
    objective: ElasticObjective, x: Any, target: Any, *, finds_unused: bool
) -> None:
    """Train in DistributedDataParallel, which misses unused parameters in the second step."""
    parallel = DistributedDataParallel(objective, find_unused_parameters=finds_unused)
    for _ in range(2):
        parallel(x, target).total.backward()


def test_a_parameter_that_no_step_uses_is_named() -> None:
    objective = masked_objective()
    assert not objective.needs_unused_search
    assert objective.find_unused(X, Y) == ["net.stem.mask_token"]
    assert objective.needs_unused_search
    objective.get_parameter("net.stem.mask_token").requires_grad_(False)
    assert not objective.needs_unused_search
    assert objective.find_unused(X, Y) == []


def test_a_frozen_net_has_no_unused_parameter() -> None:
    objective = masked_objective()
    objective.requires_grad_(False)
    assert objective.find_unused(X, Y) == []


def test_keyword_arguments_reach_the_pass() -> None:
    assert masked_objective().find_unused(X, Y, is_masked=True) == []


def test_a_mask_reaches_the_self_distillation() -> None:
    objective = masked_objective()
    every_position = torch.ones(2, 5, 6, dtype=torch.bool)
    assert objective.find_unused(X, Y, mask=every_position) == ["net.stem.mask_token"]
    with pytest.raises(ValueError, match=r"shape \(2, 5\): expected \(b, h, w\)"):
        objective.find_unused(X, Y, mask=every_position[..., 0])


def test_the_search_changes_nothing() -> None:
    objective = masked_objective(sampled_taps=1).eval()
    objective(X, Y).total.backward()
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in objective.parameters()]
    generator = torch.get_rng_state()
    objective.find_unused(X, Y)
    same(dict(objective.state_dict()), state, "the state")
    same([p.grad for p in objective.parameters()], gradients, "the gradients")
    assert torch.equal(torch.get_rng_state(), generator)
    assert not objective.training


@pytest.mark.parametrize(
    "options",
    [
        {"sampled_taps": 0},
        {"tap_weights": {1: 0.0, 2: 0.0, 3: 1.0}},
        {"tap_weights": nn.Parameter(torch.ones(3))},
    ],
)
def test_an_adapter_that_some_steps_use_is_not_among_them(options: dict[str, Any]) -> None:
    net = conv_net(3, adapters={1: nn.Conv2d(4, 4, 1)})
    objective = ElasticObjective(net, nn.L1Loss(), 0.1, **options)
    assert objective.find_unused(X, Y) == []


def test_a_compiled_net_is_searched() -> None:
    objective = masked_objective()
    objective.net = torch.compile(objective.net, backend="eager")  # pyright: ignore
    assert objective.find_unused(X, Y) == ["net._orig_mod.stem.mask_token"]


def test_distributed_data_parallel_trains_with_the_search_and_without_the_parameters(
    one_process: None,
) -> None:
    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        train_two_steps(masked_objective(), X, Y, finds_unused=False)

    objective = masked_objective()
    names = objective.find_unused(X[:1], Y[:1])
    train_two_steps(objective, X, Y, finds_unused=objective.needs_unused_search)

    frozen = masked_objective()
    for name in names:
        frozen.get_parameter(name).requires_grad_(False)
    train_two_steps(frozen, X, Y, finds_unused=False)


def test_a_net_in_distributed_data_parallel_is_searched(one_process: None) -> None:
    net = masked_objective().net
    parallel = DistributedDataParallel(net, find_unused_parameters=True)
    objective = ElasticObjective(parallel, nn.L1Loss(), 0.1)
    assert objective.find_unused(X, Y) == ["net.module.stem.mask_token"]


def vision_model(name: str) -> tuple[Any, Tensor]:
    """Return a tiny model of transformers and images for it."""
    transformers: Any = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    model = getattr(transformers, f"{name}Model")(config)
    return model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["Dinov2", "CLIPVision", "ViT"])
def test_models_of_transformers_train_in_distributed_data_parallel(
    name: str, one_process: None
) -> None:
    from elasticnet.retrofit.transformers import split

    model, images = vision_model(name)
    net = split(model.eval(), images).wrap().train()

    def loss(prediction: Tensor, _target: None) -> Tensor:
        return prediction.square().mean()

    objective = ElasticObjective(net, loss, psd_weight=0.1)
    names = objective.find_unused(images[:1], None)
    train_two_steps(objective, images, None, finds_unused=objective.needs_unused_search)
    assert objective.needs_unused_search == bool(names)
    for each in names:
        objective.get_parameter(each).requires_grad_(False)
    assert not objective.needs_unused_search
    train_two_steps(objective, images, None, finds_unused=False)
    if name == "Dinov2":
        assert any("mask_token" in each for each in names)
