"""Write a net to one safetensors file, so that every depth can be read alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from elasticnet._files import write_atomic
from elasticnet.checkpoint.checks import check_is_wrapper, count_wrong_values
from elasticnet.checkpoint.header import (
    FORMAT,
    KEY,
    Description,
    encode_description,
    shallowest_depth,
)
from elasticnet.checkpoint.safetensors_file import header_bytes
from elasticnet.checkpoint.tensors import digest, layout, raw_bytes
from elasticnet.registry import recorded
from elasticnet.wrapper import ElasticWrapper


def save(
    net: ElasticWrapper,
    path: str | os.PathLike[str],
    notes: Mapping[str, Any] | None = None,
    cards: Mapping[str, Any] | None = None,
) -> None:
    """Write the net's weights, and what is needed to build it, to one safetensors file.

    The file is written whole or not at all, and the same net gives the same bytes.

    Args:
        net: The net. Its name and arguments are recorded where a registered architecture built it.
        path: The file. One that exists is replaced.
        notes: Anything JSON can hold (data, options, scores); `read_header` gives it back.
        cards: Depth cards as JSON objects, by machine.

    Raises:
        TypeError: `net` is no ElasticWrapper.
        ValueError: `load` would refuse the file: NaN anywhere, infinity in a parameter, state that
            is no tensor, notes that JSON cannot hold. An old file then stays as it was.
        OSError: The file cannot be written.

    Example:
        `save(net, "x4.safetensors", notes={"epochs": 300})`
    """
    check_is_wrapper(net)
    tensors = _checked_tensors(net, path)
    architecture, arguments = recorded(net)
    description: Description = {
        "format": FORMAT,
        "architecture": architecture,
        "arguments": arguments,
        "taps": list(net.taps),
        "sha256": {name: digest(tensor) for name, tensor in tensors.items()},
        "notes": dict(notes or {}),
        "cards": dict(cards or {}),
    }
    entries = layout(tensors, order=_by_depth)
    metadata = {KEY: encode_description(description, entries)}
    content = bytearray(header_bytes(entries, metadata))
    for name in entries:
        content += raw_bytes(tensors[name])
    write_atomic(path, content)


def _checked_tensors(net: ElasticWrapper, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the net's state on the CPU, checked to be tensors that `load` takes."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"state {name!r} is of type {type(tensor).__name__}: "
                "a checkpoint holds tensors alone"
            )
        wrong, kind = count_wrong_values(tensor, is_parameter=isinstance(tensor, nn.Parameter))
        if wrong:
            raise ValueError(
                f"{path}: tensor {name!r} holds {kind} in {wrong} of {tensor.numel()} values "
                "and was not saved"
            )
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _by_depth(tensor_name: str) -> tuple[int, str]:
    """Sort tensors so that what a depth needs is one piece of the file, at its beginning."""
    return shallowest_depth(tensor_name), tensor_name
