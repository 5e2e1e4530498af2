"""The upscale command on small images: several at once, on a core each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elasticnet import save
from elasticnet.cli import main, upscale_run
from elasticnet.cli.upscale_workers import OneCoreWorkers
from elasticnet.sr import asrn
from elasticnet.sr.inference.tile_layout import is_small
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.photo import read_photo

NUM_THREADS = 3
NUM_IMAGES = 12
SIDE_OF_LARGE = 150  # pixels; more than what `is_small` takes of this net

torch.manual_seed(0)
NET = asrn(2, num_blocks=2, channels=8).eval()


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    yield
    torch.set_num_threads(before)


def image(number: int) -> np.ndarray:
    """A small image; each number has another width."""
    return np.random.default_rng(number).integers(0, 256, (12, 10 + number, 3), dtype=np.uint8)


def name_of(number: int) -> str:
    return f"{number:02d}.png"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with a network and small images in the folder `in`."""
    (tmp_path / "in").mkdir()
    for number in range(NUM_IMAGES):
        Image.fromarray(image(number)).save(tmp_path / "in" / name_of(number))
    save(NET, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def upscale(*arguments: str) -> int:
    return main(["upscale", "in", "-o", "out", "--weights", "net.safetensors", *arguments])


@pytest.fixture
def threads_of(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, int]]:
    """By width of an image: the thread that enlarged it, and how many threads PyTorch had there."""
    found: dict[int, tuple[str, int]] = {}
    upscale_photo = upscale_run.upscale_photo

    def noting(photo: Any, *arguments: Any, **keywords: Any) -> Any:
        found[photo.size[1]] = (threading.current_thread().name, torch.get_num_threads())
        return upscale_photo(photo, *arguments, **keywords)

    monkeypatch.setattr(upscale_run, "upscale_photo", noting)
    return found


# --- the command


def test_small_images_are_those_of_one_after_another(folder: Path) -> None:
    assert upscale() == 0
    plan = plan_upscale(NET)
    torch.set_num_threads(1)
    for number in range(NUM_IMAGES):
        pixels = read_photo(folder / "out" / name_of(number)).pixels
        np.testing.assert_array_equal(pixels, upscale_array(image(number), plan))


def test_small_images_run_side_by_side_with_one_thread_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads_of: dict[int, tuple[str, int]]
) -> None:
    """The first images wait for each other: one after another they would never end."""
    all_run = threading.Barrier(NUM_THREADS)
    noting = upscale_run.upscale_photo

    def waiting(photo: Any, *arguments: Any, **keywords: Any) -> Any:
        if photo.size[1] < 10 + NUM_THREADS:
            all_run.wait(timeout=60)
        return noting(photo, *arguments, **keywords)

    monkeypatch.setattr(upscale_run, "upscale_photo", waiting)
    assert upscale() == 0
    assert {threads for _, threads in threads_of.values()} == {1}
    assert torch.get_num_threads() == NUM_THREADS


def test_a_large_image_among_small_ones_has_all_cores(
    folder: Path, threads_of: dict[int, tuple[str, int]]
) -> None:
    large = np.zeros((SIDE_OF_LARGE, SIDE_OF_LARGE, 3), np.uint8)
    assert not is_small(plan_upscale(NET), large.shape[:2])
    Image.fromarray(large).save(folder / "in" / "05a.png")
    assert upscale() == 0
    assert threads_of.pop(SIDE_OF_LARGE) == ("MainThread", NUM_THREADS)
    assert {threads for _, threads in threads_of.values()} == {1}
    assert len(list((folder / "out").iterdir())) == NUM_IMAGES + 1


def test_lines_come_in_the_order_of_the_images_and_name_what_failed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in" / name_of(3)).write_bytes(b"no image")
    assert upscale() == 1
    lines = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    expected = [f"out/{name_of(number)}" for number in range(NUM_IMAGES)]
    expected[3] = "elasticnet"  # the line of the image that failed
    assert [line for line in lines if line in expected][:NUM_IMAGES] == expected
    assert len(list((folder / "out").iterdir())) == NUM_IMAGES - 1


@pytest.mark.parametrize("fails_at", [0, 4, NUM_IMAGES - 1])
def test_ctrl_c_leaves_whole_files_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    upscale_photo = upscale_run.upscale_photo

    def interrupted(photo: Any, *arguments: Any, **keywords: Any) -> Any:
        if photo.size[1] == 10 + fails_at:
            raise KeyboardInterrupt
        return upscale_photo(photo, *arguments, **keywords)

    monkeypatch.setattr(upscale_run, "upscale_photo", interrupted)
    assert upscale() == 130
    found = sorted(path.name for path in (folder / "out").iterdir())
    assert set(found) >= {name_of(number) for number in range(fails_at)}
    assert name_of(fails_at) not in found
    for name in found:  # whole ones: no temporary files either
        number = int(name.removesuffix(".png"))
        assert read_photo(folder / "out" / name).size == (24, 2 * (10 + number))


@pytest.mark.parametrize("num_threads", [1, NUM_THREADS])
def test_ctrl_c_just_after_an_image_was_handed_over_leaves_no_half_written_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    has_returned = threading.Event()
    write_photo = upscale_run.write_photo

    class Interrupted(deque[Any]):
        def append(self, each: Any) -> None:
            raise KeyboardInterrupt

    def slow(*arguments: Any, **keywords: Any) -> Any:
        has_returned.wait(timeout=1)
        return write_photo(*arguments, **keywords)

    monkeypatch.setattr(upscale_run, "deque", Interrupted)
    monkeypatch.setattr(upscale_run, "write_photo", slow)
    status = upscale()
    found = [path.name for path in folder.glob("out/*")] + [
        path.name for path in folder.glob("out/.*")
    ]
    has_returned.set()
    assert status == 130
    assert found in ([], [name_of(0)])


@pytest.mark.parametrize("budget", [("--max-ms", "100000"), ("--max-memory", "100000")])
def test_images_within_a_budget_run_as_it_was_measured(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads_of: dict[int, tuple[str, int]],
    budget: tuple[str, str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert upscale(*budget) == 0
    assert set(threads_of.values()) == {("MainThread", NUM_THREADS)}


# --- the workers


def test_what_has_not_begun_is_cancelled_at_the_end_and_the_rest_ends() -> None:
    is_running, may_end = threading.Event(), threading.Event()

    def run() -> str:
        is_running.set()
        assert may_end.wait(timeout=60)
        return "done"

    with OneCoreWorkers(1) as workers:
        first = workers.submit(run)
        second = workers.submit(run)
        assert is_running.wait(timeout=60)
        second.add_done_callback(lambda _: may_end.set())
    assert first.result() == "done"
    assert second.cancelled()


def test_images_are_small_by_the_memory_of_their_pass() -> None:
    plan = plan_upscale(asrn(4, num_blocks=5))
    assert is_small(plan, (50, 50))
    assert not is_small(plan, (60, 60))


def test_workers_compute_with_one_thread_and_all_others_as_before() -> None:
    with OneCoreWorkers(2) as workers:
        assert workers.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == NUM_THREADS
        later = upscale_run.in_background(torch.get_num_threads)
        assert later.result() == NUM_THREADS
        assert workers.submit(torch.get_num_threads).result() == 1


def test_workers_that_cannot_all_begin_do_not_keep_the_program_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    begun: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with (
        pytest.raises(RuntimeError, match="can't start new thread"),
        OneCoreWorkers(NUM_THREADS) as workers,
    ):
        workers.submit(torch.get_num_threads)
    assert [thread.is_alive() for thread in begun] == [False]
