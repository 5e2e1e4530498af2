"""One depth as a file that stands alone: ONNX, a torch.export program, or a checkpoint.

An export goes one way: a plan is made (`plan`), one of the writers (`onnx_file`, `program_file`,
`checkpoint_file`) turns it into bytes, and these are run by ONNX Runtime or PyTorch and compared
with the network at several sizes (`verify`). Where they differ, nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from elasticnet._files import write_atomic
from elasticnet.export.axes import Axes, AxisSpec
from elasticnet.export.checkpoint_file import checkpoint_bytes
from elasticnet.export.failures import ExportError
from elasticnet.export.inputs import Inputs
from elasticnet.export.onnx_file import onnx_bytes
from elasticnet.export.plan import (
    SUFFIXES,
    TOLERANCE,
    ExportPlan,
    FileOptions,
    make_plan,
    plain_copy,
    require,
    resolve_format,
)
from elasticnet.export.program_file import program_bytes
from elasticnet.export.stand_ins import OffersStandIn
from elasticnet.export.verify import Verification, runner_of, verify
from elasticnet.wrapper import ElasticWrapper

__all__ = [
    "SUFFIXES",
    "TOLERANCE",
    "Axes",
    "AxisSpec",
    "ExportError",
    "Exported",
    "OffersStandIn",
    "export",
    "plain_copy",
    "require",
    "resolve_format",
    "runner",
]


class Exported(NamedTuple):
    """A file that was written.

    Attributes:
        path: Where it stands.
        depth: The number of blocks in it.
        format: "onnx", "torch" or "safetensors".
        parameters: How many parameters the network has at this depth.
        size: The file's length in bytes.
        axes: The axes of the first input that may have any length, {axis: name}; of a checkpoint,
            none.
        difference: The largest difference between the outputs of file and network; of a
            checkpoint, between the weights. With `int8` the network's weights are rounded, too.
        shapes: The shapes of the first input that were compared; of a checkpoint, none.
        int8_snr: The peak signal-to-noise ratio in dB of the file against the network as it was,
            which says what the rounding costs; None without `int8`. The peak is the width of the
            range that the architecture states for its outputs, or else of the outputs seen.
        note: Why an axis that is open by default has a fixed length; None where none has.
        inputs: The shape of each input of the file, by its name; a length that may vary is a name.
            Of a checkpoint, none.
        bounds: The least and the most length of the axes that were given bounds, {axis name:
            (least, most)}; None for no most.
    """

    path: Path
    depth: int
    format: str
    parameters: int
    size: int
    axes: dict[int, str]
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    int8_snr: float | None
    note: str | None
    inputs: dict[str, tuple[int | str, ...]]
    bounds: dict[str, tuple[int, int | None]]


def export(
    net: ElasticWrapper,
    path: str | os.PathLike[str],
    *,
    depth: int | None = None,
    format: str | None = None,
    example: Any = None,
    keywords: Mapping[str, Any] | None = None,
    axes: Axes | None = None,
    size: tuple[int, int] | None = None,
    fold: bool = True,
    int8: bool = False,
    dtype: str = "float32",
    opset: int | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write one depth of a network to a file of its own, after the file's output was compared.

    ONNX files and programs take and give float32, and are in eval mode. The file appears whole or
    not at all. A part of the network that offers `for_export()` (see `OffersStandIn`) is replaced
    by what this returns, with or without `fold`.

    What the network is called with, `net(example, **keywords)`, are the inputs of the file. A
    program is called in the same way. The inputs of an ONNX file are `input` and the names of the
    keyword arguments; the entries of a tuple are `input_0`, `input_1`, those of a dict have the
    names of their keys.

    Args:
        net: Any network, on any device, compiled or wrapped for parallel training or not; it stays
            as it is.
        path: The file to be written; its folder must exist.
        depth: How many blocks; None means the deepest tap.
        format: "onnx", "torch" (a torch.export program) or "safetensors" (a checkpoint for `load`,
            to which `example`, `keywords`, `axes`, `size`, `fold`, `int8`, `dtype` and `opset` do
            not apply). None means the one of the path's suffix: .onnx, .pt2 or .safetensors.
        example: An input of the network: a tensor, or a tuple, list or dict of tensors. A
            registered architecture that brings an example needs none.
        keywords: Keyword arguments of the network, such as {"attention_mask": mask}, which become
            further inputs of the file.
        axes: {axis of the input: name} of what may have any length in the file. A tuple (name,
            least, most) sets bounds, with None for no most. Axes of further inputs that have the
            same position and the same length in the example go along; to name them oneself:
            {"input": {1: "tokens"}, "attention_mask": {1: "tokens"}}, where one name is one length.
            None means the batch and, of an input (b, c, h, w), height and width, where the network
            takes other lengths than the example's.
        size: Height and width of images (b, c, h, w), for runtimes that want one fixed shape: the
            file takes the example's batch, which is 1 for registered architectures, of this size
            and nothing else.
        fold: Replace every part that offers `folded()` by the module this returns, which computes
            the same with fewer operations. Other `fold` switches are always off in the file, since
            what they do may depend on the input's size. Where a module of the user's own means
            something else by one of these names, nothing is folded, and a warning says so.
        int8: Store the weights of large layers as integers with a scale for each output channel, of
            8 bits in the blocks, of 16 in stem and head.
        dtype: "float32", or "float16" for ONNX files of half the size: weights and everything in
            between are float16, inputs and outputs float32.
        opset: The version of the operators in an ONNX file, from 18. None means the one that
            PyTorch's exporter writes by itself.
        tolerance: The largest difference between an output of the file and of the network. None
            means 1e-4, and in float16 two steps of 255 over the range of the outputs.
        overwrite: Replace a file that exists.
        metadata: What JSON can hold; goes along in the file, in a checkpoint as its notes.

    Returns:
        What was written, and how it compares with the network.

    Raises:
        ExportError: The network cannot be traced, or the file does not compute the same. What sits
            on the network itself, such as a forward hook, is named where it is the cause.
        TypeError: `net` is no network.
        ImportError: A package that the format needs is not installed; the message names it.
        FileExistsError: The file exists, and `overwrite` is off.
        OSError: The folder does not exist or cannot be written to.
        ValueError: An argument is wrong; the message names it.

    Example:
        >>> from elasticnet.sr import asrn
        >>> from elasticnet.export import export
        >>> written = export(asrn(scale=2, num_blocks=2), "small.onnx", depth=1)
        >>> written.axes
        {0: 'batch', 2: 'height', 3: 'width'}
    """
    options = FileOptions(
        format=format,
        fold=fold,
        int8=int8,
        dtype=dtype,
        opset=opset,
        tolerance=tolerance,
        overwrite=overwrite,
    )
    plan = make_plan(
        net,
        path,
        options,
        depth=depth,
        example=example,
        keywords=keywords,
        axes=axes,
        size=size,
        metadata=metadata,
    )
    data, verification = _proved_file(plan)
    write_atomic(plan.path, data)
    return Exported(
        path=plan.path,
        depth=plan.depth,
        format=plan.format,
        parameters=sum(parameter.numel() for parameter in plan.net.parameters()),
        size=len(data),
        axes=_axes_of_first_input(plan.inputs),
        difference=verification.difference,
        shapes=_shapes_of_first_input(plan.inputs),
        int8_snr=verification.int8_snr,
        note=plan.inputs.open_axes.note,
        inputs=_inputs_of_file(plan.inputs),
        bounds=plan.inputs.open_axes.bounds,
    )


def _axes_of_first_input(inputs: Inputs) -> dict[int, str]:
    """The open axes of the first input, {axis: name}."""
    if not inputs.samples:  # a checkpoint
        return {}
    first_name = next(iter(inputs.example.tensors))
    return inputs.open_axes.of(first_name)


def _shapes_of_first_input(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """The shapes of the first input that were compared, each once."""
    shapes: list[tuple[int, ...]] = []
    for sample in inputs.samples:
        first = next(iter(sample.tensors.values()))
        shapes.append(tuple(first.shape))
    # two samples may have the same shape where few axes are open
    return tuple(dict.fromkeys(shapes))


def _inputs_of_file(inputs: Inputs) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input, by its name, with names in the place of open lengths."""
    found: dict[str, tuple[int | str, ...]] = {}
    if not inputs.samples:  # a checkpoint
        return found
    for name, tensor in inputs.example.tensors.items():
        shape: list[int | str] = list(tensor.shape)
        for axis, axis_name in inputs.open_axes.of(name).items():
            shape[axis] = axis_name
        found[name] = tuple(shape)
    return found


def _proved_file(plan: ExportPlan) -> tuple[bytes, Verification]:
    """The bytes of the file, and how they compare with the network.

    A network may have a special case for the size that it was trained at, such as positions that
    need no resizing there. A trace at this size fails at all others; one at another size may not.
    """
    try:
        data = _written(plan)
        return data, verify(plan, data)
    except ExportError:
        other_inputs = plan.inputs.at_other_lengths()
        if other_inputs is None:
            raise
        other_plan = replace(plan, inputs=other_inputs)
        try:
            data = _written(other_plan)
            return data, verify(other_plan, data)
        except ExportError:
            pass
        raise  # what the trace of the user's own example gave


def _written(plan: ExportPlan) -> bytes:
    """The bytes of the file that the plan describes."""
    if plan.format == "onnx":
        return onnx_bytes(plan)
    if plan.format == "torch":
        return program_bytes(plan)
    return checkpoint_bytes(plan)


def runner(path: str | os.PathLike[str]) -> Callable[..., Tensor]:
    """Return a function that runs an exported file on the CPU; it is called as the network is.

    ONNX Runtime runs .onnx, PyTorch the rest.

    Args:
        path: What `export` wrote.

    Returns:
        A function of the network's input and keyword arguments that returns its output. Floats
        are float32.

    Raises:
        ImportError: A package that the format needs is not installed.
        ValueError: The suffix says no format.
    """
    format = resolve_format(path, None)
    require(format)
    return runner_of(Path(path).read_bytes(), format)
