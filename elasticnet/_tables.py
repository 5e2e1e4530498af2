"""Markdown tables: written from rows, and padded for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: The header, then the rows under it, each of as many cells.
        left: How many of the first columns are aligned to the left; all others to the right.

    Returns:
        The table, with a line break behind every row.
    """
    header, *rest = rows
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(_line(row) for row in (header, rule, *rest))


def aligned(table: str) -> str:
    """Pad the columns of a Markdown table to one width, for reading in a terminal.

    Args:
        table: What `table` returned.

    Returns:
        The same table, with every cell aligned to the right.
    """
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    header, rule, *rest = rows
    # Longer dashes; the last character says how the column is aligned.
    rule = ["-" * (width - 1) + cell[-1] for width, cell in zip(widths, rule, strict=True)]
    padded = [
        [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        for row in (header, rule, *rest)
    ]
    return "".join(_line(row) for row in padded)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"
