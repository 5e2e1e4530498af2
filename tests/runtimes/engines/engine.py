"""What the engines share: a program of a runtime's own environment, which has NumPy and no PyTorch.

    python ..._engine.py MODEL FOLDER

runs MODEL on each FOLDER/input_*.npy, writes output_*.npy beside it, and ends with the line
"version: ..."; a failure ends with a traceback, whose last line is the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def run_all(open_model: Callable[[str], Callable[[Any], Any]], version: str) -> None:
    """Run the model that the command line names on all inputs of the folder that it names.

    Args:
        open_model: Returns, for a path, a function of one image (1, 3, h, w), float32.
        version: Of the runtime.
    """
    model, folder = sys.argv[1:]
    run = open_model(model)
    for path in sorted(Path(folder).glob("input_*.npy")):
        output = run(np.load(path))
        np.save(path.with_name(path.name.replace("input_", "output_")), output)
    print(f"version: {version}")
