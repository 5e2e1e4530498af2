"""Which lengths a network takes along the axes of its inputs: tried, and found by trying."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet.export.axes import Axes, OpenAxes, OpenLength, asked_lengths, default_axes
from elasticnet.export.samples import Sample, sample_like

# what is run at a bound, so that a check ends soon: no longer axis, no more values of all inputs
MAX_TRIED_LENGTH = 2048
MAX_TRIED_VALUES = 2**20

# what a network's own code raises for an input that it does not take
REFUSALS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


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
        wanted = asked_lengths(example, default_axes(example))
    else:
        wanted = asked_lengths(example, asked)

    lengths: list[OpenLength] = []
    notes: list[str] = []
    # The batch is tried alone, since many networks take any batch, but one size of input.
    batch = [length for length in wanted if length.is_batch]
    others = [length for length in wanted if not length.is_batch]
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


# --- lengths that are tried


def shapes_with(example: Sample, lengths: Mapping[OpenLength, int]) -> dict[str, list[int]]:
    """Return the shapes of an example's tensors, by name, with other lengths at open axes.

    Args:
        example: What the network is called with.
        lengths: The new value of each open length that changes.
    """
    shapes = {name: list(tensor.shape) for name, tensor in example.tensors.items()}
    for length, value in lengths.items():
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
    large = _large([length for length in lengths if not length.is_batch], example)
    smallest_batch = _least([length for length in lengths if length.is_batch])
    yield shapes_with(example, large | smallest_batch)
    yield shapes_with(example, _least(lengths))
    yield shapes_with(example, _no_multiples(lengths, example))


def _large(lengths: Sequence[OpenLength], example: Sample) -> dict[OpenLength, int]:
    """The most that is allowed, where it is set and soon run; else two or three times as long."""
    multiplied: dict[OpenLength, int] = {}
    for length in lengths:
        # height and width by factors that differ
        factor = 2 if length.places[0].axis % 2 == 0 else 3
        multiplied[length] = length.within(length.of(example) * factor)

    at_bounds = dict(multiplied)
    for length in lengths:
        if length.most is not None and length.most <= MAX_TRIED_LENGTH:
            at_bounds[length] = length.most
    shapes = shapes_with(example, at_bounds).values()
    num_values = sum(math.prod(shape) for shape in shapes)
    return at_bounds if num_values <= MAX_TRIED_VALUES else multiplied


def _least(lengths: Sequence[OpenLength]) -> dict[OpenLength, int]:
    return {length: length.least for length in lengths}


def _no_multiples(lengths: Sequence[OpenLength], example: Sample) -> dict[OpenLength, int]:
    """Longer by a few, and by a number of its own for each axis."""
    longer: dict[OpenLength, int] = {}
    for length in lengths:
        longer[length] = length.within(length.of(example) + 5 - length.places[0].axis)
    return longer


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
    tried = [_large(lengths, example)]
    if any(length.least > 1 for length in lengths):  # who names the least relies on it
        tried.append(_least(lengths))
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
        range_taken = f"{least} or more" if most is None else f"{least} to {most}"
        parts.append(f"; it takes {range_taken} {length.name}: {length.advice(least, most)}")
    return "".join(parts)


def _most_taken(net: nn.Module, example: Sample, length: OpenLength) -> int | None:
    """The largest length that the network takes; the one asked for where no limit shows."""
    large = _large([length], example)[length]
    most = _last_taken(net, example, length, towards=large)
    return length.most if most == large else most


def _last_taken(net: nn.Module, example: Sample, length: OpenLength, towards: int) -> int:
    """The length nearest to `towards` that the network takes, by halving the distance."""

    def takes(value: int) -> bool:
        shapes = shapes_with(example, {length: value})
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
