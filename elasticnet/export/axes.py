"""Axes of open length, and how a user asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from torch import Tensor

from elasticnet.export.samples import Sample

# a name, or a name with the least and the most length; None for no most
AxisSpec: TypeAlias = str | tuple[str, int, int | None]
# of the first input, or of each input by its name
Axes: TypeAlias = Mapping[int, AxisSpec] | Mapping[str, Mapping[int, AxisSpec]]

BATCH_AXIS = 0


class Place(NamedTuple):
    """An axis of an input.

    Attributes:
        input: The input's name in the file.
        axis: Counted from 0.
    """

    input: str
    axis: int


class OpenLength(NamedTuple):
    """A length that may differ from call to call, of one axis or of several that change together.

    Attributes:
        name: What the axes are called in the file.
        least: The smallest length.
        most: The largest length; None for no limit.
        places: The axes that have this length.
        is_of_first_input: Whether the first of these is an axis of the network's first input.
    """

    name: str
    least: int
    most: int | None
    places: tuple[Place, ...]
    is_of_first_input: bool = True

    @property
    def is_batch(self) -> bool:
        """Whether this is the number of inputs in a batch."""
        return self.places[0].axis == BATCH_AXIS

    def of(self, example: Sample) -> int:
        """Return this length in an example.

        Args:
            example: What the network is called with.
        """
        input_name, axis = self.places[0]
        return example.tensors[input_name].shape[axis]

    def within(self, length: int) -> int:
        """Return the nearest length that is allowed.

        Args:
            length: Any length.
        """
        length = max(length, self.least)
        return length if self.most is None else min(length, self.most)

    def advice(self, least: int, most: int | None) -> str:
        """Return what a user writes for other bounds, in Python and on the command line.

        Args:
            least: The smallest length.
            most: The largest length; None for no limit.
        """
        input_name, axis = self.places[0]
        spec = f'{axis}: ("{self.name}", {least}, {most})'
        option = f"{axis}={self.name}:{least}:{'' if most is None else most}"
        if not self.is_of_first_input:
            spec = f"{input_name!r}: {{{spec}}}"
            option = f"{input_name}.{option}"
        return f"write axes={{{spec}}} (on the command line: --axis {option})"


class OpenAxes(NamedTuple):
    """The axes of a network's inputs that may have any length, or any between two bounds.

    Attributes:
        lengths: Each with the axes that have it.
        note: Why axes that are open by default are left out; None where none is.
    """

    lengths: tuple[OpenLength, ...]
    note: str | None

    def of(self, input_name: str) -> dict[int, str]:
        """Return the open axes of one input, {axis: name}, in their order.

        Args:
            input_name: The input's name in the file.
        """
        axes: dict[int, str] = {}
        for length in self.lengths:
            for place in length.places:
                if place.input == input_name:
                    axes[place.axis] = length.name
        return dict(sorted(axes.items()))

    @property
    def bounds(self) -> dict[str, tuple[int, int | None]]:
        """The least and the most length of the axes that have bounds, by name."""
        return {
            length.name: (length.least, length.most)
            for length in self.lengths
            if length.least > 1 or length.most is not None
        }


# --- what is asked for


def default_axes(example: Sample) -> dict[int, AxisSpec]:
    """Return the axes that are open where the user names none and the network allows it.

    Args:
        example: What the network is called with.

    Returns:
        The batch and, of an input (b, c, h, w), height and width.
    """
    first = next(iter(example.tensors.values()))
    if first.ndim == 4:  # (b, c, h, w)
        return {0: "batch", 2: "height", 3: "width"}
    if first.ndim == 0:
        return {}
    return {0: "batch"}


def asked_lengths(example: Sample, asked: Axes) -> list[OpenLength]:
    """Return the lengths that were asked for, each with all of its places.

    Args:
        example: What the network is called with.
        asked: As in `elasticnet.export.export`.

    Raises:
        ValueError: An axis does not exist, its name is not a plain one, its bounds are none, or the
            example has a length outside of them.
    """
    if not isinstance(asked, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's
        raise ValueError(f"axes {asked!r}: expected a dict, such as {{0: 'batch'}}")
    tensors = example.tensors
    lengths: dict[str, OpenLength] = {}
    for input_name, axes in _by_input(tensors, asked).items():
        if input_name not in tensors:
            raise ValueError(f"axes {input_name!r}: the inputs are {', '.join(tensors)}")
        for axis, spec in sorted(axes.items()):
            place = Place(input_name, axis)
            length = _length(spec, place, tensors)
            before = lengths.get(length.name)
            lengths[length.name] = length if before is None else _joined(before, length)
    for length in lengths.values():
        _check_example(example, length)
    return list(lengths.values())


def _by_input(tensors: Mapping[str, Tensor], asked: Axes) -> Mapping[str, Mapping[int, AxisSpec]]:
    """The axes of each input; from those of the first one, where no inputs are named."""
    if _names_inputs(asked):
        return asked
    of_first: Any = asked
    first_name, *further = tensors
    first = tensors[first_name]
    by_input: dict[str, dict[int, AxisSpec]] = {first_name: dict(of_first)}
    for name in further:
        shape = tensors[name].shape
        by_input[name] = {
            axis: spec
            for axis, spec in by_input[first_name].items()
            if axis in range(min(first.ndim, len(shape))) and shape[axis] == first.shape[axis]
        }
    return by_input


def _names_inputs(asked: Axes) -> TypeGuard[Mapping[str, Mapping[int, AxisSpec]]]:
    """Whether axes are given by input; ValueError where some are and others are not."""
    named = [key for key in asked if isinstance(key, str)]
    if named and len(named) < len(asked):
        raise ValueError(
            f"axes {dict(asked)}: expected axes as numbers, of the first input, or names of inputs"
        )
    return bool(named)


def _length(spec: Any, place: Place, tensors: Mapping[str, Tensor]) -> OpenLength:
    """One axis that was asked for, checked."""
    axis = place.axis
    tensor = tensors[place.input]
    entries: Sequence[Any] = spec if _is_sequence(spec) else (spec, 1, None)
    # True would pass for axis 1
    is_axis = not isinstance(axis, bool) and axis in range(tensor.ndim)
    if not is_axis or not isinstance(entries[0], str) or not entries[0].isidentifier():
        raise ValueError(
            f"axes {axis!r}: {spec!r}: expected an axis from 0 to {tensor.ndim - 1} "
            "and a plain name"
        )
    if len(entries) != 3 or not _are_bounds(*entries[1:]):
        raise ValueError(
            f"axes {axis!r}: {spec!r}: expected (name, least, most) with 1 <= least < most, "
            "or None for no most"
        )
    name, least, most = entries
    is_of_first_input = place.input == next(iter(tensors))
    return OpenLength(name, least, most, places=(place,), is_of_first_input=is_of_first_input)


def _is_sequence(spec: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(spec, (tuple, list))


def _are_bounds(least: Any, most: Any) -> bool:
    for bound in (least, most):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            return False
    return least is not None and least >= 1 and (most is None or most > least)


def _joined(first: OpenLength, second: OpenLength) -> OpenLength:
    """One length with the places of two of the same name; one of them may leave the bounds out."""
    bounds = {(each.least, each.most) for each in (first, second)} - {(1, None)}
    if len(bounds) > 1:
        raise ValueError(f"axes {first.name!r}: two different bounds, {sorted(bounds, key=str)}")
    least, most = bounds.pop() if bounds else (1, None)
    places = (*first.places, *second.places)
    return first._replace(least=least, most=most, places=places)


def _check_example(example: Sample, length: OpenLength) -> None:
    """Refuse an example in which one length has two values, or one outside of its bounds."""
    tensors = example.tensors
    found = {place: tensors[place.input].shape[place.axis] for place in length.places}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{value} in {place.input}" for place, value in found.items())
        raise ValueError(
            f"axes {length.name!r}: one name is one length, and the example has {listed}; "
            "take two names"
        )
    value = length.of(example)
    if value != length.within(value):
        most = "" if length.most is None else f" to {length.most}"
        raise ValueError(
            f"axes {length.name!r}: from {length.least}{most}, and the example has {value}"
        )
