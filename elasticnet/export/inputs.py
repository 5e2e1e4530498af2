"""The inputs of one export: an example, checked, and what file and network are compared on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from elasticnet.export.axes import Axes, OpenAxes
from elasticnet.export.lengths import open_axes, refusal, variants
from elasticnet.export.samples import INPUT_NAME, Sample, sample_like
from elasticnet.wrapper import ElasticWrapper

MISSING_ARGUMENT = "required positional argument"  # in Python's own message
MISSING_ARGUMENT_HINT = "; pass it as keywords={name: tensor}"
EXPECTED = (
    "expected a tensor with at least one axis and one value, or a tuple, list or dict of tensors"
)


class Inputs(NamedTuple):
    """The inputs of one export.

    Attributes:
        samples: What file and network are compared on, the example first.
        open_axes: The axes that may have any length in the file.
    """

    samples: tuple[Sample, ...]
    open_axes: OpenAxes

    @property
    def example(self) -> Sample:
        """The sample that is traced, or rather one of its shapes and ranges."""
        return self.samples[0]

    def at_other_lengths(self) -> Inputs | None:
        """Return the same inputs with another example, none of whose open lengths is the same.

        The lengths of the batch do not count. None where there is no such sample.
        """
        lengths = [length for length in self.open_axes.lengths if not length.is_batch]
        if not lengths:
            return None
        for sample in self.samples[1:]:
            # torch.export takes the length 1 for a constant
            if all(length.of(sample) not in (1, length.of(self.example)) for length in lengths):
                others = [each for each in self.samples if each is not sample]
                return self._replace(samples=(sample, *others))
        return None


NO_INPUTS = Inputs(samples=(), open_axes=OpenAxes(lengths=(), note=None))


def find_inputs(
    net: ElasticWrapper, x: Any, keywords: Mapping[str, Any], asked: Axes | None
) -> Inputs:
    """Return the inputs on which a file is compared with its network, and the axes left open.

    Args:
        net: A network on the CPU, in eval mode.
        x: Its input: a tensor on any device, or a tuple, list or dict of tensors.
        keywords: Its keyword arguments, of the same kinds.
        asked: As in `open_axes`.

    Returns:
        The example, and inputs of those `variants` that the network takes.

    Raises:
        ValueError: The network does not take the example, or other lengths along an axis asked for.
    """
    example = checked_example(net, x, keywords)
    axes = open_axes(net, example, asked)
    samples = [example]
    for seed, shapes in enumerate(variants(example, axes.lengths), start=1):
        sample = sample_like(example, shapes, seed)
        if refusal(net, sample) is None:
            samples.append(sample)
    return Inputs(samples=tuple(samples), open_axes=axes)


def checked_example(net: nn.Module, x: Any, keywords: Mapping[str, Any]) -> Sample:
    """Return an example on the CPU, after the network has taken it.

    Args:
        net: A network on the CPU, in eval mode.
        x: Its input; floats become float32.
        keywords: Its keyword arguments; floats become float32.

    Raises:
        ValueError: A tensor is empty, something is no tensor, or the network refuses the example.
    """
    kind = type(x).__name__
    if not isinstance(x, (Tensor, tuple, list, dict)):
        raise ValueError(f"example: {kind}; {EXPECTED}")
    if not isinstance(keywords, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's
        raise ValueError(f"keywords: {type(keywords).__name__}; expected a dict, {{name: tensor}}")
    example = Sample(x=x, keywords=keywords).map(_checked_tensor)
    if not Sample(x=example.x, keywords={}).tensors:
        raise ValueError(f"example: {kind} without a tensor; {EXPECTED}")
    reason = refusal(net, example)
    if reason is not None:
        hint = MISSING_ARGUMENT_HINT if MISSING_ARGUMENT in reason else ""
        raise ValueError(f"example: the net does not take {example.described()}: {reason}{hint}")
    return example


def _checked_tensor(name: str, tensor: Tensor) -> Tensor:
    """A tensor of an example, on the CPU and without gradients; floats in float32."""
    is_first = name == INPUT_NAME
    if tensor.numel() == 0 or (is_first and tensor.ndim == 0):
        where = "" if is_first else f"{name}: "
        raise ValueError(f"example: {where}shape {tuple(tensor.shape)}; {EXPECTED}")
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor
