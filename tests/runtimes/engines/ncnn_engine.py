"""Turns an ONNX file into ncnn's format by pnnx and runs it: python ncnn_engine.py MODEL FOLDER.

pnnx writes weights as float16 unless it is told not to. A file whose name ends in _float16.onnx is
turned with float16 weights; pnnx takes it in float32, since ncnn has no casts.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine import run_all

ncnn: Any = importlib.import_module("ncnn")
TWO_SHAPES = ("inputshape=[1,3,120,160]f32", "inputshape2=[1,3,37,23]f32")


def open_model(path: str) -> Any:
    """Return a function of one image (1, 3, h, w)."""
    model = Path(path)
    is_float16 = model.stem.endswith("_float16")
    source = model.with_name(model.name.replace("_float16", "_float32"))
    folder = Path(sys.argv[2])
    copy = folder / "net.onnx"  # pnnx writes its files beside its input
    copy.write_bytes(source.read_bytes())
    options = [f"fp16={int(is_float16)}"]
    if "_open_" in model.name:
        options += TWO_SHAPES
    # found without an import, which would ask for PyTorch
    package = importlib.util.find_spec("pnnx")
    assert package is not None
    pnnx = Path(package.origin or "").with_name("pnnx")
    subprocess.run([pnnx, copy.name, *options], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    net = ncnn.Net()
    assert net.load_param(str(folder / "net.ncnn.param")) == 0, "load_param failed"
    assert net.load_model(str(folder / "net.ncnn.bin")) == 0, "load_model failed"

    def run(image: Any) -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]).clone())
        _, output = extractor.extract("out0")
        return np.array(output)[None]

    return run


run_all(open_model, version=ncnn.__version__)
