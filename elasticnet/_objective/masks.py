"""Whose mask a mask is: the network's, the self-distillation's, or both."""

from __future__ import annotations

from typing import Any, NamedTuple

from elasticnet._objective.tap_net import TapNet


class RoutedMask(NamedTuple):
    """Who gets the mask of a step.

    Attributes:
        keywords: The keyword arguments of the network, with the mask if it is the network's.
        positions: The mask that L_PSD takes. None: all positions count.
    """

    keywords: dict[str, Any]
    positions: Any


def route_mask(net: TapNet, mask: Any, keywords: dict[str, Any]) -> RoutedMask:
    """Hand the mask of a step to the network, to L_PSD, or to both.

    A net that has an argument `mask` gets it like any other keyword argument. Of all these, L_PSD
    takes the one that `net.mask_keyword` names. If the net has no argument `mask`, then `mask` is
    for L_PSD alone.

    Args:
        net: The network.
        mask: What the user passes as `mask`. None: nothing.
        keywords: The other keyword arguments of the step.

    Returns:
        The keyword arguments of the net, and the mask of L_PSD.
    """
    if mask is not None and not _has_mask_argument(net):
        return RoutedMask(keywords, positions=mask)  # for L_PSD alone
    if mask is not None:
        keywords = {**keywords, "mask": mask}
    positions = None
    if net.mask_keyword is not None:
        positions = keywords.get(net.mask_keyword)
    return RoutedMask(keywords, positions)


def _has_mask_argument(net: TapNet) -> bool:
    """Return whether `mask` is an argument of a net."""
    if "mask" in net.stem_keywords or net.mask_keyword == "mask":
        return True
    # A net whose mask has another name takes no second one beside it.
    return net.mask_keyword is None and net.takes_keyword("mask")
