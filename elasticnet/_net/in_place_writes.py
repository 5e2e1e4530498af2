"""The tensors that a pass of a network still needs: a guard against modules that overwrite them.

A module that changes in place what it is given, such as one that begins with
`nn.ReLU(inplace=True)`, overwrites what the stem, a block or the head had returned. Which method of
a network guards what is said in `elasticnet.wrapper`, above its passes.

PyTorch counts the writes into a tensor and its views (`tensor._version`), so that most of them are
found at no cost. It does not count writes by `tensor.data`, nor those into tensors made in
`torch.inference_mode`. A comparison of values finds these, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elasticnet._modules.compare import kind_of_tensor, same_bits
from elasticnet._net.nests import tensors_in

PARTS_REMEDY = (
    "build it without in-place operations, or pass copy_features=True to ElasticWrapper, so that "
    "it gets copies"
)


class OverwrittenError(RuntimeError):
    """A module wrote in place into a tensor that the pass guards."""


# What is noted of one guarded tensor, in this order:
# - the tensor;
# - how often it was written to before it was guarded; None: PyTorch does not count;
# - a copy of the values that it had then; None: values are not compared;
# - what messages call it.
# A plain tuple, because a pass over all taps makes two for each tap.
_Entry = tuple[Tensor, "int | None", "Tensor | None", str]


class GuardedTensors:
    """What one pass of a network still needs, and whether a part has written into it.

    Any part (stem, block, adapter, head) may write in place into what it is given. A pass therefore
    guards, each with its name for messages:

    - by `guard_input` what every part may be given: the input, the stem's output that a head gets
      as its skip;
    - by `guard_features` the features at a tap, which the head and the next block are given, or
      those that the backward pass runs a block on again, until the next features are guarded;
    - by `guard` what no later part is given: what the head returned.

    Behind each part, `check_behind` looks at what the part could be given, so that its cost does
    not grow with the depth. At the end of a pass over taps, `check_everything` looks at everything.

    Args:
        compare_values: Whether to copy each tensor, and to compare its values with the copy.
        remedy: What messages advise.

    Example:
        `features = stem(x); guarded.check_behind("the stem")`
    """

    def __init__(self, compare_values: bool = False, remedy: str = PARTS_REMEDY) -> None:
        self._compare_values = compare_values
        self._remedy = remedy
        # A graph of torch.compile has no counters.
        self._has_counters = not torch.compiler.is_compiling()
        self._inputs: list[_Entry] = []
        self._latest_features: list[_Entry] = []
        self._watched: list[_Entry] = []  # both of them
        self._others: list[_Entry] = []  # what no part is given any more

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy guards nothing: the counters of copied tensors begin anew."""
        return GuardedTensors, (self._compare_values, self._remedy)

    def guard_input(self, value: Any, name: str) -> None:
        """Guard what any part of the network may be given: the input, the skip.

        Args:
            value: A tensor, or a nest of lists, tuples, dicts and dataclasses; tensors in anything
                else are ignored.
            name: What messages call it.
        """
        self._inputs += self._entries(value, name)
        self._watched = [*self._inputs, *self._latest_features]

    def guard_features(self, value: Any, name: str) -> None:
        """Guard what the next part or two are given: the features at a depth.

        Args:
            value: As in `guard_input`.
            name: What messages call it.
        """
        self._others += self._latest_features
        self._latest_features = self._entries(value, name)
        self._watched = [*self._inputs, *self._latest_features]

    def guard(self, value: Any, name: str) -> None:
        """Guard what no later part is given, such as the head's output.

        Args:
            value: As in `guard_input`.
            name: What messages call it.
        """
        self._others += self._entries(value, name)

    def is_overwritten(self) -> bool:
        """Return whether something that a part can be given was written to since it was guarded."""
        return _first_overwritten(self._watched) is not None

    def check_behind(self, writer: str) -> None:
        """Raise if a part has written into something that it could be given.

        Args:
            writer: What messages call the part, which ran last.

        Raises:
            OverwrittenError: It has.
        """
        self._check(self._watched, writer)

    def check_everything(self, writer: str) -> None:
        """Raise if anything was written to since it was guarded.

        Args:
            writer: What messages call the parts that may have written.

        Raises:
            OverwrittenError: It was written to.
        """
        self._check([*self._watched, *self._others], writer)

    def _check(self, entries: Sequence[_Entry], writer: str) -> None:
        """Raise if one of these tensors was written to since it was guarded."""
        entry = _first_overwritten(entries)
        if entry is None:
            return
        _, _, _, name = entry
        raise OverwrittenError(
            f"{writer} writes in place into {name}, which is still needed: {self._remedy}"
        )

    def _entries(self, value: Any, name: str) -> list[_Entry]:
        """Return an entry for each tensor whose writes a counter or a comparison can find."""
        entries: list[_Entry] = []
        for tensor in tensors_in(value):
            version = _version_of(tensor) if self._has_counters else None
            values = None
            if self._compare_values:
                _check_dense(tensor, name)
                values = tensor.clone()
            if version is not None or values is not None:
                entries.append((tensor, version, values, name))
        return entries


def _first_overwritten(entries: Sequence[_Entry]) -> _Entry | None:
    """Return the first tensor that was written to since it was guarded; None: none was."""
    for entry in entries:
        tensor, version, values, _ = entry
        if version is not None and tensor._version != version:
            return entry
        if values is not None and not same_bits(tensor, values):
            return entry
    return None


def _check_dense(tensor: Tensor, name: str) -> None:
    """Raise unless the values of a tensor can be compared."""
    kind = kind_of_tensor(tensor)
    if kind != "dense":
        raise TypeError(
            f"check compares values, which needs dense tensors, and {name} is a {kind} one: "
            "check the net with a dense example"
        )


def _version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None if PyTorch does not count."""
    try:
        return tensor._version
    except Exception:  # a tensor made in inference mode, or another kind without a counter
        return None
