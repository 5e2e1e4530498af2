"""Write a net to one safetensors file, from which every depth can be read on its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from elasticnet._files import write_atomic
from elasticnet.checkpoint.checks import check_is_wrapper, describe_invalid_values
from elasticnet.checkpoint.header import (
    FORMAT,
    KEY,
    Description,
    encode_description,
    shallowest_depth,
)
from elasticnet.checkpoint.safetensors_file import header_bytes
from elasticnet.checkpoint.tensors import digest, place_tensors, raw_bytes
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
        net: The net. If a registered architecture built it, the file also records the name and the
            arguments of the architecture.
        path: Where to write. An existing file is replaced.
        notes: Anything JSON can hold (data, options, scores); `read_header` returns it.
        cards: Depth cards as JSON objects, by machine.

    Raises:
        TypeError: `net` is not an ElasticWrapper.
        ValueError: The net holds NaN, infinity in a parameter, or state that is not a tensor; or
            JSON cannot hold the notes or the cards. An existing file then stays as it was.
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
    entries = place_tensors(tensors, order=_by_depth)
    metadata = {KEY: encode_description(description, entries)}
    content = bytearray(header_bytes(entries, metadata))
    for name in entries:
        content += raw_bytes(tensors[name])
    write_atomic(path, content)


def _checked_tensors(net: ElasticWrapper, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the net's state on the CPU; raise unless `load` would accept every tensor."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"state {name!r} is of type {type(tensor).__name__}: "
                "a checkpoint can hold only tensors"
            )
        is_parameter = isinstance(tensor, nn.Parameter)
        invalid = describe_invalid_values(tensor, is_parameter=is_parameter)
        if invalid is not None:
            raise ValueError(f"{path}: tensor {name!r} holds {invalid} and was not saved")
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _by_depth(tensor_name: str) -> tuple[int, str]:
    """Sort key for `place_tensors`, which groups tensors by the width of their dtypes.

    Within a group, shallow tensors come first. So those that a depth needs lie next to each other,
    and are one read.
    """
    return shallowest_depth(tensor_name), tensor_name
