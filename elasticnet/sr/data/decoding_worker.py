"""A process that decodes pairs for another one: `decoding_processes` starts it.

Standard input gives, pickled one after another, first the `LrSettings` and then lists of pairs. For
each list standard output gets a list of what `decode_pair` returns.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import BinaryIO

from elasticnet.sr.data.decode_pair import decode_pair


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Decode until there is nothing more to decode.

    Args:
        source: Gives the settings and the lists of pairs.
        target: Gets the decoded pairs.
    """
    settings = pickle.load(source)
    while True:
        try:
            pairs = pickle.load(source)
        except EOFError:  # the process that asks is done, or gone
            return
        decoded = [decode_pair(pair, settings) for pair in pairs]
        pickle.dump(decoded, target, protocol=pickle.HIGHEST_PROTOCOL)
        target.flush()


def run() -> None:
    """Decode what standard input asks for, as the whole work of a process."""
    # Ctrl-C reaches every process of a terminal; the one that asks ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        main(sys.stdin.buffer, answers)
    except BrokenPipeError:  # nobody waits for the answer any more
        os._exit(1)
