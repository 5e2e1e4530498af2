"""Runs an ONNX file in OpenVINO: python openvino_engine.py MODEL FOLDER."""

from __future__ import annotations

import importlib
from typing import Any

from engine import run_all

openvino: Any = importlib.import_module("openvino")


def open_model(path: str) -> Any:
    """Return a function of one image (1, 3, h, w)."""
    # on processors with bfloat16 units the default would be to compute in bfloat16
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda image: compiled(image)[0]


run_all(open_model, version=openvino.__version__.partition("-")[0])
