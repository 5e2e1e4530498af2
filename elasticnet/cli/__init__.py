"""The `elasticnet` command; each subcommand is a module here, with add_parser() and run()."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from elasticnet import __version__
from elasticnet.cli import benchmark, export, info, profile, upscale
from elasticnet.memory import is_out_of_memory, keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 1 when images were left out, 2 for bad input, 130
    after Ctrl-C.

    Errors are one line on standard error, without a traceback. SIGTERM and SIGHUP end it with 128 +
    their number, and leave nothing half-written behind.
    """
    # closed by who started this; what is printed there must not go elsewhere
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    parser = argparse.ArgumentParser(
        prog="elasticnet", description="Train one network; run it at any depth."
    )
    parser.add_argument("--version", action="version", version=f"elasticnet {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, benchmark, profile, export, upscale):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        with _ended_by_signals():
            return options.run(options)
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("elasticnet: interrupted", file=sys.stderr)
        return 130  # what a shell reports after Ctrl-C
    except (ImportError, OSError, ValueError) as error:  # an extra that is not installed, too
        if options.debug:
            raise
        print(f"elasticnet: {_printable(str(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if options.debug or not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        print(f"elasticnet: out of memory: {_printable(reason)}", file=sys.stderr)
        return 2


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP, unless they are ignored, leave through every `finally` on the way
    out.
    """

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    before = {each: signal.getsignal(each) for each in signals}
    for each, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(each, handler)


def _printable(text: str) -> str:
    """The text without what could steer a terminal, line breaks included: file names may hold
    anything.
    """
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
