"""Programs that start in milliseconds: forked from a process that has imported everything already.

The suite starts many programs (recipes, the command) that spend seconds on importing torch and do
milliseconds of work. `run` and `Popen` are like those of `subprocess`, for the three command lines
`[sys.executable, SCRIPT, ...]`, `[sys.executable, "-m", MODULE, ...]` and
`[sys.executable, "-c", CODE, ...]`. The program is a process of its own, with its own environment,
folder, streams and signals; only its imports are done. What a program imports, and what happens
while it does, is tested with `subprocess`.

This file is also the script of the process that forks. It stays without threads, and so does torch
in it, as long as no operator runs there.
"""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
ROOT = Path(__file__).parents[1]
LARGEST_REQUEST = 1 << 20  # bytes: the command line and the environment
NUM_STREAMS = 3
SECONDS_BETWEEN_LOOKS = 0.003
BROKEN_PIPE_STATUS = 120  # Python's own, where the last flush fails

# --- the side of the tests


class Popen:
    """A program that runs; the parts of `subprocess.Popen` that the tests use.

    Args:
        command: `[sys.executable, SCRIPT, ...]`, `[sys.executable, "-m", MODULE, ...]` or
            `[sys.executable, "-c", CODE, ...]`.
        env: The whole environment. Default: that of this process.
        cwd: The folder. Default: that of this process.
        stdin: A file, `DEVNULL`, or None for that of this process; so with the others.
        stdout: And `PIPE`.
        stderr: And `PIPE`, or `STDOUT`.
        text: Whether pipes are read as text.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = False,
    ) -> None:
        python, *words = [os.fspath(word) for word in command]
        if python != sys.executable:
            raise ValueError(f"{python}: expected sys.executable, {sys.executable}")
        self.returncode: int | None = None
        self.stdout, stdout_end = _output(stdout, default=1, text=text)
        self.stderr, stderr_end = None, stdout_end
        if stderr is not STDOUT:
            self.stderr, stderr_end = _output(stderr, default=2, text=text)
        stdin_end = _input(stdin)
        request = {
            "words": words,
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
        }
        ends = [stdin_end, stdout_end, stderr_end]
        self._template = _template()
        self.pid = self._template.start(request, ends)
        for end in {*ends} - {0, 1, 2}:
            if end not in _given(stdin, stdout, stderr):
                os.close(end)

    def poll(self) -> int | None:
        """Return the exit status, or minus the number of the signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._template.status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return what `poll` does."""
        end = time.monotonic() + (timeout or 3600)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 3600)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read its pipes to their ends and wait for it."""
        read: dict[str, Any] = {"stdout": None, "stderr": None}

        def read_whole(name: str, pipe: IO[Any]) -> None:
            with pipe:
                read[name] = pipe.read()

        threads = [
            threading.Thread(target=read_whole, args=(name, pipe), daemon=True)
            for name, pipe in (("stdout", self.stdout), ("stderr", self.stderr))
            if pipe is not None
        ]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        return read["stdout"], read["stderr"]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    capture_output: bool = False,
    check: bool = False,
    timeout: float | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does."""
    if capture_output:
        options.update(stdout=PIPE, stderr=PIPE)
    process = Popen(command, **options)
    stdout, stderr = process.communicate(timeout)
    words = [os.fspath(word) for word in command]
    done = subprocess.CompletedProcess(words, process.wait(), stdout, stderr)
    if check:
        done.check_returncode()
    return done


def _output(given: Any, default: int, text: bool) -> tuple[IO[Any] | None, int]:
    """Return what a test reads, if it reads anything, and what the program writes to."""
    if given is None:
        return None, default
    if given == DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    if given == PIPE:
        reader, writer = os.pipe()
        return open(reader, "r" if text else "rb"), writer
    return None, given if isinstance(given, int) else given.fileno()


def _input(given: Any) -> int:
    """Return what the program reads."""
    if given is None:
        return 0
    if given == DEVNULL:
        return os.open(os.devnull, os.O_RDONLY)
    return given if isinstance(given, int) else given.fileno()


def _given(*streams: Any) -> set[int]:
    """Return the descriptors that belong to the test, which closes them itself."""
    files = [each for each in streams if each is not None]
    return {each if isinstance(each, int) else each.fileno() for each in files}


class _Template:
    """The process that forks, as a test sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        self._socket = ours
        self._ended: dict[int, int] = {}  # what poll returns, by process
        self._started: list[int] = []

    def start(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Return the number of the process of a program that it has forked."""
        descriptors = array.array("i", streams)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        self._socket.sendmsg([json.dumps(request).encode()], ancillary)
        while not self._started:
            self._read_message()
        return self._started.pop()

    def status_of(self, pid: int) -> int | None:
        """Return what a process has ended with; None while it runs."""
        while pid not in self._ended and select.select([self._socket], [], [], 0)[0]:
            self._read_message()
        return self._ended.get(pid)

    def _read_message(self) -> None:
        message = self._socket.recv(LARGEST_REQUEST)
        if not message:
            raise RuntimeError("the process that forks is gone")
        kind, pid, status = json.loads(message)
        if kind == "started":
            self._started.append(pid)
        else:
            self._ended[pid] = status

    def end(self) -> None:
        """End it, and what it has forked."""
        self._socket.close()
        self._process.wait()


_templates: list[_Template] = []


def _template() -> _Template:
    """Return the one of this process, started when it is first needed."""
    if not _templates:
        _templates.append(_Template())
        atexit.register(_templates[0].end)
    return _templates[0]


# --- the side of the process that forks


def serve(descriptor: int) -> dict[str, Any] | None:
    """Fork for each request; in the child return the request, in the end None."""
    with socket.socket(fileno=descriptor) as requests:
        children: set[int] = set()
        while True:
            timeout = SECONDS_BETWEEN_LOOKS if children else None
            if select.select([requests], [], [], timeout)[0]:
                message, streams = _received(requests)
                if not message:
                    break
                pid = os.fork()
                if pid == 0:
                    _take(streams)
                    return json.loads(message)
                for stream in streams:
                    os.close(stream)
                children.add(pid)
                requests.send(json.dumps(["started", pid, 0]).encode())
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    children.discard(pid)
                    code = os.waitstatus_to_exitcode(status)
                    requests.send(json.dumps(["ended", pid, code]).encode())
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    return None


def _received(requests: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message and the streams that came with it."""
    size = array.array("i").itemsize * NUM_STREAMS
    message, ancillary, _, _ = requests.recvmsg(LARGEST_REQUEST, socket.CMSG_SPACE(size))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data[: len(data) - len(data) % streams.itemsize])
    return message, list(streams)


def _take(streams: Sequence[int]) -> None:
    """Make these the standard streams of this process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        if stream >= NUM_STREAMS:
            os.close(stream)
    # Python's own objects over them, as at the start of a program
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def become(request: Mapping[str, Any]) -> None:
    """Run the program of a request, as Python would."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    first, *arguments = request["words"]
    is_script = first not in ("-m", "-c")
    sys.path[0] = str(Path(first).parent) if is_script else request["cwd"]
    paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path not in sys.path]
    forget_declarations()
    if first == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *words = arguments
        sys.argv = ["-c", *words]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), vars(main))
    else:
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


def forget_declarations() -> None:
    """Let the registry look again for architectures that packages on the path declare."""
    registry = sys.modules.get("elasticnet.registry")
    if registry is not None:
        registry._entry_points.cache_clear()


def import_everything() -> None:
    """Import what the programs import, and run nothing of it."""
    import elasticnet.before_torch

    sys.excepthook = sys.__excepthook__  # a program that imports this module sets it again
    # isort: split
    import timm.utils.model_ema  # noqa: F401
    import tyro  # noqa: F401

    from loading import load_recipe

    load_recipe("asrn_div2k")
    import elasticnet.cli.benchmark
    import elasticnet.cli.export
    import elasticnet.cli.profile
    import elasticnet.cli.upscale
    import elasticnet.sr.benchmark.figures  # noqa: F401


def status_of_program(request: Mapping[str, Any]) -> int:
    """Run the program of a request; return its exit status, as Python would end with it."""
    try:
        try:
            become(request)
        except SystemExit:
            raise
        except BaseException as error:
            # which may end the program with a status of its own
            sys.excepthook(type(error), error, error.__traceback__)
            return 1
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End as Python does, but for freeing what was imported, which takes two seconds."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE_STATUS
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    import_everything()
    gc.collect()
    gc.freeze()  # what is imported is not looked at again, and so stays shared
    program = serve(int(sys.argv[1]))
    leave(0 if program is None else status_of_program(program))
