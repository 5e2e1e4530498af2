"""The `elasticnet` command; each subcommand is a module here, with add_parser() and run().

Nothing here imports torch before a subcommand needs it: help, `--version`, errors in the arguments
and `elasticnet info` answer at once.
"""

from __future__ import annotations

# First, so that Ctrl-C ends the imports below with a line, too; none of them imports torch.
from elasticnet.before_torch import INTERRUPTED, show_tracebacks

# isort: split
import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from elasticnet._files import message_of
from elasticnet.cli import benchmark, convert, export, info, profile, recipes, upscale
from elasticnet.cli.printable import printable
from elasticnet.cli.signals import ended_by_signals
from elasticnet.cli.version import ShowVersion
from elasticnet.memory import is_out_of_memory, keep_freed_memory
from elasticnet.sr.architectures import register_all

COMMANDS = (info, benchmark, profile, export, convert, upscale, recipes)
BAD_INPUT = 2  # exit status, as argparse's own for wrong arguments
BROKEN_PIPE = 141  # exit status: what a shell reports of a program that wrote into a closed pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Errors are one line on standard error, without a traceback unless `--debug` is given. SIGTERM
    and SIGHUP end it with 128 + their number, and leave nothing half-written behind.

    Args:
        arguments: The words after the command's name; default: those of this process.

    Returns:
        The exit status: 0 when all went well, 1 when images were left out, 2 for bad input, 130
        after Ctrl-C, 141 when whoever read the output has closed the pipe.
    """
    _replace_closed_standard_error()
    try:
        try:
            return _run(arguments)
        finally:
            _flush_output()  # --help, which ends by SystemExit, prints, too
    except BrokenPipeError:  # such as in `elasticnet benchmark ... | head`
        _discard_output()
        return BROKEN_PIPE


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command line; a closed pipe is left to `main`."""
    register_all()  # the library's own architectures, which a source tree does not declare
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        with ended_by_signals():
            _import_modules(options.modules)
            return options.run(options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        if options.debug:
            show_tracebacks()
            raise
        print("elasticnet: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = _message_of(error)
        if options.debug or message is None:
            raise
        # A list of images has an indented line for each of them; no other line break is ours.
        lines = [printable(line) for line in message.split("\n  ")]
        print("elasticnet: " + "\n  ".join(lines), file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elasticnet", description="Train one network; run it at any depth."
    )
    parser.add_argument("--version", action=ShowVersion, help="show version and distribution")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="given before COMMAND: import a Python module that registers architectures, such as "
        "mypackage.nets, before files are read; modules in the current folder are found; may be "
        "repeated",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _import_modules(names: Sequence[str]) -> None:
    """Import what `--import` names, so that the architectures registered there are known."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that it hides no installed module
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the module's own code may raise anything
            kind = type(error).__name__
            raise ImportError(f"--import {name}: {kind}: {error}") from error


def _message_of(error: Exception) -> str | None:
    """The line that tells the user of an error; None where it is a fault of the program."""
    if isinstance(error, ImportError | OSError | ValueError):  # ImportError: an extra is missing
        return message_of(error)
    if is_out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return f"out of memory: {first_line}"
    return None


def _flush_output() -> None:
    """Write what was printed now: at the interpreter's end an error could not be caught."""
    if sys.stdout is not None and not sys.stdout.closed:  # a parent may have closed it
        sys.stdout.flush()


def _discard_output() -> None:
    """Let what is still to be written go nowhere, so that the interpreter's end is quiet, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a stream without a descriptor, or a closed one
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _replace_closed_standard_error() -> None:
    """Give the process a standard error where its parent closed it.

    Without one, the next file that is opened would get its number, and messages would go there.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
