"""Splits timm models: finds their blocks by running them once, and proves the parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elasticnet.retrofit.find import Stages, check_is_module, split_found
from elasticnet.retrofit.parts import Split
from elasticnet.retrofit.timm_parameter_groups import timm_parameter_groups

# what the model has and the net has not, with what to do instead
REFUSALS = {
    "reset_classifier": (
        "give the model its new classifier, model.reset_classifier(num_classes), before the split: "
        "the parts hold the classifier as it is"
    ),
}
# what `timm.create_model(..., features_only=True)` returns
FEATURE_MODELS = (
    "FeatureDictNet",
    "FeatureGetterNet",
    "FeatureGraphNet",
    "FeatureHookNet",
    "FeatureListNet",
)
DEFAULT_INPUT_SIZE = (3, 224, 224)  # channels, height, width


def split(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    stages: Stages = None,
    blocks: str | None = None,
) -> Split:
    """Take apart a timm model into stem, blocks and head; the model stays as it is.

    Isotropic models (ViT, MLP-Mixer, ConvMixer, ...): every block is a tap.

    Staged ones (ResNet, ConvNeXt, Swin, ...): by default the taps are the blocks of the last stage,
    which means of the last resolution; where these differ in channels, the longest run of one
    shape. The parts are then the model's own modules and nothing else, but the first tap already
    costs most of the whole net. `stages="all"` spreads the taps over the net; the earlier ones
    get adapters, which have to be trained.

    Layout and prefix tokens are read off the features.

    Args:
        model: A timm model.
        example: An input (b, 3, h, w); None makes one of the model's own size.
        stages: Tap all blocks of the last so many stages; "all" means as many as can be split.
            Blocks that differ in shape from the last one get adapters, which are new modules to be
            trained; `wrap(taps=...)` keeps those of its taps only. None means the last stage,
            without adapters.
        blocks: The path of the module that holds the blocks, where the ones found are not those
            wanted.

    Returns:
        The parts, proved to give the model's own output.

    Raises:
        ValueError: The model is not a chain of blocks, or the parts do not reproduce it; the
            message says why.
        TypeError: `model` is no module.

    Example:
        `net = split(timm.create_model("vit_tiny_patch16_224")).wrap()`
        `net = split(timm.create_model("resnet18"), stages="all").wrap(taps=(2, 4, 6, 8))`
    """
    import timm.layers

    check_is_module(model)
    if type(model).__name__ in FEATURE_MODELS:
        raise ValueError(
            f"{type(model).__name__} is not split: it returns features of several places. Make the "
            "model without features_only=True: net(x, taps=net.taps).features are those of all taps"
        )
    if example is None:
        example = example_input(model)
    untyped: Any = timm.layers  # timm does not annotate the function
    parts = split_found(
        model,
        example,
        stages=stages,
        blocks=blocks,
        prefix_tokens=getattr(model, "num_prefix_tokens", None) or 0,
        leaf_functions=untyped.get_notrace_functions(),
    )
    return parts._replace(
        parameter_groups=timm_parameter_groups(model, parts),
        refusals={name: REFUSALS[name] for name in REFUSALS if hasattr(model, name)},
    )


def example_input(model: nn.Module) -> Tensor:
    """Return an input (2, channels, h, w) of the size that a timm model was made for.

    Args:
        model: A timm model; the input has its device and dtype.

    Returns:
        Normal random numbers, the same each time.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", DEFAULT_INPUT_SIZE)
    # a model may have been built for other sizes than its weights were trained on
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if built_for:
        height, width = built_for
    channels = getattr(model, "in_chans", channels)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, height, width, generator=generator)
    return x.to(next(model.parameters()))
