"""Whether sets of inputs have any in common: what was trained on must not be tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# How many of the shared inputs an error names.
NUM_NAMED = 5


def check_apart(**sets: Iterable[Any]) -> None:
    """Raise if two sets hold an input with the same values.

    Inputs are compared bit by bit, so that one which was augmented counts as another. The sets are
    gone through once.

    Args:
        **sets: Batches by the name of their set. A batch is a tensor (b, ...), or a tuple or list
            whose first entry is that tensor.

    Raises:
        ValueError: An input stands in two sets; the message names them and the first such inputs.

    Example:
        `check_apart(training=train_loader, calibration=held_out, test=test_loader)`
    """
    seen: dict[bytes, tuple[str, int]] = {}  # the set and the index in it
    for name, batches in sets.items():
        shared: dict[str, list[str]] = {}
        own: dict[bytes, tuple[str, int]] = {}
        for index, digest in enumerate(_digests(batches)):
            if digest in seen:
                other, other_index = seen[digest]
                shared.setdefault(other, []).append(f"{index} is {other_index} of {other}")
            own[digest] = (name, index)
        _refuse_shared(name, shared)
        seen.update(own)


def _refuse_shared(name: str, shared: Mapping[str, list[str]]) -> None:
    """Raise if a set has inputs in common with earlier ones."""
    for other, pairs in shared.items():
        named = ", ".join(pairs[:NUM_NAMED])
        more = f" and {len(pairs) - NUM_NAMED} more" if len(pairs) > NUM_NAMED else ""
        raise ValueError(
            f"{name} and {other} share {len(pairs)} inputs (of {name}: {named}{more}): what one of "
            "them says would not hold for new inputs"
        )


def _digests(batches: Iterable[Any]) -> Iterator[bytes]:
    """Yield a digest of the values of every input."""
    for batch in batches:
        x: Tensor = batch if isinstance(batch, Tensor) else batch[0]
        for entry in x.detach().cpu().unbind(0):
            header = f"{entry.dtype} {tuple(entry.shape)}".encode()
            # numpy has no bfloat16, so the bytes are taken by torch.
            values = entry.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            yield hashlib.sha256(header + values).digest()
