"""A run that an older version wrote, with its state in format 1, loads to equal values.

tests/training/old_run is what recipes/asrn_div2k.py of commit 4992ef8 left when it was killed right
after the save of step 3, before last.safetensors:

    --task denoise --preset demo --out old_run --num-blocks 2 --channels 8 --upsampler subpixel
    --batch-size 2 --patch-size 8 --steps 6 --warmup 2 --eval-every 3 --save-every 3 --log-every 1
    --keep 1 --ema 0.9 --clip-norm 0.5 --no-tensorboard --device cpu --seed 7

old_run.sha256 is the table of what that version read from it: a SHA-256 for every value. Weights
after further steps are no test, as processors round differently.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elasticnet.training.run_folder import Run
from elasticnet.training.state import set_random_state

OLD_RUN = Path(__file__).parent / "old_run"
TABLE = OLD_RUN.with_suffix(".sha256")


def values_by_place(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the values at the ends of a state's tree by their places; lists of numbers are one."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from values_by_place(entry, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple) and not all(isinstance(entry, int) for entry in value):
        for index, entry in enumerate(value):
            yield from values_by_place(entry, f"{place}[{index}]")
    else:
        yield place, value


def digest(value: Any) -> str:
    """Return the SHA-256 of a value with its type, shape and layout."""
    if isinstance(value, torch.Tensor):
        text = f"{value.dtype} {tuple(value.shape)} {value.stride()}"
        content = value.contiguous().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        text = f"{value.dtype.str} {value.shape}"
        content = value.tobytes()
    else:
        text = repr(value)
        content = b""
    return hashlib.sha256(text.encode() + b"\n" + content).hexdigest()


def draws() -> dict[str, float]:
    """Return the next numbers of every generator that a state restores."""
    return {
        "python": random.random(),
        "numpy": float(np.random.rand()),  # noqa: NPY002
        "torch": torch.rand((), dtype=torch.float64).item(),
    }


def table_of(run: Run) -> dict[str, str]:
    """Return the SHA-256 of all that a resumed training reads from its folder, by place."""
    latest = run.load_latest()
    assert latest is not None
    step, state = latest
    set_random_state(state["random"][0])
    log = (run.folder / "log.jsonl").read_text(encoding="utf-8")
    read = {
        "options": run.options,
        "log": [json.loads(line) for line in log.splitlines()],
        "step": step,
        "state": state,
        "draws": draws(),
    }
    return {
        place: digest(value)
        for name, part in read.items()
        for place, value in values_by_place(part, name)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "old_run"))


@pytest.fixture(autouse=True)
def generators_put_back() -> Iterator[None]:
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


def test_an_old_run_loads_to_equal_values(folder: Path) -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    expected = {place: digest for digest, place in (line.split("  ", 1) for line in lines)}

    with Run.resume(folder) as run:
        found = table_of(run)

    differing = [place for place in expected if found.get(place) != expected[place]]
    assert differing == []
    assert found.keys() == expected.keys()
    assert (folder / "log.jsonl").read_bytes() == (OLD_RUN / "log.jsonl").read_bytes()
