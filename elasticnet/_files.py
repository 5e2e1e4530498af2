"""Files written whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

AnyPath = str | os.PathLike[str]


def write_atomic(path: AnyPath, data: bytes | bytearray | str) -> None:
    """Write a file so that a kill, a power cut or a full disk leaves the old content or the new,
    never a part.

    A file that exists keeps its permissions, and a link stays a link: what it points to is
    replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno, f"could not write {path} ({error.strerror}); nothing was changed"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if sys.platform != "win32":  # a rename lasts once its folder is flushed; Windows cannot do that
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_json(path: AnyPath, value: Any) -> None:
    """Write strict JSON atomically, keys sorted; NaN and infinities become "NaN", "Infinity",
    "-Infinity".
    """
    write_atomic(
        path,
        json.dumps(strict_json(value, "value"), indent=2, sort_keys=True, allow_nan=False) + "\n",
    )


def strict_json(value: Any, place: str) -> Any:
    """The value as strict JSON can hold it."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [strict_json(entry, f"{place}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {str(key): strict_json(entry, f"{place}[{key!a}]") for key, entry in value.items()}
    raise TypeError(f"{place}: JSON cannot hold the {type(value).__name__} {value!r:.100}")
