"""What a network is called with, `net(x, **keywords)`, and the names of the tensors in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

INPUT_NAME = "input"  # what the network's first argument is called in a file


class Sample(NamedTuple):
    """The arguments of one call, `net(x, **keywords)`.

    Attributes:
        x: The first argument: a tensor, or a tuple, list or dict of them, also nested.
        keywords: The keyword arguments, each of the same kinds.
    """

    x: Any
    keywords: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the name of their input in a file, those of x first.

        A tensor x is `input`, the entries of a tuple are `input_0`, `input_1`, those of a dict have
        the names of their keys. A keyword argument has its own name, and so have its entries:
        `rotary_0`, `rotary_1`.
        """
        found: dict[str, Tensor] = {}

        def note(name: str, tensor: Tensor) -> Tensor:
            if name in found:
                raise ValueError(f"two inputs are called {name!r}: rename one of them")
            found[name] = tensor
            return tensor

        self.map(note)
        return found

    def map(self, function: Callable[[str, Tensor], Any]) -> Sample:
        """Return a sample of the same structure with other values in the place of the tensors.

        Args:
            function: Maps a tensor's name and the tensor to what takes its place.

        Raises:
            ValueError: There is something else than a tensor in the sample.
        """
        if _is_dict(self.x):
            x: Any = {key: _mapped(value, str(key), function) for key, value in self.x.items()}
        else:
            x = _mapped(self.x, INPUT_NAME, function)
        keywords = {name: _mapped(value, name, function) for name, value in self.keywords.items()}
        return Sample(x=x, keywords=keywords)

    def described(self) -> str:
        """Return the shapes of the tensors, with their names where there are several."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if list(shapes) == [INPUT_NAME]:
            return f"shape {shapes[INPUT_NAME]}"
        return "shapes " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _mapped(value: Any, name: str, function: Callable[[str, Tensor], Any]) -> Any:
    """Return a value with `function(name, tensor)` in the place of each tensor."""
    if isinstance(value, Tensor):
        return function(name, value)
    if _is_dict(value):
        return {key: _mapped(entry, f"{name}_{key}", function) for key, entry in value.items()}
    if _is_list_or_tuple(value):
        entries = [_mapped(entry, f"{name}_{index}", function) for index, entry in enumerate(value)]
        return _of_type(value, entries)
    if value is None:
        raise ValueError(f"{name}: None; leave it out, since a file takes tensors alone")
    raise ValueError(
        f"{name}: {type(value).__name__}; a file takes tensors alone, or tuples, lists and dicts "
        "of tensors. Let the stem hold what never changes"
    )


def _of_type(like: Any, entries: Iterable[Any]) -> Any:
    """Return entries as a list, a tuple or a named tuple, as `like` is."""
    if isinstance(like, list):
        return list(entries)
    if hasattr(like, "_fields"):  # a named tuple
        return type(like)(*entries)
    return tuple(entries)


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _is_list_or_tuple(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


# --- values of other shapes


def sample_like(example: Sample, shapes: Mapping[str, Sequence[int]], seed: int) -> Sample:
    """Return a sample of other shapes: random values, and the example's own in further inputs.

    Further inputs, such as masks and positions, are stretched and not random, since what they may
    hold depends on each other: a mask of a random row of zeros lets nothing attend to anything.

    Args:
        example: The values whose range and kind are kept.
        shapes: The shape wanted of each tensor, by its name.
        seed: The same one gives the same values.
    """
    first = next(iter(example.tensors))

    def other(name: str, tensor: Tensor) -> Tensor:
        if name == first:
            return random_like(tensor, shapes[name], seed)
        return stretched(tensor, shapes[name])

    return example.map(other)


def sample_of_size(example: Sample, size: Sequence[int]) -> Sample:
    """Return a sample whose first input is an image of another size, with random values.

    Args:
        example: Its first input is (b, c, h, w).
        size: Height and width.

    Raises:
        ValueError: The size is not two numbers from 1, or the first input has other axes.
    """
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise ValueError(f"size {size!r}: expected height and width, two whole numbers from 1")
    shapes = {name: list(tensor.shape) for name, tensor in example.tensors.items()}
    name, shape = next(iter(shapes.items()))
    if len(shape) != 4:
        raise ValueError(
            f"size {size!r}: the example has shape {tuple(shape)}, and a size is that of an input "
            "(b, c, h, w); pass an example of the lengths wanted, and axes={}"
        )
    shapes[name] = [*shape[:2], *size]
    return sample_like(example, shapes, seed=0)


def random_like(example: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Return random values of the example's range and dtype.

    Args:
        example: Floats, integers or truth values. Where all of its floats are equal, the range
            is 1, since constant inputs would show little.
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


def stretched(example: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the example's values at another shape, each entry the nearest one of the example.

    A mask that ends in zeros ends in zeros at every length.

    Args:
        example: Any tensor.
        shape: The shape wanted, with as many axes.
    """
    for axis, length in enumerate(shape):
        old_length = example.shape[axis]
        # the middle of each new entry, on the scale of the old ones
        middles = (torch.arange(length, dtype=torch.float64) + 0.5) * old_length / length
        example = example.index_select(axis, middles.long())
    return example.clone()
