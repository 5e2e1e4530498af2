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

    | the user passes | the net gets it as | L_PSD takes |
    | --- | --- | --- |
    | `mask`, which the net has no use for | - | it |
    | `mask`, which is an argument of the net | `mask` | it, if `net.mask_keyword` is "mask" |
    | no `mask` | - | the argument that `net.mask_keyword` names, if there is one |

    Args:
        net: The network.
        mask: What the user passes as `mask`. None: nothing.
        keywords: The other keyword arguments of the step.

    Returns:
        The keyword arguments of the net, and the mask of L_PSD.
    """
    if mask is not None and not _has_mask_argument(net):
        return RoutedMask(keywords, positions=mask)
    if mask is not None:
        keywords = {**keywords, "mask": mask}
    positions = None
    if net.mask_keyword is not None:
        positions = keywords.get(net.mask_keyword)
    return RoutedMask(keywords, positions)


def _has_mask_argument(net: TapNet) -> bool:
    """Return whether `mask` is an argument of a net: of its stem, or of a part with a context."""
    if "mask" in net.stem_keywords or net.mask_keyword == "mask":
        return True
    if net.mask_keyword is not None:
        return False  # the net has a mask, and it has another name
    return net.takes_keyword("mask")
