"""The auxiliary loss of mixtures of experts: the model's own, for any depth of the net."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from elasticnet.retrofit.transformers import RouterLoss, split

hf: Any = transformers  # its configs are annotated too narrowly
MIXTRAL: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "num_local_experts": 4,
    "router_aux_loss_coef": 0.25,
}
IDS = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(2, 9, dtype=torch.long)
MASK[0, 6:] = 0


def mixtral(num_layers: int, **options: Any) -> Any:
    torch.manual_seed(0)
    config = hf.MixtralConfig(**MIXTRAL, num_hidden_layers=num_layers, **options)
    return hf.MixtralForCausalLM(config).eval()


def own_loss(model: Any, **inputs: Tensor) -> Tensor:
    """What the model adds to its own loss."""
    return 0.25 * model(IDS, output_router_logits=True, **inputs).aux_loss


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_is_the_loss_of_the_model_of_so_many_layers(depth: int) -> None:
    model = mixtral(3)
    shorter = mixtral(depth)
    state = model.state_dict()
    shorter.load_state_dict({key: state[key] for key in shorter.state_dict()})
    net = split(model, IDS, attention_mask=MASK).wrap().eval()
    routers = RouterLoss(net)
    with torch.no_grad():
        with routers:
            net(IDS, depth=depth)
        assert torch.equal(routers.loss(), own_loss(shorter))
        with routers:
            net(IDS, depth=depth, attention_mask=MASK)
        assert torch.equal(routers.loss(MASK), own_loss(shorter, attention_mask=MASK))


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_its_gradient_is_the_models(checkpoint_blocks: bool) -> None:
    model = mixtral(2).train()
    own_loss(model).backward()
    expected = [layer.mlp.gate.weight.grad.clone() for layer in model.model.layers]
    model.zero_grad()
    net = split(model, IDS).wrap(checkpoint_blocks=checkpoint_blocks).train()

    hooks = [dict(module._forward_hooks) for module in net.modules()]

    with RouterLoss(net) as routers:
        net(IDS, taps=net.taps)
    routers.loss().backward()

    for layer, gradient in zip(model.model.layers, expected, strict=True):
        torch.testing.assert_close(layer.mlp.gate.weight.grad, gradient)
    assert [dict(module._forward_hooks) for module in net.modules()] == hooks


def test_a_model_that_adds_this_loss_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        split(mixtral(2), IDS)
        assert caplog.messages == []
        split(mixtral(2, output_router_logits=True), IDS)

    (message,) = caplog.messages
    assert message.startswith("MixtralForCausalLM adds the loss of its routers")
    assert "elasticnet.retrofit.transformers.RouterLoss(net)" in message


def test_nets_without_routers_and_passes_without_a_record_are_refused() -> None:
    config = hf.LlamaConfig(**{key: MIXTRAL[key] for key in MIXTRAL if "router" not in key})
    with pytest.raises(ValueError, match="RouterLoss: expected a net split from"):
        RouterLoss(split(hf.LlamaForCausalLM(config).eval(), IDS).wrap())

    with pytest.raises(RuntimeError, match="no router ran"):
        RouterLoss(split(mixtral(2), IDS).wrap()).loss()
