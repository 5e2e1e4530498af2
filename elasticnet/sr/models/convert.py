"""Other people's checkpoints of EDSR and RCAN: read, loaded strictly, and written back.

They have the authors' keys, or those of BasicSR (see `basicsr_keys`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from elasticnet.checkpoint.sources import open_local
from elasticnet.sr.models.basicsr_keys import from_basicsr, has_basicsr_keys
from elasticnet.sr.models.edsr import ShiftStem, edsr
from elasticnet.sr.models.rcan import rcan
from elasticnet.wrapper import ElasticWrapper

BUILDERS: dict[str, Callable[..., ElasticWrapper]] = {"edsr": edsr, "rcan": rcan}

# Under which keys checkpoints hold their state dict; the average of the weights is preferred.
CONTAINERS = ("state_dict", "params_ema", "params")
PREFIXES = ("module.", "model.")  # of all keys, from wrappers around the network
MAX_NESTING = 10  # wrappers around a state dict; a mapping can hold itself
MAX_NAMED_KEYS = 4  # in an error message

Source = str | os.PathLike[str] | Mapping[str, Any]


def load_official(source: Source, **arguments: Any) -> ElasticWrapper:
    """Return an elastic EDSR or RCAN with the weights of others' checkpoint, in eval mode.

    Its keys are the authors' or BasicSR's. Architecture and sizes are told from keys and shapes.

    Args:
        source: A .pth, .pt or .safetensors file, or a state dict; see `read_official`.
        **arguments: Those of `edsr` or `rcan`, in place of what was told. No tensor tells
            `res_scale`: it is 0.1 at the full size and 1 elsewhere unless it is given.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape; the message names them. Or
            the file is damaged.
        OSError: The file cannot be read.
    """
    state = read_official(source)
    if has_basicsr_keys(state):
        state = from_basicsr(state)
    architecture, told = infer(state)
    net = BUILDERS[architecture](**{**told, **arguments})
    problems = _misfits(state, official_state_dict(net))
    if problems:
        raise ValueError(
            f"the checkpoint does not fit {architecture}({_sizes(net)}); {'; '.join(problems)}"
        )
    net.load_state_dict(_renamed(state, len(net.blocks), to_official=False))
    return net.eval()


def official_state_dict(net: ElasticWrapper) -> dict[str, Tensor]:
    """Return the state dict of an elastic EDSR or RCAN under the authors' keys.

    The plain `EDSR` or `RCAN` of as many blocks loads it strictly.

    Args:
        net: What `edsr`, `rcan` or `load_official` made; it may be truncated.

    Returns:
        The net's own tensors by their official names.

    Raises:
        ValueError: Another net.
    """
    if not isinstance(getattr(net, "stem", None), ShiftStem):
        raise ValueError(
            "official_state_dict: expected a net that edsr(), rcan() or load_official() made"
        )
    return _renamed(net.state_dict(), len(net.blocks), to_official=True)


def read_official(source: Source) -> dict[str, Tensor]:
    """Return the state dict in a file, or in a mapping, without what is wrapped around it.

    Unpacks {"state_dict": ...}, {"params_ema": ...} and {"params": ...} and strips "module." and
    "model." from keys, in any nesting.

    Args:
        source: A mapping or a file. A file is read as safetensors where its name ends so, otherwise
            with weights_only=True, so that nothing in it is executed.

    Raises:
        ValueError: The file is damaged, or an entry is not a tensor.
        OSError: The file cannot be read.
    """
    if isinstance(source, Mapping):
        place = "the mapping"
        content: Any = source
    else:
        place = str(source)
        content = _read(Path(source))
    state = _unwrapped(content)
    kind = type(state).__name__
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{place}: holds {kind}: expected a state dict with at least one tensor")
    tensors: dict[str, Tensor] = {}
    for name, value in cast(Mapping[Any, Any], state).items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(
                f"{place}: entry {name!r} is of type {type(value).__name__}: expected tensors "
                f"under names, or a state dict of them under one of {', '.join(CONTAINERS)}"
            )
        tensors[name] = value
    return tensors


def has_edsr_keys(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is one of the authors' EDSR, by its names.

    Args:
        state: Any state dict.
    """
    needed = ("head.0.weight", "body.0.body.0.weight", "body.0.body.2.weight", "tail.0.0.weight")
    has_all = all(name in state for name in (*needed, "tail.1.weight", "sub_mean.weight"))
    return has_all and "body.0.body.0.body.0.weight" not in state


def infer(state: Mapping[str, Tensor]) -> tuple[str, dict[str, int]]:
    """Return what the keys and shapes of an official state dict tell of its network.

    Args:
        state: As `read_official` returns it.

    Returns:
        The architecture, "edsr" or "rcan", and the builder's arguments.
    """
    channels = _width(state, "head.0.weight")
    factor = math.isqrt(_width(state, "tail.0.0.weight") // channels)
    step_weights = [name for name in state if re.fullmatch(r"tail\.0\.\d+\.weight", name)]
    sizes = {
        "scale": factor ** len(step_weights),
        "num_blocks": _members(state, r"body\.(\d+)\.") - 1,
        "channels": channels,
    }
    if not any(name.startswith("body.0.body.0.body.") for name in state):
        return "edsr", sizes
    sizes["group_size"] = _members(state, r"body\.0\.body\.(\d+)\.") - 1
    sizes["reduction"] = channels // _width(state, "body.0.body.0.body.3.conv_du.0.weight")
    return "rcan", sizes


def _unwrapped(content: Any) -> Any:
    """The content without containers and prefixes around it; it may be no state dict at all."""
    for _ in range(MAX_NESTING):
        if not isinstance(content, Mapping):
            return content
        mapping = cast(Mapping[Any, Any], content)
        inside = _contained(mapping)
        prefix = _common_prefix(mapping)
        if inside is not None:
            content = inside
        elif prefix is not None:
            content = {name.removeprefix(prefix): value for name, value in mapping.items()}
        else:
            return mapping
    return content


def _contained(mapping: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The mapping that a container of this kind holds, or None."""
    for key in CONTAINERS:
        if isinstance(mapping.get(key), Mapping):
            return mapping[key]
    return None


def _common_prefix(mapping: Mapping[Any, Any]) -> str | None:
    """The wrapper's prefix that all keys begin with, or None."""
    if not mapping:
        return None
    for prefix in PREFIXES:
        if all(isinstance(key, str) and key.startswith(prefix) for key in mapping):
            return prefix
    return None


def _misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being loaded, in words; empty where it fits."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    other_shape: list[str] = []
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            found = tuple(state[name].shape)
            other_shape.append(f"{name} {found} instead of {tuple(tensor.shape)}")
    problems: list[str] = []
    if missing:
        problems.append(f"missing: {_listed(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_listed(unexpected)}")
    if other_shape:
        problems.append(f"of another shape: {_listed(other_shape)}")
    return problems


def _sizes(net: ElasticWrapper) -> str:
    """The arguments that decide on shapes."""
    assert net.origin is not None  # `edsr` and `rcan` set it
    _, arguments = net.origin
    return ", ".join(f"{name}={value}" for name, value in arguments.items() if name != "fold")


def _read(path: Path) -> Any:
    # so that an absent or unreadable file is an OSError, and all else is about content
    with open_local(path) as file:
        try:
            if path.suffix == ".safetensors":
                return safetensors.torch.load_file(path)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can end in an error of almost any kind
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{path}: damaged, or not a checkpoint of plain tensors ({reason}); objects of "
                "other kinds are never loaded: save the state dict alone"
            ) from error


def _renamed(state: Mapping[str, Tensor], num_blocks: int, to_official: bool) -> dict[str, Tensor]:
    """The same tensors under the other names; the first prefix that fits counts."""
    ours_and_official = [
        ("stem.sub_mean.", "sub_mean."),
        ("stem.conv.", "head.0."),
        ("head.conv.", f"body.{num_blocks}."),
        ("blocks.", "body."),
        ("head.tail.", "tail."),
        ("head.add_mean.", "add_mean."),
    ]
    pairs = ours_and_official
    if not to_official:
        pairs = [(official, ours) for ours, official in ours_and_official]
    return {_renamed_key(name, pairs): tensor for name, tensor in state.items()}


def _renamed_key(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for before, after in pairs:
        if name.startswith(before):
            return after + name.removeprefix(before)
    raise ValueError(f"tensor {name!r} has no counterpart in the authors' network")


def _width(state: Mapping[str, Tensor], name: str) -> int:
    """The number of output channels of the conv of this name."""
    if name not in state:
        raise ValueError(
            f"missing: {name}; expected the authors' or BasicSR's keys of EDSR or RCAN, found "
            f"{_listed(list(state))}"
        )
    if state[name].ndim != 4 or not state[name].numel():
        raise ValueError(
            f"{name} has shape {tuple(state[name].shape)}: expected the weight of a convolution"
        )
    return state[name].shape[0]


def _members(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many members of a sequence the keys name.

    They are counted, so that one large number in a key builds no large net.
    """
    found: set[str] = set()
    for name in state:
        match = re.match(pattern, name)
        if match:
            found.add(match[1])
    return len(found)


def _listed(names: list[str]) -> str:
    listed = ", ".join(names[:MAX_NAMED_KEYS])
    more = len(names) - MAX_NAMED_KEYS
    return f"{listed} and {more} more" if more > 0 else listed
