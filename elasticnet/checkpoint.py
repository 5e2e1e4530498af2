"""One safetensors file, every depth in it: save a net, load it whole or cut to a depth.

The file's metadata has one key, "elasticnet", holding sorted JSON: format version, architecture and arguments (for nets
of a built-in builder), taps, a SHA-256 for each tensor, and free `notes`. The same net gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from elasticnet.runs import write_atomic
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper

FORMAT = 1
KEY = "elasticnet"
BUILT_IN = ("asrn", "edsr", "rcan")  # the only names that a file can make `load` build


def save(net: ElasticWrapper, path: str | os.PathLike[str], notes: dict[str, Any] | None = None) -> None:
    """Write the net's weights, and what is needed to build it, to one safetensors file; atomic and deterministic.

    `notes`: anything JSON can hold (data, options, scores); `read_header` gives it back.
    """
    # Copies: safetensors refuses tensors that share memory, as those of a block that stands twice in the net do.
    plain = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    tensors = {name: tensor.detach().to(**plain) for name, tensor in net.state_dict().items()}
    architecture, arguments = net.origin or (None, {})
    header = {
        "format": FORMAT,
        "architecture": architecture,
        "arguments": arguments,
        "taps": list(net.taps),
        "sha256": {name: _digest(tensor) for name, tensor in tensors.items()},
        "notes": notes or {},
    }
    write_atomic(path, safetensors_torch.save(tensors, {KEY: json.dumps(header, sort_keys=True)}))


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the description that `save` put into the file's metadata, without reading a tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if KEY not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not one that elasticnet.save wrote")
    try:
        header = json.loads(metadata[KEY])
        newer = header["format"] > FORMAT
        missing = {"architecture", "arguments", "taps", "sha256", "notes"} - header.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its description is damaged ({error!r})") from error
    if newer:
        raise ValueError(f"{path}: format {header['format']}, and this version reads up to {FORMAT}: update elasticnet")
    if missing:
        raise ValueError(f"{path}: its description is damaged (it lacks {', '.join(sorted(missing))})")
    return header


def load(
    path: str | os.PathLike[str],
    depth: int | None = None,
    *,
    build: Callable[[], ElasticWrapper] | None = None,
    device: torch.device | str = "cpu",
) -> ElasticWrapper:
    """Return the net of a file that `save` wrote, in eval mode, whole or cut to `depth`; only its tensors are read.

    A net of a built-in architecture (asrn, edsr, rcan) is built by name; for any other, `build` is a function that
    builds the whole net. Nothing named in a file is ever imported. Raises ValueError for a damaged file, for names or
    shapes that do not fit and for a depth that carries no tap.
    """
    header = read_header(path)
    depth = resolve_depth(depth, header["taps"])
    net = (build() if build else _build(path, header, depth)).truncate(depth)
    state = net.state_dict(keep_vars=True)
    tied: dict[int, Tensor] = {}  # a parameter that stands under two names stays one
    with safe_open(path, framework="pt") as file:
        for name in sorted(state.keys() ^ set(file.keys())):
            if name in state:
                raise ValueError(f"{path}: no tensor {name!r}, which depth {depth} of this net needs")
            if not _lies_behind(name, depth):
                raise ValueError(f"{path}: tensor {name!r} has no place in this net")
        for name, tensor in state.items():
            # A copy: what safetensors gives is mapped to the file, changes with it, and is not aligned as torch's own
            # memory is, so that a matrix product could differ in the last bit.
            loaded = _checked(path, header, name, file.get_tensor(name).clone(), tensor)
            if isinstance(tensor, nn.Parameter):
                loaded = nn.Parameter(loaded, requires_grad=tensor.requires_grad)
            state[name] = tied.setdefault(id(tensor), loaded)
    net.load_state_dict(state, assign=True)
    return net.to(device).eval()


def _build(path: str | os.PathLike[str], header: dict[str, Any], depth: int) -> ElasticWrapper:
    name = header["architecture"]
    if name not in BUILT_IN:
        raise ValueError(
            f"{path}: architecture {name!r} is not built in ({', '.join(BUILT_IN)}): "
            "pass build=, a function that makes the net"
        )
    import elasticnet.sr  # the one arrow from the core to sr: the allow-list's builders, imported only when asked for

    taps = [tap for tap in header["taps"] if tap <= depth]
    try:
        return getattr(elasticnet.sr, name)(**{**header["arguments"], "num_blocks": depth}, taps=taps)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name} cannot be built as the file describes it: {error}") from error


def _lies_behind(name: str, depth: int) -> bool:
    """Whether a tensor of this name belongs to blocks or adapters that `depth` does not use."""
    part, number, *_ = [*name.split("."), ""]
    first = {"blocks": depth, "adapters": depth + 1}  # blocks are counted from 0 in keys, depths from 1
    return part in first and number.isdecimal() and int(number) >= first[part]


def _checked(path: Any, header: dict[str, Any], name: str, loaded: Tensor, expected: Tensor) -> Tensor:
    if _digest(loaded) != header["sha256"].get(name):
        raise ValueError(f"{path}: tensor {name!r} does not have the SHA-256 it was saved with; the file is damaged")
    if loaded.shape != expected.shape:
        raise ValueError(
            f"{path}: tensor {name!r} has shape {tuple(loaded.shape)}, this net needs {tuple(expected.shape)}"
        )
    return loaded


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
