"""Splits torchvision's classification models, as `elasticnet.retrofit.timm` does timm's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elasticnet.retrofit.find import split_found
from elasticnet.retrofit.parts import Split


def split(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    stages: int | None = None,
    blocks: str | None = None,
) -> Split:
    """Take apart a torchvision model into stem, blocks and head; neither its modules nor its code
    are changed.

    example: an input (b, 3, h, w); None makes one of the model's `image_size`, or else of 224 x
    224. stages, blocks, the choice of the taps and the errors are those of
    `elasticnet.retrofit.timm.split`.
    """
    if example is None:
        size = getattr(model, "image_size", 224)
        example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        example = example.to(next(model.parameters()))
    return split_found(
        model, example, stages, blocks, prefix_tokens=int(hasattr(model, "class_token"))
    )
