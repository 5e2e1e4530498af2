"""Programs (.pt2): what torch.export makes of a network, which runs with PyTorch alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from elasticnet.export.failures import ExportError, reason_of
from elasticnet.export.int8 import quantized_copy
from elasticnet.export.plan import ExportPlan
from elasticnet.export.samples import Sample
from elasticnet.export.tracing import quiet_exporters, trace

DESCRIPTION = "description.json"  # the extra file in a .pt2 that holds the metadata
# what torch.export notes at each node about source files and lines of this machine
SOURCE_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def program_bytes(plan: ExportPlan) -> bytes:
    """Return the bytes of a program file.

    Args:
        plan: The export; with `int8`, the weights stay integers in the file.

    Raises:
        ExportError: The network cannot be traced, or its program cannot be stored.
    """
    net = quantized_copy(plan.plain, keep_integers=True) if plan.int8 else plan.plain
    program = trace(net, plan)
    _remove_what_is_private(program)
    buffer = io.BytesIO()
    extra_files = {DESCRIPTION: json.dumps(dict(plan.metadata))}
    try:
        with quiet_exporters():
            torch.export.save(program, buffer, extra_files=extra_files)
    except Exception as error:  # a type of the user's own among the inputs, say
        raise ExportError(
            f"torch.export.save cannot write this net: {reason_of(error)}. An ONNX file or another "
            "kind of input may do. Nothing was written"
        ) from error
    return buffer.getvalue()


def open_program(data: bytes) -> Callable[..., Tensor]:
    """Return a function that runs a program on the CPU; it is called as the network is.

    Args:
        data: The file's bytes.
    """
    return torch.export.load(io.BytesIO(data)).module()


def _remove_what_is_private(program: torch.export.ExportedProgram) -> None:
    """Remove the example, which may be somebody's data, and the paths of this machine."""
    _remove_example(program)
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            notes: dict[str, Any] = node.meta
            for key in SOURCE_NOTES:
                notes.pop(key, None)


def _remove_example(program: torch.export.ExportedProgram) -> None:
    """Remove the example inputs; torch 2.6 needs some, so there they become zeros."""
    assert program.example_inputs is not None  # the program was just made from some
    (x,), keywords = program.example_inputs
    try:
        program.example_inputs = None
    except ValueError:  # from torch 2.6: "Example inputs should be a tuple"
        zeros = Sample(x=x, keywords=keywords).map(_zeros_like)
        program.example_inputs = ((zeros.x,), dict(zeros.keywords))


def _zeros_like(_name: str, tensor: Tensor) -> Tensor:
    """Zeros of a tensor's shape: one number that stands for all, so that the file stays small."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
