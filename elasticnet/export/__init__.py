"""One depth of a net as a file that stands alone: ONNX, a torch.export program, or a checkpoint cut
to that depth.

The file's bytes are run before they are written, by ONNX Runtime or PyTorch, and compared with
`net(x, depth=depth)` at several sizes; where they differ, nothing is written.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet._files import write_atomic
from elasticnet.checkpoint import load, save
from elasticnet.export.inputs import (
    checked_example,
    first_line,
    open_axes,
    random_like,
    refusal,
    variants,
)
from elasticnet.export.int8 import quantize_weights
from elasticnet.export.onnx_file import session, to_onnx
from elasticnet.registry import architecture_of, find
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
TOLERANCE = 1e-4
DESCRIPTION = "description.json"  # an extra file in a .pt2
CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")  # loggers


class ExportError(ValueError):
    """A net that cannot be exported, or a file that does not compute what the net does; nothing was
    written.
    """


class Exported(NamedTuple):
    """A file that was written: `size` bytes, with `parameters` parameters of the net at this depth.

    axes: those of the input that may have any length, with their names. difference: the largest one
    between the outputs of file and net over inputs of `shapes`; of a checkpoint, between the
    weights. With int8 the net's weights are rounded, too, and int8_psnr (dB) is that of the file
    against the net as it was. note: why an axis that is open by default is fixed.
    """

    path: Path
    depth: int
    format: str
    parameters: int
    size: int
    axes: dict[int, str]
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    int8_psnr: float | None
    note: str | None


def export(
    net: ElasticWrapper,
    path: str | os.PathLike[str],
    *,
    depth: int | None = None,
    format: str | None = None,
    example: Tensor | None = None,
    axes: Mapping[int, str] | None = None,
    fold: bool = True,
    int8: bool = False,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write one depth of `net` to a file of its own, after running the file and comparing its
    output with the net's.

    depth: default, the deepest. format: "onnx", "torch" (a torch.export program) or "safetensors"
    (a checkpoint for `load`, to which example, axes, fold and int8 do not apply); default, by the
    suffix of `path`. ONNX files and programs are float32, in eval mode.

    example: an input tensor; built-in nets need none. axes: {axis of the input: name} of what may
    have any length; by default the batch and, of an input (b, c, h, w), height and width, where the
    net takes other sizes than the example's. fold: replace every part that offers `folded()` by the
    module this returns, which computes the same with fewer operations; other `fold` switches are
    always off in the file, since what they do may hang on the image's size. int8: weights of large
    layers as integers with a scale for each output channel, of 8 bits in the blocks, of 16 in stem
    and head. metadata: goes along as JSON; in a checkpoint as its notes.

    Raises ExportError where the net cannot be traced or an output differs by more than `tolerance`;
    ImportError that names a missing package; FileExistsError without `overwrite`; ValueError. The
    file appears whole or not at all.
    """
    path = Path(path)
    format = resolve_format(path, format)
    depth = resolve_depth(depth, net.taps)
    if int8 and format == "safetensors":
        raise ValueError(
            "int8=True with format 'safetensors': a checkpoint keeps its weights; take 'onnx' or 'torch'"
        )
    check_target(path, overwrite)
    require(format)
    small = net.truncate(depth).cpu().eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in small.parameters())
    if format == "safetensors":
        data, difference = _checkpoint(small, metadata)
        write_atomic(path, data)
        return Exported(path, depth, format, parameters, len(data), {}, difference, (), None, None)

    reference = small.float()
    example = checked_example(reference, example)
    axes, note = open_axes(reference, example, axes)
    inputs = [example]
    for seed, shape in enumerate(variants(example.shape, axes), start=1):
        x = random_like(example, shape, seed)
        if refusal(reference, x) is None:
            inputs.append(x)
    name = f"{path}: depth {depth} as {format}"

    plain = plain_copy(reference, fold)
    expected = reference
    if int8:
        _check(plain, reference, inputs, tolerance, f"{name}, before its weights are rounded,")
        expected = copy.deepcopy(plain)
        quantize_weights(expected, keep_integers=False)
        quantize_weights(plain, keep_integers=format == "torch")
    shape = [
        max(length, 2) if axis in axes else length for axis, length in enumerate(example.shape)
    ]
    program = _traced(plain, random_like(example, shape, seed=0), axes)
    text = {**_description(net, depth, int8), **(metadata or {})}
    data = (
        _onnx_bytes(program, axes, text, int8)
        if format == "onnx"
        else _program_bytes(program, text)
    )
    run = _runner(data, format)
    difference = _check(run, expected, inputs, tolerance, name)
    psnr = _psnr(run, reference, inputs) if int8 else None
    write_atomic(path, data)
    shapes = tuple(dict.fromkeys(tuple(x.shape) for x in inputs))
    return Exported(
        path, depth, format, parameters, len(data), dict(axes), difference, shapes, psnr, note
    )


def runner(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an exported file on a float32 tensor, on the CPU, by ONNX Runtime
    or PyTorch.
    """
    path = Path(path)
    format = resolve_format(path, None)
    require(format)
    return _runner(path.read_bytes(), format)


def resolve_format(path: str | os.PathLike[str], format: str | None) -> str:
    """Return the format of a file to be written: the one given, or that of its suffix; ValueError
    where they differ.
    """
    suffix = Path(path).suffix.lower()
    by_suffix = next((name for name, each in FORMATS.items() if each == suffix), None)
    if format is None and by_suffix is None:
        raise ValueError(
            f"{path}: a suffix among {', '.join(FORMATS.values())}, or a format, says what to write"
        )
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if None not in (format, by_suffix) and format != by_suffix:
        raise ValueError(f"{path}: the suffix of format {format!r} is {FORMATS[str(format)]}")
    return str(format or by_suffix)


def check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise the OSError or ValueError that says why a file cannot be written here, before any work
    is done.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"{path}: the folder {path.parent} cannot be written to; choose another"
        )
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists: overwrite it on purpose, or choose another name")


def require(format: str) -> None:
    """Raise ImportError, with the command that helps, where a package that `format` needs is not
    installed.
    """
    for name in NEEDS.get(format, ()):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f'format {format!r} needs {name}: pip install "elastic-depth[export]"'
            )


def plain_copy(net: ElasticWrapper, fold: bool) -> ElasticWrapper:
    """Return a copy for tracing: with `fold`, parts that offer `folded()` are replaced by what it
    returns.

    Every other `fold` switch is off.
    """
    plain = copy.deepcopy(net)
    for module in list(plain.modules()):
        for name, part in list(module.named_children()):
            if fold and hasattr(part, "folded"):
                setattr(module, name, part.folded())  # pyright: ignore[reportCallIssue]
    for module in plain.modules():
        if isinstance(getattr(module, "fold", None), bool):
            module.fold = False  # pyright: ignore[reportArgumentType]
    return plain.requires_grad_(False)


@torch.no_grad()
def _traced(net: nn.Module, x: Tensor, axes: Mapping[int, str]) -> torch.export.ExportedProgram:
    shapes = (dict.fromkeys(axes, torch.export.Dim.AUTO),) if axes else None
    try:
        with _quiet():
            program = torch.export.export(net, (x,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the net's own code raises under tracing
        raise ExportError(
            f"torch.export cannot trace this net: {first_line(error)}; nothing was written"
        ) from error
    lengths = _input_shape(program)
    for axis, name in axes.items():
        if not isinstance(lengths[axis], torch.SymInt):
            raise ExportError(
                f"axis {axis} ({name}): the net's code fixes it at {lengths[axis]}; leave it out of axes= to export "
                "for this length alone. Nothing was written"
            )
    return program


def _input_shape(program: torch.export.ExportedProgram) -> Sequence[Any]:
    (name,) = program.graph_signature.user_inputs
    return next(node for node in program.graph.nodes if node.name == name).meta["val"].shape


def _program_bytes(program: torch.export.ExportedProgram, text: Mapping[str, Any]) -> bytes:
    program.example_inputs = None  # which may be somebody's photograph
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in (
                "stack_trace",
                "nn_module_stack",
                "source_fn_stack",
                "torch_fn",
                "from_node",
            ):
                node.meta.pop(key, None)  # source files and lines of this machine
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(text)})
    return buffer.getvalue()


def _onnx_bytes(
    program: torch.export.ExportedProgram,
    axes: Mapping[int, str],
    text: Mapping[str, Any],
    int8: bool,
) -> bytes:
    lengths = _input_shape(program)
    symbols = {str(lengths[axis]): name for axis, name in axes.items()}
    try:
        with _quiet():
            return to_onnx(
                program, symbols, {name: json.dumps(value) for name, value in text.items()}, int8
            )
    except Exception as error:  # an operator without a translation, or a fault of the exporter
        raise ExportError(
            f"torch.onnx cannot export this net: {first_line(error)}; nothing was written"
        ) from error


def _checkpoint(small: ElasticWrapper, metadata: Mapping[str, Any] | None) -> tuple[bytes, float]:
    """The bytes of a checkpoint, and the largest difference between its weights, read back, and the
    net's.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save(small, path, notes=metadata)
        data = path.read_bytes()
    built_in = small.origin is not None
    loaded = load(
        io.BytesIO(data), build=None if built_in else lambda: copy.deepcopy(small)
    ).state_dict()
    state = small.state_dict()
    gaps = [
        (loaded[name].double() - tensor.double()).abs().max().item()
        for name, tensor in state.items()
    ]
    return data, max(gaps, default=0.0)


def _runner(data: bytes, format: str) -> Callable[[Tensor], Tensor]:
    if format == "onnx":
        return session(data)
    if format == "torch":
        return torch.export.load(io.BytesIO(data)).module()
    return load(io.BytesIO(data))


@torch.no_grad()
def _check(
    run: Callable[[Tensor], Tensor],
    net: nn.Module,
    inputs: Sequence[Tensor],
    tolerance: float,
    name: str,
) -> float:
    """The largest difference between what `run` and the net make of the inputs; ExportError above
    `tolerance`.
    """
    gaps = []
    for x in inputs:
        expected = net(x)
        try:
            output = run(x)
        except (
            Exception
        ) as error:  # whatever a runtime raises for a size that the graph does not take
            raise ExportError(
                f"{name} does not take shape {tuple(x.shape)}, which the net does ({first_line(error)}): its code "
                "branches on the size. Name the axes that may vary by axes=; nothing was written"
            ) from error
        if output.shape != expected.shape:
            raise ExportError(
                f"{name} turns shape {tuple(x.shape)} into {tuple(output.shape)}, and the net into "
                f"{tuple(expected.shape)}; nothing was written"
            )
        gaps.append((output - expected).abs().max())
    difference = torch.stack(gaps).max().item()  # NaN where one is
    if not difference <= tolerance:
        raise ExportError(
            f"{name} differs from the net by up to {difference:.3g}, and {tolerance:g} is allowed; nothing was written"
        )
    return difference


@torch.no_grad()
def _psnr(run: Callable[[Tensor], Tensor], net: ElasticWrapper, inputs: Sequence[Tensor]) -> float:
    """Of the file's outputs against the net's; the peak is 1 for built-in nets, otherwise the
    outputs' range.
    """
    outputs = torch.cat([run(x).flatten() for x in inputs])
    expected = torch.cat([net(x).flatten() for x in inputs])
    peak = (expected.max() - expected.min()).item()
    architecture = architecture_of(net)
    if architecture is not None and "value_range" in architecture.extras:
        smallest, largest = architecture.extras["value_range"]
        peak = largest - smallest
    error = (outputs - expected).double().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def _description(net: ElasticWrapper, depth: int, int8: bool) -> dict[str, Any]:
    """What the file's metadata says about the net."""
    text: dict[str, Any] = {
        "depth": depth,
        "weights": "int8, int16 in stem and head" if int8 else "float32",
    }
    if net.origin is not None:
        architecture, arguments = net.origin
        arguments = find(architecture).arguments_at(arguments, depth)
        text |= {"architecture": architecture, "arguments": arguments}
        text |= {"scale": arguments["scale"]} if "scale" in arguments else {}
        extras = find(architecture).extras
        if "value_range" in extras:
            text |= {"value_range": [0, 1], "channels": "RGB", "layout": "NCHW"}
    return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters: they warn about their own deprecations and about packages that are not
    needed here.
    """
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
