"""`elasticnet info`: what a checkpoint holds, from its header alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from elasticnet.cli.arguments import add_debug
from elasticnet.cli.printable import printable

if TYPE_CHECKING:
    from elasticnet.checkpoint.header import DepthSize, Description
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
        help="a file that elasticnet.save or a recipe wrote: a path, the name of a packaged net "
        "such as asrn-x4, an http(s) URL, or hf://owner/name[@revision][/file]",
    )
    parser.add_argument(
        "--json", action="store_true", help="print all of it as one JSON object, for programs"
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

    if options.json:
        print(json.dumps(_as_json(header, sizes), indent=2))
        return 0
    by_depth, notes = _split_notes(header["notes"], header["taps"])
    _print_line(_network_line(header))
    print()
    _print_table(_depth_rows(header, sizes, by_depth))
    if notes:
        print()
        for line in _pair_lines(_flat(notes)):
            _print_line(line)
    for machine, card in header["cards"].items():
        print()
        _print_line(f"card of {machine}:")
        for line in _card_lines(card):
            _print_line(f"  {line}")
    return 0


def _as_json(header: Description, sizes: Mapping[int, DepthSize]) -> dict[str, Any]:
    """What the file says, without the digests of its tensors; depths are keys, as in the notes."""
    by_depth: dict[str, Any] = {}
    for depth, size in sizes.items():
        by_depth[str(depth)] = {"values": size.num_values, "bytes": size.num_bytes}
    return {
        "architecture": header["architecture"],
        "arguments": header["arguments"],
        "depths": by_depth,
        "notes": header["notes"],
        "cards": header["cards"],
    }


def _network_line(header: Description) -> str:
    """The network as a call of its builder, if a registered one made it."""
    if header["architecture"] is None:
        return "network of no registered architecture: elasticnet.load needs build="
    arguments = ", ".join(f"{name}={value!r}" for name, value in header["arguments"].items())
    return f"{header['architecture']}({arguments})"


def _split_notes(
    notes: Mapping[str, Any], taps: Sequence[int]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    """The notes that hold a value for each depth, such as the PSNR, and all others."""
    from elasticnet.checkpoint.safetensors_file import is_object

    depths = {str(depth) for depth in taps}
    by_depth: dict[str, Mapping[str, Any]] = {}
    others: dict[str, Any] = {}
    for name, value in notes.items():
        if is_object(value) and value.keys() == depths and not _has_objects(value):
            by_depth[name] = value
        else:
            others[name] = value
    return by_depth, others


def _has_objects(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, (dict, list)) for value in values.values())


def _depth_rows(
    header: Description,
    sizes: Mapping[int, DepthSize],
    by_depth: Mapping[str, Mapping[str, Any]],
) -> list[list[str]]:
    """The table of depths: its header, and a row for each depth."""
    # of a custom network the header does not tell parameters from buffers
    counted = "parameters" if header["architecture"] else "values"
    rows = [["depth", counted, "bytes", *by_depth]]
    for depth, size in sizes.items():
        noted = [_cell_of(values[str(depth)]) for values in by_depth.values()]
        rows.append([str(depth), f"{size.num_values:,}", f"{size.num_bytes:,}", *noted])
    return rows


def _cell_of(value: Any) -> str:
    """A note of one depth in the table: four digits are enough to compare depths."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return _text_of(value)


def _flat(notes: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Notes as text by name; what is inside another note has its name in front: options.steps."""
    from elasticnet.checkpoint.safetensors_file import is_object

    found: dict[str, str] = {}
    for name, value in notes.items():
        if is_object(value) and value:
            found.update(_flat(value, prefix=f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = _text_of(value)
    return found


def _text_of(value: Any) -> str:
    """A note's value as text: a list by its entries, everything else as JSON has it."""
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, list):
        return ", ".join(_text_of(entry) for entry in cast(list[Any], value))
    return json.dumps(value)


def _card_lines(stored: dict[str, Any]) -> list[str]:
    """What `elasticnet profile` prints of a card; its entries where this version cannot read it."""
    from elasticnet._tables import aligned
    from elasticnet.card import DepthCard
    from elasticnet.card.report import caption, markdown_table
    from elasticnet.sr.card_metrics import with_titles

    try:
        card = with_titles(DepthCard.from_json(stored))
    except ValueError as error:
        return [f"not readable by this version ({error}):", *_pair_lines(_flat(stored))]
    lines = [caption(card)]
    lines += aligned(markdown_table(card)).splitlines()
    lines += [f"warning: {warning}" for warning in card.warnings]
    return lines


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from elasticnet._tables import aligned, table

    for line in aligned(table(rows, left=0)).splitlines():
        _print_line(line)


def _pair_lines(values: Mapping[str, str]) -> list[str]:
    """Names and values in two columns."""
    width = max((len(name) for name in values), default=0)
    return [f"{name:{width}}  {value}" for name, value in values.items()]


def _print_line(line: str) -> None:
    """Print one line; what a file holds cannot steer the terminal."""
    print(printable(line))
