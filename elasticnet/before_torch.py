"""Import this before torch, in a program: it sets what torch reads only once, when it is imported.

It also lets Ctrl-C end the program with one line while torch is imported, which takes seconds, and
lets the program print letters that the encoding of standard output lacks, as escapes. The library
itself never imports it.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from types import TracebackType

INTERRUPTED = 130  # exit status: what a shell reports after Ctrl-C

# OpenMP's threads spin while they wait for each other. libgomp's default is to spin so long that
# other work on the same cores slows a training step down many times. 1,000 turns cost nothing on an
# idle machine, where threads that sleep at once (PASSIVE) cost a fifth of the step. libgomp follows
# the count where both are set; other OpenMP libraries know the policy alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Otherwise a name of a file, or the ± of a table, would end a program whose work is done, where the
# terminal or the pipe has another encoding than UTF-8. Standard error escapes them already.
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")

_hook_before = sys.excepthook


def _say_interrupted(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """End a program that nothing else ends after Ctrl-C: a line in place of the traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        _hook_before(kind, error, traceback)
        return
    print("interrupted", file=sys.stderr)
    raise SystemExit(INTERRUPTED)


def import_torch() -> None:
    """Import torch while the garbage collector rests, which takes a fifth less time.

    Importing makes hundreds of thousands of objects, and nearly all of them live until the program
    ends. The collector would look through them again and again, and so it leaves them alone
    afterwards, too.
    """
    if "torch" in sys.modules or not gc.isenabled():
        return  # there is nothing to gain; what needs torch imports it
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        gc.enable()
    gc.freeze()


def show_tracebacks() -> None:
    """Let errors and Ctrl-C show tracebacks as if this module had not been imported."""
    sys.excepthook = _hook_before


sys.excepthook = _say_interrupted
