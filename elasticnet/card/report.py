"""A depth card to read: a Markdown table, a figure, and both as files beside the card's JSON."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.card import DepthCard

COLUMNS = {  # name of the number: title, format (or how many digits count), what it is divided by
    "parameters": ("parameters", ",", 1),
    "macs": ("GMACs", "4", 1e9),
    "latency_ms": ("ms", "4", 1),
    "latency_p95_ms": ("p95 ms", "4", 1),
    "memory_mb": ("peak MB", "4", 1),
    "images_per_second": ("images/s", "3", 1),
    "mpix_per_second": ("input MPix/s", "3", 1),
    "psnr": ("PSNR (dB)", ".2f", 1),
    "ssim": ("SSIM", ".4f", 1),
}


def caption(card: DepthCard) -> str:
    """Return one line that says what the card's numbers hang on."""
    shape = "x".join(map(str, card.input_shape))
    text = f"{card.machine.key}; input {shape}; {card.repeats} passes at each depth; {card.date}"
    return f"{text}; PSNR and SSIM on {card.data}" if card.data else text


def markdown_table(card: DepthCard) -> str:
    """Return the card as a Markdown table, a line for each depth; what was measured at no depth has
    no column.
    """
    names = [name for name in COLUMNS if any(getattr(row, name) is not None for row in card.rows)]
    lines = [["depth", *(COLUMNS[name][0] for name in names)]]
    for row in card.rows:
        cells = [str(row.depth)]
        for name in names:
            value, (_, form, unit) = getattr(row, name), COLUMNS[name]
            cells.append(
                "" if value is None else _shown(value if unit == 1 else value / unit, form)
            )
        lines.append(cells)
    return table(lines, left=0)


def markdown(card: DepthCard, title: str = "Depth card") -> str:
    """Return a whole Markdown page: title, what the numbers hang on, table, warnings."""
    warnings = "".join(f"- {warning}\n" for warning in card.warnings)
    page = f"# {title}\n\n{caption(card)}\n\n{markdown_table(card)}"
    return f"{page}\nWarnings:\n\n{warnings}" if warnings else page


def draw(card: DepthCard, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw PSNR against latency, each dot with its depth; without PSNR, bars of latency and peak
    memory per depth.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rows, latency = card.rows, "latency (ms, median)"
    if all(row.psnr is not None for row in rows):
        points = [(row.latency_ms, row.psnr or 0.0) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=5)
        for row, point in zip(rows, points, strict=True):
            axes.annotate(
                f"depth {row.depth}", point, (5, -10), textcoords="offset points", fontsize=8
            )
        axes.set(xlabel=latency, ylabel="PSNR (dB)", xmargin=0.15, ymargin=0.12)
        axes.ticklabel_format(useOffset=False)
    else:
        places = range(len(rows))
        with_memory = all(row.memory_mb is not None for row in rows)
        width = 0.4 if with_memory else 0.7
        axes.bar(places, [row.latency_ms for row in rows], width, label=latency)
        axes.set(xlabel="depth (blocks run)", ylabel=latency)
        axes.set_xticks(
            [place + (width / 2 if with_memory else 0) for place in places],
            [str(r.depth) for r in rows],
        )
        if with_memory:
            beside = axes.twinx()
            shifted = [place + width for place in places]
            beside.bar(
                shifted,
                [row.memory_mb or 0.0 for row in rows],
                width,
                color="C1",
                label="peak memory (MB)",
            )
            beside.set_ylabel("peak memory (MB)")
            figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    axes.set_title(f"{title}\n{card.machine.key}".strip(), fontsize=8)
    figure.savefig(path, dpi=150)


def write_report(card: DepthCard, folder: str | os.PathLike[str], stem: str) -> list[Path]:
    """Write `stem`.card.md, .card.json and .card.png into `folder`; return them. No figure without
    matplotlib.
    """
    page, values, figure = (
        Path(folder, f"{stem}.card.{ending}") for ending in ("md", "json", "png")
    )
    write_atomic(page, markdown(card, stem))
    write_json(values, card.to_json())
    if not importlib.util.find_spec("matplotlib"):
        return [page, values]
    draw(card, figure, stem)
    return [page, values, figure]


def _shown(value: float, form: str) -> str:
    if not form.isdigit():
        return format(value, form)
    decimals = max(0, int(form) - 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{decimals}f}"
