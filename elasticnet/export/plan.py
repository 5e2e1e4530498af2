"""The plan of one export: everything that a writer needs, settled once and before any work.

Of an architecture's `extras` (see `elasticnet.registry`) three entries are read here; all are
optional:

- `example_keywords`: a function of the builder's arguments; the dict that it returns holds the
  keyword arguments that go with the architecture's example;
- `file_metadata`: a function of the builder's arguments; the dict that it returns goes into the
  file's metadata, so that whoever runs the file knows what to feed it;
- `output_range`: the smallest and the largest value of an output, in relation to which the errors
  of rounded weights are stated.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from elasticnet._files import check_target
from elasticnet._modules.copies import detached_copy
from elasticnet._modules.merged_adapter import merge_adapter
from elasticnet._modules.unwrapping import unwrapped
from elasticnet.checkpoint.checks import elastic_net
from elasticnet.checkpoint.proof import architecture_to_record
from elasticnet.export.axes import Axes
from elasticnet.export.failures import ExportError
from elasticnet.export.inputs import NO_INPUTS, Inputs, find_inputs
from elasticnet.export.lengths import first_line
from elasticnet.export.plain_weights import make_weights_plain
from elasticnet.export.same_function import difference_from_net
from elasticnet.export.samples import Sample, sample_of_size
from elasticnet.export.stand_ins import has_plain_method, put_stand_ins
from elasticnet.registry import Architecture, find, recorded
from elasticnet.wrapper import ElasticWrapper

logger = logging.getLogger(__name__)

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
DTYPES = ("float32", "float16")
TOLERANCE = 1e-4  # between the outputs of a file and of its network, in float32
# of a file in float16, as a part of the range of the outputs: two steps of an 8-bit image
FLOAT16_TOLERANCE = 2 / 255
MIN_OPSET = 18  # PyTorch's exporter writes no older operators
MAX_ONNX_BYTES = 2**31 - 1  # the format's limit for a file without further files beside it
REQUIRED_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


@dataclass(frozen=True)
class ExportPlan:
    """One export, settled: each format's writer reads it, and nothing else.

    Attributes:
        path: Where the file will stand; writing there was found to be allowed.
        format: "onnx", "torch" or "safetensors".
        depth: The number of blocks of `net`.
        net: The network cut to this depth: a copy on the CPU, in eval mode and without gradients;
            in float32, except for a checkpoint, which keeps its dtypes. The file must compute what
            this network computes.
        plain: The same function in fewer and plainer layers, which is what is traced; see
            `plain_copy`. For a checkpoint, `net` itself.
        int8: Whether the file holds the large weights as integers.
        dtype: "float32" or "float16": of the weights, and in what the file computes. Inputs and
            outputs are float32 in both.
        opset: The version of the ONNX operators; None for that of PyTorch's exporter.
        tolerance: The largest difference between the outputs of file and network that is allowed.
        metadata: What the file says about itself, as JSON can hold it.
        output_range: The smallest and the largest value of an output, where the architecture states
            them.
        inputs: The inputs on which file and network are compared, and the axes of open length. A
            checkpoint has none: its weights are compared.
    """

    path: Path
    format: str
    depth: int
    net: ElasticWrapper
    plain: ElasticWrapper
    int8: bool
    dtype: str
    opset: int | None
    tolerance: float
    metadata: Mapping[str, Any]
    output_range: tuple[float, float] | None
    inputs: Inputs

    @property
    def title(self) -> str:
        """What messages call this export."""
        return f"{self.path}: depth {self.depth} as {self.format}"


class FileOptions(NamedTuple):
    """How a file is written, as the arguments of `elasticnet.export.export` say it.

    Attributes:
        format: "onnx", "torch" or "safetensors"; None means the one of the path's suffix.
        fold: Whether parts that offer `folded()` are replaced by it.
        int8: Whether large weights become integers.
        dtype: "float32" or "float16".
        opset: The version of the ONNX operators; None means the exporter's own.
        tolerance: The largest difference that is allowed; None means the one of the dtype.
        overwrite: Whether a file may be replaced.
    """

    format: str | None = None
    fold: bool = True
    int8: bool = False
    dtype: str = "float32"
    opset: int | None = None
    tolerance: float | None = None
    overwrite: bool = False


def make_plan(
    net: ElasticWrapper,
    path: str | os.PathLike[str],
    options: FileOptions,
    *,
    depth: int | None = None,
    example: Any = None,
    keywords: Mapping[str, Any] | None = None,
    axes: Axes | None = None,
    size: tuple[int, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportPlan:
    """Return the plan of one export; the arguments are those of `elasticnet.export.export`.

    Args:
        net: Any network, compiled or wrapped for parallel training or not; it stays as it is.
        path: The file to be written.
        options: How it is written.
        depth: None means the deepest.
        example: An input; None means the one that a registered architecture brings.
        keywords: Keyword arguments of the network; None means those that the architecture brings.
        axes: What may have any length, or any between bounds; None means all that the network
            allows.
        size: Height and width of the only input that the file takes; None where `axes` decide.
        metadata: What is added to the file's metadata.

    Raises:
        TypeError: `net` is no network.
        ValueError: An argument is wrong; the message names it.
        FileExistsError: There is a file, and it may not be replaced.
        OSError: The folder does not exist or cannot be written to.
        ImportError: A package that the format needs is not installed.
    """
    # first what costs nothing: whether a file of this kind can be written there
    path = Path(path)
    format = resolve_format(path, options.format)
    _check_options(options, format, has_size=size is not None, has_axes=axes is not None)
    check_target(path, overwrite=options.overwrite)
    require(format)

    # the copy that everything below works on; this resolves the depth, once
    net = elastic_net(net)
    small = net.truncate(-1 if depth is None else depth)
    small = small.cpu().eval().requires_grad_(False)

    # what the file may say about it, and the proof that it is what the user holds
    builder = _builder(small)
    _forget_wrong_origin(small, path)
    if format == "safetensors":
        return _checkpoint_plan(net, small, builder, path, options, metadata)

    # ONNX files and programs are compared on inputs, in float32 first
    logger.info("depth %d: trying which inputs it takes", small.taps[-1])
    small = small.float()
    _check_size(small, format, options)
    if example is None:
        example, keywords = builder.sample(keywords)
    sample = Sample(x=example, keywords={} if keywords is None else keywords)
    if size is not None:
        sample = sample_of_size(sample, size)
        axes = {}
    inputs = find_inputs(small, sample.x, sample.keywords, axes)
    exact = TOLERANCE if options.tolerance is None else options.tolerance
    _check_is_the_net(small, net, inputs.samples, exact)
    plain = _plain_copy_if_the_same(small, options.fold, inputs.samples, exact)
    # An example is an input and no more; what the file says has to be true of this network.
    proven_builder = _builder(small)
    output_range = proven_builder.extra("output_range")
    return ExportPlan(
        path=path,
        format=format,
        depth=small.taps[-1],
        net=small,
        plain=_with_stand_ins(plain, small, inputs.samples, exact),
        int8=options.int8,
        dtype=options.dtype,
        opset=options.opset,
        tolerance=_tolerance_of_file(options, small, inputs, output_range),
        metadata=_description(small, proven_builder, inputs, options) | dict(metadata or {}),
        output_range=output_range,
        inputs=inputs,
    )


def _checkpoint_plan(
    net: ElasticWrapper,
    small: ElasticWrapper,
    builder: _Builder,
    path: Path,
    options: FileOptions,
    metadata: Mapping[str, Any] | None,
) -> ExportPlan:
    """The plan of a checkpoint, whose weights keep their dtypes and are compared themselves."""
    logger.info("depth %d: writing a checkpoint", small.taps[-1])
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    if builder.brings_example:
        in_float32 = detached_copy(small).float()
        _check_is_the_net(in_float32, net, [builder.sample()], tolerance)
    return ExportPlan(
        path=path,
        format="safetensors",
        depth=small.taps[-1],
        net=small,
        plain=small,
        int8=False,
        dtype="float32",
        opset=None,
        tolerance=tolerance,
        metadata=dict(metadata or {}),
        output_range=None,
        inputs=NO_INPUTS,
    )


def _check_options(options: FileOptions, format: str, has_size: bool, has_axes: bool) -> None:
    """Refuse options that have no meaning together."""
    if options.dtype not in DTYPES:
        raise ValueError(f"dtype {options.dtype!r}: expected one of {', '.join(DTYPES)}")
    if options.dtype == "float16" and options.int8:
        raise ValueError("dtype 'float16' with int8=True: choose one of them")
    if has_size and has_axes:
        raise ValueError("size with axes: a file of one size has no open axes; leave one of both")
    if format != "onnx":
        _check_options_of_onnx_alone(options, format)
    elif options.opset is not None and options.opset < MIN_OPSET:
        raise ValueError(
            f"opset {options.opset}: PyTorch's exporter writes {MIN_OPSET} and newer ones"
        )
    if format == "safetensors":
        _check_options_of_checkpoint(options, has_size)


def _check_options_of_onnx_alone(options: FileOptions, format: str) -> None:
    """Refuse what only ONNX files have."""
    if options.dtype == "float16":
        raise ValueError(f"dtype 'float16' with format {format!r}: only ONNX files have it")
    if options.opset is not None:
        raise ValueError(f"opset {options.opset} with format {format!r}: only ONNX files have one")


def _check_options_of_checkpoint(options: FileOptions, has_size: bool) -> None:
    """Refuse what a checkpoint does not have."""
    if options.int8:
        raise ValueError(
            "int8=True with format 'safetensors': a checkpoint keeps its weights; "
            "take 'onnx' or 'torch'"
        )
    if has_size:
        raise ValueError(
            "size with format 'safetensors': a checkpoint takes what the network takes; "
            "take 'onnx' or 'torch'"
        )


@torch.no_grad()
def _tolerance_of_file(
    options: FileOptions,
    small: ElasticWrapper,
    inputs: Inputs,
    output_range: tuple[float, float] | None,
) -> float:
    """The largest difference allowed: the one given, or that of the dtype.

    In float16 it is a part of the width of the range that the architecture states for its outputs,
    or else of the outputs for the example.
    """
    if options.tolerance is not None:
        return options.tolerance
    if options.dtype == "float32":
        return TOLERANCE
    if output_range is None:
        outputs = small(inputs.example.x, **inputs.example.keywords)
        output_range = (outputs.min().item(), outputs.max().item())
    smallest, largest = output_range
    return FLOAT16_TOLERANCE * (largest - smallest)


def _check_size(small: ElasticWrapper, format: str, options: FileOptions) -> None:
    """Refuse an ONNX file that would be larger than the format allows, before it is made."""
    if format != "onnx" or options.int8:  # how small int8 makes it is known when it is made
        return
    tensors = [*small.parameters(), *small.buffers()]  # what is shared counts once
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if options.dtype == "float16":
        size //= 2
    if size > MAX_ONNX_BYTES:
        raise ExportError(
            f"depth {small.taps[-1]} has {size / 1e6:,.0f} MB of weights, and an ONNX file holds "
            f"{MAX_ONNX_BYTES / 1e6:,.0f} MB at most: choose a smaller depth, int8=True (on the "
            "command line: --int8), or format 'torch'"
        )


def _forget_wrong_origin(small: ElasticWrapper, path: Path) -> None:
    """Let a network that was changed since it was built have no origin, so that no file names it.

    A block that was switched, say, is no longer what the architecture's builder makes.
    """
    why_none = architecture_to_record(small).why_none
    if why_none is not None:
        small.origin = None
        logger.warning("%s: the file names no architecture: %s", path, why_none)


def _check_is_the_net(
    small: ElasticWrapper, net: ElasticWrapper, samples: Sequence[Sample], tolerance: float
) -> None:
    """Raise unless the cut network gives what the user's own network gives at this depth."""
    difference = difference_from_net(small, net, samples, tolerance)
    if difference is not None:
        raise ExportError(
            f"depth {small.taps[-1]} cannot be cut out of this net: on an example, {difference}; "
            "nothing was written"
        )


def resolve_format(path: str | os.PathLike[str], format: str | None) -> str:
    """Return the format of a file to be written: the one given, or that of its suffix.

    Args:
        path: The file; upper and lower case of its suffix do not matter.
        format: "onnx", "torch", "safetensors", or None for the one of the suffix.

    Raises:
        ValueError: The format is unknown, or neither is given, or they contradict each other.
    """
    suffix = Path(path).suffix.lower()
    formats = {each: name for name, each in SUFFIXES.items()}
    if format is None:
        if suffix not in formats:
            raise ValueError(
                f"{path}: a suffix among {', '.join(formats)}, or a format, says what to write"
            )
        return formats[suffix]
    if format not in SUFFIXES:
        raise ValueError(f"format {format!r}: expected one of {', '.join(SUFFIXES)}")
    # a suffix that no format has, such as .bin, is the user's choice
    if suffix in formats and formats[suffix] != format:
        raise ValueError(f"{path}: the suffix of format {format!r} is {SUFFIXES[format]}")
    return format


def require(format: str) -> None:
    """Check that the packages which a format needs are installed.

    Args:
        format: "onnx", "torch" or "safetensors".

    Raises:
        ImportError: One is missing; the message holds the command that installs it.
    """
    for name in REQUIRED_PACKAGES.get(format, ()):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f'format {format!r} needs {name}: pip install "elastic-depth[export]"'
            )


def plain_copy(net: ElasticWrapper, fold: bool) -> ElasticWrapper:
    """Return a copy of a network for tracing: the same function, and one way to compute it.

    Weights that are computed in every pass, as by weight norm, are ordinary weights in the copy.

    Args:
        net: Any network; it stays as it is.
        fold: Replace every part that offers `folded()` by the module this returns, which computes
            the same with fewer operations, and head and adapter of the deepest tap by what the
            head's `after(adapter)` returns, if it offers that. A `fold` switch that is left on a
            module is off in the copy in any case, since what it does may depend on the input's
            size.
    """
    plain = _copy_with_plain_weights(net)
    if fold:
        merge_adapter(plain, plain.taps[-1])  # a file computes no other tap
        for parent in list(plain.modules()):
            parts: list[tuple[str, Any]] = list(parent.named_children())
            for name, part in parts:
                if has_plain_method(part, "folded"):
                    setattr(parent, name, part.folded())
    for module in plain.modules():
        if isinstance(getattr(module, "fold", None), bool):
            setattr(module, "fold", False)  # noqa: B010 - a module's own attribute, not a tensor
    return plain.requires_grad_(False)


def _plain_copy_if_the_same(
    small: ElasticWrapper, fold: bool, samples: Sequence[Sample], tolerance: float
) -> ElasticWrapper:
    """A plain copy; one in which nothing is folded where folding does not keep the function.

    A module of the user's own may mean something else by `folded` and `fold`.
    """
    try:
        plain = plain_copy(small, fold)
        difference = difference_from_net(plain, small, samples, tolerance)
    except Exception as error:  # whatever the user's own modules raise
        difference = first_line(error)
    else:
        if difference is None:
            return plain
    logger.warning("nothing is folded in the file, because folding changes the net: %s", difference)
    return _copy_with_plain_weights(small).requires_grad_(False)


def _with_stand_ins(
    plain: ElasticWrapper, small: ElasticWrapper, samples: Sequence[Sample], tolerance: float
) -> ElasticWrapper:
    """The plain copy with stand-ins, in place, after these were found to keep the function.

    Unlike a fold, a stand-in is not left out where it is wrong: without it, other programs would
    compute something else than the network, or could not read the file.
    """
    try:
        replaced = put_stand_ins(plain)
        plain.eval().requires_grad_(False)
        difference = difference_from_net(plain, small, samples, tolerance) if replaced else None
    except Exception as error:  # whatever the user's own modules raise
        raise ExportError(
            f"for_export() of a part of this net fails: {first_line(error)}. Nothing was written"
        ) from error
    if difference is not None:
        raise ExportError(
            f"what for_export() returns for {' and '.join(replaced)} is another function: on an "
            f"example, {difference}, and {tolerance:g} is allowed; nothing was written"
        )
    return plain


def _copy_with_plain_weights(net: ElasticWrapper) -> ElasticWrapper:
    """A copy without compiled parts, and with ordinary weights in the place of computed ones."""
    plain = detached_copy(net)
    _remove_wrappers(plain)
    make_weights_plain(plain)
    return plain


def _remove_wrappers(plain: nn.Module) -> None:
    """Put plain modules in the place of those that are compiled or wrapped for parallel training.

    torch 2.6 does not trace what was compiled.
    """
    for parent in list(plain.modules()):
        children: dict[str, Any] = vars(parent)["_modules"]
        for name, child in children.items():
            children[name] = unwrapped(child)
        vars(parent).pop("_compiled_call_impl", None)  # what module.compile() leaves


class _Builder(NamedTuple):
    """What built a network, as the registry knows it; None and {} for a network of one's own."""

    name: str | None
    arguments: Mapping[str, Any]
    architecture: Architecture | None

    @property
    def brings_example(self) -> bool:
        """Whether the architecture brings an input."""
        return self.architecture is not None and self.architecture.example is not None

    def sample(self, keywords: Mapping[str, Any] | None = None) -> Sample:
        """The example that the architecture brings; ValueError where there is none.

        The keyword arguments are those given, or else those that the architecture brings.
        """
        if self.architecture is None:
            raise ValueError(
                "example=None: no registered architecture built this net, which could bring an "
                "example of its own; pass example=, an input of the net"
            )
        if self.architecture.example is None:
            raise ValueError(
                f"example=None: architecture {self.name!r} brings no example; pass "
                "example=, an input of the net, or register it with Architecture(example=...)"
            )
        x = self.architecture.example(self.arguments)
        if keywords is not None:
            return Sample(x=x, keywords=keywords)
        make_keywords = self.extra("example_keywords")
        if make_keywords is None:
            return Sample(x=x, keywords={})
        return Sample(x=x, keywords=make_keywords(self.arguments))

    def extra(self, key: str) -> Any:
        """An entry of the architecture's extras; None where there is none."""
        if self.architecture is None:
            return None
        return self.architecture.extras.get(key)


def _builder(net: ElasticWrapper) -> _Builder:
    """What built a network; the arguments are those of its own number of blocks."""
    name, arguments = recorded(net)
    architecture = None if name is None else find(name)
    return _Builder(name=name, arguments=arguments, architecture=architecture)


def _description(
    small: ElasticWrapper, builder: _Builder, inputs: Inputs, options: FileOptions
) -> dict[str, Any]:
    """What the metadata of an ONNX file or a program says about a network."""
    text: dict[str, Any] = {
        "depth": small.taps[-1],
        "weights": "int8, int16 in stem and head" if options.int8 else options.dtype,
    }
    if builder.name is not None:
        text["architecture"] = builder.name
        text["arguments"] = builder.arguments
    bounds = inputs.open_axes.bounds
    if bounds:
        text["bounds"] = {name: list(least_and_most) for name, least_and_most in bounds.items()}
    file_metadata = builder.extra("file_metadata")
    if file_metadata is not None:
        text.update(file_metadata(builder.arguments))
    return text
