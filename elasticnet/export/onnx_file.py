"""ONNX files: written from a torch.export program, and run.

What the exporter notes about this machine is removed. The int8 weights are stored here as well,
since PyTorch's exporter writes floats.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elasticnet._modules.copies import detached_copy
from elasticnet.export.failures import ExportError, failure_of_onnx
from elasticnet.export.int8 import INTEGER_TYPES, MIN_WEIGHTS, quantize, quantized_copy
from elasticnet.export.plan import ExportPlan
from elasticnet.export.samples import Sample
from elasticnet.export.tracing import input_shapes, quiet_exporters, trace

logger = logging.getLogger(__name__)

PRODUCER = "elasticnet"
CONVOLUTIONS = ("Conv", "ConvTranspose")
WEIGHTED = (*CONVOLUTIONS, "Gemm", "MatMul")  # the operators whose second input is a weight
# what the exporter notes about the Python code, with paths of this machine, and shapes in between
EXPORTER_NOTES = ("metadata_props", "doc_string", "value_info")


def onnx_bytes(plan: ExportPlan) -> bytes:
    """Return the bytes of an ONNX file; the plan's metadata stands in it, each value as JSON.

    Args:
        plan: The export.

    Raises:
        ExportError: The network cannot be traced, or ONNX has no translation of an operator.
    """
    net = plan.plain
    dtype = torch.float32
    if plan.int8:
        net = quantized_copy(net, keep_integers=False)
    if plan.dtype == "float16":
        dtype = torch.float16
        net = detached_copy(net).half()
    program = trace(net, plan, dtype)
    logger.info("depth %d: translating to ONNX", plan.depth)
    try:
        with quiet_exporters():
            return _to_onnx(program, plan)
    except Exception as error:  # an operator without a translation, or a fault of the exporter
        message = failure_of_onnx(net, error)
        raise ExportError(f"{message}. Nothing was written") from error


def open_onnx(data: bytes) -> Callable[..., Tensor]:
    """Return a function that runs an ONNX file on the CPU; it is called as the network is.

    Args:
        data: The file's bytes.
    """
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs] - it has none

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised, and need not be printed as well
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(x: Any, **keywords: Any) -> Tensor:
        tensors = Sample(x=x, keywords=keywords).tensors
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        (output,) = session.run(None, arrays)
        return torch.from_numpy(output)

    return run


def _to_onnx(program: torch.export.ExportedProgram, plan: ExportPlan) -> bytes:
    from onnx import helper

    model = model_of_program(
        program,
        input_names=list(plan.inputs.example.tensors),
        output_names=["output"],
        opset=plan.opset,
    )
    text = {name: json.dumps(value) for name, value in plan.metadata.items()}
    helper.set_model_props(model, text)
    if plan.int8:
        store_integers(model)
    if plan.dtype == "float16":
        take_and_give_float32(model.graph)
    _name_open_lengths(model.graph, _symbols(program, plan))
    forget_exporter(model)
    return model.SerializeToString()


def model_of_program(
    program: torch.export.ExportedProgram,
    *,
    input_names: list[str],
    output_names: list[str],
    opset: int | None,
) -> Any:
    """Return a program as an ONNX model (`onnx.ModelProto`).

    Args:
        program: Of torch.export.
        input_names: The names of its inputs.
        output_names: The names of its outputs.
        opset: The version of the operators; None for that of PyTorch's exporter.

    Raises:
        RuntimeError: The exporter returned nothing.
        ValueError: It wrote another version.
    """
    names: dict[str, Any] = {"input_names": input_names, "output_names": output_names}
    with _translations_read_once():
        exported = torch.onnx.export(
            program, (), dynamo=True, verbose=False, opset_version=opset, **names
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model: Any = exported.model_proto
    _check_opset(model, opset)
    model.producer_name = PRODUCER
    model.producer_version = ""
    model.graph.name = PRODUCER
    return model


_translations: dict[Any, Any] = {}  # PyTorch's registries, by the version that was asked for


@contextmanager
def _translations_read_once() -> Generator[None, None, None]:
    """Let PyTorch's exporter read its translations of operators once in a process.

    It parses the source of the 500 functions again for each file, which takes half of the time of a
    small network's export. Where this version of PyTorch keeps them elsewhere, nothing changes.
    """
    try:
        registration = importlib.import_module("torch.onnx._internal.exporter._registration")
        registry_class: Any = registration.ONNXRegistry
        read: Callable[..., Any] = registry_class.from_torchlib
    except (ImportError, AttributeError):
        yield
        return
    before: Any = registry_class.__dict__["from_torchlib"]

    def read_once(*versions: Any, **named_versions: Any) -> Any:
        key = (versions, tuple(named_versions.items()))
        if key not in _translations:
            _translations[key] = read(*versions, **named_versions)
        # The exporter may add to what it is given.
        registry = copy.copy(_translations[key])
        registry.functions = {name: [*known] for name, known in registry.functions.items()}
        return registry

    registry_class.from_torchlib = staticmethod(read_once)
    try:
        yield
    finally:
        registry_class.from_torchlib = before


def forget_exporter(model: Any) -> None:
    """Remove what the exporter notes about the Python code, and number the nodes, in place.

    Args:
        model: An ONNX model (`onnx.ModelProto`).
    """
    _remove_exporter_notes(model.graph)
    for function in model.functions:
        _remove_exporter_notes(function)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"


def _check_opset(model: Any, asked: int | None) -> None:
    """Raise where the exporter wrote another version of the operators than it was asked for."""
    if asked is None:
        return
    versions = {each.domain: each.version for each in model.opset_import}
    written = versions[""]  # the domain of ONNX's own operators
    if written != asked:
        raise ValueError(f"opset {asked}: PyTorch's exporter wrote {written}, which may do as well")


def take_and_give_float32(graph: Any) -> None:
    """Let a graph in float16 have float32 inputs and outputs, in place, by casts at its border.

    Args:
        graph: Of an ONNX model (`onnx.GraphProto`).
    """
    from onnx import TensorProto, helper

    new_names: dict[str, str] = {}
    first: list[Any] = []
    last: list[Any] = []
    for value in (*graph.input, *graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type != TensorProto.FLOAT16:
            continue
        tensor_type.elem_type = TensorProto.FLOAT
        inside = f"{value.name}_float16"
        new_names[value.name] = inside
        if value in graph.input:
            first.append(helper.make_node("Cast", [value.name], [inside], to=TensorProto.FLOAT16))
        else:
            last.append(helper.make_node("Cast", [inside], [value.name], to=TensorProto.FLOAT))
    _rename_inputs(graph, new_names)
    for node in graph.node:
        for position, name in enumerate(node.output):
            if name in new_names:
                node.output[position] = new_names[name]
    _replace_entries(graph.node, [*first, *graph.node, *last])


def _symbols(program: torch.export.ExportedProgram, plan: ExportPlan) -> dict[str, str]:
    """The program's symbols for open lengths, with the names that the plan gives them."""
    shapes = input_shapes(program, plan)
    symbols: dict[str, str] = {}
    for length in plan.inputs.open_axes.lengths:
        for place in length.places:
            symbols[str(shapes[place.input][place.axis])] = length.name
    return symbols


def _name_open_lengths(graph: Any, symbols: Mapping[str, str]) -> None:
    """Replace the program's symbols by the axes' names: 2*s77 becomes 2*height."""

    def named(found: re.Match[str]) -> str:
        word = found[0]
        return symbols.get(word, word)

    for value in (*graph.input, *graph.output):
        for length in value.type.tensor_type.shape.dim:
            if length.dim_param:
                length.dim_param = re.sub(r"\w+", named, length.dim_param)


def _remove_exporter_notes(graph: Any) -> None:
    """Clear the notes of a graph or a function, of its nodes, and of the graphs inside them."""
    parts = [graph, *graph.node]
    for field in ("input", "output", "initializer"):
        # those of a function are plain names
        parts += [part for part in getattr(graph, field, ()) if not isinstance(part, str)]
    for part in parts:
        for field in EXPORTER_NOTES:
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):  # a graph: the branch of an If, the body of a Loop
                _remove_exporter_notes(attribute.g)


# --- int8


class _StoredWeight(NamedTuple):
    """A weight as integers and scale, and the nodes that make it float again.

    Attributes:
        tensors: The integers and the scale.
        nodes: What turns them into floats.
        output: The name of these floats.
    """

    tensors: list[Any]
    nodes: list[Any]
    output: str


def store_integers(model: Any) -> int:
    """Store the weights that `quantized_copy` has rounded as integers and scale, in place.

    Only float weights of Conv, ConvTranspose, Gemm and MatMul that are a scale times integers
    already, so that the model's function stays.

    Args:
        model: An ONNX model (`onnx.ModelProto`).

    Returns:
        How many weights there were.
    """
    from onnx import TensorProto

    graph = model.graph
    float_tensors = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    stored: dict[str, _StoredWeight] = {}  # by the name of the float weight
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        name = node.input[1]
        if name in float_tensors and name not in stored:
            weight = _as_integers(node, float_tensors[name])
            if weight is not None:
                stored[name] = weight
    _rename_inputs(graph, {name: weight.output for name, weight in stored.items()})

    nodes: list[Any] = []
    tensors = list(graph.initializer)
    for weight in stored.values():
        nodes += weight.nodes
        tensors += weight.tensors
    nodes += graph.node
    used = {name for node in nodes for name in node.input}
    _replace_entries(graph.node, nodes)
    _replace_entries(graph.initializer, [tensor for tensor in tensors if tensor.name in used])
    return len(stored)


def _rename_inputs(graph: Any, new_names: Mapping[str, str]) -> None:
    """Rename inputs of all nodes: two layers may share a weight, and others may ask for its type.

    torch 2.6 writes CastLike nodes, whose second input only lends its type.
    """
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in new_names:
                node.input[position] = new_names[name]


def _as_integers(node: Any, tensor: Any) -> _StoredWeight | None:
    """The weight of a node as integers; None where it is small or no scale times integers."""
    from onnx import TensorProto, helper, numpy_helper

    if math.prod(tensor.dims) < MIN_WEIGHTS:
        return None
    array: Any = numpy_helper.to_array(tensor)
    values = torch.from_numpy(array.copy())
    axis = _output_axis(node, values)
    bits = _rounded_to(values, axis)
    if bits is None:
        return None
    integers, scale = quantize(values, axis, bits)
    integers_name = f"{tensor.name}_int{bits}"
    scale_name = f"{tensor.name}_scale"
    output = f"{tensor.name}_float"
    if bits == 8 and node.op_type in CONVOLUTIONS:
        scale = scale.flatten()
        inputs = [integers_name, scale_name]
        nodes = [helper.make_node("DequantizeLinear", inputs, [output], axis=axis)]
    else:
        # ONNX's DequantizeLinear takes 16 bits in new versions only, and ONNX Runtime turns one
        # before a MatMul into a MatMul that rounds the activations, too. Cast and Mul do the same.
        cast = f"{tensor.name}_cast"
        nodes = [
            helper.make_node("Cast", [integers_name], [cast], to=TensorProto.FLOAT),
            helper.make_node("Mul", [cast, scale_name], [output]),
        ]
    tensors = [
        numpy_helper.from_array(integers.numpy(), integers_name),
        numpy_helper.from_array(scale.numpy(), scale_name),
    ]
    return _StoredWeight(tensors=tensors, nodes=nodes, output=output)


def _rounded_to(values: Tensor, axis: int) -> int | None:
    """The number of bits of the integers that a weight was made of; None where it was not."""
    for bits in INTEGER_TYPES:
        integers, scale = quantize(values, axis, bits)
        if torch.allclose(integers * scale, values, rtol=1e-6, atol=0):
            return bits
    return None


def _output_axis(node: Any, weight: Tensor) -> int:
    """The axis of an ONNX node's weight that counts output channels."""
    if node.op_type == "MatMul":
        return weight.ndim - 1
    if node.op_type == "Gemm":
        transposed = any(each.name == "transB" and each.i == 1 for each in node.attribute)
        return 0 if transposed else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _replace_entries(field: Any, values: list[Any]) -> None:
    """Replace a protocol buffer's list, which can only be cleared and appended to."""
    copies = copy.deepcopy(values)  # clearing the list would clear its entries, too
    del field[:]
    field.extend(copies)
