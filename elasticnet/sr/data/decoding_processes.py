"""Processes that decode images beside each other.

Threads share one interpreter, which is what small images mostly take: two threads are hardly faster
than one. The processes are programs of their own, not copies of this one: a copy of a process that
has threads may hang, and a script would be run once more in each.
"""

from __future__ import annotations

import pickle
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from elasticnet.sr.data.alignment import AlignedPair, LrSettings
from elasticnet.sr.data.folder_layouts import Pair
from elasticnet.sr.data.pair_set import Skipped

# The first words of a process. Ctrl-C reaches every process of a terminal: this one, which asks,
# ends the others, also while they still import. They import what this one would import, whatever
# their own folder is.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import sys; sys.path[:] = sys.argv[1:]; from {module} import run; run()"
)
WORKER_MODULE = "elasticnet.sr.data.decoding_worker"
MAX_IMAGES_PER_REQUEST = 32
MAX_BYTES_PER_REQUEST = 256 * 1024  # of image files; a larger one is asked for alone


class DecodingProcesses:
    """Some processes, each of which decodes for one thread at a time.

    Used in a `with` block, at whose end they are gone. One that dies, or cannot be started, does no
    harm: what it was asked for is decoded in this process.

    Args:
        num_processes: How many.
        settings: The scale, and how LR is made where it has no file.

    Attributes:
        started: The processes, those that have died among them.
    """

    def __init__(self, num_processes: int, settings: LrSettings) -> None:
        self._num_processes = num_processes
        self._settings = settings
        self.started: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __enter__(self) -> DecodingProcesses:
        """Start them; return itself."""
        for _ in range(self._num_processes):
            process = _started()
            if process is None:
                break
            self.started.append(process)
            if _send(process, self._settings):
                self._idle.put(process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End them."""
        for process in self.started:
            process.kill()
        for process in self.started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):  # what was to be sent cannot be sent any more
                    pipe.close()

    def decode(self, pairs: Sequence[Pair]) -> list[AlignedPair | Skipped] | None:
        """Decode some pairs in one of the processes; several threads may ask at once.

        Args:
            pairs: Where the image files are.

        Returns:
            What `decode_pair` returns for each; None if no process is left.
        """
        try:
            process = self._idle.get_nowait()
        except queue.Empty:  # all have died: there are no more threads than processes
            return None
        decoded = answer_of(process, pairs)
        if decoded is not None:
            self._idle.put(process)
        return decoded


def requests(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Yield pairs in groups: many small images or one large one, so that little is held at a time.

    Args:
        pairs: Where the image files are.
    """
    group: list[Pair] = []
    num_bytes = 0
    for pair in pairs:
        size = _file_size(pair.hr)
        is_full = len(group) == MAX_IMAGES_PER_REQUEST or num_bytes + size > MAX_BYTES_PER_REQUEST
        if group and is_full:
            yield group
            group = []
            num_bytes = 0
        group.append(pair)
        num_bytes += size
    if group:
        yield group


def _file_size(path: Path) -> int:
    """The bytes of a file; 0 for one that cannot be read, which is found out later."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _started() -> subprocess.Popen[bytes] | None:
    """A process that waits for requests; None where none can be started."""
    is_inside_other_program = not sys.executable or getattr(sys, "frozen", False)
    if is_inside_other_program:
        return None
    command = [sys.executable, "-c", START.format(module=WORKER_MODULE), *sys.path]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError:
        return None


def _send(process: subprocess.Popen[bytes], message: object) -> bool:
    """Send something; returns whether the process is still there."""
    assert process.stdin is not None
    try:
        pickle.dump(message, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    except OSError:
        return False
    return True


def answer_of(
    process: subprocess.Popen[bytes], pairs: Sequence[Pair]
) -> list[AlignedPair | Skipped] | None:
    """Return what a process makes of some pairs; None if it has died.

    Args:
        process: One that has got the settings.
        pairs: Where the image files are.
    """
    if not _send(process, list(pairs)):
        return None
    assert process.stdout is not None
    try:
        return pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        return None
