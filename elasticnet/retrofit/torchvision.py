"""Splits torchvision's classification models, as `elasticnet.retrofit.timm` does timm's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elasticnet.retrofit.find import Stages, check_is_module, split_found
from elasticnet.retrofit.parts import Split

DEFAULT_SIZE = 224  # pixels; what torchvision's models without an `image_size` were trained on


def split(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    stages: Stages = None,
    blocks: str | None = None,
) -> Split:
    """Take apart a torchvision model into stem, blocks and head; the model stays as it is.

    Args:
        model: A model of torchvision's.
        example: An input (b, 3, h, w); None makes one of the model's `image_size`, or else of
            224 x 224 pixels.
        stages: As in `elasticnet.retrofit.timm.split`.
        blocks: As in `elasticnet.retrofit.timm.split`.

    Returns:
        The parts, proved to give the model's own output.

    Raises:
        ValueError: As `elasticnet.retrofit.timm.split` does.
        TypeError: `model` is no module.
    """
    check_is_module(model)
    if example is None:
        size = getattr(model, "image_size", DEFAULT_SIZE)
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, 3, size, size, generator=generator)
        example = example.to(next(model.parameters()))  # its device and dtype
    prefix_tokens = 1 if hasattr(model, "class_token") else 0
    return split_found(model, example, stages=stages, blocks=blocks, prefix_tokens=prefix_tokens)
