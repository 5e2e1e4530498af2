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
from torch import Tensor

from elasticnet.runs import write_atomic
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper

FORMAT = 1
KEY = "elasticnet"
BUILT_IN = ("asrn",)  # the only names that a file can make `load` build


def save(net: ElasticWrapper, path: str | os.PathLike[str], notes: dict[str, Any] | None = None) -> None:
    """Write the net's weights, and what is needed to build it, to one safetensors file; atomic and deterministic.

    `notes`: anything JSON can hold (data, options, scores); `read_header` gives it back.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
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
    header = json.loads(metadata[KEY])
    if header["format"] > FORMAT:
        raise ValueError(f"{path}: format {header['format']}, and this version reads up to {FORMAT}: update elasticnet")
    return header


def load(
    path: str | os.PathLike[str],
    depth: int | None = None,
    *,
    build: Callable[[], ElasticWrapper] | None = None,
    device: torch.device | str = "cpu",
) -> ElasticWrapper:
    """Return the net of a file that `save` wrote, in eval mode, whole or cut to `depth`; only its tensors are read.

    A net of a built-in architecture (asrn) is built by name; for any other, `build` is a function that builds the whole
    net. Nothing named in a file is ever imported. Raises ValueError for a damaged file, for names or shapes that
    do not fit and for a depth that carries no tap.
    """
    header = read_header(path)
    depth = resolve_depth(depth, header["taps"])
    net = (build() if build else _build(path, header, depth)).truncate(depth)
    state = net.state_dict()
    with safe_open(path, framework="pt") as file:
        missing = sorted(set(state) - set(file.keys()))
        if missing:
            raise ValueError(f"{path}: no tensor {missing[0]!r}, which depth {depth} of this net needs")
        loaded = {name: _checked(path, header, name, file.get_tensor(name), tensor) for name, tensor in state.items()}
    net.load_state_dict(loaded, assign=True)
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
    return getattr(elasticnet.sr, name)(**{**header["arguments"], "num_blocks": depth}, taps=taps)


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
