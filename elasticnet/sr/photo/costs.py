"""What reading, converting and writing a photograph takes on this machine, beside the network.

Each number is measured when it is first needed, on a made photograph, and kept for the user and the
machine: a budget is then divided in the same way in every run.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from elasticnet._files import message_of, write_json
from elasticnet.card.machine import machine_key
from elasticnet.card.user_cards import read_kept, user_cache_folder
from elasticnet.checkpoint.safetensors_file import is_object
from elasticnet.sr.photo.photograph import Photo
from elasticnet.sr.photo.reading import decode_photo
from elasticnet.sr.photo.writing import FORMATS, write_photo
from elasticnet.sr.resize import imresize

MB = 1e6
ROUNDS = 3  # of which the fastest counts
SIDE = 768  # pixels of the photograph that is measured
DETAIL = 24.0  # standard deviation of its finest structure, of 255
FILE = "photo_costs.json"


class PhotoCosts:
    """Milliseconds for each megabyte (10**6 bytes) of samples, by what is done.

    Several threads may share one.

    Attributes:
        instability: Why another run may find other numbers; empty if they are kept.
    """

    def __init__(self) -> None:
        self.instability = ""
        self._lock = threading.Lock()
        self._machine = f"{machine_key()}, pillow {PIL.__version__}"
        self._costs = self._read()

    def reading(self, format: str, num_bytes: int) -> float:
        """Return the milliseconds that reading a photograph takes.

        Args:
            format: Of the file, such as "JPEG". One that cannot be written, and so not be measured,
                counts as PNG.
            num_bytes: Of the samples of the photograph.
        """
        if format not in FORMATS.values():
            format = "PNG"
        return self._cost(f"read {format}", lambda: _time_reading(format)) * num_bytes / MB

    def converting(self, num_bytes: int) -> float:
        """Return the milliseconds that samples take from the file's numbers to floats and back.

        Args:
            num_bytes: Of the samples of the result.
        """
        return self._cost("convert", _time_converting) * num_bytes / MB

    def writing(self, format: str, options: Mapping[str, Any], num_bytes: int) -> float:
        """Return the milliseconds that writing a result takes.

        Args:
            format: Such as "PNG".
            options: As `write_photo` takes them: quality, lossless, png_level.
            num_bytes: Of the samples of the result.
        """
        listed = ", ".join(f"{name} {value}" for name, value in sorted(options.items()))
        key = f"write {format}, {listed}"
        return self._cost(key, lambda: _time_writing(format, options)) * num_bytes / MB

    def _cost(self, key: str, measure: Callable[[], float]) -> float:
        """A number that is known, or measured and kept now, by one thread at a time."""
        with self._lock:
            if key not in self._costs:
                self._costs[key] = measure()
                self._keep()
            return self._costs[key]

    def _read(self) -> dict[str, float]:
        try:
            entries = read_kept(user_cache_folder() / FILE).get(self._machine)
        except OSError as error:
            self.instability = message_of(error)
            return {}
        costs: dict[str, float] = {}
        if is_object(entries):
            for key, value in entries.items():
                if isinstance(value, (int, float)):
                    costs[key] = value
        return costs

    def _keep(self) -> None:
        try:
            file = user_cache_folder() / FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**read_kept(file), self._machine: self._costs})
        except OSError as error:
            self.instability = message_of(error)


def _made_photograph() -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3): structure of every size, as photographs have, the same each time."""
    generator = np.random.default_rng(0)
    total = np.full((SIDE, SIDE, 3), 128.0)
    side = 3
    while side <= SIDE:
        noise = generator.normal(0, DETAIL, (side, side, 3))
        total += imresize(noise, size=(SIDE, SIDE))
        side *= 4
    return np.clip(total, 0, 255).astype(np.uint8)


def _fastest(call: Callable[[], object]) -> float:
    """Milliseconds of the fastest of several calls, for each MB of the made photograph."""
    times: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times) / (SIDE * SIDE * 3 / MB)


def _time_reading(format: str) -> float:
    file = io.BytesIO()
    write_photo(Photo(pixels=_made_photograph()), file, format)
    data = file.getvalue()
    return _fastest(lambda: decode_photo(io.BytesIO(data), "a made photograph"))


def _time_writing(format: str, options: Mapping[str, Any]) -> float:
    photo = Photo(pixels=_made_photograph())
    return _fastest(lambda: write_photo(photo, io.BytesIO(), format, **options))


def _time_converting() -> float:
    """Through `upscale_array`, with a network that does next to nothing."""
    from torch import nn

    from elasticnet.sr.inference.tiling import upscale_array
    from elasticnet.sr.inference.upscale_plan import plan_upscale
    from elasticnet.wrapper import ElasticWrapper

    net = ElasticWrapper([nn.Identity()], nn.Identity()).eval()
    plan = plan_upscale(net)
    pixels = _made_photograph()
    return _fastest(lambda: upscale_array(pixels, plan))
