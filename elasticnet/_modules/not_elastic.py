"""What somebody is told who passes another thing where an elastic network is expected."""

from __future__ import annotations

from typing import Any

from torch import nn

from elasticnet._modules.unwrapping import unwrapped


def say_not_elastic(net: Any) -> str:
    """Return the message of an error: what came, and how an elastic network is made of it.

    Args:
        net: What a user passed as an elastic network, and what is none.
    """
    return f"net is a {type(net).__name__}: expected an ElasticWrapper{_remedy(net)}"


def _remedy(net: Any) -> str:
    """What to pass instead, as the end of the message."""
    if hasattr(net, "wrap"):  # a Split, the parts of a model
        return ": make one of these parts by .wrap()"
    if hasattr(net, "merge_and_unload"):  # a PeftModel around the network
        return ": merge its adapters first, and pass what .merge_and_unload() returns"
    held: Any = getattr(net, "net", None)  # such as the network of an ElasticObjective
    if hasattr(unwrapped(held), "taps"):
        return ", which stands in its attribute net: pass that"
    if isinstance(net, nn.Module):
        return (
            ", such as ElasticWrapper(blocks, head); for a model of timm, torchvision or "
            "transformers, split(model, ...).wrap() of elasticnet.retrofit makes one"
        )
    return ", such as ElasticWrapper(blocks, head)"
