"""Markdown tables: what was put in can be read from them, padded or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elasticnet._tables import aligned, table

cells = st.text("ab 0.é", max_size=6).map(str.strip)
tables = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1)
)


def read(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


@given(tables, st.integers(0, 5))
def test_a_table_gives_its_rows_back(rows: list[list[str]], left: int) -> None:
    left = min(left, len(rows[0]))
    header, rule, *rest = read(table(rows, left))
    assert [header, *rest] == rows
    assert rule == ["---"] * left + ["---:"] * (len(header) - left)


@given(tables)
def test_padding_keeps_cells_and_makes_lines_equally_long(rows: list[list[str]]) -> None:
    text = aligned(table(rows))
    header, rule, *rest = read(text)
    assert [header, *rest] == rows
    assert len({len(line) for line in text.splitlines()}) == 1
    assert [cell[-1:] for cell in rule] == ["-", *":" * (len(header) - 1)]


def test_numbers_become_text() -> None:
    assert table([["depth", "dB"], [1, 2.5]]) == "| depth | dB |\n| --- | ---: |\n| 1 | 2.5 |\n"
