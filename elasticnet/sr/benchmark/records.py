"""What a benchmark gives: the scores of every image, their means, and what was left out."""

from __future__ import annotations

from typing import Any, NamedTuple

from elasticnet.sr.benchmark.scores import Depth


class ImageScore(NamedTuple):
    """The scores of one image.

    Attributes:
        data: The data set's name.
        scale: How many times as long each side became.
        network: The network's label, that of another method, or "bicubic" ("input" at scale 1).
        depth: Of the network, or "full"; None for bicubic.
        image: The image's name.
        psnr: In dB.
        ssim: At most 1.
    """

    data: str
    scale: int
    network: str
    depth: Depth | None
    image: str
    psnr: float
    ssim: float


class Row(NamedTuple):
    """Mean scores over one data set at one scale, with what the depth costs.

    Attributes:
        data: The data set's name.
        scale: How many times as long each side became.
        network: The network's label, that of another method, or "bicubic" ("input" at scale 1).
        depth: Of the network, or "full"; None for bicubic.
        psnr: Mean, in dB.
        ssim: Mean, at most 1.
        parameters: Of the net cut to this depth; None for bicubic and for other methods.
        macs: Multiply-adds of one pass to an output of `OUTPUT_SIZE`; None where not measured.
        ms: Time of that pass in milliseconds, the median of several; None where not measured.
        ms_spread: Half the distance between the quartiles of those times; None where not measured.
    """

    data: str
    scale: int
    network: str
    depth: Depth | None
    psnr: float
    ssim: float
    parameters: int | None
    macs: int | None
    ms: float | None
    ms_spread: float | None = None


class Skipped(NamedTuple):
    """An image that was left out.

    Attributes:
        data: The data set's name.
        scale: At which it was loaded.
        image: The image's name.
        reason: Why.
    """

    data: str
    scale: int
    image: str
    reason: str


class Benchmark(NamedTuple):
    """What `benchmark` measured.

    Attributes:
        rows: The means.
        images: The scores that they are means of.
        skipped: Images that were left out.
        settings: What the numbers depend on, as JSON can hold it.
        remaining: How many images are still to be scored; above 0 while a benchmark runs.
    """

    rows: list[Row]
    images: list[ImageScore]
    skipped: list[Skipped]
    settings: dict[str, Any]
    remaining: int = 0
