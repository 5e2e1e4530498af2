"""Splits timm models: finds their blocks by running them once, and proves that the parts reproduce
the model.
"""

from __future__ import annotations

from typing import Any

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
    """Take apart a timm model into stem, blocks and head; neither its modules nor its code are
    changed.

    Isotropic models (ViT, MLP-Mixer, ConvMixer, ...): every block is a tap. Staged ones (ResNet,
    ConvNeXt, Swin, ...): the taps are the blocks of the last stage, which means of the last
    resolution; where these differ in channels, the longest run of one shape. stages=k taps all
    blocks of the last k stages and adds adapters (new modules, to be trained) for those that differ
    in shape from the last one.

    example: an input (b, 3, h, w); None makes one of the model's own size. blocks: the path of the
    module that holds the blocks, where the ones found are not those wanted. Layout and prefix
    tokens are read off the features. Raises ValueError, which says why, for a model that is not a
    chain of blocks and for one that the parts do not reproduce.
    """
    from timm.layers import get_notrace_functions  # pyright: ignore[reportPrivateImportUsage]

    example = example_input(model) if example is None else example
    prefix_tokens = getattr(model, "num_prefix_tokens", None) or 0
    return split_found(model, example, stages, blocks, prefix_tokens, get_notrace_functions())


def example_input(model: nn.Module) -> Tensor:
    """Return an input (2, channels, h, w) of the size that a timm model was made for, from a fixed
    seed.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = config.get("input_size", (3, 224, 224))
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    parameter = next(model.parameters())
    shape = (2, getattr(model, "in_chans", channels), *(fixed or size))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(parameter.device, parameter.dtype)
