"""Whether layers may be folded: whether calling them does what their own weights say, no more.

A fold computes several layers as one from their weights, and calls none of them. It is the same
function only if each layer is the one that was built: a hook, a pruning mask, a parametrization, a
replaced `forward`, another class or other settings change what a call does, and a fold would not
see it.
"""

from __future__ import annotations

from torch import Tensor, nn

# The attributes of a module that hold its hooks. A hook on the backward pass counts, too: it would
# not be called.
FORWARD_HOOKS = "_forward_hooks"
HOOK_ATTRIBUTES = (
    "_forward_pre_hooks",
    FORWARD_HOOKS,
    "_backward_pre_hooks",
    "_backward_hooks",
)


def runs_as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling a module runs the `forward` of its class and nothing else.

    Args:
        module: Any module. Its children are not looked at.
        kind: The class that it was built as; a subclass may compute anything.
    """
    if type(module) is not kind:
        return False
    if "forward" in module.__dict__:  # torch 2.6 cannot compile vars(module)
        return False
    return not any(getattr(module, name) for name in HOOK_ATTRIBUTES)


def own_output(layer: nn.Module, output: Tensor) -> Tensor:
    """Return what a layer has just made, for code that changes it in place.

    Args:
        layer: The layer.
        output: What it returned.

    Returns:
        The output itself, or a copy if the layer has a forward hook, which may keep the output.
    """
    has_hook = bool(getattr(layer, FORWARD_HOOKS))
    return output.clone() if has_hook else output


def is_plain_conv(layer: nn.Module | None, side: int, has_bias: bool = True) -> bool:
    """Return whether a layer is a convolution that keeps the size, with zeros beyond the border.

    Args:
        layer: Any module.
        side: Of the kernel, an odd number.
        has_bias: Whether the fold takes a bias from it.
    """
    if not isinstance(layer, nn.Conv2d) or not runs_as_built(layer, nn.Conv2d):
        return False
    margin = side // 2
    return (
        layer.kernel_size == (side, side)
        and layer.stride == (1, 1)
        and layer.padding == (margin, margin)
        and layer.padding_mode == "zeros"
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and (layer.bias is not None) == has_bias
    )


def is_plain_deconv(layer: nn.Module) -> bool:
    """Return whether a layer is a deconvolution with a bias whose pixels do not overlap.

    Args:
        layer: Any module.
    """
    if not isinstance(layer, nn.ConvTranspose2d) or not runs_as_built(layer, nn.ConvTranspose2d):
        return False
    return (
        layer.kernel_size == layer.stride
        and layer.padding == (0, 0)
        and layer.output_padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
    )
