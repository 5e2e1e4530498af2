"""The cache: complete or absent, rebuilt when a file changes, built once, put where it may be."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr.data import Pair, PairSet, decoding, load_pairs
from elasticnet.sr.data.alignment import AlignedPair, LrSettings
from elasticnet.sr.data.decoded_cache import built_for_once, cache_places, open_or_build
from elasticnet.sr.data.pair_set import Skipped, open_pixels


class Source:
    """A data set of one text file, whose cache is the text in capitals; it counts the builds."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "source"
        self.root.mkdir()
        self.file = self.root / "a.txt"
        self.file.write_text("first")
        self.places = cache_places(self.root)
        self.builds = 0
        self.progress = False

    def write(self, folder: Path) -> dict[str, str]:
        self.builds += 1
        (folder / "capitals.txt").write_text(self.file.read_text().upper())
        return {"kind": "capitals"}

    def open(
        self, write: Callable[[Path], dict[str, str]] | None = None, **description: object
    ) -> str:
        folder, index = open_or_build(
            self.places,
            "test",
            description,
            {"a": self.file},
            write or self.write,
            progress=self.progress,
        )
        assert index["kind"] == "capitals"
        return (folder / "capitals.txt").read_text()

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.places[0].iterdir() if path.is_dir())


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def test_built_once_beside_the_source(source: Source) -> None:
    assert source.open() == "FIRST"
    assert source.open() == "FIRST"
    assert source.builds == 1
    assert source.places[0] == source.root.with_name("source.elasticnet-cache")
    assert len(source.left) == 1
    assert [path.name for path in source.root.iterdir()] == ["a.txt"]  # nothing inside the data set


def test_a_changed_file_is_seen_and_the_old_cache_goes(source: Source) -> None:
    source.open()
    (before,) = source.left
    source.file.write_text("second")
    assert source.open() == "SECOND"
    source.file.write_text("third!")  # the same size, another time
    os.utime(source.file, ns=(0, time.time_ns() + 10**9))
    assert source.open() == "THIRD!"
    assert source.builds == 3
    assert len(source.left) == 1
    assert source.left != [before]


def test_other_descriptions_live_side_by_side(source: Source) -> None:
    source.open(scale=2)
    source.open(scale=3)
    source.open(scale=2)
    assert source.builds == 2
    assert len(source.left) == 2


@pytest.mark.parametrize("damage", ["missing", "cut", "index gone", "index cut", "index foreign"])
def test_a_damaged_cache_is_built_anew(source: Source, damage: str) -> None:
    source.open()
    folder = source.places[0] / source.left[0]
    if damage == "missing":
        (folder / "capitals.txt").unlink()
    elif damage == "cut":
        (folder / "capitals.txt").write_text("FIR")
    elif damage == "index gone":
        (folder / "index.json").unlink()
    elif damage == "index cut":
        (folder / "index.json").write_text((folder / "index.json").read_text()[:10])
    else:
        (folder / "index.json").write_text("[]")
    assert source.open() == "FIRST"
    assert source.builds == 2


def test_a_failing_build_leaves_nothing(source: Source) -> None:
    def fail(folder: Path) -> dict[str, str]:
        (folder / "capitals.txt").write_text("HALF")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.open(fail)
    assert source.left == []
    assert source.open() == "FIRST"


def test_a_full_disk_is_named_with_the_remedy(source: Source) -> None:
    def fill(folder: Path) -> dict[str, str]:
        (folder / "capitals.txt").write_text("HALF")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        OSError, match=r"source\.elasticnet-cache.*No space left on device; make room .*cache_dir"
    ) as raised:
        source.open(fill)
    assert raised.value.errno == errno.ENOSPC
    assert source.left == []


class Waiters(logging.Filter):
    """Counts the messages of those who wait for a build."""

    def __init__(self) -> None:
        super().__init__()
        self.announced = threading.Semaphore(0)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("waiting"):
            self.announced.release()
        return True


def test_threads_that_start_together_build_once(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.progress = True
    waiters = Waiters()
    caplog.handler.addFilter(waiters)

    def build_when_all_others_wait(folder: Path) -> dict[str, str]:
        for _ in range(3):
            assert waiters.announced.acquire(timeout=60)
        return source.write(folder)

    read: list[str] = []

    def open_it() -> None:
        read.append(source.open(build_when_all_others_wait))

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == ["FIRST"] * 4
    assert source.builds == 1
    waiting = f"waiting for another process that builds the image cache {source.places[0]}"
    messages = [text for text in caplog.messages if not text.startswith("decoded images")]
    assert messages == [waiting] * 3


def test_a_place_that_cannot_be_written_is_passed_over(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    source.places = cache_places(source.root)
    source.places[0].write_text("a file is in the way")
    assert source.open() == "FIRST"
    (folder,) = (tmp_path / "user" / "elasticnet").iterdir()
    assert folder.name.startswith("source-")
    source.places = source.places[:1]
    with pytest.raises(
        OSError,
        match=r"can be written, tried: .*source\.elasticnet-cache; choose another one by cache_dir",
    ):
        source.open()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no modes")
def test_a_read_only_parent_is_passed_over_also_by_root(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    closed = tmp_path / "closed"
    closed.mkdir()
    source.root = source.root.rename(closed / "source")
    source.file = source.root / "a.txt"
    source.places = cache_places(source.root)
    closed.chmod(0o555)
    try:
        assert source.open() == "FIRST"
    finally:
        closed.chmod(0o755)
    assert not source.places[0].exists()
    assert source.places[1].is_dir()


def test_a_complete_cache_in_a_read_only_place_is_used(source: Source, tmp_path: Path) -> None:
    source.open()
    source.places = [tmp_path / "elsewhere", *source.places]
    assert source.open() == "FIRST"
    assert source.builds == 1
    assert not (tmp_path / "elsewhere").exists()


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/user/cache")
    beside, user = cache_places(tmp_path / "x" / ".." / "DIV2K")
    assert beside == tmp_path / "DIV2K.elasticnet-cache"
    assert user.parent == Path("/user/cache/elasticnet")
    (chosen,) = cache_places(tmp_path / "DIV2K", "/chosen")
    assert chosen.parent == Path("/chosen")
    # two sets of one name stay apart
    assert cache_places(tmp_path / "other" / "DIV2K", "/chosen") != [chosen]
    assert cache_places(Path("/"))[0].parent == Path("/user/cache/elasticnet")


def test_a_user_without_a_home_has_the_place_beside_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_places(tmp_path / "DIV2K") == [tmp_path / "DIV2K.elasticnet-cache"]


def test_a_build_names_the_place_once(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    source.open()
    source.open()
    (said,) = caplog.messages
    assert said.startswith(f"decoded images are written to {source.places[0]}, ")
    assert "--cache-dir" in said
    assert "--no-cache" in said


def test_built_for_once_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(folder: Path) -> dict[str, str]:
        (folder / "pixels.bin").write_bytes(b"123")
        return {"kind": "numbers"}

    with built_for_once(write) as (folder, index):
        assert index == {"kind": "numbers"}
        assert (folder / "pixels.bin").read_bytes() == b"123"
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(folder: Path) -> dict[str, str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = f"cannot decode images into {tmp_path}.*: No space left on device; .*TMPDIR"
    with pytest.raises(OSError, match=expected), built_for_once(write):
        pass
    assert list(tmp_path.iterdir()) == []


def test_mapped_pixels_are_read_only(tmp_path: Path) -> None:
    (tmp_path / "pixels.bin").write_bytes(bytes(range(12)))
    pixels = open_pixels(tmp_path / "pixels.bin")
    assert isinstance(pixels, np.memmap)
    np.testing.assert_array_equal(pixels, np.arange(12).reshape(4, 3))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 1


# The same with images, and with processes.


def photos(root: Path, count: int = 3) -> Path:
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        image = generator.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"{number}.png")
    return root


def folder_of(pairs: PairSet) -> Path:
    assert isinstance(pairs.hr_pixels, np.memmap)
    return Path(str(pairs.hr_pixels.filename)).parent


def test_images_are_decoded_again_after_a_change_only(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    first = load_pairs(root, 2, progress=False)
    folder = folder_of(first)
    built = folder.stat().st_mtime_ns
    assert folder_of(load_pairs(root, 2, progress=False)) == folder
    # the seed enters only DN
    assert load_pairs(root, 2, seed=5, progress=False).names == first.names
    assert folder.stat().st_mtime_ns == built
    assert len([path for path in folder.parent.iterdir() if path.is_dir()]) == 1

    Image.fromarray(np.full((40, 50, 3), 7, dtype=np.uint8)).save(root / "1.png")
    changed = load_pairs(root, 2, progress=False)
    np.testing.assert_array_equal(changed.hr(1), 7)
    np.testing.assert_array_equal(changed.hr(0), first.hr(0))  # what is mapped stays readable
    (root / "0.png").unlink()
    assert load_pairs(root, 2, progress=False).names == ["1", "2"]
    assert len([path for path in folder.parent.iterdir() if path.is_dir()]) == 1


forked = multiprocessing.get_context(
    "fork" if "fork" in multiprocessing.get_all_start_methods() else None
)
needs_fork = pytest.mark.skipif(
    forked.get_start_method() != "fork", reason="the patched reader needs a fork"
)


def load_in_step(root: Path, barrier: Any, decoded: Any, sums: Any) -> None:
    real = decoding.decode_pair

    def counted(pair: Pair, settings: LrSettings) -> AlignedPair | Skipped:
        decoded.put(pair.name)
        return real(pair, settings)

    decoding.decode_pair = counted
    barrier.wait(60)
    sums.put(int(load_pairs(root, 2, progress=False).hr_pixels.sum(dtype=np.int64)))


@needs_fork
def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 6)
    barrier, decoded, sums = forked.Barrier(3), forked.Queue(), forked.Queue()
    processes = [
        forked.Process(target=load_in_step, args=(root, barrier, decoded, sums)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert len({sums.get(timeout=60) for _ in processes}) == 1
    assert sorted(decoded.get(timeout=60) for _ in range(6)) == list("012345")
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert decoded.empty()


def load_and_hang(root: Path, half_way: Any) -> None:
    real = decoding.decode_pair

    def hanging(pair: Pair, settings: LrSettings) -> AlignedPair | Skipped:
        if pair.name == "2":
            half_way.set()
            threading.Event().wait()  # until this process is killed
        return real(pair, settings)

    decoding.decode_pair = hanging
    load_pairs(root, 2, progress=False)


@needs_fork
def test_a_killed_build_is_cleared_away(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 4)
    half_way = forked.Event()
    process = forked.Process(target=load_and_hang, args=(root, half_way))
    process.start()
    assert half_way.wait(60)
    process.kill()
    process.join()
    place = cache_places(root)[0]
    (leftover,) = (path for path in place.iterdir() if path.is_dir())
    assert leftover.name.endswith(".building")
    # neither waits for the dead process nor takes its half
    pairs = load_pairs(root, 2, progress=False)
    assert pairs.names == ["0", "1", "2", "3"]
    (folder,) = (path for path in place.iterdir() if path.is_dir())
    index = json.loads((folder / "index.json").read_text())
    assert index["files"]["hr.bin"] == sum(pairs.hr(i).size for i in range(4))
