"""A training run's folder: lock, options, exact state without pickle, JSONL log, random generators; no loop."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

AnyPath = str | os.PathLike[str]
_FORMAT = 1
_DIGEST_MARK = rb"{\"sha256\":\""  # as it stands in the file: JSON inside a JSON string of the safetensors header
_NO_DIGEST = b"0" * 64


def write_atomic(path: AnyPath, data: bytes | bytearray | str) -> None:
    """Write a file so that a kill, a power cut or a full disk leaves the old content or the new, never a part.

    A file that exists keeps its permissions, and a link stays a link: what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path} ({error.strerror}); nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)
    if sys.platform != "win32":  # a rename lasts once its folder is flushed; Windows cannot do that
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_json(path: AnyPath, value: Any) -> None:
    """Write strict JSON atomically, keys sorted; NaN and infinities become "NaN", "Infinity", "-Infinity"."""
    write_atomic(path, json.dumps(_strict(value, "value"), indent=2, sort_keys=True, allow_nan=False) + "\n")


def differing_options(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options that differ as JSON: name -> (stored, given), with "(absent)" where a side lacks the name."""
    old, new = _strict(stored, "stored"), _strict(given, "given")
    pairs = {name: (old.get(name, "(absent)"), new.get(name, "(absent)")) for name in sorted({*old, *new})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed the generators of Python, NumPy (the global one) and torch on every device; each rank gets its own draws."""
    seed = (seed + 0x9E3779B1 * rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def random_state(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """State of the random generators of Python, NumPy (the global one), torch, every CUDA device, and those given."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {name: generator.get_state() for name, generator in (generators or {}).items()},
    }


def set_random_state(state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None) -> None:
    """Put back what `random_state` returned, into generators of the same names; warns when CUDA devices are gone."""
    generators, stored, cuda = generators or {}, state["generators"], state["cuda"]
    if set(generators) != set(stored):
        raise ValueError(f"random generators {sorted(generators)}: the state holds {sorted(stored)}")
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(cuda):
        warnings.warn(f"random state of {len(cuda)} CUDA devices, here are {devices}: draws will differ", stacklevel=2)
    for device, device_state in enumerate(cuda[:devices]):
        torch.cuda.set_rng_state(device_state, device)
    for name, generator in generators.items():
        generator.set_state(stored[name])


def pack_state(step: int, state: Any) -> bytearray:
    """A nested state as the bytes of a safetensors file, exact to the bit, with a SHA-256 over the whole of it.

    It may hold dicts and Counters (string and integer keys), lists, tuples, dense tensors, NumPy arrays and scalars,
    numbers, strings, bools and None; a TypeError names the place of anything else. Subclasses come back as the plain
    type, tensors on the CPU with their strides. The tree is JSON in the metadata, each tensor is named by its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state, "state", tensors)
    # One metadata key only: safetensors orders several at random, and equal states should give equal bytes.
    description = {"sha256": _NO_DIGEST.decode(), "format": _FORMAT, "step": step, "tree": tree}
    metadata = {"run": json.dumps(description, separators=(",", ":"), allow_nan=False)}
    try:
        packed = bytearray(safetensors.torch.save(tensors, metadata))
    except KeyError as error:
        raise TypeError(f"a tensor of {error.args[0]}: safetensors cannot hold this type; convert it") from error
    start = packed.index(_DIGEST_MARK) + len(_DIGEST_MARK)
    packed[start : start + 64] = hashlib.sha256(packed).hexdigest().encode()
    return packed


def unpack_state(data: bytes) -> tuple[int, Any]:
    """The (step, state) that `pack_state` was given; ValueError when any bit has changed or a part is missing."""
    start = data.find(_DIGEST_MARK) + len(_DIGEST_MARK)
    digest = hashlib.sha256(data[:start] + _NO_DIGEST)
    digest.update(memoryview(data)[start + 64 :])
    if data[start : start + 64] != digest.hexdigest().encode():
        raise ValueError("its checksum does not match its content")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    description = json.loads(header["__metadata__"]["run"])
    if description["format"] != _FORMAT:
        raise RuntimeError(f"checkpoint format {description['format']}: this version reads format {_FORMAT}")
    return description["step"], _decode(description["tree"], safetensors.torch.load(data))


class Run(AbstractContextManager["Run"]):
    """A run folder held by one writing process; open it with `create` or `resume`, best in a with statement.

    `writer=False` takes no lock and changes nothing on disk: `save` and `log` do nothing, so that one loop serves every
    rank of a distributed run. `options` are as options.json holds them (tuples are lists). `keep` counts checkpoints.
    """

    def __init__(self, folder: AnyPath, options: dict[str, Any], *, keep: int, writer: bool) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep={keep!r}: expected the number of checkpoints to keep, from 1 up")
        self.folder, self.options, self.writer, self._keep = Path(folder), options, writer, keep
        self._saved_step: int | None = -1  # None: resumed, and load_latest is still to be called
        self._lock = _take_lock(self.folder / "lock") if writer else None
        for left_by_a_kill in self.folder.rglob(".*.[0-9]*.tmp") if writer else ():
            left_by_a_kill.unlink()

    @classmethod
    def create(cls, folder: AnyPath, options: Mapping[str, Any], *, keep: int = 3, writer: bool = True) -> Run:
        """Start a run in a new or empty folder and write options.json; a folder in use is a FileExistsError."""
        folder, plain = Path(folder), json.loads(json.dumps(_strict(options, "options")))
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
        """Open an existing run with its stored options; call `load_latest` before `log` and `save`."""
        path = Path(folder) / "options.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no run (no options.json): start it without --resume")
        try:
            options = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): repair it or choose another --out") from error
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
        found = {int(path.stem[5:]): path for path in paths if re.fullmatch(r"step_\d{8,}", path.stem)}
        return dict(sorted(found.items()))

    def save(self, step: int, state: Any) -> None:
        """Write the state after `step` (see `pack_state`) and drop all but the last `keep`; an OSError drops none."""
        if not self.writer:
            return
        if step < (saved := self._check_writable(step)):
            raise ValueError(f"step {step}: this run has already saved step {saved}")
        packed = pack_state(step, state)
        with open(self.folder / "log.jsonl", "ab") as log:
            os.fsync(log.fileno())  # a checkpoint must not reach the disk before the lines that it counts on
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
        """The (step, state) of the newest valid checkpoint, None without any; cuts the log back to it.

        A corrupt checkpoint is passed over with a warning that names it; ValueError when all of them are corrupt.
        The cut drops the lines of later steps (all lines without a checkpoint) and damaged ones.
        """
        found, paths = None, self.checkpoints()
        for path in reversed(paths.values()):
            try:
                found = unpack_state(path.read_bytes())
                break
            except ValueError as error:
                warnings.warn(f"{path} is corrupt ({error}): trying the one before it", stacklevel=2)
        if paths and found is None:
            raise ValueError(f"all checkpoints in {self.folder} are corrupt ({len(paths)}): choose another --out")
        self._saved_step = -1 if found is None else found[0]
        if self.writer and (path := self.folder / "log.jsonl").exists():
            lines = path.read_bytes().splitlines(keepends=True)
            matches = [re.fullmatch(rb'\{"step": (\d+)\b.*\}\n', line) for line in lines]
            kept = [match[0] for match in matches if match and int(match[1]) <= self._saved_step]
            if len(kept) < len(lines):
                write_atomic(path, b"".join(kept))
        return found

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line of strict JSON to log.jsonl; `record["step"]` must be later than the last save.

        So the lines of a step come before its checkpoint, and a kill neither loses nor doubles one. Tensors and arrays
        become numbers or lists; NaN and infinities become the strings "NaN", "Infinity", "-Infinity".
        """
        if not self.writer:
            return
        step: Any = record.get("step")
        if step <= self._check_writable(step):
            raise ValueError(f"step {step}: step {self._saved_step} is already saved; log a step before saving it")
        # The step comes first, where load_latest looks for it.
        line = json.dumps(_strict({"step": step, **record}, "record"), allow_nan=False).encode() + b"\n"
        with FileIO(self.folder / "log.jsonl", "a") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while line:  # on a full disk the first write may take a part, and only the second one fails
                    line = line[file.write(line) :]
            except OSError as error:
                file.truncate(end)
                raise OSError(error.errno, f"could not write {file.name} ({error.strerror})") from error

    def _check_writable(self, step: Any) -> int:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step {step!r}: expected an integer from 0 up")
        if self._lock is None or self._lock.closed:
            raise RuntimeError(f"the run in {self.folder} is closed: resume it to go on")
        if self._saved_step is None:
            raise RuntimeError(f"the run in {self.folder} was resumed: call load_latest() first")
        return self._saved_step


def _refuse_used(folder: Path) -> None:
    # A run that was killed before its options were written has left its lock, and a temporary file perhaps.
    names = [path.name for path in folder.iterdir() if not re.fullmatch(r"lock|\.options\..*tmp", path.name)]
    if names:
        held = ", ".join(sorted(names)[:4])
        raise FileExistsError(f"{folder} is not empty ({held}): use --resume or choose another --out")


def _take_lock(path: Path) -> FileIO:
    """Lock a file until it is closed or the process dies in whatever way; RuntimeError names the holder."""
    file = FileIO(path, "a+")
    try:
        if sys.platform == "win32":
            os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)  # far behind the text, which must stay readable
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        holder = path.read_text().strip() or "unknown"
        raise RuntimeError(f"{path.parent} is in use by process {holder}: end it or choose another --out") from error
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()}".encode())
    if hasattr(os, "register_at_fork"):  # a data loader's worker that outlives a killed run must not go on holding it
        os.register_at_fork(after_in_child=file.close)
    return file


def _strict(value: Any, place: str) -> Any:
    """The value as strict JSON can hold it."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_strict(entry, f"{place}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {str(key): _strict(entry, f"{place}[{key!a}]") for key, entry in value.items()}
    raise TypeError(f"{place}: JSON cannot hold the {type(value).__name__} {value!r:.100}")


def _encode(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as a JSON tree; its tensors and the bytes of its arrays go into `tensors`, named by their place."""
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufcSUmM":
        array = np.array(value, order="C")
        tensors[place] = torch.from_numpy(array.reshape(-1).view(np.uint8))
        shape = None if isinstance(value, np.generic) else array.shape
        return {"array": place, "dtype": array.dtype.str, "shape": shape}
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        copy = value.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
        tensors[place] = copy.contiguous()
        return {"tensor": place, "stride": copy.stride()}  # fused optimisers want moments laid out like the weights
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        entries = [_encode(entry, f"{place}[{index}]", tensors) for index, entry in enumerate(value)]
        return entries if isinstance(value, list) else {"tuple": entries}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        pairs = [(key, _encode(entry, f"{place}[{key!a}]", tensors)) for key, entry in value.items()]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise TypeError(f"{place}: cannot save the {type(value).__name__} {value!r:.100}")


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    match node:
        case list():
            return [_decode(entry, tensors) for entry in node]
        case {"tuple": entries}:
            return tuple(_decode(entry, tensors) for entry in entries)
        case {"dict": pairs}:
            return {key: _decode(entry, tensors) for key, entry in pairs}
        case {"counter": pairs}:
            return Counter({key: _decode(entry, tensors) for key, entry in pairs})
        case {"float": text}:
            return float(text)
        case {"tensor": place, "stride": stride}:
            return tensors[place].new_empty_strided(tensors[place].shape, stride).copy_(tensors[place])
        case {"array": place, "dtype": dtype, "shape": shape}:
            array = tensors[place].numpy().view(dtype)
            return array[0] if shape is None else array.reshape(shape)
    return node
