"""Which inputs a network takes: examples, the axes whose length may vary, shapes worth trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet.wrapper import ElasticWrapper

# what a network's own code raises for an input that it does not take
REFUSALS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Inputs(NamedTuple):
    """The inputs of one export.

    Attributes:
        tensors: What file and network are compared on, the example first.
        axes: The axes that may have any length in the file, {axis: name}.
        note: Why axes that are open by default have a fixed length; None where none has.
    """

    tensors: tuple[Tensor, ...]
    axes: Mapping[int, str]
    note: str | None

    @property
    def example(self) -> Tensor:
        """The input that is traced, or rather one of its shape and range."""
        return self.tensors[0]


NO_INPUTS = Inputs(tensors=(), axes={}, note=None)


def find_inputs(net: ElasticWrapper, example: Tensor, asked: Mapping[int, str] | None) -> Inputs:
    """Return the inputs on which a file is compared with its network, and the axes left open.

    Args:
        net: A network on the CPU, in eval mode.
        example: An input of the network, on any device.
        asked: {axis: name} of what may have any length; None means all that `open_axes` finds.

    Returns:
        The example, and random inputs of those `variants` that the network takes.

    Raises:
        ValueError: The network does not take the example, or other lengths along an axis asked for.
    """
    example = checked_example(net, example)
    axes, note = open_axes(net, example, asked)
    tensors = [example]
    for seed, shape in enumerate(variants(example.shape, axes), start=1):
        x = random_like(example, shape, seed)
        if refusal(net, x) is None:
            tensors.append(x)
    return Inputs(tensors=tuple(tensors), axes=axes, note=note)


def checked_example(net: nn.Module, example: Tensor) -> Tensor:
    """Return an example input on the CPU, after the network has taken it.

    Args:
        net: A network on the CPU, in eval mode.
        example: Any tensor; floats become float32.

    Raises:
        ValueError: The example is empty or no tensor, or the network refuses it.
    """
    if not isinstance(example, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        _refuse_example(type(example).__name__)
    if example.ndim == 0 or example.numel() == 0:
        _refuse_example(f"shape {tuple(example.shape)}")
    example = example.detach().cpu()
    if example.is_floating_point():
        example = example.float()
    reason = refusal(net, example)
    if reason is not None:
        raise ValueError(f"example: the net does not take shape {tuple(example.shape)}: {reason}")
    return example


def _refuse_example(what: str) -> None:
    raise ValueError(f"example: {what}; expected a tensor with at least one axis and one value")


# --- axes


class OpenAxes(NamedTuple):
    """The axes of an input that may have any length.

    Attributes:
        axes: {axis: name}, in the order of the axes.
        note: Why axes that are open by default are left out; None where none is.
    """

    axes: Mapping[int, str]
    note: str | None


def open_axes(net: nn.Module, example: Tensor, asked: Mapping[int, str] | None) -> OpenAxes:
    """Return the axes to leave open: those that were asked for, or all that the network allows.

    Args:
        net: A network on the CPU, in eval mode.
        example: An input that the network takes.
        asked: {axis: name}. None stands for the batch and, of an input (b, c, h, w), height and
            width, each where the network takes other lengths than the example's.

    Returns:
        The axes; with `asked`, these very ones.

    Raises:
        ValueError: An axis that was asked for does not exist, its name is not a plain one, or the
            network takes no other length there.
    """
    if asked is None:
        candidates = _default_axes(example)
    else:
        candidates = dict(sorted(asked.items()))
    _check_axes(candidates, example.ndim)

    axes: dict[int, str] = {}
    notes: list[str] = []
    # The batch is tried alone, since many networks take any batch, but one size of input.
    batch = {axis: name for axis, name in candidates.items() if axis == 0}
    others = {axis: name for axis, name in candidates.items() if axis != 0}
    for group in (batch, others):
        problem = _why_fixed(net, example, group)
        if problem is None:
            axes.update(group)
        elif asked is None:
            notes.append(problem)
        else:
            raise ValueError(f"axes {dict(asked)}: {problem}")
    return OpenAxes(axes=axes, note="; ".join(notes) or None)


def _default_axes(example: Tensor) -> dict[int, str]:
    if example.ndim == 4:  # (b, c, h, w)
        return {0: "batch", 2: "height", 3: "width"}
    return {0: "batch"}


def _check_axes(axes: Mapping[int, str], num_axes: int) -> None:
    for axis, name in axes.items():
        # True would pass for axis 1
        if isinstance(axis, bool) or axis not in range(num_axes) or not name.isidentifier():
            raise ValueError(
                f"axes {axis!r}: {name!r}: expected an axis from 0 to {num_axes - 1} "
                "and a plain name"
            )


def _why_fixed(net: nn.Module, example: Tensor, axes: Mapping[int, str]) -> str | None:
    """Why the network does not take other lengths along these axes; None where it does."""
    if not axes:
        return None
    shape = _with_lengths(example.shape, axes, _multiplied)
    reason = refusal(net, random_like(example, shape, seed=0))
    if reason is None:
        return None
    names = " and ".join(axes.values())
    return f"{names} fixed: the net does not take shape {tuple(shape)} ({reason})"


# --- shapes and values


def variants(shape: Sequence[int], axes: Mapping[int, str]) -> Iterator[list[int]]:
    """Yield the shapes that are tried besides the example's, which change open axes alone.

    Args:
        shape: The example's.
        axes: The axes that may have any length, {axis: name}.

    Yields:
        Three shapes: one input of multiplied lengths, all lengths 1, and lengths that are no
        multiples of the example's.
    """
    multiplied = _with_lengths(shape, axes, _multiplied)
    if 0 in axes:
        multiplied[0] = 1
    yield multiplied
    yield _with_lengths(shape, axes, _one)
    yield _with_lengths(shape, axes, _no_multiple)


def _with_lengths(
    shape: Sequence[int], axes: Mapping[int, str], length_of: Callable[[int, int], int]
) -> list[int]:
    """The shape with `length_of(axis, length)` along the axes named."""
    lengths = list(shape)
    for axis in axes:
        lengths[axis] = length_of(axis, lengths[axis])
    return lengths


def _multiplied(axis: int, length: int) -> int:
    """Twice as long, or three times: height and width by factors that differ."""
    return length * 2 if axis % 2 == 0 else length * 3


def _one(_axis: int, _length: int) -> int:
    return 1


def _no_multiple(axis: int, length: int) -> int:
    """Longer by a few, and by a number of its own for each axis."""
    return length + 5 - axis


def random_like(example: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Return random values of the example's range and dtype.

    Args:
        example: Floats or integers. Where all of its floats are equal, the range is 1, since
            constant inputs would show little.
        shape: The shape wanted.
        seed: The same one gives the same values.
    """
    generator = torch.Generator().manual_seed(seed)
    low = example.min().item()
    high = example.max().item()
    if not example.is_floating_point():
        integers = torch.randint(int(low), int(high) + 1, tuple(shape), generator=generator)
        return integers.to(example.dtype)
    if low == high:
        high = low + 1
    return torch.rand(*shape, generator=generator) * (high - low) + low


@torch.no_grad()
def refusal(net: nn.Module, x: Tensor) -> str | None:
    """Return why a network does not take an input; None where it does and returns a tensor.

    Args:
        net: A network on the CPU, in eval mode.
        x: The input to try.

    Returns:
        One line: the network's own message, or what it returns instead of a tensor.
    """
    try:
        output: Any = net(x)
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
