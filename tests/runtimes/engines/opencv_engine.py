"""Runs an ONNX file in OpenCV's dnn module: python opencv_engine.py MODEL FOLDER."""

from __future__ import annotations

import importlib
from typing import Any

from engine import run_all

cv2: Any = importlib.import_module("cv2")


def open_model(path: str) -> Any:
    """Return a function of one image (1, 3, h, w)."""
    net = cv2.dnn.readNetFromONNX(path)

    def run(image: Any) -> Any:
        net.setInput(image)
        return net.forward()

    return run


run_all(open_model, version=cv2.__version__)
