"""Runs an ONNX file in ONNX Runtime: python onnxruntime_engine.py MODEL FOLDER."""

from __future__ import annotations

import importlib
from typing import Any

from engine import run_all

onnxruntime: Any = importlib.import_module("onnxruntime")


def open_model(path: str) -> Any:
    """Return a function of one image (1, 3, h, w)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"input": image})[0]


run_all(open_model, version=onnxruntime.__version__)
