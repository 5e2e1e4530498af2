"""Figures as papers print them: elastic curves, dots against parameters, crops.

They are drawn without pyplot's global state. matplotlib comes with the extra `figures`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from elasticnet._figure_text import show_all_letters, show_letters_of
from elasticnet.sr.metrics import psnr_y

Path = str | os.PathLike[str]
Image = NDArray[np.uint8]
Vector = NDArray[np.float64]

MAX_LABELS = 10  # of one curve: more would cover each other
BASELINE_STYLES = ("--", ":", "-.")
DOTS_PER_INCH = 150
POINTS_PER_INCH = 72

# Where a label is tried: in these directions from its dot (x, y), so many points away.
LABEL_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
LABEL_GAPS = (4, 9, 14, 20, 28)

# What it costs to hide something: the place with the lowest sum is taken.
COST_OF_LINE = 1
COST_OF_DOT = 8
COST_OUTSIDE_AXES = 50
COST_OF_LABEL = 100


class Label(NamedTuple):
    """A text that belongs to a dot.

    Attributes:
        x: Of the dot, in data units.
        y: Of the dot, in data units.
        text: What stands there.
        color: The dot's, so that a label which stands away from it can be told.
    """

    x: float
    y: float
    text: str
    color: Any


class _Obstacle(NamedTuple):
    """Things of one size that a label should not cover; all in pixels."""

    cost: int
    half_size: float | Vector
    centers: Vector  # (number, 2)


def evenly(depths: Collection[int], most: int = MAX_LABELS) -> list[int]:
    """Return some of the depths, evenly spread, the deepest among them.

    Args:
        depths: In any order.
        most: How many are returned at most; default: 10.

    Returns:
        Them, shallowest first.
    """
    step = max(1, math.ceil(len(depths) / most))
    deepest_first = sorted(depths, reverse=True)
    return sorted(deepest_first[::step])


def elastic_curve(
    path: Path,
    curves: Mapping[str, Mapping[int, float]],
    baselines: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "PSNR (dB)",
) -> Figure:
    """Draw quality against depth.

    Args:
        path: Where the figure is saved; the suffix decides on the format.
        curves: label -> {depth: value}; each is a line.
        baselines: label -> value; each is a dashed horizontal line.
        title: Above the figure.
        ylabel: What the values are.

    Returns:
        The figure.
    """
    figure, axes = _figure(xlabel="depth (blocks run)", ylabel=ylabel, title=title)
    labels: list[Label] = []
    for name, values in curves.items():
        depths = list(values)
        heights = [values[depth] for depth in depths]
        (line,) = axes.plot(depths, heights, marker="o", markersize=4, label=name)
        for depth in evenly(values):
            value = values[depth]
            labels.append(Label(depth, value, f"{value:.2f}", line.get_color()))
    styles = cycle(BASELINE_STYLES)
    for name, value in (baselines or {}).items():
        axes.axhline(value, linestyle=next(styles), color="gray", label=f"{name} {value:.2f}")
    all_depths = {depth for values in curves.values() for depth in values}
    axes.set_xticks(evenly(all_depths))
    return _finish(path, figure, axes, labels)


def parameter_dots(
    path: Path,
    series: Mapping[str, Mapping[str, tuple[float, float]]],
    log: bool = False,
    title: str = "",
    ylabel: str = "PSNR (dB)",
) -> Figure:
    """Draw quality against parameters, as named dots.

    Args:
        path: Where the figure is saved; the suffix decides on the format.
        series: label -> {name: (parameters, value)}; each has its colour. Published results are a
            series of their own.
        log: Whether the axis of parameters is logarithmic.
        title: Above the figure.
        ylabel: What the values are.

    Returns:
        The figure.
    """
    figure, axes = _figure(xlabel="parameters", ylabel=ylabel, title=title)
    labels: list[Label] = []
    for index, (label, points) in enumerate(series.items()):
        color = f"C{index}"
        parameters = [point[0] for point in points.values()]
        values = [point[1] for point in points.values()]
        axes.scatter(parameters, values, s=30, color=color, label=label)
        labels += [Label(x, y, name, color) for name, (x, y) in points.items()]
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(_short_count)
    return _finish(path, figure, axes, labels)


def hardest_crop(hr: Image, reference: Image, size: int = 96) -> tuple[int, int]:
    """Return where an image differs most from the true one.

    Args:
        hr: The true image, uint8 (h, w, 3).
        reference: The other, of the same shape.
        size: Pixels a side of the crop; at most h and w.

    Returns:
        (top, left) of the crop with the largest sum of squared differences.
    """
    error = np.square(hr.astype(np.float64) - reference).mean(axis=2)  # (h, w)
    # total[i, j] is the sum of error[:i, :j], so that the sum of any crop is four of its values
    total = np.pad(error, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    to_bottom_right = total[size:, size:]
    above = total[:-size, size:]
    to_the_left = total[size:, :-size]
    above_left = total[:-size, :-size]
    sums = to_bottom_right - above - to_the_left + above_left  # (h - size + 1, w - size + 1)
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def crop_comparison(
    path: Path,
    hr: Image,
    images: Mapping[str, Image],
    size: int = 96,
    corner: tuple[int, int] | None = None,
    title: str = "",
) -> Figure:
    """Draw the whole HR image with one crop marked, then that crop of HR and of each image.

    Under each image's name stands the PSNR on Y of its crop, or "exact" where both are equal.

    Args:
        path: Where the figure is saved; the suffix decides on the format.
        hr: The true image, uint8 (h, w, 3).
        images: name -> image of the same shape.
        size: Pixels a side of the crop; a smaller image is shown whole.
        corner: (top, left) of the crop; default: where the first image is worst.
        title: Above the HR image.

    Returns:
        The figure.

    Raises:
        ValueError: No images, an image of another shape, or a crop that is not inside them.
    """
    wrong = {name: image.shape for name, image in images.items() if image.shape != hr.shape}
    if wrong or not images:
        raise ValueError(
            f"images of shape {wrong or 'none'}: expected at least one, all of HR's shape "
            f"{hr.shape}"
        )
    height, width = hr.shape[:2]
    size = min(size, height, width)
    first_image = next(iter(images.values()))
    top, left = corner or hardest_crop(hr, first_image, size)
    if not (0 <= top <= height - size and 0 <= left <= width - size):
        raise ValueError(
            f"corner {corner}: a crop of {size}x{size} there does not fit into HR of "
            f"{(height, width)}"
        )

    rows = slice(top, top + size)
    columns = slice(left, left + size)
    hr_crop = hr[rows, columns]
    crops = {"HR\nPSNR": hr_crop}
    for name, image in images.items():
        crop = image[rows, columns]
        psnr = psnr_y(crop, hr_crop, 0)
        words = f"{psnr:.2f} dB" if math.isfinite(psnr) else "exact"
        crops[f"{name}\n{words}"] = crop
    figure = _draw_panels(hr, title, crops)
    marked = Rectangle((left, top), size, size, fill=False, edgecolor="red", linewidth=1.5)
    figure.axes[0].add_patch(marked)
    show_all_letters(figure)
    # one pass does not settle the layout of titles of different heights
    figure.draw_without_rendering()
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return figure


def _draw_panels(whole: Image, title: str, crops: Mapping[str, Image]) -> Figure:
    """The whole image at the left, two rows of crops beside it, each under its name."""
    columns = math.ceil(len(crops) / 2)
    most_lines = max(name.count("\n") for name in (title, *crops))
    size_in_inches = (1.7 * (columns + 2), 3.7 + 0.3 * most_lines)
    figure = Figure(figsize=size_in_inches, layout="constrained")
    grid = figure.add_gridspec(2, columns + 2)
    _show(figure.add_subplot(grid[:, :2]), title, whole)
    for index, (name, crop) in enumerate(crops.items()):
        row, column = divmod(index, columns)
        _show(figure.add_subplot(grid[row, 2 + column]), name, crop)
    return figure


def _show(axes: Axes, name: str, image: Image) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(name, fontsize=8)
    axes.axis("off")


def _figure(xlabel: str, ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xmargin=0.08, ymargin=0.18)
    axes.grid(alpha=0.3)
    return figure, axes


def _short_count(count: float, _position: float) -> str:
    """A number of parameters as an axis shows it."""
    return f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}K"


# --- labels that do not cover each other


def _finish(path: Path, figure: Figure, axes: Axes, labels: Sequence[Label]) -> Figure:
    """Put the legend below, write each label near its dot where it hides least, and save."""
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    show_all_letters(figure)
    figure.draw_without_rendering()  # settles the layout, so that places on the paper are known
    pixels_per_point = figure.dpi / POINTS_PER_INCH
    dots = axes.transData.transform([(label.x, label.y) for label in labels])  # in pixels
    obstacles = [_Obstacle(COST_OF_DOT, 3 * pixels_per_point, dots)]
    obstacles += _line_obstacles(axes, pixels_per_point)
    for label, dot in zip(labels, dots, strict=True):
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=label.color,
        )
        text.set(ha="center", va="center", in_layout=False)
        show_letters_of(text)
        half_size = np.array(text.get_window_extent().size) / 2
        places = _places_around(dot, half_size, pixels_per_point)
        # of places that cost the same, the first, which is nearest to the dot
        center = min(places, key=lambda place: _cost(place, half_size, obstacles, axes))
        horizontal, vertical = (center - dot) / pixels_per_point
        text.set_position((horizontal, vertical))
        obstacles.append(_Obstacle(COST_OF_LABEL, half_size, center[None]))
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return figure


def _line_obstacles(axes: Axes, pixels_per_point: float) -> list[_Obstacle]:
    """The lines of the figure, each as 50 small squares between two of its dots."""
    along = np.linspace(0, 1, 50)[:, None, None]
    obstacles: list[_Obstacle] = []
    for line in axes.lines:
        ends = line.get_transform().transform(np.asarray(line.get_xydata()))  # (dots, 2)
        between = (1 - along) * ends[:-1] + along * ends[1:]  # (50, dots - 1, 2)
        obstacles.append(_Obstacle(COST_OF_LINE, pixels_per_point, between.reshape(-1, 2)))
    return obstacles


def _places_around(dot: Vector, half_size: Vector, pixels_per_point: float) -> Iterator[Vector]:
    """Yield centres for a label of this size around its dot, the nearest first."""
    for gap in LABEL_GAPS:
        for direction in LABEL_DIRECTIONS:
            yield dot + np.array(direction) * (half_size + pixels_per_point * gap)


def _cost(center: Vector, half_size: Vector, obstacles: Sequence[_Obstacle], axes: Axes) -> int:
    """What a label of this size hides where it is centred here."""
    cost = 0
    for obstacle in obstacles:
        distances = abs(obstacle.centers - center)
        touches_on_both_axes = (distances < half_size + obstacle.half_size).all(axis=1)
        if touches_on_both_axes.any():
            cost += obstacle.cost
    leaves_low = (center - half_size < axes.bbox.min).any()
    leaves_high = (center + half_size > axes.bbox.max).any()
    if leaves_low or leaves_high:
        cost += COST_OUTSIDE_AXES
    return cost
