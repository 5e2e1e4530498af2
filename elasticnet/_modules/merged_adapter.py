"""A tap's adapter as a part of the head, where one tap alone is computed."""

from __future__ import annotations

from types import MethodType
from typing import Any


def merge_adapter(net: Any, depth: int) -> None:
    """Let the head do what the adapter of a tap does, where it can; in place.

    The predictions at the other taps are wrong afterwards.

    Args:
        net: An `ElasticWrapper`. Where its head offers no `after`, or that returns None, it stays
            as it is.
        depth: The tap.
    """
    name = str(depth)
    offer: Any = getattr(net.head, "after", None)
    if name not in net.adapters or not isinstance(offer, MethodType):
        return
    merged = offer(net.adapters[name])
    if merged is not None:
        net.head = merged
        del net.adapters[name]
