"""Markdown tables: written from rows, and padded for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Return rows, the first of them the header, as a Markdown table: all but the first `left`
    columns to the right.
    """
    header, *rest = rows
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in (header, rule, *rest))


def aligned(table: str) -> str:
    """Return a Markdown table with its columns padded to one width, for reading in a terminal."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines[1] = ["-" * (width - 1) + rule[-1] for width, rule in zip(widths, lines[1], strict=True)]
    return "".join(
        "| "
        + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )
