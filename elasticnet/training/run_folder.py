"""A training run's folder: lock, options, states to resume from, and the log in JSON lines."""

from __future__ import annotations

import copy
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from elasticnet._files import (
    AnyPath,
    make_writable_folder,
    remove_if_left,
    strict_json,
    write_atomic,
    write_json,
)
from elasticnet.training.state import pack_state, unpack_state

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ABSENT = "(absent)"
"""Stands for the value of an option that one of two sets of options does not have."""

_NOTHING_SAVED = -1  # instead of the number of a step

# What a run that was killed before its options were written has left in its folder.
_LEFT_BY_A_KILLED_START = re.compile(r"lock|\.options\..*tmp")
_STEP_OF_A_CHECKPOINT = re.compile(r"step_(\d{8,})")
_STEP_OF_A_LINE = re.compile(rb'\{"step": (\d+)\b.*\}\n')


def differing_options(
    stored: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compare two sets of options as JSON.

    Args:
        stored: The options by name, such as `Run.options`.
        given: The other ones.

    Returns:
        Those that differ: name -> (stored, given), sorted by name. `ABSENT` stands where a side
        lacks the name.
    """
    old = strict_json(stored, "stored")
    new = strict_json(given, "given")
    differing: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*old, *new}):
        before = old.get(name, ABSENT)
        now = new.get(name, ABSENT)
        if before != now:
            differing[name] = (before, now)
    return differing


class Run:
    """A run folder that one process writes to; open it with `Run.create` or `Run.resume`.

    Best used in a `with` statement, which closes it.

    Args:
        folder: The run's folder; it must exist, unless `writer` is False.
        options: As options.json holds them: plain JSON, so that tuples are lists.
        keep: How many checkpoints are kept, from 1 up.
        writer: Whether this process writes. If not, it takes no lock and changes nothing on disk:
            `save` and `log` do nothing, so that one loop serves every process of a training.

    Raises:
        ValueError: `keep` is not a number from 1 up.
        RuntimeError: Another process holds the run.

    Example:
        >>> with Run.create("runs/first", {"learning_rate": 1e-3}) as run:
        ...     run.log({"step": 1, "loss": 0.5})
        ...     run.save(1, {"net": net.state_dict()})
        >>> with Run.resume("runs/first") as run:
        ...     step, state = run.load_latest()
    """

    def __init__(
        self, folder: AnyPath, options: dict[str, Any], *, keep: int, writer: bool
    ) -> None:
        if not _is_count(keep) or keep < 1:
            raise ValueError(
                f"keep={keep!r}: expected the number of checkpoints to keep, from 1 up"
            )
        self.folder = Path(folder)
        self.options = options
        self.writer = writer
        self._keep = keep
        self._saved_step = _NOTHING_SAVED
        self._changed_options: dict[str, Any] | None = None  # to be written with the next save
        self._must_load = False  # whether load_latest has to come before log and save
        self._lock: FileIO | None = None
        if writer:
            self._lock = _take_lock(self.folder / "lock")
            for left_by_a_kill in self.folder.rglob(".*.[0-9]*.tmp"):
                remove_if_left(left_by_a_kill)  # another command may just write there

    @classmethod
    def create(
        cls, folder: AnyPath, options: Mapping[str, Any], *, keep: int = 3, writer: bool = True
    ) -> Run:
        """Start a run: take the lock and write options.json.

        Args:
            folder: A new or empty folder.
            options: The run's options by name, of types that JSON has.
            keep: How many checkpoints are kept, from 1 up.
            writer: Whether this process writes; see the class.

        Returns:
            The open run.

        Raises:
            FileExistsError: The folder is not empty, or is a file.
            OSError: The folder cannot be made or be written to; the message names it.
            RuntimeError: Another process holds the run.
            TypeError: JSON cannot hold an option; the message names it.
        """
        folder = Path(folder)
        # there and back, so that a new run has the options that a resumed one reads
        plain_options = json.loads(json.dumps(strict_json(options, "options")))
        if not writer:
            return cls(folder, plain_options, keep=keep, writer=False)

        refuse_foreign_folder(folder)
        make_writable_folder(folder)
        run = cls(folder, plain_options, keep=keep, writer=True)
        try:
            _refuse_used(folder)
            write_json(folder / "options.json", plain_options)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, folder: AnyPath, *, keep: int = 3, writer: bool = True) -> Run:
        """Open an existing run with its stored options; `load_latest` comes before `log` or `save`.

        Args:
            folder: The folder of the run.
            keep: How many checkpoints are kept, from 1 up.
            writer: Whether this process writes; see the class.

        Returns:
            The open run.

        Raises:
            FileNotFoundError: The folder holds no run.
            ValueError: The run's options.json is damaged.
            RuntimeError: Another process holds the run.
        """
        path = Path(folder) / "options.json"
        if Path(folder).is_file():
            raise FileNotFoundError(
                f"{folder} is a file: --resume takes the folder of a run, such as "
                f"{Path(folder).parent}"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no run (no options.json): start it without --resume"
            )
        try:
            options = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{path} is not JSON ({error}): repair it or choose another --out"
            ) from error
        run = cls(folder, options, keep=keep, writer=writer)
        run._must_load = True
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock is not None:
            self._lock.close()

    def change_options(self, options: Mapping[str, Any]) -> None:
        """Take other options from now on; options.json gets them with the next `save`.

        So a change that fails before that, such as a rate that makes the loss infinite, is not
        kept.

        Args:
            options: All options of the run, by name, of types that JSON has.
        """
        self.options = json.loads(json.dumps(strict_json(options, "options")))
        self._changed_options = copy.deepcopy(self.options)  # whoever holds `options` may change it

    def checkpoints(self) -> dict[int, Path]:
        """Return the files of the checkpoints by step, oldest first. They are not checked."""
        found: dict[int, Path] = {}
        for path in self.folder.glob("checkpoints/step_*.safetensors"):
            match = _STEP_OF_A_CHECKPOINT.fullmatch(path.stem)
            if match:
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint atomically, and drop all but the last `keep`.

        Args:
            step: How many steps are done; not below that of an earlier save.
            state: What `elasticnet.training.state.pack_state` takes.

        Raises:
            ValueError: A later step is saved already, or the step is no integer from 0 up.
            RuntimeError: The run is closed, or was resumed and not yet loaded.
            OSError: The disk is full, for example. No earlier checkpoint has been dropped then.
            TypeError: Something in the state cannot be saved; the message names its place.
        """
        if not self.writer:
            return
        self._check_writable(step)
        if step < self._saved_step:
            raise ValueError(f"step {step}: this run has already saved step {self._saved_step}")

        packed = pack_state(step, state)
        if self._changed_options is not None:
            write_json(self.folder / "options.json", self._changed_options)
            self._changed_options = None
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        self._flush_log()
        write_atomic(folder / f"step_{step:08d}.safetensors", packed)
        self._saved_step = step
        self._drop_old_checkpoints()

    def load_latest(self) -> tuple[int, Any] | None:
        """Return the newest checkpoint that is whole, and cut the log back to it.

        A corrupt checkpoint is passed over with a warning that names it. The cut drops the lines of
        later steps (all lines if there is no checkpoint), and damaged ones.

        Returns:
            The step and the state; None if there is no checkpoint.

        Raises:
            ValueError: All checkpoints are corrupt.
            RuntimeError: A later version of elasticnet wrote the checkpoint.
        """
        latest = self._newest_valid()
        self._saved_step = _NOTHING_SAVED if latest is None else latest[0]
        self._must_load = False
        if self.writer:
            self._cut_log()
        return latest

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line of strict JSON to log.jsonl.

        The lines of a step come before its checkpoint. So a kill neither loses nor doubles one.

        Args:
            record: What the line holds. `record["step"]` must be later than the last save. Tensors
                and arrays become numbers or lists; NaN and infinities become the strings "NaN",
                "Infinity" and "-Infinity".

        Raises:
            ValueError: The step is saved already, or is no integer from 0 up.
            RuntimeError: The run is closed, or was resumed and not yet loaded.
            OSError: The disk is full, for example. The log is then as it was.
            TypeError: JSON cannot hold an entry; the message names it.
        """
        if not self.writer:
            return
        step: Any = record.get("step")
        self._check_writable(step)
        if step <= self._saved_step:
            raise ValueError(
                f"step {step}: step {self._saved_step} is already saved; "
                "log a step before saving it"
            )
        # The step comes first, where _STEP_OF_A_LINE looks for it.
        plain = strict_json({"step": step, **record}, "record")
        line = json.dumps(plain, allow_nan=False) + "\n"
        _append_whole(self.folder / "log.jsonl", line.encode())

    def _check_writable(self, step: Any) -> None:
        if not _is_count(step):
            raise ValueError(f"step {step!r}: expected an integer from 0 up")
        if self._lock is None or self._lock.closed:
            raise RuntimeError(f"the run in {self.folder} is closed: resume it to go on")
        if self._must_load:
            raise RuntimeError(f"the run in {self.folder} was resumed: call load_latest() first")

    def _flush_log(self) -> None:
        """Bring the log to the disk, before a checkpoint that relies on its lines gets there."""
        with open(self.folder / "log.jsonl", "ab") as log:
            os.fsync(log.fileno())

    def _drop_old_checkpoints(self) -> None:
        paths = self.checkpoints()
        # A later step than the saved one can only be a corrupt one that load_latest passed over.
        valid = [step for step in paths if step <= self._saved_step]
        kept = valid[-self._keep :]
        for step, path in paths.items():
            if step not in kept:
                path.unlink()

    def _newest_valid(self) -> tuple[int, Any] | None:
        paths = self.checkpoints()
        for path in reversed(paths.values()):
            try:
                return unpack_state(path.read_bytes())
            except ValueError as error:
                warnings.warn(
                    f"{path} is corrupt ({error}): trying the one before it", stacklevel=3
                )
        if paths:
            raise ValueError(
                f"all checkpoints in {self.folder} are corrupt ({len(paths)}): choose another --out"
            )
        return None

    def _cut_log(self) -> None:
        """Drop the lines that are later than the saved step, and those that a kill cut short."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept: list[bytes] = []
        for line in lines:
            match = _STEP_OF_A_LINE.fullmatch(line)
            if match and int(match[1]) <= self._saved_step:
                kept.append(line)
        if len(kept) < len(lines):
            write_atomic(path, b"".join(kept))


def _is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 up, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse a folder that no run can be started in; nothing is made or changed.

    It is somebody else's folder, and no lock is to be put into it. The folder of another run is
    refused later, after its lock is taken, so that one in use is reported as that.

    Args:
        folder: Of a new run.

    Raises:
        FileExistsError: It is a file, or holds files and no run.
        NotADirectoryError: A part of its path is a file.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: choose another --out")
    for parent in folder.parents:
        if parent.is_file():
            raise NotADirectoryError(f"{folder}: {parent} is a file: choose another --out")
    if folder.is_dir() and not (folder / "options.json").exists():
        _refuse_used(folder)


def _refuse_used(folder: Path) -> None:
    """Refuse a folder that holds anything but what a killed start has left."""
    names: list[str] = []
    for path in folder.iterdir():
        if not _LEFT_BY_A_KILLED_START.fullmatch(path.name):
            names.append(path.name)
    if names:
        first_names = ", ".join(sorted(names)[:4])
        raise FileExistsError(
            f"{folder} is not empty ({first_names}): use --resume or choose another --out"
        )


def _append_whole(path: Path, line: bytes) -> None:
    """Append a line to a file, or leave the file as it was."""
    with FileIO(path, "a") as file:
        end = file.seek(0, os.SEEK_END)
        try:
            # On a full disk the first write may take a part, and only the second one fails.
            while line:
                written = file.write(line)
                line = line[written:]
        except OSError as error:
            file.truncate(end)
            raise OSError(error.errno, f"could not write {path} ({error.strerror})") from error


def _take_lock(path: Path) -> FileIO:
    """Lock a file until it is closed or the process dies, in whatever way it does.

    Another process that holds the lock is a RuntimeError that names it.
    """
    file = FileIO(path, "a+")
    try:
        _lock_file(file)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        holder = path.read_text().strip() or "unknown"
        raise RuntimeError(
            f"{path.parent} is in use by process {holder}: end it or choose another --out"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()}".encode())
    # A data loader's worker that outlives a killed run must not go on holding the lock.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=file.close)
    return file


def _lock_file(file: FileIO) -> None:
    """Lock a file without waiting; a BlockingIOError or PermissionError if another one holds it."""
    if sys.platform == "win32":
        # a byte far behind the text, since Windows lets nobody read what is locked
        os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
