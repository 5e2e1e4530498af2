"""A training run's folder: lock, options, states to resume from, JSONL log; no loop."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import Any

from elasticnet._files import AnyPath, strict_json, write_atomic, write_json
from elasticnet.training.state import pack_state, unpack_state

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def differing_options(
    stored: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """The options that differ as JSON: name -> (stored, given), with "(absent)" where a side lacks
    the name.
    """
    old, new = strict_json(stored, "stored"), strict_json(given, "given")
    pairs = {
        name: (old.get(name, "(absent)"), new.get(name, "(absent)"))
        for name in sorted({*old, *new})
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class Run(AbstractContextManager["Run"]):
    """A run folder held by one writing process; open it with `create` or `resume`, best in a with
    statement.

    `writer=False` takes no lock and changes nothing on disk: `save` and `log` do nothing, so that
    one loop serves every rank of a distributed run. `options` are as options.json holds them
    (tuples are lists). `keep` counts checkpoints.
    """

    def __init__(
        self, folder: AnyPath, options: dict[str, Any], *, keep: int, writer: bool
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(
                f"keep={keep!r}: expected the number of checkpoints to keep, from 1 up"
            )
        self.folder, self.options, self.writer, self._keep = Path(folder), options, writer, keep
        self._saved_step: int | None = -1  # None: resumed, and load_latest is still to be called
        self._lock = _take_lock(self.folder / "lock") if writer else None
        for left_by_a_kill in self.folder.rglob(".*.[0-9]*.tmp") if writer else ():
            left_by_a_kill.unlink()

    @classmethod
    def create(
        cls, folder: AnyPath, options: Mapping[str, Any], *, keep: int = 3, writer: bool = True
    ) -> Run:
        """Start a run in a new or empty folder and write options.json; a folder in use is a
        FileExistsError.
        """
        folder, plain = Path(folder), json.loads(json.dumps(strict_json(options, "options")))
        if not writer:
            return cls(folder, plain, keep=keep, writer=False)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "options.json").exists():  # put no lock into a folder that is not a run's
            _refuse_used(folder)
        run = cls(folder, plain, keep=keep, writer=True)
        try:
            _refuse_used(folder)
            write_json(folder / "options.json", plain)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, folder: AnyPath, *, keep: int = 3, writer: bool = True) -> Run:
        """Open an existing run with its stored options; call `load_latest` before `log` and
        `save`.
        """
        path = Path(folder) / "options.json"
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
        run._saved_step = None
        return run

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock is not None:
            self._lock.close()

    def checkpoints(self) -> dict[int, Path]:
        """The checkpoint files by step, oldest first, unchecked."""
        paths = self.folder.glob("checkpoints/step_*.safetensors")
        found = {
            int(path.stem[5:]): path for path in paths if re.fullmatch(r"step_\d{8,}", path.stem)
        }
        return dict(sorted(found.items()))

    def save(self, step: int, state: Any) -> None:
        """Write the state after `step` (see `pack_state`) and drop all but the last `keep`; an
        OSError drops none.
        """
        if not self.writer:
            return
        if step < (saved := self._check_writable(step)):
            raise ValueError(f"step {step}: this run has already saved step {saved}")
        packed = pack_state(step, state)
        with open(self.folder / "log.jsonl", "ab") as log:
            # a checkpoint must not reach the disk before the lines that it counts on
            os.fsync(log.fileno())
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"step_{step:08d}.safetensors", packed)
        self._saved_step = step
        paths = self.checkpoints()
        # A later step than this one can only be a corrupt checkpoint that load_latest passed over.
        kept = [other for other in paths if other <= step][-self._keep :]
        for other in paths.keys() - kept:
            paths[other].unlink()

    def load_latest(self) -> tuple[int, Any] | None:
        """The (step, state) of the newest valid checkpoint, None without any; cuts the log back to
        it.

        A corrupt checkpoint is passed over with a warning that names it; ValueError when all of
        them are corrupt. The cut drops the lines of later steps (all lines without a checkpoint)
        and damaged ones.
        """
        found, paths = None, self.checkpoints()
        for path in reversed(paths.values()):
            try:
                found = unpack_state(path.read_bytes())
                break
            except ValueError as error:
                warnings.warn(
                    f"{path} is corrupt ({error}): trying the one before it", stacklevel=2
                )
        if paths and found is None:
            raise ValueError(
                f"all checkpoints in {self.folder} are corrupt ({len(paths)}): choose another --out"
            )
        self._saved_step = -1 if found is None else found[0]
        if self.writer and (path := self.folder / "log.jsonl").exists():
            lines = path.read_bytes().splitlines(keepends=True)
            matches = [re.fullmatch(rb'\{"step": (\d+)\b.*\}\n', line) for line in lines]
            kept = [match[0] for match in matches if match and int(match[1]) <= self._saved_step]
            if len(kept) < len(lines):
                write_atomic(path, b"".join(kept))
        return found

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line of strict JSON to log.jsonl; `record["step"]` must be later than the last
        save.

        So the lines of a step come before its checkpoint, and a kill neither loses nor doubles one.
        Tensors and arrays become numbers or lists; NaN and infinities become the strings "NaN",
        "Infinity", "-Infinity".
        """
        if not self.writer:
            return
        step: Any = record.get("step")
        if step <= self._check_writable(step):
            raise ValueError(
                f"step {step}: step {self._saved_step} is already saved; log a step before saving it"
            )
        # The step comes first, where load_latest looks for it.
        line = (
            json.dumps(strict_json({"step": step, **record}, "record"), allow_nan=False).encode()
            + b"\n"
        )
        with FileIO(self.folder / "log.jsonl", "a") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                # on a full disk the first write may take a part, and only the second one fails
                while line:
                    line = line[file.write(line) :]
            except OSError as error:
                file.truncate(end)
                raise OSError(
                    error.errno, f"could not write {file.name} ({error.strerror})"
                ) from error

    def _check_writable(self, step: Any) -> int:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step {step!r}: expected an integer from 0 up")
        if self._lock is None or self._lock.closed:
            raise RuntimeError(f"the run in {self.folder} is closed: resume it to go on")
        if self._saved_step is None:
            raise RuntimeError(f"the run in {self.folder} was resumed: call load_latest() first")
        return self._saved_step


def _refuse_used(folder: Path) -> None:
    # A run that was killed before its options were written has left its lock, and a temporary file
    # perhaps.
    names = [
        path.name
        for path in folder.iterdir()
        if not re.fullmatch(r"lock|\.options\..*tmp", path.name)
    ]
    if names:
        held = ", ".join(sorted(names)[:4])
        raise FileExistsError(
            f"{folder} is not empty ({held}): use --resume or choose another --out"
        )


def _take_lock(path: Path) -> FileIO:
    """Lock a file until it is closed or the process dies in whatever way; RuntimeError names the
    holder.
    """
    file = FileIO(path, "a+")
    try:
        if sys.platform == "win32":
            # far behind the text, which must stay readable
            os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        holder = path.read_text().strip() or "unknown"
        raise RuntimeError(
            f"{path.parent} is in use by process {holder}: end it or choose another --out"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()}".encode())
    # a data loader's worker that outlives a killed run must not go on holding it
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=file.close)
    return file
