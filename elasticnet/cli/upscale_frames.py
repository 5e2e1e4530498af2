"""Raw frames of a video from one pipe to another, enlarged on the way.

    ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - \
        | elasticnet upscale --frames 1280x720 --scale 2 \
        | ffmpeg -f rawvideo -pix_fmt rgb24 -s 2560x1440 -r 25 -i - out.mp4

While the network enlarges a frame, the next one is read and the last one is written, each in a
thread of its own.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from elasticnet.cli.upscale_networks import Networks
from elasticnet.cli.upscale_run import in_background, say
from elasticnet.sr.inference.tile_engine import TileEngine
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.resize import imresize

CHANNELS = 3  # red, green and blue, one byte each


def upscale_frames(
    networks: Networks,
    size: tuple[int, int],
    source: BinaryIO,
    target: BinaryIO,
    quiet: bool = False,
) -> None:
    """Enlarge frames until the source ends.

    Args:
        networks: Which network runs; a budget chooses one depth for all frames.
        size: Height and width of the frames of the source.
        source: Raw frames, `height * width * 3` bytes each, red first, row by row.
        target: Gets as many enlarged frames, in the same layout.
        quiet: Whether only errors are printed.

    Raises:
        ValueError: The source ends in the middle of a frame; those before are written.
        BrokenPipeError: Whoever reads the target has closed it.
    """
    network = networks.for_image(size)
    out_size = networks.size_of_result(network, size)
    plan = network.plan
    expectation = ""
    if network.chooser is not None:
        choice = network.chooser(size)
        plan = choice.plan
        expectation = f" (about {choice.cost} a frame expected, {choice.source})"
    if not quiet:
        for note in networks.take_notes():
            say(note)
        shown_size = f"{size[1]}x{size[0]} become {out_size[1]}x{out_size[0]}"
        say(f"frames of {shown_size}, rgb24, depth {plan.depth}{expectation}")

    start = time.perf_counter()
    num_frames = _pump(plan, size, out_size, source, target)
    if not quiet:
        seconds = time.perf_counter() - start
        rate = f", {num_frames / seconds:.2f} a second" if num_frames else ""
        say(f"frames: {num_frames}{rate}")


def _pump(
    plan: TileEngine,
    size: tuple[int, int],
    out_size: tuple[int, int],
    source: BinaryIO,
    target: BinaryIO,
) -> int:
    """Read, enlarge and write frames, each beside the others; returns how many there were."""
    num_frames = 0
    writing: Future[None] | None = None
    reading = in_background(_read_frame, source, size, num_frames + 1)
    try:
        while (frame := reading.result()) is not None:
            num_frames += 1
            reading = in_background(_read_frame, source, size, num_frames + 1)
            large = upscale_array(frame, plan)
            if large.shape[:2] != out_size:
                large = imresize(large, size=out_size)
            if writing is not None:
                writing.result()  # raises if the pipe is closed
            writing = in_background(_write_frame, target, large)
        if writing is not None:
            writing.result()
    finally:
        if writing is not None:
            wait([writing])  # a frame is written whole, whatever has happened
    return num_frames


def _read_frame(source: BinaryIO, size: tuple[int, int], number: int) -> NDArray[np.uint8] | None:
    """The next frame (h, w, 3), or None at the end; a pipe gives a frame in several pieces."""
    height, width = size
    num_bytes = height * width * CHANNELS
    data = bytearray()
    while len(data) < num_bytes:
        piece = source.read(num_bytes - len(data))
        if not piece:
            break
        data += piece
    if not data:
        return None
    if len(data) < num_bytes:
        raise ValueError(
            f"frame {number}: the input ended after {len(data):,} of its {num_bytes:,} bytes; the "
            f"frames before are written. Is --frames {width}x{height} the size, and rgb24 the "
            "layout?"
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, CHANNELS)


def _write_frame(target: BinaryIO, frame: NDArray[Any]) -> None:
    target.write(np.ascontiguousarray(frame).data)
    target.flush()
