"""Which inputs a net takes: checked and random examples, the axes whose length may vary, shapes
worth trying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from elasticnet.registry import architecture_of


def checked_example(net: nn.Module, example: Tensor | None) -> Tensor:
    """Return `example` on the CPU, floats as float32, or for built-in nets a random image;
    ValueError unless the net takes it.
    """
    if example is None:
        architecture = architecture_of(net)
        if architecture is None or architecture.example is None:
            raise ValueError(
                "example=None: only a registered architecture may have an example of its own; "
                "pass an input tensor of this net"
            )
        return architecture.example(net.origin[1])
    if not isinstance(example, Tensor) or example.ndim == 0 or not example.numel():
        what = (
            f"shape {tuple(example.shape)}"
            if isinstance(example, Tensor)
            else type(example).__name__
        )
        raise ValueError(f"example: {what}; expected a tensor with at least one axis and one value")
    example = example.detach().cpu()
    example = example.float() if example.is_floating_point() else example
    reason = refusal(net, example)
    if reason:
        raise ValueError(f"example: the net does not take shape {tuple(example.shape)}: {reason}")
    return example


def open_axes(
    net: nn.Module, example: Tensor, asked: Mapping[int, str] | None
) -> tuple[Mapping[int, str], str | None]:
    """Return the axes to leave open: those asked for, or the default ones as far as the net takes
    other lengths.

    The second value says which of the default ones are left out, and why. ValueError for an axis
    that was asked for.
    """
    axes = {0: "batch", 2: "height", 3: "width"} if example.ndim == 4 else {0: "batch"}
    axes = axes if asked is None else dict(sorted(asked.items()))
    for axis, name in axes.items():
        if isinstance(axis, bool) or axis not in range(example.ndim) or not name.isidentifier():
            raise ValueError(
                f"axes {axis!r}: {name!r}: expected an axis from 0 to {example.ndim - 1} and a plain name"
            )
    notes = []
    for group in (
        {axis: name for axis, name in axes.items() if not axis},
        {a: name for a, name in axes.items() if a},
    ):
        shape = [n * (2 + axis % 2) if axis in group else n for axis, n in enumerate(example.shape)]
        reason = refusal(net, random_like(example, shape, seed=0)) if group else None
        if reason:
            fixed = f"{' and '.join(group.values())} fixed: the net does not take shape {tuple(shape)} ({reason})"
            if asked is not None:
                raise ValueError(f"axes {dict(asked)}: {fixed}")
            notes.append(fixed)
            axes = {axis: name for axis, name in axes.items() if axis not in group}
    return axes, "; ".join(notes) or None


def variants(shape: Sequence[int], axes: Mapping[int, str]) -> Iterator[list[int]]:
    """Yield the shapes to check besides the example's: open axes longer, all of length 1, and not a
    multiple.
    """
    for length in (
        lambda axis, n: n * (2 + axis % 2) if axis else 1,
        lambda axis, n: 1,
        lambda axis, n: n + 5 - axis,
    ):
        yield [length(axis, n) if axis in axes else n for axis, n in enumerate(shape)]


def random_like(example: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Return random values of the example's range and dtype."""
    generator = torch.Generator().manual_seed(seed)
    low, high = example.min().item(), example.max().item()
    # a blank image would show little
    high = low + 1 if low == high and example.is_floating_point() else high
    if example.is_floating_point():
        return torch.rand(*shape, generator=generator) * (high - low) + low
    return torch.randint(int(low), int(high) + 1, tuple(shape), generator=generator).to(
        example.dtype
    )


@torch.no_grad()
def refusal(net: nn.Module, x: Tensor) -> str | None:
    """Return why the net does not take an input, in one line; None where it does and returns a
    tensor.
    """
    try:
        output = net(x)
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        return first_line(error)
    return (
        None
        if isinstance(output, Tensor)
        else f"its output is a {type(output).__name__}, not a tensor"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type without one."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
