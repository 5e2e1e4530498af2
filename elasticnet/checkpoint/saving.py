"""Write a net to one safetensors file, from which every depth can be read on its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from elasticnet._files import write_atomic
from elasticnet.checkpoint.checks import describe_invalid_values, elastic_net
from elasticnet.checkpoint.header import (
    FORMAT,
    KEY,
    Description,
    encode_description,
    first_depth_that_needs,
)
from elasticnet.checkpoint.proof import architecture_to_record
from elasticnet.checkpoint.safetensors_file import header_bytes
from elasticnet.checkpoint.state import has_shape, is_made_of_others, is_sharded, state_of
from elasticnet.checkpoint.tensors import digest, place_tensors, raw_bytes
from elasticnet.wrapper import ElasticWrapper

logger = logging.getLogger(__name__)


def save(
    net: nn.Module,
    path: str | os.PathLike[str],
    notes: Mapping[str, Any] | None = None,
    cards: Mapping[str, Any] | None = None,
) -> None:
    """Write the net's weights, and what is needed to build it, to one safetensors file.

    The file is written whole or not at all, and the same net gives the same bytes.

    If a registered architecture built the net, the file also records the name and the arguments of
    the architecture. Before that, `save` proves that these give the net's function (see
    `architecture_to_record` in `elasticnet.checkpoint.proof`). For a net that was changed since it
    was built, a warning is logged that names the change, and the file names no architecture: `load`
    then needs `build=`.

    Args:
        net: An `ElasticWrapper`. It may be compiled or wrapped for parallel training, and so may
            its blocks: the file holds the names that the tensors have without that. Of a sharded
            net, all processes call `save`, with different paths.
        path: Where to write. An existing file is replaced.
        notes: Anything JSON can hold (data, options, scores); `read_header` returns it.
        cards: Depth cards as JSON objects, by machine.

    Raises:
        TypeError: `net` is not an ElasticWrapper.
        ValueError: The net holds NaN, infinity in a parameter, or state that is not a tensor; or
            blocks were added to it or removed since it was made; or JSON cannot hold the notes or
            the cards. An existing file then stays as it was.
        OSError: The file cannot be written.

    Example:
        `save(net, "x4.safetensors", notes={"epochs": 300})`
    """
    elastic = elastic_net(net)
    tensors = _checked_tensors(elastic, path)
    record = architecture_to_record(elastic)
    if record.why_none is not None:
        logger.warning(
            "%s: saved without an architecture, so that load needs build=: %s",
            path,
            record.why_none,
        )
    description: Description = {
        "format": FORMAT,
        "architecture": record.architecture,
        "arguments": record.arguments,
        "taps": list(elastic.taps),
        "sha256": {name: digest(tensor) for name, tensor in tensors.items()},
        "notes": dict(notes or {}),
        "cards": dict(cards or {}),
    }
    write_atomic(path, _file_content(tensors, description))


def _file_content(tensors: Mapping[str, Tensor], description: Description) -> bytearray:
    """Return the bytes of a file: the header, and then those of the tensors."""
    entries = place_tensors(tensors, order=_by_depth)
    metadata = {KEY: encode_description(description, entries)}
    content = bytearray(header_bytes(entries, metadata))
    for name in entries:  # these are in the order of the bytes
        content += raw_bytes(tensors[name])
    return content


def _checked_tensors(net: ElasticWrapper, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the net's tensors on the CPU; raise if there is one that `load` would not accept."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_of(net).items():
        _check_has_values_of_its_own(name, tensor, path)
        whole = _whole(tensor)
        is_parameter = isinstance(tensor, nn.Parameter)  # a buffer may hold infinity: a mask
        invalid = describe_invalid_values(whole, is_parameter=is_parameter)
        if invalid is not None:
            raise ValueError(f"{path}: tensor {name!r} holds {invalid} and was not saved")
        tensors[name] = whole.cpu().contiguous()
    return tensors


def _check_has_values_of_its_own(name: str, tensor: Tensor, path: str | os.PathLike[str]) -> None:
    """Raise if a tensor has no values yet, or keeps them in other tensors."""
    if not has_shape(tensor):
        raise ValueError(
            f"{path}: tensor {name!r} belongs to a lazy layer that has not run yet, and was "
            "not saved: run the net once"
        )
    if tensor.is_meta:
        raise ValueError(
            f"{path}: tensor {name!r} is on the meta device, has no values and was not saved"
        )
    if is_made_of_others(tensor):
        raise ValueError(
            f"{path}: tensor {name!r} is a {type(tensor).__name__}, which no file can hold, "
            "and was not saved: save the net before it is quantised, and quantise what load "
            "returns"
        )


def _whole(tensor: Any) -> Tensor:
    """Return a tensor without its history; of one that is sharded, all shards together."""
    if is_sharded(tensor):
        return tensor.detach().full_tensor()
    if tensor.untyped_storage().nbytes() > tensor.nbytes:
        # Copy a part of a larger tensor. An array made of it would hold the whole memory, which
        # others must be free to resize (FSDP1 does).
        return tensor.detach().clone()
    return tensor.detach()


def _by_depth(tensor_name: str) -> tuple[int, str]:
    """Return a sort key: shallow tensors come first, then by name.

    So those that a depth needs lie next to each other, and one read takes them all.
    """
    return first_depth_that_needs(tensor_name), tensor_name
