"""Whose mask a mask is: the network's, the self-distillation's, or both."""

from __future__ import annotations

from typing import Any, NamedTuple

from elasticnet._objective.tap_net import TapNet


class RoutedMask(NamedTuple):
    """Who gets the mask of a step.

    Attributes:
        keywords: The keyword arguments of the network, with the mask if it is the network's.
        psd_mask: The mask that L_PSD takes. None: all positions count.
    """

    keywords: dict[str, Any]
    psd_mask: Any


def route_mask(net: TapNet, mask: Any, keywords: dict[str, Any]) -> RoutedMask:
    """Hand the mask of a step to the network, to L_PSD, or to both.

    The net gets all other keyword arguments in any case; k is the one that `mask_keyword` names:

        Has the net an argument `mask`?   net.mask_keyword   net gets   L_PSD gets
        no                                None or k          nothing    mask if given, else k
        yes                               None               mask       nothing
        yes                               "mask"             mask       mask
        yes                               another one, k     mask       k

    Args:
        net: The network.
        mask: What the user passes as `mask`. None: nothing.
        keywords: The other keyword arguments of the step.

    Returns:
        The keyword arguments of the net, and the mask of L_PSD.
    """
    if mask is None:
        net_keywords = keywords
    elif _has_mask_argument(net):
        net_keywords = {**keywords, "mask": mask}
    else:
        return RoutedMask(keywords, psd_mask=mask)

    psd_mask = None
    if net.mask_keyword is not None:
        psd_mask = net_keywords.get(net.mask_keyword)
    return RoutedMask(net_keywords, psd_mask)


def _has_mask_argument(net: TapNet) -> bool:
    """Return whether `mask` is an argument of a net: of its stem, or read by call_block or head.

    A net that was split has it only if the model has.
    """
    if "mask" in net.stem_keywords or net.mask_keyword == "mask":
        return True
    # A net whose mask has another name takes no second one beside it.
    return net.mask_keyword is None and net.takes_keyword("mask")
