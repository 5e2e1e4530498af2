"""Converts a program (.pt2) to Core ML: python coreml_engine.py MODEL FOLDER.

Core ML predicts on macOS alone, so nothing is run. The shapes of the converted model are checked.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

coremltools: Any = importlib.import_module("coremltools")
torch: Any = importlib.import_module("torch")

model_path, folder = sys.argv[1:]
program = torch.export.load(model_path).run_decompositions({})
precision = coremltools.precision.FLOAT16
if model_path.endswith("_float32.pt2"):
    precision = coremltools.precision.FLOAT32
model = coremltools.convert(
    program,
    minimum_deployment_target=coremltools.target.iOS16,
    compute_precision=precision,
)
model.save(f"{folder}/net.mlpackage")
(taken,) = model.get_spec().description.input
(given,) = model.get_spec().description.output
shapes = [list(each.type.multiArrayType.shape) for each in (taken, given)]
print(f"converted: {shapes[0]} to {shapes[1]}")
print(f"version: {coremltools.__version__}")
