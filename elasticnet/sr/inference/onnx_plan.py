"""An exported network, run by ONNX Runtime, as `upscale_array` takes it; nothing imports torch.

`elasticnet export` writes into a file what a plan needs to know: the scale, the depth, how far the
network sees, and what memory it takes.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elasticnet.memory import is_out_of_memory
from elasticnet.sr.inference.tile_engine import (
    LUMA,
    WITHOUT_CHANGE,
    TilePart,
    batch_of,
    check_tile,
    check_tile_batch,
    white_of,
)
from elasticnet.sr.pixels import to_integers

# What an exported file says beside what every file of an image network says.
REACH = "reach"
BYTES_PER_PIXEL = "bytes_per_pixel"
# Of a file that does not say it: a network of 96 channels takes as much.
DEFAULT_BYTES_PER_PIXEL = 4000.0


@dataclass(frozen=True, eq=False)
class OnnxPlan:
    """How an exported network enlarges images of any size; `plan_onnx` makes it.

    Attributes:
        session: Of ONNX Runtime.
        file: The file's name, for messages.
        depth: How many blocks the file holds.
        scale: How many times as long each side of an image becomes.
        reach: How many LR pixels away an input pixel can be and still change an output pixel; None
            if there is no bound, or the file does not say it.
        bytes_per_pixel: Bytes that a pass takes for each LR pixel.
        tile: As in `UpscalePlan`.
        tile_batch: As in `UpscalePlan`.
        value_range: The values of black and of white in the network's input and output.
    """

    session: Any
    file: str
    depth: int
    scale: int
    reach: int | None
    bytes_per_pixel: float
    tile: int | str | None
    tile_batch: int | str
    value_range: tuple[float, float]

    @property
    def device_name(self) -> str:
        """Where it runs."""
        return "cpu"

    def running(self) -> AbstractContextManager[OnnxPlan]:
        """Return a context that gives what enlarges windows inside it: the plan itself."""
        return nullcontext(self)

    def enlarge(
        self, windows: Sequence[NDArray[Any]], parts: Sequence[TilePart]
    ) -> list[NDArray[Any]]:
        """Return the pixels of tiles, in the dtype of the windows; see `TileEngine`.

        Args:
            windows: (h, w, 3) each, or gray (h, w), all of one size and dtype.
            parts: Of each window's output, the part that is kept.

        Raises:
            ValueError: The network gives NaN or infinity.
            MemoryError: There is too little memory.
        """
        batch = batch_of(windows, self.value_range)  # (b, h, w, 3)
        x = np.ascontiguousarray(np.moveaxis(batch, 3, 1))  # (b, 3, h, w)
        name = self.session.get_inputs()[0].name
        try:
            outputs: Any = self.session.run(None, {name: x})
        except Exception as error:  # the runtime's own classes, which are not public
            if is_out_of_memory(RuntimeError(str(error))):
                raise MemoryError(str(error)) from error
            raise
        tiles: list[NDArray[Any]] = []
        for window, part, output in zip(windows, parts, outputs[0], strict=True):
            tile = output[:, part.rows, part.columns]  # (3, h, w) of the tile
            is_gray = window.ndim == 2
            tiles.append(self._to_pixels(tile, window.dtype, is_gray))
        return tiles

    def free_cached_memory(self) -> None:
        """Do nothing: the session's memory goes with the session."""

    def _to_pixels(self, tile: NDArray[Any], dtype: np.dtype[Any], is_gray: bool) -> NDArray[Any]:
        """A part of the output (3, h, w) as pixels of `dtype`, as `UpscalePlan` rounds them."""
        values = np.array(tile.transpose(1, 2, 0), np.float32)  # (h, w, 3)
        if self.value_range != WITHOUT_CHANGE:
            black, white = self.value_range
            values -= np.float32(black)
            values /= np.float32(white - black)
        if is_gray:
            values = np.matmul(values, np.asarray(LUMA, np.float32))  # (h, w)
        if not np.isfinite(values).all():
            raise ValueError(f"{self.file} gives NaN or infinity: check its weights")
        if dtype.kind == "f":
            return values
        values *= np.float32(white_of(dtype))
        return to_integers(values, dtype)


def plan_onnx(
    file: str | os.PathLike[str],
    *,
    tile: int | str | None = "auto",
    tile_batch: int | str = "auto",
    threads: int | None = None,
) -> OnnxPlan:
    """Open an exported network.

    Args:
        file: An ONNX file that `elasticnet export` wrote, with open height and width.
        tile: As in `plan_upscale`. A file that does not say how far its network sees runs images
            whole with "auto".
        tile_batch: As in `plan_upscale`.
        threads: Of the CPU; default: `OMP_NUM_THREADS` where it is set, else what ONNX Runtime
            takes, one for each core.

    Returns:
        The plan.

    Raises:
        ImportError: ONNX Runtime is not installed.
        OSError: The file is absent.
        ValueError: It cannot be used: no ONNX, of one size alone, or of no network that enlarges
            images.

    Example:
        `upscale_array(image, plan_onnx("asrn_x4.onnx"))`
    """
    check_tile(tile)
    check_tile_batch(tile_batch)
    name = os.fspath(file)
    session = _opened(name, threads)
    text: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    if not {"scale", "depth"} <= text.keys():
        raise ValueError(
            f"{name}: says no scale and depth: expected a file of a network that enlarges images, "
            "as `elasticnet export` writes it"
        )
    _check_input(name, session)
    metadata = {key: json.loads(value) for key, value in text.items()}
    black, white = metadata.get("value_range", WITHOUT_CHANGE)
    return OnnxPlan(
        session=session,
        file=name,
        depth=metadata["depth"],
        scale=metadata["scale"],
        reach=metadata.get(REACH),
        bytes_per_pixel=metadata.get(BYTES_PER_PIXEL, DEFAULT_BYTES_PER_PIXEL),
        tile=tile,
        tile_batch=tile_batch,
        value_range=(float(black), float(white)),
    )


def _opened(name: str, threads: int | None) -> Any:
    """A session of ONNX Runtime on the CPU."""
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            f'{name}: ONNX Runtime runs it: pip install onnxruntime ("elastic-depth[export]" has '
            "it, too)"
        ) from error
    if not os.path.isfile(name):
        raise FileNotFoundError(f"{name}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _threads_of_environment()
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes, which are not public
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"{name}: ONNX Runtime cannot open it ({first_line})") from error


def _threads_of_environment() -> int:
    """What OMP_NUM_THREADS says; 0, which leaves it to ONNX Runtime, where it says nothing."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def _check_input(name: str, session: Any) -> None:
    """Refuse a file that takes something else than images of any size."""
    shape: Sequence[Any] = session.get_inputs()[0].shape
    is_image = len(shape) == 4 and shape[1] == 3
    if not is_image:
        raise ValueError(f"{name}: takes an input of shape {shape}: expected images (b, 3, h, w)")
    if any(isinstance(length, int) for length in shape[2:]):
        raise ValueError(
            f"{name}: takes images of {shape[3]}x{shape[2]} alone: export it without --size and "
            "--axis"
        )
