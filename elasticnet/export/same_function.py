"""The proof that a network that was cut for an export is the network that the user holds.

Cutting takes stem, blocks, adapters and head. What sits on the network itself, such as a forward
hook or a subclass's own forward, may be lost with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._compare import largest_difference, same_bits
from elasticnet._copies import detached_copy
from elasticnet.export.inputs import first_line
from elasticnet.wrapper import ElasticWrapper, evaluating

PARTS = ("stem", "blocks", "head", "adapters")  # the modules that every network has
HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}


def names_of_what_sits_on(net: ElasticWrapper) -> list[str]:
    """Return what a network has beside its parts: hooks, a forward of its own, buffers, modules.

    Args:
        net: Any network.
    """
    attributes = vars(net)
    found: list[str] = []
    for key, kind in HOOKS.items():
        for hook in attributes[key].values():
            found.append(f"the {kind} {_name_of_hook(hook)}")
    kind_of_net = type(net)
    if kind_of_net.forward is not ElasticWrapper.forward:
        found.append(f"the class {kind_of_net.__name__}, which has a forward of its own")
    if "forward" in attributes:
        found.append("the forward that was replaced on the net")
    found += [f"the parameter {name}" for name in attributes["_parameters"]]
    found += [f"the buffer {name}" for name in attributes["_buffers"]]
    found += [f"the module {name}" for name in attributes["_modules"] if name not in PARTS]
    return found


def difference_from_net(
    cut: ElasticWrapper, net: ElasticWrapper, inputs: Sequence[Tensor], tolerance: float
) -> str | None:
    """Return how a cut network differs from the one that the user holds; None if it does not.

    Both are run in eval mode and in float32 on the CPU.

    Args:
        cut: The network cut to a depth, with float32 tensors on the CPU.
        net: The network that the user holds, on any device.
        inputs: What both are run on.
        tolerance: The largest difference that is not one.

    Returns:
        A clause with the difference, and with what sits on the network and may be its cause.
    """
    depth = cut.taps[-1]
    held = net if _is_float32_on_cpu(net) else detached_copy(net).cpu().float()
    with evaluating(held), evaluating(cut), torch.no_grad():
        for x in inputs:
            difference = _difference(cut, held, x, depth, tolerance)
            if difference is not None:
                causes = names_of_what_sits_on(net) or ["something on the net"]
                return (
                    f"{difference}. A cut net does not have {' and '.join(causes)}: "
                    "move it into the stem, a block or the head"
                )
    return None


def _difference(
    cut: ElasticWrapper, held: ElasticWrapper, x: Tensor, depth: int, tolerance: float
) -> str | None:
    """Return how the outputs for one input differ; None if they do not."""
    try:
        expected: Any = held(x, depth=depth)
    except Exception as error:  # whatever the user's hooks and forwards raise
        return f"the net itself does not run there ({first_line(error)})"
    output = cut(x)
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


def _name_of_hook(hook: Any) -> str:
    """Return what a hook is called; that of an elastic net's forward hook stands inside another."""
    hook = getattr(hook, "hook", hook)
    return getattr(hook, "__qualname__", type(hook).__qualname__)
