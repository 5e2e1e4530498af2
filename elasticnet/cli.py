"""The `elasticnet` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from elasticnet import __version__
from elasticnet.checkpoint import load, read_header


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 2 for bad input (one line on standard error, no traceback)."""
    parser = argparse.ArgumentParser(prog="elasticnet", description="Train one network; run it at any depth.")
    parser.add_argument("--version", action="version", version=f"elasticnet {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="show what a checkpoint holds: architecture, depths, parameters, notes")
    info.add_argument("file", help="a .safetensors file that elasticnet.save or a recipe wrote")
    info.set_defaults(run=_info)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        if options.debug:
            raise
        print(f"elasticnet: {error}", file=sys.stderr)
        return 2
    return 0


def _info(options: argparse.Namespace) -> None:
    header = read_header(options.file)
    arguments = ", ".join(f"{name}={value!r}" for name, value in header["arguments"].items())
    print(f"{header['architecture'] or 'custom network'}({arguments})")
    print(f"depths: {', '.join(map(str, header['taps']))}")
    if header["architecture"]:
        for depth in header["taps"]:
            parameters = sum(parameter.numel() for parameter in load(options.file, depth).parameters())
            print(f"  depth {depth}: {parameters:,} parameters")
    for name, value in header["notes"].items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
