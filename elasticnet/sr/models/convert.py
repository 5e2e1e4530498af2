"""The authors' checkpoints of EDSR and RCAN: read with their wrappers removed, loaded strictly,
written back.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from elasticnet.sr.models.edsr import ShiftStem, edsr
from elasticnet.sr.models.rcan import rcan
from elasticnet.wrapper import ElasticWrapper

BUILDERS: dict[str, Callable[..., ElasticWrapper]] = {"edsr": edsr, "rcan": rcan}
CONTAINERS = ("state_dict", "params_ema", "params")  # the average of the weights before the weights
PREFIXES = ("module.", "model.")
MOST_NAMED = 4  # keys in an error message
MOST_NESTED = 10  # wrappers around a state dict

Source = str | os.PathLike[str] | Mapping[str, Any]


def load_official(source: Source, **arguments: Any) -> ElasticWrapper:
    """Return an elastic EDSR or RCAN with the weights of an official checkpoint, in eval mode.

    source: a .pth/.pt or .safetensors file, or a state dict; see `read_official`. Architecture and
    sizes are told from keys and shapes; `arguments` of `edsr` or `rcan` replace or complete them
    (res_scale, which no tensor tells, is 0.1 at the full size and 1 elsewhere unless given). Raises
    ValueError that names the keys that are missing, unexpected or of another shape.
    """
    state = read_official(source)
    architecture, told = infer(state)
    net = BUILDERS[architecture](**{**told, **arguments})
    expected = official_state_dict(net)
    wrong = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    problems = [f"{kind}: {_listed(names)}" for kind, names in wrong.items() if names]
    if problems:
        assert net.origin is not None
        sizes = ", ".join(
            f"{name}={value}" for name, value in net.origin[1].items() if name != "fold"
        )
        raise ValueError(
            f"the checkpoint does not fit {architecture}({sizes}); {'; '.join(problems)}"
        )
    net.load_state_dict(_renamed(state, len(net.blocks), to_official=False))
    return net.eval()


def official_state_dict(net: ElasticWrapper) -> dict[str, Tensor]:
    """Return the state dict of an elastic EDSR or RCAN, truncated ones too, under the authors'
    keys.

    The tensors are the net's own. The plain `EDSR` or `RCAN` of as many blocks loads it strictly.
    """
    if not isinstance(getattr(net, "stem", None), ShiftStem):
        raise ValueError(
            "official_state_dict: expected a net that edsr(), rcan() or load_official() made"
        )
    return _renamed(net.state_dict(), len(net.blocks), to_official=True)


def read_official(source: Source) -> dict[str, Tensor]:
    """Return the state dict in a file, or in a mapping, without what is wrapped around it.

    Unpacks {"state_dict": ...}, {"params_ema": ...} and {"params": ...} and strips "module." and
    "model." from keys, in any nesting. A file is read as safetensors where its name ends so;
    otherwise with weights_only=True, so that nothing in it is executed. Raises ValueError for a
    damaged file and for entries that are not tensors.
    """
    state: Any = source if isinstance(source, Mapping) else _read(Path(source))
    place = "the mapping" if isinstance(source, Mapping) else str(source)
    for _ in range(MOST_NESTED):  # a mapping can hold itself
        if not isinstance(state, Mapping):
            break
        inside = next(
            (state[key] for key in CONTAINERS if isinstance(state.get(key), Mapping)), None
        )
        prefix = next(
            (
                each
                for each in PREFIXES
                if state and all(str(key).startswith(each) for key in state)
            ),
            None,
        )
        if inside is not None:
            state = inside
        elif prefix is not None:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"{place}: holds {type(state).__name__}: expected a state dict with at least one tensor"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(
                f"{place}: entry {name!r} is of type {type(value).__name__}: expected tensors under names, "
                f"or a state dict of them under one of {', '.join(CONTAINERS)}"
            )
    return dict(state)


def infer(state: Mapping[str, Tensor]) -> tuple[str, dict[str, int]]:
    """Return the architecture, "edsr" or "rcan", and its sizes, as keys and shapes of an official
    state dict tell.
    """
    channels = _width(state, "head.0.weight")
    factor = math.isqrt(_width(state, "tail.0.0.weight") // channels)
    steps = sum(re.fullmatch(r"tail\.0\.\d+\.weight", name) is not None for name in state)
    sizes = {
        "scale": factor**steps,
        "num_blocks": _members(state, r"body\.(\d+)\.") - 1,
        "channels": channels,
    }
    if not any(name.startswith("body.0.body.0.body.") for name in state):
        return "edsr", sizes
    sizes["group_size"] = _members(state, r"body\.0\.body\.(\d+)\.") - 1
    sizes["reduction"] = channels // _width(state, "body.0.body.0.body.3.conv_du.0.weight")
    return "rcan", sizes


def _read(path: Path) -> Any:
    # so that an absent or unreadable file is an OSError, and all else is about content
    with open(path, "rb") as file:
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can end in an error of almost any kind
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path}: damaged, or not a checkpoint of plain tensors ({reason}); objects of other kinds are never "
                "loaded: save the state dict alone"
            ) from error


def _renamed(state: Mapping[str, Tensor], num_blocks: int, to_official: bool) -> dict[str, Tensor]:
    """The same tensors under the other names; the first prefix that fits counts."""
    prefixes = [
        ("stem.sub_mean.", "sub_mean."),
        ("stem.conv.", "head.0."),
        ("head.conv.", f"body.{num_blocks}."),
        ("blocks.", "body."),
        ("head.tail.", "tail."),
        ("head.add_mean.", "add_mean."),
    ]
    pairs = prefixes if to_official else [(official, ours) for ours, official in prefixes]
    renamed = {}
    for name, tensor in state.items():
        before, after = next(pair for pair in pairs if name.startswith(pair[0]))
        renamed[after + name.removeprefix(before)] = tensor
    return renamed


def _width(state: Mapping[str, Tensor], name: str) -> int:
    """The number of output channels of the conv of this name."""
    if name not in state:
        raise ValueError(
            f"missing: {name}; expected the official keys of EDSR or RCAN, found {_listed(list(state))}"
        )
    if state[name].ndim != 4 or not state[name].numel():
        raise ValueError(
            f"{name} has shape {tuple(state[name].shape)}: expected the weight of a convolution"
        )
    return state[name].shape[0]


def _members(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many members of a sequence the keys name; counted, so that one large number in a key
    builds no large net.
    """
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
