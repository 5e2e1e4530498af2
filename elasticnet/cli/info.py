"""`elasticnet info`: what a checkpoint holds, from its header alone."""

from __future__ import annotations

import argparse
import json
from typing import Any

from elasticnet.checkpoint import read_header, read_sizes
from elasticnet.checkpoint.sources import opened


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info", help="show what a checkpoint holds: architecture, depths, sizes, notes, cards"
    )
    parser.description = (
        "Show what a checkpoint holds: architecture, the depths that can be loaded and what each takes, notes, and the "
        "depth cards measured so far. Reads the header alone, also of a file that lies elsewhere."
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a file that elasticnet.save or a recipe wrote: a path, an http(s) URL, or hf://owner/name[@revision][/file]",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with opened(options.file) as file:
        header, sizes = read_header(file), read_sizes(file)
    arguments = ", ".join(f"{name}={value!r}" for name, value in header["arguments"].items())
    _say(f"{header['architecture'] or 'custom network'}({arguments})")
    _say(f"depths: {', '.join(map(str, header['taps']))}")
    counted = "parameters" if header["architecture"] else "values"  # a custom net's may be buffers
    for depth, (values, size) in sizes.items():
        _say(f"  depth {depth}: {values:,} {counted}, {size:,} bytes")
    for name, value in header["notes"].items():
        _say(f"{name}: {value}")
    for machine, card in header["cards"].items():
        _say(f"card of {machine}:")
        for line in _card_lines(card):
            _say(f"  {line}")
    return 0


def _card_lines(stored: dict[str, Any]) -> list[str]:
    """What `elasticnet profile` prints of a card; its JSON where this version cannot read it."""
    from elasticnet._tables import aligned
    from elasticnet.card import DepthCard
    from elasticnet.card.report import caption, markdown_table

    try:
        card = DepthCard.from_json(stored)
    except ValueError as error:
        return [f"not readable by this version ({error}):", json.dumps(stored)]
    warnings = [f"warning: {warning}" for warning in card.warnings]
    return [caption(card), *aligned(markdown_table(card)).splitlines(), *warnings]


def _say(line: str) -> None:
    """Print one line; what a file brings along cannot steer the terminal."""
    print(
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    )
