"""A network as a graph: what the writers of ONNX files and of programs have in common."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from elasticnet.export.inputs import first_line, random_like
from elasticnet.export.plan import ExportError, ExportPlan

EXPORTER_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@torch.no_grad()
def trace(net: nn.Module, plan: ExportPlan) -> torch.export.ExportedProgram:
    """Return a network as a torch.export program, with the plan's axes open.

    Args:
        net: `plan.plain`, or that with rounded weights.
        plan: Says which axes of which example are open.

    Raises:
        ExportError: The network cannot be traced, or its code fixes an axis that should be open.
    """
    example = plan.inputs.example
    shape = list(example.shape)
    dynamic_shapes: tuple[dict[int, Any]] | None = None
    if plan.inputs.axes:
        dynamic_shapes = (dict.fromkeys(plan.inputs.axes, torch.export.Dim.AUTO),)
        # torch.export takes the lengths 0 and 1 for constants
        for axis in plan.inputs.axes:
            shape[axis] = max(shape[axis], 2)
    x = random_like(example, shape, seed=0)
    try:
        with quiet_exporters():
            program = torch.export.export(net, (x,), dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # whatever the network's own code raises under tracing
        raise ExportError(
            f"torch.export cannot trace this net: {first_line(error)}; nothing was written"
        ) from error

    lengths = input_lengths(program)
    for axis, name in plan.inputs.axes.items():
        if not isinstance(lengths[axis], torch.SymInt):
            raise ExportError(
                f"axis {axis} ({name}): the net's code fixes it at {lengths[axis]}; leave it out "
                "of axes= to export for this length alone. Nothing was written"
            )
    return program


def input_lengths(program: torch.export.ExportedProgram) -> Sequence[int | torch.SymInt]:
    """Return the shape of a program's one input: numbers, and symbols for open axes.

    Args:
        program: What `trace` returns.
    """
    (input_name,) = program.graph_signature.user_inputs
    (input_node,) = (node for node in program.graph.nodes if node.name == input_name)
    return input_node.meta["val"].shape


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
