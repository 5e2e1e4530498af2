"""The exact state of a training as bytes, without pickle, and of the random generators."""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch

_FORMAT = 1
# as it stands in the file: JSON inside a JSON string of the safetensors header
_DIGEST_MARK = rb"{\"sha256\":\""
_NO_DIGEST = b"0" * 64


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed the generators of Python, NumPy (the global one) and torch on every device; each rank
    gets its own draws.
    """
    seed = (seed + 0x9E3779B1 * rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def random_state(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """State of the random generators of Python, NumPy (the global one), torch, every CUDA device,
    and those given.
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {
            name: generator.get_state() for name, generator in (generators or {}).items()
        },
    }


def set_random_state(
    state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None
) -> None:
    """Put back what `random_state` returned, into generators of the same names; warns when CUDA
    devices are gone.
    """
    generators, stored, cuda = generators or {}, state["generators"], state["cuda"]
    if set(generators) != set(stored):
        raise ValueError(
            f"random generators {sorted(generators)}: the state holds {sorted(stored)}"
        )
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(cuda):
        warnings.warn(
            f"random state of {len(cuda)} CUDA devices, here are {devices}: draws will differ",
            stacklevel=2,
        )
    for device, device_state in enumerate(cuda[:devices]):
        torch.cuda.set_rng_state(device_state, device)
    for name, generator in generators.items():
        generator.set_state(stored[name])


def pack_state(step: int, state: Any) -> bytearray:
    """A nested state as the bytes of a safetensors file, exact to the bit, with a SHA-256 over the
    whole of it.

    It may hold dicts and Counters (string and integer keys), lists, tuples, dense tensors, NumPy
    arrays and scalars, numbers, strings, bools and None; a TypeError names the place of anything
    else. Subclasses come back as the plain type, tensors on the CPU with their strides. The tree is
    JSON in the metadata, each tensor is named by its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state, "state", tensors)
    # One metadata key only: safetensors orders several at random, and equal states should give
    # equal bytes.
    description = {"sha256": _NO_DIGEST.decode(), "format": _FORMAT, "step": step, "tree": tree}
    metadata = {"run": json.dumps(description, separators=(",", ":"), allow_nan=False)}
    try:
        packed = bytearray(safetensors.torch.save(tensors, metadata))
    except KeyError as error:
        raise TypeError(
            f"a tensor of {error.args[0]}: safetensors cannot hold this type; convert it"
        ) from error
    start = packed.index(_DIGEST_MARK) + len(_DIGEST_MARK)
    packed[start : start + 64] = hashlib.sha256(packed).hexdigest().encode()
    return packed


def unpack_state(data: bytes) -> tuple[int, Any]:
    """The (step, state) that `pack_state` was given; ValueError when any bit has changed or a part
    is missing.
    """
    start = data.find(_DIGEST_MARK) + len(_DIGEST_MARK)
    digest = hashlib.sha256(data[:start] + _NO_DIGEST)
    digest.update(memoryview(data)[start + 64 :])
    if data[start : start + 64] != digest.hexdigest().encode():
        raise ValueError("its checksum does not match its content")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    description = json.loads(header["__metadata__"]["run"])
    if description["format"] != _FORMAT:
        raise RuntimeError(
            f"checkpoint format {description['format']}: this version reads format {_FORMAT}"
        )
    return description["step"], _decode(description["tree"], safetensors.torch.load(data))


def _encode(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as a JSON tree; its tensors and the bytes of its arrays go into `tensors`, named by
    their place.
    """
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufcSUmM":
        array = np.array(value, order="C")
        tensors[place] = torch.from_numpy(array.reshape(-1).view(np.uint8))
        shape = None if isinstance(value, np.generic) else array.shape
        return {"array": place, "dtype": array.dtype.str, "shape": shape}
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        copy = value.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
        tensors[place] = copy.contiguous()
        # fused optimisers want moments laid out like the weights
        return {"tensor": place, "stride": copy.stride()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        entries = [
            _encode(entry, f"{place}[{index}]", tensors) for index, entry in enumerate(value)
        ]
        return entries if isinstance(value, list) else {"tuple": entries}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        pairs = [
            (key, _encode(entry, f"{place}[{key!a}]", tensors)) for key, entry in value.items()
        ]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise TypeError(f"{place}: cannot save the {type(value).__name__} {value!r:.100}")


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    match node:
        case list():
            return [_decode(entry, tensors) for entry in node]
        case {"tuple": entries}:
            return tuple(_decode(entry, tensors) for entry in entries)
        case {"dict": pairs}:
            return {key: _decode(entry, tensors) for key, entry in pairs}
        case {"counter": pairs}:
            return Counter({key: _decode(entry, tensors) for key, entry in pairs})
        case {"float": text}:
            return float(text)
        case {"tensor": place, "stride": stride}:
            return (
                tensors[place].new_empty_strided(tensors[place].shape, stride).copy_(tensors[place])
            )
        case {"array": place, "dtype": dtype, "shape": shape}:
            array = tensors[place].numpy().view(dtype)
            return array[0] if shape is None else array.reshape(shape)
    return node
