"""The proof that a network that was cut for an export is the network that the user holds.

What sits on the network itself, such as a forward hook or a subclass's own forward, goes along with
the cut, but may do something else there: a hook may count the blocks, say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from elasticnet._modules.compare import largest_difference, same_bits
from elasticnet._modules.copies import detached_copy
from elasticnet.export.lengths import first_line
from elasticnet.export.samples import Sample
from elasticnet.wrapper import ElasticWrapper, evaluating


def difference_from_net(
    cut: ElasticWrapper, net: ElasticWrapper, samples: Sequence[Sample], tolerance: float
) -> str | None:
    """Return how a cut network differs from the one that the user holds; None if it does not.

    Both are run in eval mode and in float32 on the CPU.

    Args:
        cut: The network cut to a depth, with float32 tensors on the CPU.
        net: The network that the user holds, on any device.
        samples: What both are called with.
        tolerance: The largest difference that is not one.

    Returns:
        A clause with the difference, and with what sits on the network and may be its cause.
    """
    depth = cut.taps[-1]
    held = net if _is_float32_on_cpu(net) else detached_copy(net).cpu().float()
    with evaluating(held), evaluating(cut), torch.no_grad():
        for sample in samples:
            difference = _difference(cut, held, sample, depth, tolerance)
            if difference is not None:
                return f"{difference}{_said_of_additions(net)}"
    return None


def _said_of_additions(net: ElasticWrapper) -> str:
    """Return the end of the clause, which names what may be the cause."""
    additions = net.additions()
    if not additions:
        return ""
    return (
        f". On the net sits {' and '.join(additions)}: move it into the stem, a block or the head"
    )


def _difference(
    cut: ElasticWrapper, held: ElasticWrapper, sample: Sample, depth: int, tolerance: float
) -> str | None:
    """Return how the outputs for one input differ; None if they do not."""
    try:
        expected: Any = held(sample.x, depth=depth, **sample.keywords)
    except Exception as error:  # whatever the user's hooks and forwards raise
        return f"the net itself does not run there ({first_line(error)})"
    output = cut(sample.x, **sample.keywords)
    if same_bits(output, expected):
        return None
    try:
        difference = largest_difference(output, expected)
    except ValueError as error:
        return f"the net itself gives another kind of output there ({error})"
    if math.isnan(difference) or difference > tolerance:
        return f"the net itself differs by up to {difference:.3g} there"
    return None


def _is_float32_on_cpu(net: nn.Module) -> bool:
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.device.type != "cpu":
            return False
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            return False
    return True
