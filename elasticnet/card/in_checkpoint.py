"""Depth cards in a checkpoint: one for each machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from elasticnet.card.depth_card import DepthCard
from elasticnet.card.machine import machine_key
from elasticnet.checkpoint.header import read_header, write_header

if TYPE_CHECKING:
    import torch


def card_of(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    threads: int | None = None,
) -> DepthCard:
    """Return the card in a file that was measured on this kind of machine.

    Args:
        source: The file, or what `read_header` gave.
        device: On which this machine computes.
        dtype: In which it computes; by default float32.
        threads: With which it computes; by default torch's present number.

    Raises:
        ValueError: The file has no such card (the message names the machines that it has cards of,
            and the command that measures one), or the card is damaged, or of other depths than the
            file.
    """
    if isinstance(source, Mapping):
        header = source
        name = "this file"
        file_argument = "FILE"
    else:
        header = read_header(source)
        name = file_argument = str(source)
    cards = header.get("cards", {})
    key = machine_key(device, dtype, threads)
    if key not in cards:
        held = "; ".join(sorted(cards)) or "none"
        raise ValueError(
            f"{name}: no depth card of this machine ({key}), cards held: {held}; "
            f"measure one with `elasticnet profile {file_argument}`"
        )
    try:
        card = DepthCard.from_json(cards[key])
    except ValueError as error:
        raise ValueError(f"{name}: its card of this machine is damaged ({error})") from error
    if card.machine.key != key:
        raise ValueError(
            f"{name}: its card of this machine is damaged (it is of {card.machine.key!r})"
        )
    _check_depths(card, header["taps"], name)
    return card


def store_card(path: str | os.PathLike[str], card: DepthCard) -> None:
    """Write a card into a file, atomically, in place of an earlier one of the same machine.

    Args:
        path: A file that `save` wrote.
        card: The card.

    Raises:
        ValueError: The file is no checkpoint, or damaged, or the card is of other depths.
        OSError: The file cannot be read or written.
    """
    header = read_header(path)
    _check_depths(card, header["taps"], name=str(path))
    header["cards"] = {**header["cards"], card.machine.key: card.to_json()}
    write_header(path, header)


def _check_depths(card: DepthCard, taps: Sequence[int], name: str) -> None:
    """Raise if a card is of another net than the one in a file, as far as the depths show it."""
    depths = [row.depth for row in card.rows]
    if depths != list(taps):
        raise ValueError(
            f"{name}: a depth card of depths {_listed(depths)}, and the file has taps at depths "
            f"{_listed(taps)}: it is of another net; measure one with `elasticnet profile`"
        )


def _listed(depths: Sequence[int]) -> str:
    return ", ".join(str(depth) for depth in depths)
