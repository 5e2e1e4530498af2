"""How a recipe ends: with a status and one line, whatever ended it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from elasticnet._files import message_of

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 plus the number of SIGINT, as a shell has it."""

READER_IS_GONE = 141
"""The exit status after a write into a pipe that nobody reads: 128 plus the number of SIGPIPE."""

SECONDS_FOR_THE_FIRST_PROCESS = 10.0
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
        SystemExit: With status 1 after an error, `INTERRUPTED` after Ctrl-C, and `READER_IS_GONE`
            where standard output is a pipe that has been closed.
    """
    try:
        main(parse(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of standard output is gone, as after `| head`: there is nobody to tell. Python
        # would still complain when it flushes the output at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(READER_IS_GONE) from None
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank > 0:
            time.sleep(SECONDS_FOR_THE_FIRST_PROCESS)
            raise SystemExit(f"error in process {rank}: {message_of(error)}") from error
        raise SystemExit(f"error: {message_of(error)}") from error
