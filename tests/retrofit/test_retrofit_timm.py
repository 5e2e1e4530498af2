"""timm models, small and with random weights: the wrapped net is the model, whole and cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import GatedMlp  # pyright: ignore[reportPrivateImportUsage]
from timm.models import mlp_mixer
from timm.models.convmixer import ConvMixer
from timm.models.convnext import ConvNeXtBlock
from timm.models.mlp_mixer import MlpMixer
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vgg import VGG
from torch import Tensor, nn

from contract import check_contract
from elasticnet import ElasticObjective
from elasticnet.card.counting import count_macs
from elasticnet.retrofit.parts import TapAdapter
from elasticnet.retrofit.timm import example_input, split

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
BASIC: Any = BasicBlock  # timm annotates the class as an instance
SMALL_MIXER = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_classes": 5}


def vit(name: str, **options: Any) -> Callable[[int], nn.Module]:
    return lambda depth: timm.create_model(name, **{**TINY_VIT, **options, "depth": depth})


def mixer(block: type[nn.Module], **options: Any) -> Callable[[int], nn.Module]:
    return lambda depth: MlpMixer(num_blocks=depth, block_layer=block, **SMALL_MIXER, **options)


def isotropic_convnext(depth: int) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.Sequential(*(ConvNeXtBlock(8) for _ in range(depth)))
    )
    return net.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(8, 5))


class WithoutUse(nn.Sequential):
    """Holds modules that its forward does not call."""

    def __init__(self) -> None:
        super().__init__(isotropic_convnext(2))
        self.tail = nn.Sequential(nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        return self[0](input)


# by depth; layout; prefix tokens
ISOTROPIC: dict[str, tuple[Callable[[int], nn.Module], str, int]] = {
    "vit": (vit("vit_tiny_patch16_224"), "b n c", 1),
    "vit with registers": (vit("vit_tiny_patch16_224", reg_tokens=4), "b n c", 5),
    "vit without a class token": (
        vit("vit_tiny_patch16_224", class_token=False, global_pool="avg"),
        "b n c",
        0,
    ),
    "deit": (vit("deit_tiny_distilled_patch16_224"), "b n c", 2),
    "beit": (
        vit("beit_base_patch16_224", use_shared_rel_pos_bias=True, use_rel_pos_bias=False),
        "b n c",
        1,
    ),
    "eva": (vit("eva02_tiny_patch14_224"), "b n c", 1),
    "cait": (vit("cait_xxs24_224"), "b n c", 0),  # the class token joins behind the blocks
    "mixer": (mixer(mlp_mixer.MixerBlock), "b n c", 0),
    "resmlp": (mixer(mlp_mixer.ResBlock, mlp_ratio=4, norm_layer=mlp_mixer.Affine), "b n c", 0),
    "gmlp": (mixer(mlp_mixer.SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=4), "b n c", 0),
    "convmixer": (
        lambda depth: ConvMixer(16, depth, kernel_size=3, patch_size=4, num_classes=5),
        "b c h w",
        0,
    ),
    "isotropic convnext": (isotropic_convnext, "b c h w", 0),  # timm has its block, and no such net
}
STAGED: dict[str, tuple[Callable[[], nn.Module], int | None, str]] = {  # stages, layout
    "resnet": (
        lambda: ResNet(BASIC, (1, 1, 1, 2), channels=(4, 8, 8, 12), num_classes=5),
        None,
        "b c h w",
    ),
    "resnet, two stages": (lambda: timm.create_model("test_resnet", num_classes=5), 2, "b c h w"),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5), None, "b c h w"),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", **SMALL_SWIN),
        None,
        "b h w c",
    ),
    "swin, two stages": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", **SMALL_SWIN),
        2,
        "b h w c",
    ),
    "regnet": (lambda: timm.create_model("regnetx_002", num_classes=5), None, "b c h w"),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=5), 2, "b c h w"),
    "pvt": (
        lambda: timm.create_model(
            "pvt_v2_b0", embed_dims=(8,) * 4, num_heads=(1,) * 4, num_classes=5
        ),
        None,
        "b n c",
    ),
    "mvit": (lambda: MultiScaleVit(SMALL_MVIT, img_size=(64, 64), num_classes=5), None, "b n c"),
    "mvit, two stages": (
        lambda: MultiScaleVit(SMALL_MVIT, img_size=(64, 64), num_classes=5),
        2,
        "b n c",
    ),
}
SMALL_SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 12,
    "depths": (1, 1, 2, 2),
    "num_classes": 5,
}
SMALL_MVIT = MultiScaleVitCfg(depths=(1, 1, 2, 2), embed_dim=12, num_heads=1)


def made(build: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(*arguments).eval()


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def any_model(name: str, depth: int) -> tuple[nn.Module, Tensor, int | None]:
    """A model, images for it, and its stages; an isotropic one has `depth` blocks."""
    if name in STAGED:
        build, stages, _ = STAGED[name]
        return made(build), images(64), stages
    build, _, _ = ISOTROPIC[name]
    return made(build, depth), images(32), None


@pytest.mark.parametrize("name", ISOTROPIC)
def test_isotropic_nets_cut_at_every_depth_are_timms_own_of_that_depth(name: str) -> None:
    """The oracle: the model that timm builds with fewer blocks, given the same weights."""
    build, layout, prefix_tokens = ISOTROPIC[name]
    model, x = made(build, 3), images(32)
    parts = split(model, x)
    net = parts.wrap().eval()
    assert len(net.blocks) == 3
    assert (parts.layout, parts.prefix_tokens) == (layout, prefix_tokens)
    state = model.state_dict()
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        for depth in net.taps:
            small = made(build, depth)
            small.load_state_dict({key: state[key] for key in small.state_dict()})
            assert torch.equal(net(x, depth=depth), small(x)), depth


@pytest.mark.parametrize("name", STAGED)
def test_staged_nets(name: str) -> None:
    build, stages, layout = STAGED[name]
    model, x = made(build), images(64)
    parts = split(model, x, stages=stages)
    net = parts.wrap().eval()
    with torch.no_grad():
        taps = net.forward_taps(x)
        assert torch.equal(taps.predictions[-1], model(x))
        assert torch.equal(net(x[:1]), model(x[:1]))
    assert [tap.problem for tap in net.check(x)] == [None] * len(net.taps)
    last = taps.features[-1].shape
    odd = [
        depth
        for depth, features in zip(taps.depths, taps.features, strict=True)
        if features.shape != last
    ]
    assert sorted(parts.adapters) == odd
    assert bool(odd) == (stages is not None)
    for depth in odd:
        adapter = parts.adapters[depth]
        assert isinstance(adapter, TapAdapter)
        assert adapter(taps.features[depth - 1]).shape == last
    assert not any(module._forward_hooks for module in model.modules())
    assert {id(p) for p in model.parameters()} <= {id(p) for p in net.parameters()}
    assert (parts.layout, parts.prefix_tokens) == (layout, 0)


def test_resnet_cut_at_a_depth_is_timms_resnet_with_a_shorter_last_stage() -> None:
    def build(depth: int) -> nn.Module:
        return ResNet(BASIC, (1, 1, 1, depth), channels=(4, 8, 8, 12), num_classes=5)

    model, x = made(build, 3), images(64)
    net = split(model, x).wrap().eval()
    assert net.taps == (1, 2, 3)
    state = model.state_dict()
    with torch.no_grad():
        for depth in net.taps:
            small = made(build, depth)
            small.load_state_dict({key: state[key] for key in small.state_dict()})
            assert torch.equal(net(x, depth=depth), small(x))


@pytest.mark.parametrize(
    "name",
    ["vit with registers", "eva", "cait", "mixer", *(name for name in STAGED if name != "regnet")],
)
def test_contract(name: str) -> None:
    model, x, stages = any_model(name, depth=2)
    for parameter in model.parameters():
        if not parameter.any():  # a head that starts at zero hands on no gradient
            nn.init.normal_(parameter)
    check_contract(split(model, x, stages=stages).wrap(), x)


@pytest.mark.parametrize("name", ["vit", "resnet", "resnet, two stages"])
def test_training_with_both_losses_trains_the_model_itself(name: str) -> None:
    model, x, stages = any_model(name, depth=3)
    target = torch.tensor([1, 3])
    net = split(model, x, stages=stages).wrap().train()
    objective = ElasticObjective(net, F.cross_entropy, psd_weight=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    before = model.eval()(x).detach()
    net.train()
    steps = []
    for _ in range(8):
        optimizer.zero_grad(set_to_none=True)
        terms = objective(x, target)
        terms.total.backward()
        optimizer.step()
        steps.append(terms)
    assert steps[-1].distillation > 0
    assert len(steps[-1].per_depth) == len(net.taps) > 1
    assert steps[-1].total < steps[0].total
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x), model.eval()(x))
        assert not torch.equal(before, model(x))


def test_in_training_mode_the_net_draws_the_models_own_random_numbers() -> None:
    rates = {"drop_rate": 0.2, "proj_drop_rate": 0.1, "drop_path_rate": 0.3, "pos_drop_rate": 0.1}
    model, x = made(vit("vit_tiny_patch16_224", **rates), 3).train(), images(32)
    net = split(model, x).wrap().train()
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    assert torch.equal(net(x), expected)


def test_the_example_has_the_models_own_size_channels_and_dtype() -> None:
    assert example_input(made(ISOTROPIC["vit"][0], 1)).shape == (2, 3, 32, 32)
    model = made(lambda: timm.create_model("test_resnet", in_chans=1)).double()
    assert example_input(model).shape == (2, 1, 160, 160)
    assert example_input(model).dtype == torch.float64
    assert split(made(STAGED["convnext"][0])).layout == "b c h w"


@pytest.mark.parametrize("name", STAGED)
def test_all_stages_spread_the_taps_over_the_net(name: str) -> None:
    model, x = made(STAGED[name][0]), images(64)
    fewest = split(model, x, stages=STAGED[name][1])

    parts = split(model, x, stages="all")

    assert parts.adapters
    net = parts.wrap().eval()
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    assert count_macs(net, x, 1) <= count_macs(fewest.wrap(), x, 1)
    few = parts.wrap(taps=(1, -1))
    assert list(few.adapters) == ["1"]


def test_all_stages_of_an_isotropic_net_are_its_blocks() -> None:
    parts = split(made(ISOTROPIC["vit"][0], 3), images(32), stages="all")
    assert len(parts.blocks) == 3
    assert not parts.adapters


def test_blocks_can_be_named() -> None:
    model, x = made(STAGED["convnext"][0]), images(64)
    parts = split(model, x, blocks="stages.2.blocks")
    assert list(parts.blocks) == list(model.get_submodule("stages.2.blocks").children())
    with torch.no_grad():
        assert torch.equal(parts.wrap().eval()(x), model(x))


def test_an_image_that_is_not_square_keeps_the_prefix_tokens() -> None:
    assert split(made(vit("vit_tiny_patch16_224", img_size=(16, 32)), 2)).prefix_tokens == 1


def test_an_example_that_the_model_does_not_take_is_named() -> None:
    model = made(STAGED["convnext"][0])
    message = r"ConvNeXt does not run on the example of shape \(2, 5, 64, 64\): .*channels"
    with pytest.raises(ValueError, match=message):
        split(model, torch.rand(2, 5, 64, 64))


def test_a_name_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model 'resnet18': expected a model, such as"):
        split("resnet18")  # pyright: ignore[reportArgumentType]


def test_wrong_arguments_and_models_are_refused() -> None:
    model, x = made(STAGED["convnext"][0]), images(64)
    for stages in (0, True, 1.5, "2"):
        with pytest.raises(
            ValueError, match=rf'stages {stages!r}: expected a whole number, at least 1, or "all"'
        ):
            split(model, x, stages=stages)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"stages=2 and blocks='stages': pass one of them"):
        split(model, x, stages=2, blocks="stages")
    with pytest.raises(ValueError, match=r"blocks 'stagess': ConvNeXt has no such module"):
        split(model, x, blocks="stagess")
    with pytest.raises(
        ValueError, match=r"blocks 'tail': none of its modules ran once and returned features"
    ):
        split(made(WithoutUse), images(32), blocks="tail")
    with pytest.raises(ValueError, match=r"no two blocks in its last 9 resolutions"):
        split(model, x, stages=9)
    with pytest.raises(
        ValueError, match=r"ResNet is not split: its last resolution has no two blocks of one shape"
    ):
        split(made(STAGED["resnet, two stages"][0]), x)
    with pytest.raises(
        ValueError, match=r"VGG is not split: its last resolution has no two blocks"
    ):
        split(made(lambda: VGG(cfg=[4, "M", 8, 8], num_classes=5)), images(64))


def test_a_model_of_features_alone_is_refused_with_the_way() -> None:
    model = timm.create_model("resnet18", features_only=True)
    with pytest.raises(ValueError, match=r"FeatureListNet is not split: .* without features_only"):
        split(model, torch.randn(2, 3, 64, 64))
