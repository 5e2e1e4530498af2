"""What `upscale_array` asks of whatever runs a network: PyTorch, or a runtime without it.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

LUMA = (0.299, 0.587, 0.114)  # of gray images, as Pillow's mode L has it (ITU-R 601)
WITHOUT_CHANGE = (0.0, 1.0)  # the values of black and of white in images of floats


class TilePart(NamedTuple):
    """The part of a window's output that is kept: that of the tile in it.

    Attributes:
        rows: Of the output.
        columns: Of the output.
    """

    rows: slice
    columns: slice


class TileEngine(Protocol):
    """A network, at one depth, as the tiles of an image need it.

    `UpscalePlan` is one that runs in PyTorch, `OnnxPlan` one that runs an exported file.
    """

    @property
    def depth(self) -> int:
        """How many of its blocks run."""
        ...

    @property
    def scale(self) -> int:
        """How many times as long each side of an image becomes."""
        ...

    @property
    def reach(self) -> int | None:
        """How many LR pixels away an input pixel can change an output pixel; None: no bound."""
        ...

    @property
    def bytes_per_pixel(self) -> float:
        """Bytes that a pass takes for each LR pixel."""
        ...

    @property
    def tile(self) -> int | str | None:
        """LR pixels a side of a tile; None for the whole image, "auto" for the fastest."""
        ...

    @property
    def tile_batch(self) -> int | str:
        """How many tiles of a row run at once; "auto" for as many as pay."""
        ...

    @property
    def device_name(self) -> str:
        """Where it runs, such as "cpu" or "cuda:1"."""
        ...

    def running(self) -> AbstractContextManager[TileEngine]:
        """Return a context that gives what enlarges windows inside it."""
        ...

    def enlarge(
        self, windows: Sequence[NDArray[Any]], parts: Sequence[TilePart]
    ) -> list[NDArray[Any]]:
        """Return the pixels of tiles, in the dtype of the windows.

        Args:
            windows: (h, w, 3) each, or gray (h, w), all of one size and dtype.
            parts: Of each window's output, the part that is kept.

        Raises:
            ValueError: The network gives NaN or infinity.
        """
        ...

    def free_cached_memory(self) -> None:
        """Give back memory that is kept for later, before smaller tiles are tried."""
        ...


def white_of(dtype: np.dtype[Any]) -> int:
    """Return the value of white in images of a dtype: 255, 65535, or 1 for floats.

    Args:
        dtype: uint8, uint16, or one of floats.
    """
    if dtype.kind == "f":
        return 1
    return int(np.iinfo(dtype).max)


def batch_of(
    windows: Sequence[NDArray[Any]], value_range: tuple[float, float] = WITHOUT_CHANGE
) -> NDArray[np.float32]:
    """Return windows as one array (b, h, w, 3) of floats, as a network takes them.

    Args:
        windows: (h, w, 3) each, or gray (h, w), all of one size and dtype.
        value_range: The network's values of black and of white.
    """
    height, width = windows[0].shape[:2]
    batch = np.empty((len(windows), height, width, 3), np.float32)
    for place, window in zip(batch, windows, strict=True):
        is_gray = window.ndim == 2
        place[:] = window[..., None] if is_gray else window
    batch /= np.float32(white_of(windows[0].dtype))  # 0 is black, 1 is white
    if value_range != WITHOUT_CHANGE:
        black, white = value_range
        batch *= np.float32(white - black)
        batch += np.float32(black)
    return batch


def check_tile(tile: Any) -> None:
    """Raise unless `tile` is "auto", None or a whole number from 1.

    Args:
        tile: Of a plan.

    Raises:
        ValueError: It is something else.
    """
    if tile in ("auto", None):
        return
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(
            f"tile {tile!r}: expected 'auto', None for the whole image, or LR pixels a side, "
            "at least 1"
        )


def check_tile_batch(tile_batch: Any) -> None:
    """Raise unless `tile_batch` is "auto" or a whole number from 1.

    Args:
        tile_batch: Of a plan.

    Raises:
        ValueError: It is something else.
    """
    if tile_batch == "auto":
        return
    if not isinstance(tile_batch, int) or isinstance(tile_batch, bool) or tile_batch < 1:
        raise ValueError(
            f"tile_batch {tile_batch!r}: expected 'auto', or how many tiles run at once, at least 1"
        )
