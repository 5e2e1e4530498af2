"""Axes of open length: how they are asked for, and which lengths a network takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from elasticnet.export.samples import Sample, sample_like

# a name, or a name with the least and the most length; None for no most
AxisSpec: TypeAlias = str | tuple[str, int, int | None]
# of the first input, or of each input by its name
Axes: TypeAlias = Mapping[int, AxisSpec] | Mapping[str, Mapping[int, AxisSpec]]

BATCH_AXIS = 0
MAX_TRIED_VALUES = 2**20  # the most values of an input at a bound, so that a check ends soon

# what a network's own code raises for an input that it does not take
REFUSALS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


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
    """

    name: str
    least: int
    most: int | None
    places: tuple[Place, ...]

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


def open_axes(net: nn.Module, example: Sample, asked: Axes | None) -> OpenAxes:
    """Return the axes to leave open: those that were asked for, or all that the network allows.

    Args:
        net: A network on the CPU, in eval mode.
        example: What the network takes.
        asked: {axis: name or (name, least, most)} of the first input; axes of further inputs that
            have the same position and length in the example go along. Or such a mapping for each
            input by its name. None stands for the batch and, of an input (b, c, h, w), height and
            width, each where the network takes other lengths than the example's.

    Returns:
        The axes; with `asked`, these very ones.

    Raises:
        ValueError: An axis that was asked for does not exist, its name is not a plain one, its
            bounds are none, or the network does not take other lengths there.
    """
    if asked is None:
        asked_lengths = _lengths(example, _default_axes(example))
    else:
        asked_lengths = _lengths(example, asked)

    lengths: list[OpenLength] = []
    notes: list[str] = []
    # The batch is tried alone, since many networks take any batch, but one size of input.
    batch = [length for length in asked_lengths if length.places[0].axis == BATCH_AXIS]
    others = [length for length in asked_lengths if length.places[0].axis != BATCH_AXIS]
    for group in (batch, others):
        problem = _why_fixed(net, example, group)
        if problem is None:
            lengths += group
        elif asked is None:
            notes.append(problem)
        else:
            advice = _advice(net, example, group)
            raise ValueError(f"axes {dict(asked)}: {problem}{advice}")
    return OpenAxes(lengths=tuple(lengths), note="; ".join(notes) or None)


# --- what was asked for


def _default_axes(example: Sample) -> dict[int, AxisSpec]:
    first = next(iter(example.tensors.values()))
    if first.ndim == 4:  # (b, c, h, w)
        return {0: "batch", 2: "height", 3: "width"}
    if first.ndim == 0:
        return {}
    return {0: "batch"}


def _lengths(example: Sample, asked: Axes) -> list[OpenLength]:
    """The lengths that were asked for, each with all of its places."""
    tensors = example.tensors
    lengths: dict[str, OpenLength] = {}
    for input_name, axes in _by_input(tensors, asked).items():
        if input_name not in tensors:
            raise ValueError(f"axes {input_name!r}: the inputs are {', '.join(tensors)}")
        for axis, spec in sorted(axes.items()):
            place = Place(input_name, axis)
            length = _length(spec, place, tensors[input_name])
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


def _length(spec: Any, place: Place, tensor: Tensor) -> OpenLength:
    """One axis that was asked for, checked."""
    axis = place.axis
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
    return OpenLength(name=name, least=least, most=most, places=(place,))


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
    return OpenLength(first.name, least, most, places=(*first.places, *second.places))


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


# --- lengths that are tried


def shapes_with(
    example: Sample, new_lengths: Iterable[tuple[OpenLength, int]]
) -> dict[str, list[int]]:
    """Return the shapes of an example's tensors, by name, with other lengths at open axes.

    Args:
        example: What the network is called with.
        new_lengths: Pairs of an open length and its value.
    """
    shapes = {name: list(tensor.shape) for name, tensor in example.tensors.items()}
    for length, value in new_lengths:
        for place in length.places:
            shapes[place.input][place.axis] = value
    return shapes


def variants(example: Sample, lengths: Sequence[OpenLength]) -> Iterator[dict[str, list[int]]]:
    """Yield the shapes that are tried besides the example's, which change open axes alone.

    Args:
        example: What the network takes.
        lengths: The lengths that may vary.

    Yields:
        The shapes of the tensors, by name, three times: one input of large lengths, all lengths the
        least, and lengths that are no multiples of the example's.
    """
    large = _tried(example, lengths, _large)
    for index, (length, _) in enumerate(large):
        if length.places[0].axis == BATCH_AXIS:
            large[index] = (length, length.least)
    yield shapes_with(example, large)
    yield shapes_with(example, _tried(example, lengths, _least))
    yield shapes_with(example, _tried(example, lengths, _no_multiple))


def _tried(
    example: Sample,
    lengths: Sequence[OpenLength],
    choose: Callable[[Sample, OpenLength], int],
) -> list[tuple[OpenLength, int]]:
    """Each length with the value that `choose` gives it."""
    return [(length, choose(example, length)) for length in lengths]


def _large(example: Sample, length: OpenLength) -> int:
    """The most, or else twice as long, or three times: height and width by factors that differ."""
    value = length.of(example)
    if length.most is not None:
        input_name, axis = length.places[0]
        shape = example.tensors[input_name].shape
        values_of_one = math.prod(shape[1:]) if axis != BATCH_AXIS else math.prod(shape)
        if values_of_one // max(value, 1) * length.most <= MAX_TRIED_VALUES:
            return length.most
    factor = 2 if length.places[0].axis % 2 == 0 else 3
    return length.within(value * factor)


def _least(_example: Sample, length: OpenLength) -> int:
    return length.least


def _no_multiple(example: Sample, length: OpenLength) -> int:
    """Longer by a few, and by a number of its own for each axis."""
    return length.within(length.of(example) + 5 - length.places[0].axis)


# --- what the network takes


@torch.no_grad()
def refusal(net: nn.Module, sample: Sample) -> str | None:
    """Return why a network does not take an input; None where it does and returns a tensor.

    Args:
        net: A network on the CPU, in eval mode.
        sample: What to call it with.

    Returns:
        One line: the network's own message, or what it returns instead of a tensor.
    """
    try:
        output: Any = net(sample.x, **sample.keywords)
    except REFUSALS as error:
        return first_line(error)
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not a tensor"
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has no message.

    Args:
        error: Any exception.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _why_fixed(net: nn.Module, example: Sample, lengths: Sequence[OpenLength]) -> str | None:
    """Why the network does not take other lengths along these axes; None where it does."""
    if not lengths:
        return None
    tried = [_tried(example, lengths, _large)]
    if any(length.least > 1 for length in lengths):  # who names the least relies on it
        tried.append(_tried(example, lengths, _least))
    for new_lengths in tried:
        sample = sample_like(example, shapes_with(example, new_lengths), seed=0)
        reason = refusal(net, sample)
        if reason is not None:
            names = " and ".join(length.name for length in lengths)
            return f"{names} fixed: the net does not take {sample.described()} ({reason})"
    return None


def _advice(net: nn.Module, example: Sample, lengths: Sequence[OpenLength]) -> str:
    """The end of a message: the lengths that the network takes and how to say so, if any."""
    parts: list[str] = []
    for length in lengths:
        least = _last_taken(net, example, length, towards=length.least)
        most = _most_taken(net, example, length)
        if most == least:
            continue  # the example's alone
        input_name, axis = length.places[0]
        spec = f'{axis}: ("{length.name}", {least}, {most})'
        option = f"{axis}={length.name}:{least}:{'' if most is None else most}"
        if input_name != next(iter(example.tensors)):
            spec = f"{input_name!r}: {{{spec}}}"
            option = f"{input_name}.{option}"
        range_taken = f"{least} or more" if most is None else f"{least} to {most}"
        parts.append(
            f"; it takes {range_taken} {length.name}: write axes={{{spec}}} "
            f"(on the command line: --axis {option})"
        )
    return "".join(parts)


def _most_taken(net: nn.Module, example: Sample, length: OpenLength) -> int | None:
    """The largest length that the network takes; the one asked for where no limit shows."""
    large = _large(example, length)
    most = _last_taken(net, example, length, towards=large)
    return length.most if most == large else most


def _last_taken(net: nn.Module, example: Sample, length: OpenLength, towards: int) -> int:
    """The length nearest to `towards` that the network takes, by halving the distance."""

    def takes(value: int) -> bool:
        shapes = shapes_with(example, [(length, value)])
        return refusal(net, sample_like(example, shapes, seed=0)) is None

    if takes(towards):
        return towards
    taken = length.of(example)
    refused = towards
    while abs(refused - taken) > 1:
        middle = (taken + refused) // 2
        if takes(middle):
            taken = middle
        else:
            refused = middle
    return taken
