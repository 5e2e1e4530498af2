"""How many times a network enlarges an image: as its architecture records it, else measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elasticnet.registry import architecture_of, recorded
from elasticnet.wrapper import ElasticWrapper, evaluating

SIDE = 16  # pixels of the square image that a network is measured on


def scale_of(net: nn.Module) -> int:
    """Return how many times as long each side of a network's output is as that of its input.

    A network of a registered architecture whose `extras` name a `scale_argument` is asked for that
    argument. Any other is run once, at its shallowest depth, on an image of 16x16 pixels.

    Args:
        net: Any module that maps images (b, 3, h, w) to images (b, 3, scale h, scale w).

    Raises:
        ValueError: It does not enlarge images by a whole number.

    Example:
        >>> scale_of(torch.nn.Upsample(scale_factor=3))
        3
    """
    recorded_scale = _recorded_scale(net)
    if recorded_scale is not None:
        return recorded_scale
    return _measured_scale(net)


def _recorded_scale(net: nn.Module) -> int | None:
    """The argument that the network was built with, where its architecture says which one it is."""
    if not isinstance(net, ElasticWrapper):
        return None
    architecture = architecture_of(net)
    if architecture is None or "scale_argument" not in architecture.extras:
        return None
    _, arguments = recorded(net)
    scale = arguments.get(architecture.extras["scale_argument"])
    return scale if isinstance(scale, int) else None


def _measured_scale(net: nn.Module) -> int:
    parameter = next(net.parameters(), torch.zeros(()))
    image = torch.zeros(1, 3, SIDE, SIDE).to(parameter)
    # Not in inference mode, because what a net keeps from such a pass cannot be trained with.
    try:
        with evaluating(net), torch.no_grad():
            output = _run_shallowest(net, image)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"a network that takes no image of shape {tuple(image.shape)} ({error}): expected one "
            "that enlarges images"
        ) from error
    if not isinstance(output, Tensor):
        raise ValueError(
            f"a network that makes a {type(output).__name__} of an image: expected a tensor"
        )
    scale = output.shape[-1] // SIDE
    if scale < 1 or output.shape != (1, 3, SIDE * scale, SIDE * scale):
        raise ValueError(
            f"a network that makes {tuple(output.shape)} of {tuple(image.shape)}: "
            "expected one that enlarges images, each side a whole number of times"
        )
    return scale


def _run_shallowest(net: nn.Module, image: Tensor) -> Any:
    if isinstance(net, ElasticWrapper):
        return net(image, depth=net.taps[0])
    return net(image)
