"""Splits the smallest model of every timm family and writes docs/guides/timm_families.md.

    python tests/timm_families.py
    python tests/timm_families.py --known-models
    python tests/timm_families.py --only resnet

A family is a module of timm and the letters that its models' names begin with. It takes about
twenty minutes on one core; less with the models that stand on the page, which are the smallest as
long as timm is the same version.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from elasticnet.card.operators import FORMULAS
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

**Networks of stages** (ResNet, ConvNeXt, Swin, EfficientNet, ...): pass `stages="all"`, as in
`split(timm.create_model("resnet18"), stages="all").wrap(taps=(2, 4, 6, 8))`. By default the taps
are the blocks of the last stage, and the first of them already costs most of the whole net: "cost"
has the multiply-accumulates of each depth in percent of those of the whole net. `stages="all"`
spreads the taps over the net; its column has the number of taps, the cost of each depth, and how
many percent of the model's parameters the adapters add. Adapters are new: train the net.
`wrap(taps=...)` chooses some of the taps and keeps only their adapters. The default stays at the
last stage because these parts are the model's own modules and nothing else: they need no training
to compute what the model computes, the model's files fill them, and every depth is again an
ordinary timm model.

{counts}

{spread}

Written by `python tests/timm_families.py`. The tests repeat a sample of it in `make test` and all
in `make test-slow`.

| family | model | input | result | taps | cost | stages="all" | layout | where, or why not |
| --- | --- | ---: | --- | ---: | --- | --- | --- | --- |
"""


class Row(NamedTuple):
    """One line of the table, as it stands there."""

    family: str
    model: str
    size: str
    result: str
    taps: str
    cost: str
    all_stages: str
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
        return _row_of_split(family, name, built, parts, stages), parts
    # a stable sort: the first reason that is about the forward itself, if any
    reasons.sort(key=lambda reason: NO_TWO_BLOCKS in reason)
    row = Row(
        family=family,
        model=name,
        size=built.size,
        result=UNTRACED if "cannot trace" in reasons[0] else REFUSED,
        taps="",
        cost="",
        all_stages="",
        layout="",
        note=reasons[0].replace("|", "/"),
    )
    return row, None


def _row_of_split(family: str, name: str, built: Built, parts: Split, stages: int | None) -> Row:
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
        size=built.size,
        result=ADAPTERS if parts.adapters else WORKS,
        taps=str(len(parts.blocks)),
        cost=_cost(parts, built.example),
        all_stages=_all_stages(built, parts),
        layout=layout,
        note=note,
    )


def _cost(parts: Split, example: Tensor) -> str:
    """Return what each depth computes, in percent of the whole net."""
    net = parts.wrap().eval()
    counter: Any = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    # not under no_grad: the counter then fails on a module that is handed a parameter, as CaiT's
    with counter:
        net(example[:1], taps=net.taps)
    counted = counter.get_flop_counts()  # by the path of each module, such as "Net.blocks.0"

    def flops(path: str) -> int:
        return sum(counted.get(f"{type(net).__name__}.{path}", {}).values())

    # the head is called once a tap, with features of one shape
    shared = flops("stem") + flops("head") // len(net.taps)
    costs: list[int] = []
    for depth in net.taps:
        blocks = sum(flops(f"blocks.{index}") for index in range(depth))
        costs.append(shared + blocks + flops(f"adapters.{depth}"))
    return " ".join(str(round(100 * cost / costs[-1])) for cost in costs)


def _all_stages(built: Built, parts: Split) -> str:
    """Return what `stages="all"` gives; nothing if that is the split that is there already."""
    try:
        spread = split(built.model, built.example, stages="all")
    except ValueError:
        return ""
    if len(spread.blocks) == len(parts.blocks) and not spread.adapters:
        return ""
    parameters = sum(each.numel() for each in built.model.parameters())
    added = 0
    for adapter in spread.adapters.values():
        added += sum(each.numel() for each in adapter.parameters())
    cost = _cost(spread, built.example)
    return f"{len(spread.blocks)}: {cost}; +{round(100 * added / parameters)}"


def page(rows: Sequence[Row]) -> str:
    """Return the text of the documentation's page."""
    counts: list[str] = []
    for result in RESULTS:
        number = sum(row.result == result for row in rows)
        counts.append(f"{result}: {number}")
    introduction = INTRODUCTION.format(
        version=timm.__version__,
        counts=f"{len(rows)} families. {', '.join(counts)}.",
        spread=_said_of_spread(rows),
    )
    lines = [_line(row._replace(model=f"`{row.model}`")) for row in rows]
    return introduction + "".join(lines)


def _said_of_spread(rows: Sequence[Row]) -> str:
    """Return what `stages="all"` changes, over all families that it changes."""
    staged = [row for row in rows if row.all_stages]
    if not staged:
        return ""
    by_default: list[int] = []
    spread: list[int] = []
    added: list[int] = []
    for row in staged:
        _, costs, parameters = re.split(r"[:;]", row.all_stages)
        by_default.append(int(row.cost.split()[0]))
        spread.append(int(costs.split()[0]))
        added.append(int(parameters))
    return (
        f"{len(staged)} families are of stages. At depth 1 they compute {median(by_default):.0f} % "
        f'of the whole net by default, and {median(spread):.0f} % with `stages="all"`, whose '
        f"adapters add {median(added):.0f} % of the parameters (medians)."
    )


def _line(row: Row) -> str:
    return f"| {' | '.join(row)} |\n"


def rows_of(text: str) -> list[Row]:
    """Return the lines of the table in a page."""
    return [Row._make(cells) for cells in _cells_of(text)]


def models_of(text: str) -> dict[str, str]:
    """Return the model of each family in a page's table, which may have other columns."""
    return {family: model for family, model, *_ in _cells_of(text)}


def _cells_of(text: str) -> list[list[str]]:
    table = text.partition("| --- |")[2].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", help="print the lines of families whose name contains this, and write nothing"
    )
    parser.add_argument(
        "--known-models", action="store_true", help="take the models that stand on the page"
    )
    options: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    known: dict[str, str] = {}
    if options.known_models:
        known = models_of(PAGE.read_text(encoding="utf-8"))
    rows: list[Row] = []
    for family, names in members().items():
        if options.only and options.only not in family:
            continue
        name = known.get(family) or smallest(names)
        row, _ = outcome(family, name, build(name))
        rows.append(row)
        print(_line(row), end="", flush=True)
    if not options.only:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
