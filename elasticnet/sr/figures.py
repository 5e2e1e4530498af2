"""Figures as papers print them: the elastic curve, one crop at every depth. matplotlib is in the extra `figures`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from elasticnet.sr.metrics import psnr_y


def elastic_curve(
    path: str | os.PathLike[str],
    curves: Mapping[str, Mapping[int, float]],
    baselines: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "PSNR (dB)",
) -> None:
    """Draw quality against depth: one line for each of `curves` (label -> {depth: value}), dashed `baselines`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, values in curves.items():
        axes.plot(list(values), list(values.values()), marker="o", label=label)
        for depth, value in values.items():
            axes.annotate(f"{value:.2f}", (depth, value), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    for label, value in (baselines or {}).items():
        axes.axhline(value, linestyle="--", color="gray", label=f"{label} {value:.2f}")
    axes.set(xlabel="depth (blocks run)", ylabel=ylabel, title=title)
    axes.set_xticks(sorted({depth for values in curves.values() for depth in values}))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def hardest_crop(hr: np.ndarray, reference: np.ndarray, size: int = 96) -> tuple[int, int]:
    """Return (top, left) of the size x size crop where `reference` differs most from `hr`, both uint8 (H, W, 3)."""
    error = np.square(hr.astype(np.float64) - reference).mean(axis=2)
    total = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def crop_comparison(
    path: str | os.PathLike[str],
    hr: np.ndarray,
    images: Mapping[str, np.ndarray],
    size: int = 96,
    corner: tuple[int, int] | None = None,
    title: str = "",
) -> None:
    """Draw the whole HR image with one crop marked, then that crop of HR and of each image with its PSNR on Y.

    hr, images: uint8 (H, W, 3). corner: (top, left) of the crop; by default where the first image is worst.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    size = min(size, *hr.shape[:2])
    top, left = corner or hardest_crop(hr, next(iter(images.values())), size)
    box = slice(top, top + size), slice(left, left + size)
    panels: Sequence[tuple[str, np.ndarray]] = [
        ("HR", hr[box]),
        *((f"{name}\n{psnr_y(image[box], hr[box], 0):.2f} dB", image[box]) for name, image in images.items()),
    ]
    rows = 2
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(1.9 * (columns + 2), 4.4), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 2)
    whole = figure.add_subplot(grid[:, :2])
    whole.imshow(hr)
    whole.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor="red", linewidth=1.5))
    whole.set_title(title, fontsize=9)
    whole.axis("off")
    for index, (name, crop) in enumerate(panels):
        axes = figure.add_subplot(grid[index // columns, 2 + index % columns])
        axes.imshow(crop, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=150)
