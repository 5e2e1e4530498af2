"""A network as a graph: what the writers of ONNX files and of programs have in common."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet.export.axes import OpenLength
from elasticnet.export.failures import ExportError, failure_of_trace
from elasticnet.export.lengths import shapes_with
from elasticnet.export.plan import ExportPlan
from elasticnet.export.samples import Sample, sample_like
from elasticnet.wrapper import ElasticWrapper

logger = logging.getLogger(__name__)

MAX_LIMIT = 2**31  # a larger one is PyTorch's own, of what an index can be
EXPORTER_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@torch.no_grad()
def trace(
    net: ElasticWrapper, plan: ExportPlan, dtype: torch.dtype = torch.float32
) -> torch.export.ExportedProgram:
    """Return a network as a torch.export program, with the plan's axes open.

    Args:
        net: `plan.plain`, or that with rounded weights.
        plan: Says which axes of which example are open.
        dtype: The net's, in which it takes floats.

    Raises:
        ExportError: The network cannot be traced, or its code fixes an axis that should be open.
    """
    logger.info("depth %d: tracing", plan.depth)
    sample = _traced_sample(plan, dtype)
    try:
        # on failure, torch.export prints the graph so far
        quiet_errors = redirect_stderr(io.StringIO())
        with quiet_exporters(), quiet_errors, _keywords_named(net, sample.keywords):
            program = torch.export.export(
                net,
                (sample.x,),
                dict(sample.keywords),
                dynamic_shapes=_dynamic_shapes(net, plan),
                strict=False,
            )
    except Exception as error:  # whatever the network's own code raises under tracing
        message = failure_of_trace(net, error, has_open_axes=bool(plan.inputs.open_axes.lengths))
        raise ExportError(f"{message}. Nothing was written") from error
    _check_open_axes(program, plan)
    return program


def _traced_sample(plan: ExportPlan, dtype: torch.dtype) -> Sample:
    """A sample of the example's shapes and ranges, with open axes that are at least 2 long.

    torch.export takes the lengths 0 and 1 for constants.
    """

    def with_dtype(_name: str, tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    example = plan.inputs.example
    lengths = {length: max(length.of(example), 2) for length in plan.inputs.open_axes.lengths}
    return sample_like(example, shapes_with(example, lengths), seed=0).map(with_dtype)


def _dynamic_shapes(net: nn.Module, plan: ExportPlan) -> dict[str, Any] | None:
    """What torch.export is told about open axes, by the names of the arguments of forward."""
    lengths = plan.inputs.open_axes.lengths
    if not lengths:
        return None

    def open_axes_of(input_name: str, _tensor: Tensor) -> dict[int, Any]:
        dimensions: dict[int, Any] = {}
        for length in lengths:
            for place in length.places:
                if place.input == input_name:
                    dimensions[place.axis] = _dimension(length)
        return dimensions

    shapes = plan.inputs.example.map(open_axes_of)
    return {_first_argument(net): shapes.x, **shapes.keywords}


def _dimension(length: OpenLength) -> Any:
    """What torch.export takes for an open axis, with its bounds where it has some."""
    automatic: Any = torch.export.Dim.AUTO
    if length.most is None:
        return automatic
    try:
        return automatic(min=length.least, max=length.most)
    except TypeError:  # torch 2.6 takes no bounds here
        return automatic


def _first_argument(net: nn.Module) -> str:
    """The name of the first argument of a network's forward."""
    return next(iter(inspect.signature(net.forward).parameters))


@contextmanager
def _keywords_named(net: nn.Module, keywords: Collection[str]) -> Generator[None, None, None]:
    """Let the forward of a network list its keyword arguments by name inside a `with` block.

    torch.export's checks of a `**keywords` argument do not run (NameError: name 'L' is not
    defined).
    """
    if not keywords:
        yield
        return
    forward: Any = net.forward

    def with_names(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    positional = inspect.Parameter(
        _first_argument(net), kind=inspect.Parameter.POSITIONAL_OR_KEYWORD
    )
    named = [inspect.Parameter(name, kind=inspect.Parameter.KEYWORD_ONLY) for name in keywords]
    with_signature: Any = with_names
    with_signature.__signature__ = inspect.Signature([positional, *named])
    vars(net)["forward"] = with_names
    try:
        yield
    finally:
        del vars(net)["forward"]


def _check_open_axes(program: torch.export.ExportedProgram, plan: ExportPlan) -> None:
    """Raise if the network's code fixes an axis that should be open, or limits its length."""
    shapes = input_shapes(program, plan)
    for length in plan.inputs.open_axes.lengths:
        for input_name, axis in length.places:
            traced = shapes[input_name][axis]
            of_input = "" if len(shapes) == 1 else f" of {input_name}"
            where = f"axis {axis} ({length.name}){of_input}"
            if not isinstance(traced, torch.SymInt):
                raise ExportError(
                    f"{where}: the net's code fixes it at {traced}; leave it out of axes= to "
                    "export for this length alone. Nothing was written"
                )
            limit = _limit(program, traced)
            if limit is not None and (length.most is None or limit < length.most):
                raise ExportError(
                    f"{where}: the net's code has a limit or a branch at {limit}; "
                    f"{length.advice(length.least, limit)}, or leave it out of axes= to export for "
                    "the example's length alone. Nothing was written"
                )


def _limit(program: torch.export.ExportedProgram, traced: torch.SymInt) -> int | None:
    """The largest value that a program allows for an open length; None for no limit."""
    untyped: Any = program  # SymPy's types, which PyTorch does not annotate in full
    allowed = untyped.range_constraints.get(traced.node.expr)
    if allowed is None or not allowed.upper.is_Integer:  # the infinity of PyTorch is none
        return None
    limit = int(allowed.upper)
    return None if limit > MAX_LIMIT else limit


def input_shapes(
    program: torch.export.ExportedProgram, plan: ExportPlan
) -> dict[str, Sequence[int | torch.SymInt]]:
    """Return the shapes of a program's inputs, by name: numbers, and symbols for open axes.

    Args:
        program: What `trace` returns.
        plan: The plan that it was traced for.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    names = plan.inputs.example.tensors
    return {
        name: nodes[node_name].meta["val"].shape
        for name, node_name in zip(names, program.graph_signature.user_inputs, strict=True)
    }


@contextmanager
def quiet_exporters() -> Generator[None, None, None]:
    """Silence the exporters of PyTorch inside a `with` block.

    They warn about their own deprecations and about packages that are not needed here.

    Yields:
        Nothing.
    """
    loggers = [logging.getLogger(name) for name in EXPORTER_LOGGERS]
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
