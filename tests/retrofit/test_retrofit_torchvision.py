"""torchvision models, small and with random weights: the wrapped net is the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from contract import check_contract
from elasticnet import ElasticObjective
from elasticnet.retrofit.torchvision import split


def resnet(depth: int) -> nn.Module:
    block: Any = models.resnet.BasicBlock
    return models.ResNet(block, [1, 1, 1, depth], num_classes=5)


def vit(depth: int) -> nn.Module:
    return models.VisionTransformer(32, 8, depth, 2, 24, 48, num_classes=5)


def made(build: Callable[[int], nn.Module], depth: int) -> nn.Module:
    torch.manual_seed(0)
    model = build(depth)
    for parameter in model.parameters():
        if not parameter.any():  # ViT's head starts at zero
            nn.init.normal_(parameter)
    return model.eval()


def images(build: Callable[..., Any]) -> Tensor:
    return torch.randn(
        2, 3, *((32, 32) if build is vit else (64, 48)), generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize("build", [resnet, vit])
def test_cut_at_every_depth_it_is_torchvisions_own_of_that_depth(
    build: Callable[[int], nn.Module],
) -> None:
    model, x = made(build, 3), images(build)
    parts = split(model, x)
    assert (parts.layout, parts.prefix_tokens) == (("b n c", 1) if build is vit else ("b c h w", 0))
    net = parts.wrap().eval()
    assert net.taps == (1, 2, 3)
    state = model.state_dict()
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        for depth in net.taps:
            small = made(build, depth)
            small.load_state_dict({key: state[key] for key in small.state_dict()})
            assert torch.equal(net(x, depth=depth), small(x))


@pytest.mark.parametrize("build", [resnet, vit])
def test_contract_and_training(build: Callable[[int], nn.Module]) -> None:
    model, x = made(build, 2), images(build)
    net = split(model, x).wrap()
    check_contract(net, x)
    terms = ElasticObjective(net.train(), F.cross_entropy, psd_weight=0.1)(x, torch.tensor([0, 4]))
    terms.total.backward()
    assert terms.distillation > 0
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_earlier_stages_get_adapters() -> None:
    model, x = made(resnet, 2), images(resnet)
    parts = split(model, x, stages=3)
    assert sorted(parts.adapters) == [1, 2]
    net = parts.wrap().eval()
    assert len(net.taps) == 4
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        assert {prediction.shape for prediction in net.forward_taps(x).predictions} == {(2, 5)}


@pytest.mark.parametrize(
    ("build", "layout"),
    [
        (models.mobilenet_v3_small, "b c h w"),
        (models.convnext_tiny, "b c h w"),
        (models.swin_t, "b h w c"),
        (models.regnet_y_400mf, "b c h w"),
    ],
)
def test_other_families(build: Callable[..., nn.Module], layout: str) -> None:
    torch.manual_seed(0)
    model, x = build(num_classes=5).eval(), images(build)
    parts = split(model, x)
    assert parts.layout == layout
    assert len(parts.blocks) > 1
    with torch.no_grad():
        assert torch.equal(parts.wrap().eval()(x), model(x))


def test_the_example_has_the_models_image_size() -> None:
    assert len(split(made(vit, 2)).blocks) == 2  # a ViT of 32 x 32 takes no other size


def test_what_is_no_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="DenseNet is not split"):
        split(models.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5).eval(), images(resnet))


class Square(nn.Module):
    """Has as many channels as rows and columns, and its own idea of `feature_info`."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info: list[Any] = [{"name": "a stage, and no channels"}, "a stage"]
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.Sequential(*[self.block() for _ in range(2)])
        self.head = nn.Conv2d(8, 1, 1)

    @staticmethod
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)))


def test_what_a_model_of_ones_own_says_of_its_features_is_no_obstacle() -> None:
    parts = split(Square(), torch.rand(2, 3, 8, 8))

    assert parts.layout == "b c h w"
    assert len(parts.blocks) == 2
