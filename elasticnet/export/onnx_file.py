"""ONNX files: from a torch.export program, cleaned of what is this machine's alone, with int8
weights, and run.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from elasticnet.export.int8 import INTEGERS, SMALLEST, quantize

PRODUCER = "elasticnet"


def to_onnx(
    program: torch.export.ExportedProgram,
    symbols: Mapping[str, str],
    text: Mapping[str, str],
    int8: bool,
) -> bytes:
    """Return the ONNX file of a program with one input and one output; `text` becomes its metadata.

    symbols: {the program's symbol of an open length: its name in the file}. int8: as in
    `store_integers`.
    """
    from onnx import helper

    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    exported = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)
    model = exported.model_proto  # pyright: ignore[reportOptionalMemberAccess]
    model.producer_name, model.producer_version = PRODUCER, ""
    model.graph.name = PRODUCER
    helper.set_model_props(model, dict(text))
    if int8:
        store_integers(model)
    _clean(model.graph)
    for function in model.functions:
        _clean(function)
    for value in (*model.graph.input, *model.graph.output):
        for length in value.type.tensor_type.shape.dim:
            if length.dim_param:
                length.dim_param = re.sub(
                    r"\w+", lambda found: symbols.get(found[0], found[0]), length.dim_param
                )
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model.SerializeToString()


def session(data: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file with one input and one output in ONNX Runtime, on
    the CPU.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised as well
    opened = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = opened.get_inputs()[0].name
    return lambda x: torch.from_numpy(opened.run(None, {name: x.numpy()})[0])


def store_integers(model: Any) -> int:
    """Store the weights of an ONNX model that `quantize_weights` has rounded as integers and scale,
    in place.

    Only float weights of Conv, ConvTranspose, Gemm and MatMul that are a scale times integers
    already, so that the model's function stays. Returns how many there were. DequantizeLinear makes
    them float again; of 16 bits, and in linear layers, Cast and Mul: ONNX Runtime turns
    DequantizeLinear before MatMul into a MatMul that rounds the activations, too.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    floats = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    stored: dict[str, str] = {}
    added = []
    for node in graph.node:
        name = node.input[1] if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else ""
        if name in floats and name not in stored and math.prod(floats[name].dims) >= SMALLEST:
            values = torch.from_numpy(numpy_helper.to_array(floats[name]).copy())
            axis = _output_axis(node, values)
            for bits in INTEGERS:
                integers, scale = quantize(values, axis, bits)
                if torch.allclose(integers * scale, values, rtol=1e-6, atol=0):
                    break
            else:
                continue
            stored[name] = f"{name}_float"
            inputs = [f"{name}_int{bits}", f"{name}_scale"]
            if bits == 8 and node.op_type in ("Conv", "ConvTranspose"):
                added.append(
                    helper.make_node("DequantizeLinear", inputs, [stored[name]], axis=axis)
                )
                scale = scale.flatten()
            else:
                added.append(
                    helper.make_node("Cast", inputs[:1], [f"{name}_cast"], to=TensorProto.FLOAT)
                )
                added.append(helper.make_node("Mul", [f"{name}_cast", inputs[1]], [stored[name]]))
            graph.initializer.append(numpy_helper.from_array(integers.numpy(), inputs[0]))
            graph.initializer.append(numpy_helper.from_array(scale.numpy(), inputs[1]))
        if name in stored:
            node.input[1] = stored[name]
    # a protocol buffer's list can only be appended to
    nodes = [*added, *copy.deepcopy(list(graph.node))]
    used = {name for node in nodes for name in node.input}
    kept = [copy.deepcopy(tensor) for tensor in graph.initializer if tensor.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(values)
    return len(stored)


def _output_axis(node: Any, weight: Tensor) -> int:
    """The axis of an ONNX node's weight that counts output channels."""
    if node.op_type == "MatMul":
        return weight.ndim - 1
    if node.op_type == "Gemm":
        return 1 - max(
            (attribute.i for attribute in node.attribute if attribute.name == "transB"), default=0
        )
    return int(node.op_type == "ConvTranspose")


def _clean(graph: Any) -> None:
    """Remove what the exporter notes about the Python code, with this machine's paths, and
    intermediate shapes.
    """
    parts = [graph, *graph.node]
    for field in ("input", "output", "initializer"):
        # a function's are names
        parts.extend(part for part in getattr(graph, field, ()) if not isinstance(part, str))
    for part in parts:
        for field in ("metadata_props", "doc_string", "value_info"):
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _clean(attribute.g)
