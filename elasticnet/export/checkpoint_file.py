"""Checkpoints (.safetensors) cut to one depth, for `elasticnet.load`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from elasticnet._modules.copies import detached_copy
from elasticnet.checkpoint import load, save
from elasticnet.export.plan import ExportPlan
from elasticnet.wrapper import ElasticWrapper


def checkpoint_bytes(plan: ExportPlan) -> bytes:
    """Return the bytes of a checkpoint; the plan's metadata becomes its notes.

    Args:
        plan: The export.

    Raises:
        ValueError: The network holds NaN, or the metadata what JSON cannot hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save(plan.net, path, notes=plan.metadata)
        return path.read_bytes()


def open_checkpoint(data: bytes) -> ElasticWrapper:
    """Return the network in a checkpoint of a registered architecture.

    Args:
        data: The file's bytes.
    """
    return load(io.BytesIO(data))


def read_back(data: bytes, net: ElasticWrapper) -> ElasticWrapper:
    """Return the network in a checkpoint as whoever gets the file will load it.

    Args:
        data: The file's bytes.
        net: The network that was written. Where no registered architecture built it, a copy of it
            stands for what the user's own function will build.
    """
    if net.origin is not None:
        return open_checkpoint(data)

    def build() -> ElasticWrapper:
        return detached_copy(net)

    return load(io.BytesIO(data), build=build)
