"""Converts a program (.pt2) to TFLite by litert-torch and runs it.

python litert_engine.py MODEL FOLDER
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from engine import run_all

torch: Any = importlib.import_module("torch")
litert_torch: Any = importlib.import_module("litert_torch")


def open_model(path: str) -> Any:
    """Return a function of one image (1, 3, h, w)."""
    module = torch.export.load(path).module()

    class Callable(torch.nn.Module):
        """The program as a module that may be put into eval mode, which it is in already."""

        def forward(self, image: Any) -> Any:
            return module(image)

    converted = None

    def run(image: Any) -> Any:
        nonlocal converted
        if converted is None:
            converted = litert_torch.convert(Callable().eval(), (torch.from_numpy(image),))
        return np.asarray(converted(torch.from_numpy(image)))

    return run


run_all(open_model, version=litert_torch.__version__)
