"""Figures as papers print them, drawn without pyplot's global state; matplotlib comes with the
extra `figures`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from elasticnet.sr.metrics import psnr_y

Path = str | os.PathLike[str]
MOST_LABELS = 10  # of one curve: more would cover each other
# from a dot to its label
_WAYS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))


def evenly(depths: Collection[int], most: int = MOST_LABELS) -> list[int]:
    """Return at most `most` of the depths, evenly spread, shallowest first and the deepest among
    them.
    """
    return sorted(depths)[:: -max(1, -(-len(depths) // most))][::-1]


def elastic_curve(
    path: Path,
    curves: Mapping[str, Mapping[int, float]],
    baselines: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "PSNR (dB)",
) -> Figure:
    """Draw quality against depth: one line for each of `curves` (label -> {depth: value}), dashed
    `baselines`.
    """
    figure, axes = _figure(xlabel="depth (blocks run)", ylabel=ylabel, title=title)
    dots = []
    for label, values in curves.items():
        (line,) = axes.plot(
            list(values), list(values.values()), marker="o", markersize=4, label=label
        )
        dots += [
            (depth, values[depth], f"{values[depth]:.2f}", line.get_color())
            for depth in evenly(values)
        ]
    for (label, value), style in zip((baselines or {}).items(), cycle(("--", ":", "-."))):
        axes.axhline(value, linestyle=style, color="gray", label=f"{label} {value:.2f}")
    axes.set_xticks(evenly({depth for values in curves.values() for depth in values}))
    return _finish(path, figure, axes, dots)


def parameter_dots(
    path: Path,
    series: Mapping[str, Mapping[str, tuple[float, float]]],
    log: bool = False,
    title: str = "",
    ylabel: str = "PSNR (dB)",
) -> Figure:
    """Draw quality against parameters, on a logarithmic axis with `log`: the named dots of each of
    `series`.

    series: label -> {name: (parameters, value)}; published results are a series of their own.
    """
    figure, axes = _figure(xlabel="parameters", ylabel=ylabel, title=title)
    dots = []
    for index, (label, points) in enumerate(series.items()):
        color = f"C{index}"
        axes.scatter(*zip(*points.values(), strict=True), s=30, color=color, label=label)
        dots += [(*point, name, color) for name, point in points.items()]
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(
        lambda count, _: f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}K"
    )
    return _finish(path, figure, axes, dots)


def hardest_crop(hr: np.ndarray, reference: np.ndarray, size: int = 96) -> tuple[int, int]:
    """Return (top, left) of the size x size crop where `reference` differs most from `hr`, both
    uint8 (H, W, 3).
    """
    error = np.square(hr.astype(np.float64) - reference).mean(axis=2)
    total = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def crop_comparison(
    path: Path,
    hr: np.ndarray,
    images: Mapping[str, np.ndarray],
    size: int = 96,
    corner: tuple[int, int] | None = None,
    title: str = "",
) -> Figure:
    """Draw the whole HR image with one crop marked, then that crop of HR and of each image with its
    PSNR on Y.

    hr, images: uint8 (H, W, 3). corner: (top, left) of the crop; by default where the first image
    is worst.
    """
    wrong = {name: image.shape for name, image in images.items() if image.shape != hr.shape}
    if wrong or not images:
        raise ValueError(
            f"images of shape {wrong or 'none'}: expected at least one, all of HR's shape {hr.shape}"
        )
    size = min(size, *hr.shape[:2])
    top, left = corner or hardest_crop(hr, next(iter(images.values())), size)
    if not (0 <= top <= hr.shape[0] - size and 0 <= left <= hr.shape[1] - size):
        raise ValueError(
            f"corner {corner}: a crop of {size}x{size} there does not fit into HR of {hr.shape[:2]}"
        )
    box = slice(top, top + size), slice(left, left + size)
    panels = [(title, hr), ("HR\nPSNR", hr[box])]
    panels += [
        (f"{name}\n{psnr_y(image[box], hr[box], 0):.2f} dB", image[box])
        for name, image in images.items()
    ]
    columns = len(panels) // 2  # of crops, in two rows
    height = 3.7 + 0.3 * max(name.count("\n") for name, _ in panels)
    figure = Figure(figsize=(1.7 * (columns + 2), height), layout="constrained")
    grid = figure.add_gridspec(2, columns + 2)
    for index, (name, image) in enumerate(panels, start=-1):
        axes = figure.add_subplot(
            grid[:, :2] if index < 0 else grid[index // columns, 2 + index % columns]
        )
        axes.imshow(image, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        axes.axis("off")
    figure.axes[0].add_patch(
        Rectangle((left, top), size, size, fill=False, edgecolor="red", linewidth=1.5)
    )
    # one pass does not settle the layout of titles of different heights
    figure.draw_without_rendering()
    figure.savefig(path, dpi=150)
    return figure


def _figure(**labels: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xmargin=0.08, ymargin=0.18, **labels)
    axes.grid(alpha=0.3)
    return figure, axes


def _finish(
    path: Path, figure: Figure, axes: Axes, dots: Sequence[tuple[float, float, str, str]]
) -> Figure:
    """Put the legend below, write each label (x, y, text, colour) near its dot where it hides
    least, and save.
    """
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.draw_without_rendering()  # settles the layout, so that places on the paper are known
    unit = figure.dpi / 72  # pixels a point
    points = axes.transData.transform([dot[:2] for dot in dots])
    along = np.linspace(0, 1, 50)[:, None, None]
    # weight, half size, places
    obstacles: list[tuple[int, float | np.ndarray, np.ndarray]] = [(8, 3 * unit, points)]
    for line in axes.lines:
        ends = line.get_transform().transform(np.asarray(line.get_xydata()))
        obstacles.append((1, unit, ((1 - along) * ends[:-1] + along * ends[1:]).reshape(-1, 2)))
    for (x, y, name, color), point in zip(dots, points, strict=True):
        text = axes.annotate(
            name, (x, y), (0, 0), textcoords="offset points", fontsize=8, color=color
        )
        text.set(ha="center", va="center", in_layout=False)
        half = np.array(text.get_window_extent().size) / 2
        costs = {}
        for at in [
            point + np.array(way) * (half + unit * gap)
            for gap in (4, 9, 14, 20, 28)
            for way in _WAYS
        ]:
            hidden = sum(
                weight * (abs(places - at) < half + size).all(1).any()
                for weight, size, places in obstacles
            )
            outside = (at - half < axes.bbox.min).any() or (at + half > axes.bbox.max).any()
            costs.setdefault(hidden + 50 * outside, at)
        at = costs[min(costs)]
        text.set_position(tuple((at - point) / unit))
        obstacles.append((100, half, at[None]))
    figure.savefig(path, dpi=150)
    return figure
