"""A whole checkpoint as one tensor of bytes: for programs that hand over a state dict and no more.

A file for spandrel is a safetensors file with this one tensor. The description of the network,
which a state dict cannot hold, travels in it, and reading it is `elasticnet.load` with all its
checks.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elasticnet.checkpoint import load, read_header, save
from elasticnet.wrapper import ElasticWrapper

CARRIER = "elasticnet_checkpoint"
"""The name of the tensor."""


def carried_checkpoint(
    net: ElasticWrapper, notes: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Return a state dict of one tensor, the bytes of the checkpoint that `save` writes of a net.

    Args:
        net: A net of a registered architecture.
        notes: What `save` notes in it.

    Returns:
        `CARRIER` -> uint8 of shape (bytes,).

    Raises:
        ValueError: `save` refuses the net, or no registered architecture builds it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.safetensors")
        save(net, path, notes)
        if read_header(path)["architecture"] is None:
            raise ValueError(
                "a network of no registered architecture: a program that reads the file could not "
                "build it"
            )
        content = Path(path).read_bytes()
    return {CARRIER: torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def is_carried(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict is what `carried_checkpoint` returns.

    Args:
        state: Any state dict.
    """
    tensor = state.get(CARRIER)
    return isinstance(tensor, Tensor) and tensor.dtype == torch.uint8 and tensor.ndim == 1


def load_carried(state: Mapping[str, Tensor], depth: int | None = None) -> ElasticWrapper:
    """Return the net that a tensor of bytes carries, in eval mode.

    Args:
        state: What `carried_checkpoint` returned.
        depth: How many blocks are loaded; default: all.

    Raises:
        ValueError: The bytes are damaged, or there is no tap at this depth.
    """
    content = state[CARRIER].cpu().numpy().tobytes()
    return load(io.BytesIO(content), depth).eval()
