"""The exact state of a training as bytes, without pickle; and that of the random generators."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 2
"""The format that `pack_state` writes; `unpack_state` also reads format 1."""

_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
# NumPy's kinds of bool, integers, floating point, complex, bytes, text and times
_ARRAY_KINDS = "biufcSUmM"

# --- random generators


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed the generators of Python, NumPy (the global one) and torch on every device.

    Args:
        seed: Any integer.
        rank: The rank of this process, from 0. Every rank draws other numbers.
    """
    # a multiplier that spreads neighbouring ranks over all seeds: 2^32 over the golden ratio
    own_seed = (seed + 0x9E3779B1 * rank) % 2**32
    random.seed(own_seed)
    np.random.seed(own_seed)  # noqa: NPY002
    torch.manual_seed(own_seed)


def random_state(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """Return the state of all random generators, for `pack_state`.

    Args:
        generators: Further generators by name, beside those of Python, NumPy (the global one),
            torch and every CUDA device.

    Returns:
        What `set_random_state` takes.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    named = {name: generator.get_state() for name, generator in (generators or {}).items()}
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "generators": named,
    }


def set_random_state(
    state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None
) -> None:
    """Put back what `random_state` returned; log a note if the number of CUDA devices has changed.

    Args:
        state: What `random_state` returned.
        generators: The generators of the same names as then; their states are set.

    Raises:
        ValueError: The names of `generators` are not those in the state. Nothing is set then.
    """
    generators = generators or {}
    stored = state["generators"]
    if set(generators) != set(stored):
        raise ValueError(
            f"random generators {sorted(generators)}: the state holds {sorted(stored)}"
        )
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for name, generator in generators.items():
        generator.set_state(stored[name])
    _set_cuda_states(state["cuda"])


def _set_cuda_states(states: list[Tensor]) -> None:
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_devices != len(states):
        logger.warning(
            "note: this run was saved with %d GPUs and goes on with %d: random numbers that it "
            "draws on a GPU will be others, and those of the host go on",
            len(states),
            num_devices,
        )
    for device, device_state in enumerate(states[:num_devices]):
        torch.cuda.set_rng_state(device_state, device)


# --- a state as bytes


def pack_state(step: int, state: Any) -> bytes:
    """Return a nested state as the bytes of a safetensors file, exact to the bit.

    The file holds the state's tensors, each named by its place in the state, and all the rest as
    JSON in the metadata, behind a SHA-256 of the whole. Equal states give equal bytes.

    Args:
        step: The number of steps that are done.
        state: Dicts and Counters (with string and integer keys), lists, tuples, dense tensors,
            NumPy arrays and scalars, numbers, strings, bools and None, nested as you like. What is
            of a subclass comes back as the plain type. Tensors come back on the CPU, with their
            strides.

    Returns:
        The content of a file, for `unpack_state`.

    Raises:
        TypeError: Something else is in the state; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    content = json.dumps(
        {"format": FORMAT, "step": step, "tree": tree}, separators=(",", ":"), allow_nan=False
    )
    # Checksum and content share one key, as safetensors writes several keys in random order.
    metadata = {"run": f"{_checksum(content, tensors)} {content}"}
    try:
        return safetensors.torch.save(tensors, metadata)
    except KeyError as error:
        raise TypeError(
            f"a tensor of {error.args[0]}: safetensors cannot hold this type; convert it"
        ) from error


def unpack_state(data: bytes) -> tuple[int, Any]:
    """Return what `pack_state` was given, from the bytes that it returned.

    Args:
        data: The content of a file, in format 2 or 1.

    Returns:
        The step and the state.

    Raises:
        ValueError: The bytes are no state, or one in which a bit has changed or a part is missing.
        RuntimeError: The state is whole, and of a format that a later version wrote.
    """
    try:
        text = _run_metadata(data)
        tensors = safetensors.torch.load(data)
    except KeyError as error:
        raise ValueError(f"it is not a whole state file: it has no entry {error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"it is not a whole state file: {error}") from error
    if text.startswith("{"):  # only format 1 begins with its JSON
        return _unpack_format_1(data, text, tensors)

    # The checksum comes first in every format: a digit that changed is damage, no later format.
    checksum, _, content = text.partition(" ")
    if checksum != _checksum(content, tensors):
        raise ValueError("its checksum does not match its content")
    description = json.loads(content)
    if description["format"] != FORMAT:
        raise RuntimeError(
            f"a state of format {description['format']}: this version of elasticnet reads formats "
            f"up to {FORMAT}; update elasticnet"
        )
    return description["step"], _decode(description["tree"], tensors)


def _run_metadata(data: bytes) -> str:
    """Return the text under the key "run" in the header of a safetensors file."""
    header_length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + header_length]
    # safetensors fills the header up with spaces, the only bytes that the checksum does not cover
    if not header.rstrip(b" ").endswith(b"}"):
        raise ValueError("its header does not end with } and spaces")
    text = json.loads(header)["__metadata__"]["run"]
    if not isinstance(text, str):
        raise TypeError(f"the metadata are {text!r:.100}")
    return text


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the JSON and of every tensor's name, type, shape and bytes, by name."""
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unpack_format_1(data: bytes, text: str, tensors: Mapping[str, Tensor]) -> tuple[int, Any]:
    """Read the format in which the SHA-256 of the whole file stands inside the file's own JSON.

    It was computed while 64 zeros stood in its place.
    """
    try:
        description = json.loads(text)
        checksum = description["sha256"]
        step = description["step"]
        tree = description["tree"]
    except KeyError as error:
        raise ValueError(f"it is not a whole state file: it has no entry {error}") from error
    except ValueError as error:
        raise ValueError(f"it is not a whole state file: {error}") from error
    before = data.replace(f"{checksum}".encode(), b"0" * 64, 1)
    if hashlib.sha256(before).hexdigest() != checksum:
        raise ValueError("its checksum does not match its content")
    return step, _decode(tree, tensors)


# --- the tree
#
# It is JSON in which whatever JSON lacks stands as an object with the name of its kind. So
#     {"weight": torch.zeros(3), "limit": math.inf}
# is
#     {"dict": [["weight", {"tensor": "state['weight']", "stride": [1]}],
#               ["limit", {"float": "inf"}]]}


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return the value as JSON; add its tensors, and its arrays as bytes, under their places."""
    if _is_array(value):
        return _encode_array(value, place, tensors)
    if _is_dense_tensor(value):
        return _encode_tensor(value, place, tensors)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if _is_list(value):
        return _encode_entries(value, place, tensors)
    if _is_tuple(value):
        return {"tuple": _encode_entries(value, place, tensors)}
    if _is_mapping_with_plain_keys(value):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: _encode_pairs(value, place, tensors)}
    raise TypeError(f"{place}: cannot save the {type(value).__name__} {value!r:.100}")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.generic | np.ndarray) and value.dtype.kind in _ARRAY_KINDS


def _is_dense_tensor(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _is_dict(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_mapping_with_plain_keys(value: Any) -> TypeGuard[Mapping[str | int, Any]]:
    return _is_mapping(value) and all(isinstance(key, str | int) for key in value)


def _encode_array(value: Any, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    array: np.ndarray[Any, Any] = np.array(value, order="C")
    tensors[place] = torch.from_numpy(array.reshape(-1).view(np.uint8))
    # a scalar and an array of no dimensions are two types
    shape = None if isinstance(value, np.generic) else array.shape
    return {"array": place, "dtype": array.dtype.str, "shape": shape}


def _encode_tensor(value: Tensor, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    copy = value.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
    tensors[place] = copy.contiguous()
    # fused optimisers want moments that lie in memory as the weights do
    return {"tensor": place, "stride": copy.stride()}


def _encode_entries(values: Sequence[Any], place: str, tensors: dict[str, Tensor]) -> list[Any]:
    return [_encode(entry, f"{place}[{index}]", tensors) for index, entry in enumerate(values)]


def _encode_pairs(
    mapping: Mapping[str | int, Any], place: str, tensors: dict[str, Tensor]
) -> list[Any]:
    """Return the mapping as pairs, since a JSON object turns integer keys into strings."""
    return [[key, _encode(entry, f"{place}[{key!a}]", tensors)] for key, entry in mapping.items()]


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `_encode` made this JSON of."""
    if _is_list(node):
        return [_decode(entry, tensors) for entry in node]
    if not _is_dict(node):
        return node
    if "tensor" in node:
        return _decode_tensor(node, tensors)
    if "array" in node:
        return _decode_array(node, tensors)
    ((kind, content),) = node.items()
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_decode(entry, tensors) for entry in content)
    pairs = {key: _decode(entry, tensors) for key, entry in content}
    return Counter(pairs) if kind == "counter" else pairs


def _decode_tensor(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    contiguous = tensors[node["tensor"]]
    tensor = contiguous.new_empty_strided(contiguous.shape, node["stride"])
    return tensor.copy_(contiguous)


def _decode_array(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    array: Any = tensors[node["array"]].numpy().view(node["dtype"])  # one dimension
    if node["shape"] is None:
        return array[0]
    return array.reshape(node["shape"])
