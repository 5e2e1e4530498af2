"""`recipes/upscale_ray.py` on a Ray of two workers: all results, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr import Upscaler

pytest.importorskip("ray.data", reason='Ray is not installed: pip install "elastic-depth[ray]"')

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "upscale_ray.py"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}
NUM_PHOTOS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(NUM_PHOTOS):
        pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def start(photos: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(RECIPE), str(photos), "--out", str(out), "--scale", "2"]
    return subprocess.Popen([*words, *options], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    return said


def workers_below(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes of Ray's workers that hold a network, by what they call themselves."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(b"ray::") and b"PhotoWorker" in command:
            found.append(int(entry.name))
    return found


def assert_all_enlarged(photos: Path, out: Path) -> None:
    upscaler = Upscaler(scale=2)
    for path in sorted(photos.iterdir()):
        large = np.asarray(Image.open(out / path.name))
        np.testing.assert_array_equal(large, np.asarray(upscaler(Image.open(path))))
    assert sorted(path.name for path in out.iterdir()) == sorted(os.listdir(photos))


@pytest.mark.slow
def test_a_worker_that_dies_loses_nothing_and_nothing_is_done_twice(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "large"
    process = start(photos, out, "--workers", "2", "--batch", "2")
    written: dict[str, Any] = {}
    while not written and process.poll() is None:
        if out.exists():
            written = {path.name: path.stat() for path in out.glob("[!.]*")}
        time.sleep(0.01)
    os.kill(workers_below(process)[0], signal.SIGKILL)

    said = finish(process)

    assert process.returncode == 0, said
    assert_all_enlarged(photos, out)
    for name, before in written.items():
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    counts = [int(words.split()[-1]) for words in said.splitlines()[-1].split(" written")[:1]]
    assert counts[0] <= NUM_PHOTOS


@pytest.mark.slow
def test_a_second_run_does_what_is_missing_and_lists_what_cannot_be_read(
    photos: Path, tmp_path: Path
) -> None:
    out, broken = tmp_path / "large", tmp_path / "broken"
    broken.mkdir()
    for path in photos.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "torn.png").write_bytes(next(photos.iterdir()).read_bytes()[:60])
    first = start(broken, out)
    said = finish(first)
    assert first.returncode == 1
    assert f"{NUM_PHOTOS} written, 0 were there, 1 failed" in said
    (failure,) = (json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines())
    assert failure["source"] == str(broken / "torn.png")
    assert "torn.png" in failure["reason"]

    (broken / "torn.png").unlink()
    missing = sorted(os.listdir(photos))[3]
    (out / missing).unlink()
    second = start(broken, out)
    said = finish(second)
    assert second.returncode == 0
    assert "1 written, 0 were there, 0 failed" in said
    assert_all_enlarged(photos, out)
