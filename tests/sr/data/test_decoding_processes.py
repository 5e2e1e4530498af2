"""Many images are decoded in processes: the same images, whatever becomes of the processes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import put
from PIL import Image

from elasticnet.sr.data import Pair, decoding, decoding_processes, decoding_worker, load_pairs
from elasticnet.sr.data.alignment import LrSettings
from elasticnet.sr.data.decoding_processes import DecodingProcesses, requests

NUM_IMAGES = 40
DAMAGED = "image07"
SMALLER = "image11"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images of two sizes, one of them damaged, which is decoded by two processes."""
    folder = tmp_path / "photos"
    for index in range(NUM_IMAGES):
        put(folder / f"image{index:02}.png", seed=index)
    put(folder / f"{SMALLER}.png", 16, 20)
    (folder / f"{DAMAGED}.png").write_bytes(b"no image")
    monkeypatch.setattr(decoding, "MIN_PAIRS_FOR_PROCESSES", 2)
    monkeypatch.setattr(decoding_processes, "MAX_IMAGES_PER_REQUEST", 3)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 2)
    return folder


@pytest.fixture
def decoded_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that this process decodes, which grow as it goes."""
    names: list[str] = []
    decode_pair = decoding.decode_pair

    def noting(pair: Pair, settings: LrSettings) -> Any:
        names.append(pair.name)
        return decode_pair(pair, settings)

    monkeypatch.setattr(decoding, "decode_pair", noting)
    return names


def check_all_images_of(root: Path) -> None:
    """Load the set, and compare it with its files read one by one."""
    with pytest.warns(UserWarning, match=DAMAGED):
        pairs = load_pairs(root, 2, cache=False, progress=False)
    expected = [f"image{index:02}" for index in range(NUM_IMAGES)]
    expected.remove(DAMAGED)
    assert pairs.names == expected
    assert [name for name, _ in pairs.skipped] == [DAMAGED]
    for index, name in enumerate(pairs.names):
        np.testing.assert_array_equal(pairs.hr(index), np.asarray(Image.open(root / f"{name}.png")))


def test_many_images_are_decoded_in_processes(root: Path, decoded_here: list[str]) -> None:
    check_all_images_of(root)
    assert decoded_here == [DAMAGED]  # by another setting it might be readable here


def test_few_images_are_decoded_in_this_process(
    root: Path, decoded_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MIN_PAIRS_FOR_PROCESSES", NUM_IMAGES + 1)
    check_all_images_of(root)
    assert len(decoded_here) == NUM_IMAGES


def test_lr_images_are_those_of_one_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / f"{DAMAGED}.png").unlink()
    several = load_pairs(root, 2, degradation="DN", cache=False, progress=False)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 1)
    one = load_pairs(root, 2, degradation="DN", cache=False, progress=False)
    np.testing.assert_array_equal(several.lr_pixels, one.lr_pixels)
    np.testing.assert_array_equal(several.lr_sizes, one.lr_sizes)


def test_a_limit_of_this_process_holds_for_what_the_others_refuse(
    root: Path, decoded_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes find an image too large that this one is allowed to read."""
    monkeypatch.setattr(
        decoding_processes,
        "START",
        "import PIL.Image; PIL.Image.MAX_IMAGE_PIXELS = 200; " + decoding_processes.START,
    )
    check_all_images_of(root)
    assert len(decoded_here) == NUM_IMAGES - 1  # all but the smaller one


def test_processes_that_die_in_the_middle_do_no_harm(
    root: Path, decoded_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = decoding_processes.answer_of
    num_requests = 0

    def killing(process: subprocess.Popen[bytes], pairs: Sequence[Pair]) -> Any:
        nonlocal num_requests
        num_requests += 1
        if num_requests == 4:
            process.kill()
            process.wait()
        return answer(process, pairs)

    monkeypatch.setattr(decoding_processes, "answer_of", killing)
    check_all_images_of(root)
    assert len(decoded_here) > 1


def test_processes_that_cannot_start_do_no_harm(
    root: Path, decoded_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_processes, "WORKER_MODULE", "no_such_module")
    check_all_images_of(root)
    assert len(decoded_here) == NUM_IMAGES


@pytest.mark.parametrize("program", ["", "/no/such/python"])
def test_without_a_python_program_images_are_decoded_here(
    root: Path, decoded_here: list[str], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    check_all_images_of(root)
    assert len(decoded_here) == NUM_IMAGES


def test_the_processes_end_with_the_block() -> None:
    with DecodingProcesses(2, LrSettings(scale=2)) as processes:
        started = list(processes.started)
        assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_ctrl_c_does_not_reach_processes_that_still_import(tmp_path: Path) -> None:
    """It would end them with a traceback each; this process ends them."""
    (tmp_path / "importing.py").write_text(
        "import signal\n"
        "is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
        "def run(): print(is_ignored)\n"
    )
    words = decoding_processes.START.format(module="importing")
    command = [sys.executable, "-c", words, str(tmp_path), *sys.path]
    assert subprocess.check_output(command, text=True).strip() == "True"


def test_a_process_that_nobody_asks_ends() -> None:
    answers = io.BytesIO()
    decoding_worker.main(io.BytesIO(), answers)
    assert answers.getvalue() == b""


def test_requests_are_of_many_small_images_or_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_processes, "MAX_IMAGES_PER_REQUEST", 3)
    monkeypatch.setattr(decoding_processes, "MAX_BYTES_PER_REQUEST", 100)
    sizes = [10, 10, 10, 10, 500, 60, 30, 20, 1]
    pairs: list[Pair] = []
    for index, size in enumerate(sizes):
        path = tmp_path / f"{index}.png"
        path.write_bytes(bytes(size))
        pairs.append(Pair(str(index), path, None))
    pairs.append(Pair("gone", tmp_path / "gone.png", None))
    groups = [[pair.name for pair in group] for group in requests(pairs)]
    assert groups == [["0", "1", "2"], ["3"], ["4"], ["5", "6"], ["7", "8", "gone"]]
