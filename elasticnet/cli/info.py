"""`elasticnet info`: what a checkpoint holds, from its header alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elasticnet.cli.arguments import add_debug
from elasticnet.cli.printable import printable

if TYPE_CHECKING:
    from elasticnet.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "info", help="show what a checkpoint holds: architecture, depths, sizes, notes, cards"
    )
    parser.description = (
        "Show what a checkpoint holds: architecture, the depths that can be loaded and what each "
        "takes, notes, and the depth cards measured so far. Reads the header alone, also of a "
        "file that lies elsewhere."
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a file that elasticnet.save or a recipe wrote: a path, an http(s) URL, or "
        "hf://owner/name[@revision][/file]",
    )
    add_debug(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the file's header says; no network is built, and torch is not imported.

    Args:
        options: The parsed command line.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: The file is damaged, or `elasticnet.save` did not write it.
        OSError: It cannot be read.
    """
    from elasticnet.checkpoint import read_header, read_sizes
    from elasticnet.checkpoint.sources import opened

    with opened(options.file) as file:
        header = read_header(file)
        sizes = read_sizes(file)

    _print_network(header, sizes)
    for name, value in header["notes"].items():
        _print_line(f"{name}: {value}")
    for machine, card in header["cards"].items():
        _print_line(f"card of {machine}:")
        for line in _card_lines(card):
            _print_line(f"  {line}")
    return 0


def _print_network(header: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]]) -> None:
    arguments = ", ".join(f"{name}={value!r}" for name, value in header["arguments"].items())
    _print_line(f"{header['architecture'] or 'custom network'}({arguments})")
    taps = ", ".join(str(depth) for depth in header["taps"])
    _print_line(f"depths: {taps}")
    # of a custom network the header does not tell parameters from buffers
    counted = "parameters" if header["architecture"] else "values"
    for depth, (values, size) in sizes.items():
        _print_line(f"  depth {depth}: {values:,} {counted}, {size:,} bytes")


def _card_lines(stored: dict[str, Any]) -> list[str]:
    """What `elasticnet profile` prints of a card; its JSON where this version cannot read it."""
    from elasticnet._tables import aligned
    from elasticnet.card import DepthCard
    from elasticnet.card.report import caption, markdown_table
    from elasticnet.sr.card_metrics import with_titles

    try:
        card = with_titles(DepthCard.from_json(stored))
    except ValueError as error:
        return [f"not readable by this version ({error}):", json.dumps(stored)]
    lines = [caption(card)]
    lines += aligned(markdown_table(card)).splitlines()
    lines += [f"warning: {warning}" for warning in card.warnings]
    return lines


def _print_line(line: str) -> None:
    """Print one line; what a file holds cannot steer the terminal."""
    print(printable(line))
