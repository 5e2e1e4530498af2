"""How a recipe ends: with a status and one line, whatever ended it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 plus the number of SIGINT, as a shell has it."""

SECONDS_FOR_THE_FIRST_PROCESS = 3.0
"""How long another process waits before it says its own error."""


Options = TypeVar("Options")


def run_program(main: Callable[[Options], object], parse: Callable[[list[str]], Options]) -> None:
    """Run a recipe; end the process with one line on standard error where it fails.

    Of several processes that a launcher started, the first one speaks at once. Another one waits
    for a few seconds: if all of them have the same error, the launcher ends it before.

    Args:
        main: The recipe. A SystemExit that it raises passes.
        parse: Returns its options of a command line.

    Raises:
        SystemExit: With status 1 after an error, and `INTERRUPTED` after Ctrl-C.
    """
    try:
        main(parse(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank > 0:
            time.sleep(SECONDS_FOR_THE_FIRST_PROCESS)
            raise SystemExit(f"error in process {rank}: {error}") from error
        raise SystemExit(f"error: {error}") from error
