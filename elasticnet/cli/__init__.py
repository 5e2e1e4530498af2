"""The `elasticnet` command; each subcommand is a module here, with add_parser() and run()."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from elasticnet import __version__
from elasticnet.cli import benchmark, export, info, profile, upscale
from elasticnet.memory import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 1 when images were left out, 2 for bad input, 130 after Ctrl-C.

    Errors are one line on standard error, without a traceback.
    """
    parser = argparse.ArgumentParser(prog="elasticnet", description="Train one network; run it at any depth.")
    parser.add_argument("--version", action="version", version=f"elasticnet {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, benchmark, profile, export, upscale):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        return options.run(options)
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("elasticnet: interrupted", file=sys.stderr)
        return 130  # what a shell reports after Ctrl-C
    except (ImportError, OSError, ValueError) as error:  # an extra that is not installed, too
        if options.debug:
            raise
        print(f"elasticnet: {error}", file=sys.stderr)
        return 2
