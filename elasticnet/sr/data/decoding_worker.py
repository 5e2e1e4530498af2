"""A process that decodes pairs for another one: `decoding_processes` starts it.

Standard input gives, pickled one after another, first the `LrSettings` and then lists of pairs. For
each list standard output gets a list of what `decode_pair` returns.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any, BinaryIO

from elasticnet.sr.data.decode_pair import decode_pair


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Decode until there is nothing more to decode.

    Args:
        source: Gives the settings and the lists of pairs.
        target: Gets the decoded pairs.
    """
    settings = _received(source)
    while True:
        pairs = _received(source)
        if pairs is None:
            return
        decoded = [decode_pair(pair, settings) for pair in pairs]
        pickle.dump(decoded, target, protocol=pickle.HIGHEST_PROTOCOL)
        target.flush()


def _received(source: BinaryIO) -> Any:
    """What comes next; None at the end, where the process that asks is done, or gone."""
    try:
        return pickle.load(source)
    except EOFError:
        return None


def run() -> None:
    """Decode what standard input asks for, as the whole work of a process."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        main(sys.stdin.buffer, answers)
    except BrokenPipeError:  # nobody waits for the answer any more
        os._exit(1)
