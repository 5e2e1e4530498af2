"""Depth cards that are kept for a user, beside those in files: what is measured once stays known.

The files of an installed package cannot hold cards of every machine. A card is kept by what a
network's speed depends on, its architecture and its arguments, so that networks that differ in
their weights alone share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticnet._files import write_json
from elasticnet.card.depth_card import DepthCard
from elasticnet.card.machine import machine_key
from elasticnet.checkpoint.safetensors_file import is_object

if TYPE_CHECKING:
    import torch

APPLICATION = "elasticnet"
DIGEST_LETTERS = 16


def user_cache_folder() -> Path:
    """Return the folder in which this user's programs keep what they can make again.

    It is the one that `platformdirs.user_cache_path("elasticnet", appauthor=False)` names, and need
    not exist: `$XDG_CACHE_HOME/elasticnet` or `~/.cache/elasticnet` on Linux.

    Raises:
        OSError: The user has no home, as in some containers.
    """
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError("this user has no home folder; set XDG_CACHE_HOME") from error
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
        return Path(local) / APPLICATION / "Cache"
    chosen = os.environ.get("XDG_CACHE_HOME", "").strip()
    if chosen:
        return Path(chosen) / APPLICATION
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / APPLICATION
    return home / ".cache" / APPLICATION


def card_file(architecture: str, arguments: Mapping[str, Any], taps: Sequence[int]) -> Path:
    """Return the file in which the cards of a network are kept, one for each machine.

    Args:
        architecture: The name of a registered one.
        arguments: Of its builder.
        taps: The depths that carry a prediction.

    Raises:
        OSError: The user has no home.
    """
    description = json.dumps([architecture, dict(arguments), list(taps)], sort_keys=True)
    digest = hashlib.sha256(description.encode()).hexdigest()[:DIGEST_LETTERS]
    return user_cache_folder() / "cards" / f"{architecture}-{digest}.json"


def kept_card(
    file: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> DepthCard | None:
    """Return the card of this machine that was kept, or None.

    Args:
        file: As `card_file` returns it. One that is damaged counts as absent.
        device: On which this machine computes.
        dtype: In which it computes; by default float32.
    """
    stored = read_kept(file).get(machine_key(device, dtype))
    if stored is None:
        return None
    try:
        return DepthCard.from_json(stored)
    except ValueError:  # of another version, or damaged
        return None


def keep_card(file: Path, card: DepthCard) -> None:
    """Keep a card, in place of an earlier one of the same machine.

    Args:
        file: As `card_file` returns it.
        card: The card.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**read_kept(file), card.machine.key: card.to_json()})


def read_kept(file: Path) -> dict[str, Any]:
    """Return the entries of a file in the user's cache folder; none if it is absent or damaged.

    Args:
        file: A JSON file that holds one object.
    """
    try:
        entries: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if is_object(entries) else {}
