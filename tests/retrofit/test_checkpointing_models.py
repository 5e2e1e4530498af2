"""Models that compute their activations again in the backward pass do so when they are split."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elasticnet.retrofit import split
from elasticnet.retrofit import timm as timm_models
from elasticnet.retrofit import transformers as transformers_models
from tiny_nets import TinyBlock

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(24).view(2, 12)


def kept_bytes(call: Callable[[], Any]) -> int:
    """Return how many bytes autograd keeps for the backward pass of a call."""
    kept: dict[tuple[int, torch.Size], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr(), tensor.shape] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def timm_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=10, **options)
    model.set_grad_checkpointing(True)
    return model.train()


TIMM_MODELS: dict[str, Callable[[], Any]] = {
    "one list of blocks": lambda: timm_model("vit_tiny_patch16_224", img_size=64, depth=3),
    "one list over stages": lambda: timm_model("resnet18"),
    "a list in each stage": lambda: timm_model("convnext_atto"),
}


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_a_split_timm_model_keeps_no_more_than_the_model(name: str) -> None:
    model = TIMM_MODELS[name]()

    net = timm_models.split(model, X).wrap().train()

    assert net.checkpoint_blocks
    assert kept_bytes(lambda: net(X)) <= kept_bytes(lambda: model(X))


def test_what_is_recomputed_in_the_stem_is_trained_as_in_the_model() -> None:
    model = timm_model("resnet18")
    plain = copy.deepcopy(model)
    plain.set_grad_checkpointing(False)
    net = timm_models.split(model, X).wrap().train()

    net(X).square().mean().backward()
    plain(X).square().mean().backward()

    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name
    statistics = dict(plain.named_buffers())
    for name, buffer in model.named_buffers():  # of batch norms: advanced once, not twice
        assert torch.equal(buffer, statistics[name]), name


def test_wrap_can_keep_activations_all_the_same() -> None:
    parts = timm_models.split(TIMM_MODELS["one list of blocks"](), X)

    assert parts.checkpoint_blocks
    assert not parts.wrap(checkpoint_blocks=False).checkpoint_blocks


class Recomputing(nn.Module):
    """Calls torch's own function, in training mode alone and for one of two blocks."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.blocks = nn.ModuleList(TinyBlock("residual", "b c h w", 3, 3) for _ in range(2))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        if self.training:
            x = checkpoint(self.blocks[1], x, use_reentrant=self.use_reentrant)
        else:
            x = self.blocks[1](x)
        return self.head(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_in_training_mode_alone_is_seen(use_reentrant: bool) -> None:
    parts = split(Recomputing(use_reentrant), "blocks", X)

    assert parts.checkpoint_blocks


def test_a_model_that_keeps_its_activations_goes_on_so() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=64, depth=2)
    model.set_grad_checkpointing(False)

    assert not timm_models.split(model, X).wrap().checkpoint_blocks


def bert() -> Any:
    import transformers

    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=24,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).train()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_layers_of_transformers_go_on_recomputing_themselves() -> None:
    model = bert()
    model.gradient_checkpointing_enable({"use_reentrant": False})

    net = transformers_models.split(model, IDS).wrap().train()

    assert not net.checkpoint_blocks  # they would be computed twice more
    assert kept_bytes(lambda: net(IDS)) <= kept_bytes(lambda: model(IDS))


def test_a_transformers_model_that_recomputes_its_layers_is_carried_over() -> None:
    model = bert()
    before = kept_bytes(lambda: transformers_models.split(model, IDS).wrap().train()(IDS))
    model.bert.encoder.gradient_checkpointing = True  # the encoder's switch, not the layers'

    net = transformers_models.split(model, IDS).wrap().train()

    assert net.checkpoint_blocks
    assert kept_bytes(lambda: net(IDS)) < before / 2
