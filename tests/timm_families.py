"""Splits the smallest model of every timm family and writes docs/guides/timm_families.md.

    python tests/timm_families.py

A family is a module of timm and the letters that its models' names begin with. It takes about ten
minutes on one core.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from elasticnet.retrofit.parts import Split
from elasticnet.retrofit.timm import split

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "timm_families.md"
SIDES = (64, 96, None)  # of the input, in pixels; None stands for the model's own
MAX_PARAMETERS = 150_000_000  # a family that has nothing smaller is built with SHORT_DEPTH blocks
SHORT_DEPTH = 3
MAX_STAGES = 3
WORKS = "works"
ADAPTERS = "works with adapters"
REFUSED = "not a sequential-block network"
UNTRACED = "cannot be traced"
RESULTS = (WORKS, ADAPTERS, REFUSED, UNTRACED)
NO_TWO_BLOCKS = "no two blocks"  # the reason that stages=k can mend
# what timm's models raise for sizes that they do not take
BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)

INTRODUCTION = """\
# timm families

What [`elasticnet.retrofit.timm.split`](examples.md#timm) makes of timm {version}: the smallest
model of each family, with random weights. A family is a module of timm and the letters that its
models' names begin with; timm's own test models and ports of others' weights (`tf_`) are left out.
"Works" means that the wrapped net's output equals the model's own bit for bit in eval mode, at two
batch sizes, and that every tap has the shape that the head takes. A network that "cannot be
traced" can still be made elastic: wrap its parts [by hand](your_network.md).

{counts}

Written by `python tests/timm_families.py`. The tests repeat a sample of it in `make test` and all
in `make test-slow`.

| family | model | input | result | taps | layout | where, or why not |
| --- | --- | ---: | --- | ---: | --- | --- |
"""


class Row(NamedTuple):
    """One line of the table, as it stands there."""

    family: str
    model: str
    size: str
    result: str
    taps: str
    layout: str
    note: str


class Built(NamedTuple):
    """A model with random weights, the smallest input that it takes, and that input in words."""

    model: nn.Module
    example: Tensor
    size: str


def family_of(name: str) -> str | None:
    """Return the letters that a model's name begins with.

    None for timm's test models and ports of others' weights.
    """
    first = re.split(r"[_\d]", name)[0]
    return None if first in ("test", "tf") else first


def members() -> dict[str, list[str]]:
    """Return the models of each family, named `module: letters`.

    They come from timm's registry; nothing is built.
    """
    found: dict[str, list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            if family_of(name):
                found.setdefault(f"{module}: {family_of(name)}", []).append(name)
    return found


def parameter_count(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def smallest(names: Sequence[str]) -> str:
    """Return the model of fewest parameters, the first by name where several have as many."""
    return min(names, key=lambda name: (parameter_count(name), name))


def build(name: str) -> Built:
    """Return a model with random weights, and the smallest input that it takes of those tried."""
    is_large = parameter_count(name) > MAX_PARAMETERS
    depth: dict[str, Any] = {"depth": SHORT_DEPTH} if is_large else {}
    problem: Exception | None = None
    for side, options in _attempts():
        try:
            torch.manual_seed(0)
            model: Any = timm.create_model(name, **options, **depth).eval()
            channels, _, own_side = model.pretrained_cfg["input_size"]
            length = side or own_side
            example = torch.randn(2, channels, length, length)
            with torch.no_grad():
                model(example)
        except BUILD_ERRORS as error:
            problem = error
            continue
        size = f"{length}, depth {SHORT_DEPTH}" if is_large else str(length)
        return Built(model=model, example=example, size=size)
    raise RuntimeError(f"{name} runs at none of the sizes {SIDES}: {problem}")


def _attempts() -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Yield sides of an input, with what tells the model of it: some must know, some may not."""
    for side in SIDES:
        if side is not None:
            yield side, {"img_size": side}
        yield side, {}


def outcome(family: str, name: str, built: Built) -> tuple[Row, Split | None]:
    """Return a family's line, and the split where there is one."""
    reasons: list[str] = []
    for stages in (None, *range(1, MAX_STAGES + 1)):
        try:
            parts = split(built.model, built.example, stages=stages)
        except ValueError as error:
            reasons.append(str(error).partition(" is not split: ")[2])
            continue
        return _row_of_split(family, name, built.size, parts, stages), parts
    # a stable sort: the first reason that is about the forward itself, if any
    reasons.sort(key=lambda reason: NO_TWO_BLOCKS in reason)
    row = Row(
        family=family,
        model=name,
        size=built.size,
        result=UNTRACED if "cannot trace" in reasons[0] else REFUSED,
        taps="",
        layout="",
        note=reasons[0].replace("|", "/"),
    )
    return row, None


def _row_of_split(family: str, name: str, size: str, parts: Split, stages: int | None) -> Row:
    if stages is None:
        kinds = sorted({type(block).__name__ for block in parts.blocks})
        note = ", ".join(kinds).replace("Part", "(joined)")
    else:
        note = f"stages={stages}"
    layout = parts.layout
    if parts.prefix_tokens:
        layout += f", {parts.prefix_tokens} prefix"
    return Row(
        family=family,
        model=name,
        size=size,
        result=ADAPTERS if parts.adapters else WORKS,
        taps=str(len(parts.blocks)),
        layout=layout,
        note=note,
    )


def page(rows: Sequence[Row]) -> str:
    """Return the text of the documentation's page."""
    counts: list[str] = []
    for result in RESULTS:
        number = sum(row.result == result for row in rows)
        counts.append(f"{result}: {number}")
    introduction = INTRODUCTION.format(
        version=timm.__version__, counts=f"{len(rows)} families. {', '.join(counts)}."
    )
    lines = [_line(row._replace(model=f"`{row.model}`")) for row in rows]
    return introduction + "".join(lines)


def _line(row: Row) -> str:
    return f"| {' | '.join(row)} |\n"


def rows_of(text: str) -> list[Row]:
    """Return the lines of the table in a page."""
    table = text.partition("| --- |")[2].splitlines()[1:]
    rows: list[Row] = []
    for line in table:
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        rows.append(Row._make(cells))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", help="print the lines of families whose name contains this, and write nothing"
    )
    only: Any = parser.parse_args().only
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for family, names in members().items():
        if only and only not in family:
            continue
        name = smallest(names)
        row, _ = outcome(family, name, build(name))
        rows.append(row)
        print(_line(row), end="", flush=True)
    if not only:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
