"""A depth card to read: a Markdown table, a figure, and both as files beside the card's JSON."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from elasticnet._figure_text import show_all_letters
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.card.depth_card import DepthCard, DepthRow, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENCY_LABEL = "latency (ms, median)"
MEMORY_LABEL = "peak memory (MB)"


def caption(card: DepthCard) -> str:
    """Return one line that says what the card's numbers depend on.

    Args:
        card: The card.
    """
    shape = "x".join(str(size) for size in card.input_shape)
    passes = f"{card.repeats} passes at each depth"
    if any(row.latency_spread_ms is not None for row in card.rows):
        passes += " (ms: median ± half the distance between the quartiles)"
    parts = [card.machine.key, f"input {shape}", passes, card.date]
    if card.data:
        titles = " and ".join(metric.title or metric.name for metric in card.metrics)
        parts.append(f"{titles} on {card.data}" if titles else f"data {card.data}")
    return "; ".join(parts)


def markdown_table(card: DepthCard) -> str:
    """Return the card as a Markdown table, a line for each depth.

    Args:
        card: The card. What was measured at no depth has no column.
    """
    lines = [_titles(card)]
    for row in card.rows:
        lines.append(_cells(card, row))
    return table(lines, left=0)


def markdown(card: DepthCard, title: str = "Depth card") -> str:
    """Return a whole Markdown page: title, caption, table, warnings.

    Args:
        card: The card.
        title: Of the page.
    """
    page = f"# {title}\n\n{caption(card)}\n\n{markdown_table(card)}"
    if not card.warnings:
        return page
    warnings = "".join(f"- {warning}\n" for warning in card.warnings)
    return f"{page}\nWarnings:\n\n{warnings}"


def draw(card: DepthCard, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the first metric against latency, each dot with its depth.

    Without a metric, bars show latency and peak memory at each depth.

    Args:
        card: The card.
        path: Of the picture; its ending says which kind.
        title: Above the machine's name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    if card.metrics:
        _draw_quality(axes, card, card.metrics[0])
    else:
        has_memory = all(row.memory_mb is not None for row in card.rows)
        _draw_costs(axes, card, has_memory)
        if has_memory:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    axes.set_title(f"{title}\n{card.machine.key}".strip(), fontsize=8)
    show_all_letters(figure)
    figure.savefig(path, dpi=150)


def write_report(card: DepthCard, folder: str | os.PathLike[str], stem: str) -> list[Path]:
    """Write `stem`.card.md, `stem`.card.json and `stem`.card.png; no figure without matplotlib.

    Args:
        card: The card.
        folder: Where the files go; it must exist.
        stem: How their names begin.

    Returns:
        The files.
    """
    page = Path(folder, f"{stem}.card.md")
    values = Path(folder, f"{stem}.card.json")
    figure = Path(folder, f"{stem}.card.png")
    write_atomic(page, markdown(card, stem))
    write_json(values, card.to_json())
    if not importlib.util.find_spec("matplotlib"):
        return [page, values]
    draw(card, figure, stem)
    return [page, values, figure]


def significant(value: float, digits: int) -> str:
    """Return a number with so many significant digits, and all digits before the point.

    Args:
        value: The number.
        digits: At least 1.
    """
    if value == 0:
        return "0"
    order = math.floor(math.log10(abs(value)))  # 2 for 100 to 999
    decimals = max(0, digits - 1 - order)
    return f"{value:,.{decimals}f}"


# --- the table


def _has_memory(card: DepthCard) -> bool:
    """Return whether peak memory was measured at any depth."""
    return any(row.memory_mb is not None for row in card.rows)


def _titles(card: DepthCard) -> list[str]:
    """Return the headings of the table; `_cells` gives the numbers under them."""
    titles = ["depth", "parameters", "GMACs", "ms", "p95 ms"]
    if _has_memory(card):
        titles.append("peak MB")
    titles += [f"{unit}/s" for unit in card.per_pass]
    titles += [metric.heading for metric in card.metrics]
    return titles


def _cells(card: DepthCard, row: DepthRow) -> list[str]:
    """Return a row's numbers as text, under the headings of `_titles`."""
    cells = [
        str(row.depth),
        f"{row.parameters:,}",
        significant(row.macs / 1e9, 4),
        _latency(row),
        significant(row.latency_p95_ms, 4),
    ]
    if _has_memory(card):
        cells.append("" if row.memory_mb is None else significant(row.memory_mb, 4))
    for amount in card.per_pass.values():
        passes_per_second = 1e3 / row.latency_ms if row.latency_ms else 0.0
        cells.append(significant(amount * passes_per_second, 3))
    for metric in card.metrics:
        cells.append(_shown(row.quality[metric.name], metric))
    return cells


def _latency(row: DepthRow) -> str:
    """Return the median latency, with its spread where the card has one."""
    median = significant(row.latency_ms, 4)
    if row.latency_spread_ms is None:
        return median
    return f"{median} ± {significant(row.latency_spread_ms, 2)}"


def _shown(value: float, metric: Metric) -> str:
    """Return a metric's number as text."""
    if metric.decimals is None:
        return significant(value, 4)
    return f"{value:.{metric.decimals}f}"


# --- the figure


def _draw_quality(axes: Axes, card: DepthCard, metric: Metric) -> None:
    """Draw a metric against latency, each dot with its depth."""
    latencies = [row.latency_ms for row in card.rows]
    values = [row.quality[metric.name] for row in card.rows]
    axes.plot(latencies, values, marker="o", markersize=5)
    for row, latency, value in zip(card.rows, latencies, values, strict=True):
        axes.annotate(
            f"depth {row.depth}",
            (latency, value),
            (5, -10),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel=LATENCY_LABEL, ylabel=metric.heading, xmargin=0.15, ymargin=0.12)
    axes.ticklabel_format(useOffset=False)


def _draw_costs(axes: Axes, card: DepthCard, has_memory: bool) -> None:
    """Draw bars of latency at each depth, and beside them of peak memory on an axis of its own."""
    places = list(range(len(card.rows)))
    depths = [str(row.depth) for row in card.rows]
    width = 0.4 if has_memory else 0.7
    axes.bar(places, [row.latency_ms for row in card.rows], width, label=LATENCY_LABEL)
    axes.set(xlabel="depth (blocks run)", ylabel=LATENCY_LABEL)
    if not has_memory:
        axes.set_xticks(places, depths)
        return
    axes.set_xticks([place + width / 2 for place in places], depths)
    memory_axes = axes.twinx()
    memory_axes.bar(
        [place + width for place in places],
        [row.memory_mb or 0.0 for row in card.rows],
        width,
        color="C1",
        label=MEMORY_LABEL,
    )
    memory_axes.set_ylabel(MEMORY_LABEL)
