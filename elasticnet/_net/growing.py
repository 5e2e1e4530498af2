"""New blocks that change nothing: made the identity, and proved to be it on an example."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from elasticnet._modules.compare import largest_difference, same_bits
from elasticnet._modules.copies import detached_copy
from elasticnet._modules.evaluating import evaluating
from elasticnet._net.checks import shape_of
from elasticnet._net.nests import tensors_in


def identity_blocks(
    blocks: Iterable[nn.Module], init: Callable[[nn.Module], Any] | None, net: nn.Module
) -> list[nn.Module]:
    """Return copies of blocks, made the identity, on the device of a net and in its mode.

    Args:
        blocks: The blocks, which do not change.
        init: A function that makes a block the identity, in place. None: the block's own
            `init_identity()`.
        net: The net that the blocks are for.

    Raises:
        ValueError: There is no block, or one has no `init_identity` where it is needed.
    """
    copies: list[nn.Module] = []
    for index, block in enumerate(blocks):
        identity = detached_copy(block)
        _make_identity(identity, init, name=_name_of(index, block))
        copies.append(_moved_to(net, identity))
    if not copies:
        raise ValueError("grow: no blocks given")
    return copies


def prove_same_function(net: Any, grown: Any, example: Any, keywords: dict[str, Any]) -> None:
    """Raise unless the new blocks of a grown net change neither features nor predictions.

    Args:
        net: The `ElasticWrapper` that was grown.
        grown: The deeper one, with a tap at each new depth.
        example: An input of both.
        keywords: For the stem and `call_block`.

    Raises:
        ValueError: They change something; the message names the block and the difference.
    """
    old_depth = net.taps[-1]
    with evaluating(net), evaluating(grown), torch.no_grad():
        features_by_depth = _features_by_depth(grown, old_depth, example, keywords)
        new_blocks = list(grown.blocks)[old_depth:]
        for index, block in enumerate(new_blocks):
            # The deepest block of the old net has a tap, and so has each new block.
            depth_before = old_depth + index
            before = features_by_depth[depth_before]
            after = features_by_depth[depth_before + 1]
            problem = _why_not_identity(before, after)
            if problem is not None:
                raise ValueError(f"grow: {_name_of(index, block)} is not the identity: {problem}")

        prediction = grown(example, depth=-1, **keywords)
        if not same_bits(prediction, grown(example, depth=old_depth, **keywords)):
            raise ValueError(
                "grow: the adapters of the new taps change the prediction: "
                "make them equal to the deepest tap's"
            )
        if not same_bits(prediction, net(example, depth=-1, **keywords)):
            raise ValueError(
                "grow: a copy of this net gives another prediction than the net: something in "
                "it draws random numbers, or depends on what is not copied"
            )


def _make_identity(block: nn.Module, init: Callable[[nn.Module], Any] | None, name: str) -> None:
    """Make a block the identity, in place."""
    if init is not None:
        init(block)
        return
    init_identity = getattr(block, "init_identity", None)
    if init_identity is None:
        raise ValueError(
            f"grow: {name} has no init_identity(); pass init=, a function that makes a "
            "block the identity (for a residual block: zero its last layer)"
        )
    init_identity()


def _moved_to(net: nn.Module, block: nn.Module) -> nn.Module:
    """Return a block on the device of a net and in its mode; the types stay."""
    block.train(net.training)
    parameter = next(net.parameters(), None)
    if parameter is None:
        return block
    return block.to(parameter.device)


def _features_by_depth(
    grown: Any, head_depth: int, example: Any, keywords: dict[str, Any]
) -> dict[int, Any]:
    """Return the features at every tap, as the blocks returned them.

    The head runs at one depth alone: it may reject what a block that is no identity returns.
    """
    copying = grown.with_taps(grown.taps)
    copying.copy_features = True  # each part gets copies, and leaves the features as they are
    outputs = copying(example, taps=[head_depth], **keywords)
    return dict(zip(copying.taps, outputs.features, strict=True))


def _why_not_identity(before: Any, after: Any) -> str | None:
    """Return why a block that turns `before` into `after` is not the identity; None if it is."""
    if shape_of(before) != shape_of(after):
        return f"it turns shape {shape_of(before)} into {shape_of(after)}"
    if any(tensor.isnan().any() for tensor in tensors_in(before)):
        return "its input has NaN on this example, so that this run cannot prove that it is"
    if same_bits(before, after):
        return None
    difference = largest_difference(before, after)
    return (
        f"on the example its output differs from its input by up to {difference:.3g}. A block that "
        "normalises its own sum (post-norm) or ends in an activation cannot be the identity; for "
        "any other residual block, make `init` zero the last layer of its residual path"
    )


def _name_of(index: int, block: nn.Module) -> str:
    """Return what messages call a new block."""
    return f"new block {index} ({type(block).__name__})"
