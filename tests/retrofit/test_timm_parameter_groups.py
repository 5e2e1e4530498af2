"""timm's optimisers group the parameters of a split model as they group the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

from elasticnet import ElasticObjective
from elasticnet.retrofit.timm import split

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 3},
    "resnet18": {},
    "convnext_atto": {},
}


create_optimizer_v2: Any = timm.optim.create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]


def make_model(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=5, **MODELS[name]).eval()


def groups_by_parameter(optimizer: Any) -> dict[int, tuple[Any, Any]]:
    """Return the factor of the learning rate and the weight decay, by the parameter's id."""
    return {
        id(parameter): (group.get("lr_scale"), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_a_net_has_the_groups_of_its_model(name: str, layer_decay: float | None) -> None:
    model = make_model(name)
    net = split(model).wrap()
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.05, "layer_decay": layer_decay}
    expected = groups_by_parameter(create_optimizer_v2(model, "adamw", **options))
    assert groups_by_parameter(create_optimizer_v2(net, "adamw", **options)) == expected
    num_scales = len({scale for scale, _ in expected.values()})
    assert num_scales == 1 if layer_decay is None else num_scales > 2


def test_positions_and_class_token_do_not_decay() -> None:
    net = split(make_model("vit_tiny_patch16_224")).wrap()
    assert net.no_weight_decay() == {"stem.cls_token", "stem.pos_embed"}
    assert net.truncate(1).no_weight_decay() == net.no_weight_decay()


def test_a_training_step_is_that_of_the_model_alone() -> None:
    """With one tap the objective is the ordinary loss: layer decay gives the same weights."""
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.05, "layer_decay": 0.7}
    x = torch.randn(2, 3, 32, 32)
    labels = torch.tensor([1, 4])
    torch.manual_seed(0)
    model = make_model("vit_tiny_patch16_224")
    torch.manual_seed(0)
    net = split(make_model("vit_tiny_patch16_224")).wrap(taps=[-1])
    objective = ElasticObjective(net, nn.CrossEntropyLoss(), psd_weight=0)

    of_model = create_optimizer_v2(model, "sgd", **options)
    nn.functional.cross_entropy(model(x), labels).backward()
    of_model.step()
    of_net = create_optimizer_v2(net, "sgd", **options)
    objective(x, labels).total.backward()
    of_net.step()
    assert torch.equal(net(x), model(x))


def test_reset_classifier_says_what_to_do() -> None:
    net: Any = split(make_model("vit_tiny_patch16_224")).wrap()
    with pytest.raises(TypeError, match=r"no reset_classifier: give the model .* before the split"):
        net.reset_classifier(10)
