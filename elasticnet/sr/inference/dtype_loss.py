"""What a narrower dtype costs in PSNR: known of the packaged weights, else from a file's card.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from elasticnet.card.depth_card import DepthCard, Metric
from elasticnet.checkpoint.header import read_header

LOSSES_FILE = Path(__file__).parents[1] / "weights" / "dtype_losses.json"
FLOAT32 = "float32"
DTYPES = (FLOAT32, "bfloat16", "float16")
AUTO = "auto"
MAX_LOSS = 0.01  # dB that a dtype may lie below float32, to be chosen by "auto"
LOSS = Metric("dtype_loss", title="below float32", unit="dB", decimals=4, lower_is_better=True)


def known_losses(source: str | os.PathLike[str], dtype: str) -> dict[int, float]:
    """Return by depth how many dB a network loses in a dtype, as far as it is known.

    Of packaged weights it is the larger of the means of Set5 and B100; of other files it is what
    `elasticnet profile FILE --data DIR --dtype DTYPE` has stored in a card.

    Args:
        source: A checkpoint.
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        The losses; empty where they are not known.
    """
    header = read_header(source)
    if dtype == FLOAT32:
        return dict.fromkeys(header["taps"], 0.0)
    packaged = _packaged_losses().get(_digest(header["sha256"]), {}).get(dtype)
    if packaged is not None:
        return _largest_by_depth(packaged)
    losses: dict[int, float] = {}
    for stored in header["cards"].values():
        losses.update(_losses_in_card(stored, dtype))
    return losses


def digest_of_weights(source: str | os.PathLike[str]) -> str:
    """Return what files with the same tensors have in common, whatever else they say.

    Args:
        source: A checkpoint.
    """
    return _digest(read_header(source)["sha256"])


def _digest(sha256: Mapping[str, str]) -> str:
    text = json.dumps(sha256, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _packaged_losses() -> dict[str, Any]:
    """By digest of the weights, by dtype, data set and depth."""
    return json.loads(LOSSES_FILE.read_text(encoding="utf-8"))


def _largest_by_depth(by_set: Mapping[str, Mapping[str, float]]) -> dict[int, float]:
    losses: dict[int, float] = {}
    for by_depth in by_set.values():
        for depth, loss in by_depth.items():
            losses[int(depth)] = max(loss, losses.get(int(depth), loss))
    return losses


def _losses_in_card(stored: Any, dtype: str) -> dict[int, float]:
    """What a card in a file says; nothing where it is of another dtype, or cannot be read."""
    try:
        card = DepthCard.from_json(stored)
    except ValueError:
        return {}
    if card.machine.dtype != dtype:
        return {}
    return {row.depth: row.quality[LOSS.name] for row in card.rows if LOSS.name in row.quality}
