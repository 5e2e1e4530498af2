"""The parts of a net as an ordinary `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class _IntoTuple(nn.Module):
    """Makes a tuple of one tap's features, for a head that takes all taps."""

    def forward(self, features: Any) -> tuple[Any]:
        return (features,)


class _OutOfTuple(nn.Module):
    """Takes the only prediction out of the tuple that such a head returns."""

    def forward(self, predictions: tuple[Any]) -> Any:
        (prediction,) = predictions
        return prediction


def plain_sequence(
    stem: nn.Module | None,
    blocks: Iterable[nn.Module],
    adapter: nn.Module | None,
    head: nn.Module,
    *,
    takes_tuple: bool,
    training: bool,
) -> nn.Sequential:
    """Return the parts of a net, the same modules, in a sequence.

    Args:
        stem: What runs before the blocks. None: nothing.
        blocks: The blocks.
        adapter: What runs between the last block and the head. None: nothing.
        head: The head.
        takes_tuple: Whether the head takes a tuple of features and returns one of predictions.
        training: The mode of the new modules; the parts keep their own.
    """
    sequence = nn.Sequential()
    if stem is not None:
        sequence.add_module("stem", stem)
    sequence.add_module("blocks", nn.Sequential(*blocks))
    if adapter is not None:
        sequence.add_module("adapter", adapter)
    if takes_tuple:
        sequence.add_module("into_tuple", _IntoTuple())
    sequence.add_module("head", head)
    if takes_tuple:
        sequence.add_module("out_of_tuple", _OutOfTuple())

    sequence.training = training
    sequence.get_submodule("blocks").training = training
    return sequence
