"""A tiny training of asrn_div2k.py, for tests of what its log says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def trained_log(
    recipe: ModuleType, tiny: Sequence[str], photos: Path, folder: Path, *options: object
) -> list[dict[str, Any]]:
    """Run the recipe and return the lines of its log.

    Args:
        recipe: The module of asrn_div2k.py.
        tiny: The options that make the run small.
        photos: The folder of images to train on.
        folder: The run folder.
        *options: Further ones.
    """
    words = [*tiny, "--data", photos, "--out", folder, *options]
    recipe.main(recipe.parse([str(word) for word in words]))
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
