"""Splits the smallest model of every timm family and writes docs/guides/timm_families.md: python
tests/timm_families.py

A family is a module of timm and the letters that its models' names begin with. It takes about ten
minutes on one core.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from elasticnet.retrofit.parts import Split
from elasticnet.retrofit.timm import split

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "timm_families.md"
SIDES = (64, 96, None)  # of the input, None being the model's own
LARGE = 150_000_000  # parameters; a family that has nothing smaller is built with three blocks
MOST_STAGES = 3
WORKS, ADAPTERS, REFUSED = "works", "works with adapters", "not a sequential-block network"
UNTRACED = "cannot be traced"
RESULTS = (WORKS, ADAPTERS, REFUSED, UNTRACED)
NO_TWO = "no two blocks"  # what stages=k can mend

INTRODUCTION = """\
# timm families

What [`elasticnet.retrofit.timm.split`](examples.md#timm) makes of timm {version}: the smallest model of each
family, with random weights. A family is a module of timm and the letters that its models' names begin with; timm's own
test models and ports of others' weights (`tf_`) are left out. "Works" means that the wrapped net's output equals the
model's own bit for bit in eval mode, at two batch sizes, and that every tap has the shape that the head takes. "Cannot
be traced" says nothing against the network: wrap its parts [by hand](your_network.md).

{counts}

Written by `python tests/timm_families.py`. The tests repeat a sample of it in `make test` and all in `make test-slow`.

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


def family_of(name: str) -> str | None:
    """Return the letters that a model's name begins with; None for timm's test models and ports of
    others' weights.
    """
    first = re.split(r"[_\d]", name)[0]
    return None if first in ("test", "tf") else first


def members() -> dict[str, list[str]]:
    """Return the models of each family, named `module: letters`; from timm's registry, nothing is
    built.
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


def build(name: str) -> tuple[nn.Module, Tensor, str]:
    """Return a model with random weights, the smallest input that it takes of those tried, and that
    as text.
    """
    large: dict[str, Any] = {"depth": 3} if parameter_count(name) > LARGE else {}
    problem: Exception | None = None
    for side in SIDES:
        for options in ({"img_size": side}, {}) if side else ({},):
            try:
                torch.manual_seed(0)
                arguments: dict[str, Any] = {**options, **large}
                model: Any = timm.create_model(name, **arguments).eval()
                channels, _, own = model.pretrained_cfg["input_size"]
                example = torch.randn(2, channels, side or own, side or own)
                with torch.no_grad():
                    model(example)
                return model, example, f"{side or own}{', depth 3' if large else ''}"
            except (
                AssertionError,
                AttributeError,
                RuntimeError,
                TypeError,
                ValueError,
                ZeroDivisionError,
            ) as error:
                problem = error
    raise RuntimeError(f"{name} runs at none of the sizes {SIDES}: {problem}")


def outcome(
    family: str, name: str, model: nn.Module, example: Tensor, size: str
) -> tuple[Row, Split | None]:
    """Return a family's line, and the split where there is one; the last three as `build` returns
    them.
    """
    reasons = []
    for stages in (None, *range(1, MOST_STAGES + 1)):
        try:
            parts = split(model, example, stages=stages)
        except ValueError as error:
            reasons.append(str(error).partition(" is not split: ")[2])
            continue
        note = (
            f"stages={stages}"
            if stages
            else ", ".join(sorted({type(block).__name__ for block in parts.blocks}))
        )
        layout = parts.layout + (f", {parts.prefix_tokens} prefix" if parts.prefix_tokens else "")
        result = ADAPTERS if parts.adapters else WORKS
        return Row(
            family,
            name,
            size,
            result,
            str(len(parts.blocks)),
            layout,
            note.replace("Part", "(joined)"),
        ), parts
    # stable: the first that is about the forward itself
    reasons.sort(key=lambda reason: NO_TWO in reason)
    result = UNTRACED if "cannot trace" in reasons[0] else REFUSED
    return Row(family, name, size, result, "", "", reasons[0].replace("|", "/")), None


def page(rows: Sequence[Row]) -> str:
    """Return the text of the documentation's page."""
    counts = {result: sum(row.result == result for row in rows) for result in RESULTS}
    text = ", ".join(f"{result}: {count}" for result, count in counts.items())
    lines = [f"| {' | '.join([row.family, f'`{row.model}`', *row[2:]])} |" for row in rows]
    introduction = INTRODUCTION.format(
        version=timm.__version__, counts=f"{len(rows)} families. {text}."
    )
    return introduction + "\n".join(lines) + "\n"


def rows_of(text: str) -> list[Row]:
    """Return the lines of the table in a page."""
    table = text.partition("| --- |")[2].splitlines()[1:]
    return [Row(*(cell.strip().strip("`") for cell in line.split("|")[1:-1])) for line in table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", help="print the lines of families whose name contains this, and write nothing"
    )
    only: Any = parser.parse_args().only
    warnings.simplefilter("ignore")
    rows = []
    for family, names in members().items():
        if not only or only in family:
            name = min(names, key=lambda name: (parameter_count(name), name))
            rows.append(outcome(family, name, *build(name))[0])
            print(*rows[-1], sep=" | ", flush=True)
    if not only:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
