"""The upscale command: which files, which depth, what is refused, what is left behind after a
failure.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import warm_python
from elasticnet import ElasticWrapper, registry, save
from elasticnet.card import measure, store_card
from elasticnet.cli import main, upscale_run
from elasticnet.cli.upscale_jobs import plan_jobs
from elasticnet.sr import asrn
from elasticnet.sr.inference import depth_choice
from elasticnet.sr.inference.depth_choice import DepthChooser
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.photo import read_photo
from elasticnet.sr.photo import upscale as photo_upscale

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
torch.manual_seed(0)
NET = asrn(2, num_blocks=3, channels=8).eval()


def enlarge(net: ElasticWrapper, image: np.ndarray, **options: Any) -> np.ndarray:
    """`upscale_array` with a plan of its own; `out` and `progress` go to the loop."""
    for_the_loop = {name: options.pop(name) for name in ("out", "progress") if name in options}
    return upscale_array(image, plan_upscale(net, **options), **for_the_loop)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: a tiny network, three images in `in`, and something that is none."""
    save(NET, tmp_path / "net.safetensors")
    (tmp_path / "in").mkdir()
    for index, name in enumerate(("a.png", "b.jpg", "c.gif")):
        Image.fromarray(RGB[index:]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(tmp_path.name + "-cache")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def upscale(*arguments: str) -> int:
    return main(["upscale", *arguments, "--weights", "net.safetensors"])


def files(folder: Path) -> list[str]:
    """All files by their path, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refusal with status 2; nothing is written, nothing printed."""
    before = files(Path())
    assert upscale(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("elasticnet: ")
    assert captured.err.count("\n") == 1
    assert files(Path()) == before
    return captured.err


def without_times(lines: str) -> str:
    """The command's lines without what reading, the network and writing took."""
    return re.sub(r"; \d+ ms reading, \d+ network, \d+ writing", "", lines)


# --- what is written


@pytest.mark.parametrize("depth", [None, 1, 2])
def test_one_file(folder: Path, capsys: pytest.CaptureFixture[str], depth: int | None) -> None:
    assert upscale("in/a.png", "-o", "out.png", *(["--depth", str(depth)] if depth else [])) == 0
    np.testing.assert_array_equal(read_photo("out.png").pixels, enlarge(NET, RGB, depth=depth))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert without_times(captured.err) == f"out.png: 34x24, depth {depth or 3}\n"
    assert not [name for name in files(folder) if name.endswith(".tmp")]


def test_options_reach_the_network(folder: Path) -> None:
    assert (
        upscale(
            "in/a.png",
            "-o",
            "out.png",
            "--self-ensemble",
            "--tile",
            "16",
            "--scale",
            "2",
            "--quiet",
        )
        == 0
    )
    expected = enlarge(NET, RGB, self_ensemble=True, tile=16)
    np.testing.assert_array_equal(read_photo("out.png").pixels, expected)
    assert upscale("in/a.png", "-o", "whole.png", "--tile", "whole", "--quiet") == 0
    np.testing.assert_array_equal(read_photo("whole.png").pixels, enlarge(NET, RGB, tile=None))


@pytest.mark.parametrize(
    "inputs", [["in"], ["in/*"], ["in/a.png", "in/b.jpg", "in/c.gif"], ["in", "in/a.*"]]
)
def test_several_images_go_into_a_folder(
    folder: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if inputs == ["in/*"]:
        (folder / "in" / "notes.txt").unlink()  # a glob takes all that it names
    assert upscale(*inputs, "-o", "new/out", "--quiet") == 0
    assert files(folder / "new") == ["out/a.png", "out/b.jpg", "out/c.png"]  # GIF is read only
    assert read_photo("new/out/c.png").size == (20, 34)
    assert capsys.readouterr().err == ""


def test_one_format_for_a_folder(folder: Path) -> None:
    assert upscale("in", "-o", "out", "--format", "webp", "--lossless", "--quiet") == 0
    assert files(folder / "out") == ["a.webp", "b.webp", "c.webp"]
    np.testing.assert_array_equal(read_photo("out/a.webp").pixels, enlarge(NET, RGB))
    assert upscale("in", "-o", "out", "--format", "jpg", "--quality", "70", "--quiet") == 0


def test_a_bad_file_among_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in" / "aa.png").write_bytes((folder / "in" / "a.png").read_bytes()[:150])
    (folder / "in" / "z.png").write_bytes(b"")
    assert upscale("in", "-o", "out") == 1
    assert files(folder / "out") == ["a.png", "b.jpg", "c.png"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3] == "elasticnet: 2 of 5 images could not be upscaled:"
    assert lines[-2].startswith("  cannot read image in/aa.png: ")
    assert lines[-1] == "  cannot read image in/z.png: it is empty"
    assert upscale("in", "-o", "out2", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_pipes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def feed(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    feed((folder / "in" / "a.png").read_bytes())
    assert upscale("-", "-o", "-") == 0
    captured = capfdbinary.readouterr()
    np.testing.assert_array_equal(read_photo(io.BytesIO(captured.out)).pixels, enlarge(NET, RGB))
    line = captured.err.decode()
    assert without_times(line) == "standard output: 34x24, depth 3\n"
    feed((folder / "in" / "c.gif").read_bytes())
    assert upscale("-", "-o", "-", "--quiet") == 0
    assert read_photo(io.BytesIO(capfdbinary.readouterr().out)).format == "PNG"
    assert upscale("in/b.jpg", "-o", "-", "--quiet") == 0
    assert read_photo(io.BytesIO(capfdbinary.readouterr().out)).format == "JPEG"
    assert upscale("in/b.jpg", "-o", "-", "--format", "tif", "--quiet") == 0
    assert read_photo(io.BytesIO(capfdbinary.readouterr().out)).format == "TIFF"
    feed(b"")
    assert upscale("-", "-o", "out.png") == 2
    captured = capfdbinary.readouterr()
    assert (captured.out, captured.err) == (
        b"",
        b"elasticnet: cannot read image standard input: it is empty\n",
    )
    assert not (folder / "out.png").exists()


def test_notes_name_their_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("CMYK", (4, 4)).save("cmyk.jpg")
    assert upscale("cmyk.jpg", "-o", "out.png") == 0
    assert capsys.readouterr().err.startswith(
        "cmyk.jpg: CMYK without a colour profile was converted"
    )


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "-o", "out.png"], "absent.png: no such file or folder"),
        (["in/*.bmp", "-o", "out"], "in/*.bmp: no file matches"),
        (["empty", "-o", "out"], "empty: a folder without images"),
        (["in/a.png", "-o", "in"], "in/a.png is an input too, and would be overwritten"),
        (
            ["-", "-o", "in"],
            "-o in: a folder as the output of one image; name the file, such as in/image.png",
        ),
        (["-", "-o", "new/"], "-o new/: a folder as the output of one image; name the file"),
        (["broken.png", "-o", "out.png"], "broken.png: a broken link to nowhere.png"),
        (["in/a.png", "-o", "pipe.png", "--force"], "pipe.png: no file that can be replaced"),
        (["in/" + 251 * "n" + ".gif", "-o", "out", "--format", "tiff"], "a name of 256 bytes"),
        (
            ["in", "-o", "net.safetensors"],
            "-o net.safetensors: one file for several images; name a folder",
        ),
        (["in", "-o", "out.png"], "-o out.png: one file for several images; name a folder"),
        (["in", "-o", "-"], "-o -: standard output takes one image"),
        (["-", "in", "-o", "out"], "- beside 1 more: standard input is upscaled on its own"),
        (["in", "-o", "in"], "is an input too, and would be overwritten: choose another -o"),
        (
            ["in/a.png", "-o", "in/../in/a.png", "--force"],
            "is an input too, and would be overwritten",
        ),
        (
            ["in/a.png", "-o", "hard.png", "--force"],
            "hard.png is an input too, and would be overwritten",
        ),
        (
            ["in/a.png", "-o", "there.png"],
            "there.png exists: use --force to overwrite, --skip-existing to go on with the others",
        ),
        (["in", "-o", "some"], "some/a.png exists (and 1 more): use --force"),
        (
            ["in/a.png", "-o", "out.bmp"],
            "out.bmp: no format to write has the extension '.bmp': .png, .jpg",
        ),
        (["in/a.png", "-o", "out.png", "--format", "jpg"], "--format jpg: the output is out.png"),
        (
            ["in/a.png", "-o", "absent/out.png"],
            "absent/out.png: there is no folder absent; make it first",
        ),
        (
            ["in/a.png", "twin/a.png", "-o", "out"],
            "in/a.png and twin/a.png would both become out/a.png",
        ),
        (
            ["in", "-o", "net.safetensors/out"],
            "net.safetensors/out: cannot make this folder (Not a directory)",
        ),
        (
            ["in/a.png", "-o", "out.png", "--depth", "4"],
            "depth 4: this net has taps at depths 1, 2, 3",
        ),
        (
            ["in/a.png", "-o", "out.png", "--scale", "3"],
            "--scale 3: net.safetensors enlarges 2 times",
        ),
        (
            ["in/a.png", "-o", "out.png", "--depth", "1", "--max-ms", "5"],
            "--depth 1 beside a budget",
        ),
        (
            ["in/a.png", "-o", "out.png", "--quality", "80"],
            "--quality 80: no output is JPEG or lossy WebP",
        ),
        (
            ["in/a.png", "-o", "out.webp", "--quality", "80", "--lossless"],
            "--quality 80: --lossless has none; leave one of them out",
        ),
        (["in/a.png", "-o", "out.jpg", "--lossless"], "--lossless: no output is WebP"),
        (
            ["in/a.png", "-o", "out.png", "--max-pixels", "203"],
            "204 pixels are more than the limit of 203; --max-pix",
        ),
        (["in/a.png", "-o", "out.png", "--device", "nothing"], "--device nothing: "),
        (
            ["in/notes.txt", "-o", "out.png"],
            "cannot read image in/notes.txt: not a PNG, JPEG, WebP",
        ),
        (
            ["clear.png", "-o", "out.jpg"],
            "clear.png: it has transparency, which JPEG cannot hold: write .png",
        ),
        (
            ["deep.png", "-o", "out.webp"],
            "deep.png: it has 16 bits per channel and WEBP holds 8: write .png or .tif",
        ),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "twin").mkdir()
    (folder / "some").mkdir()
    for name in ("there.png", "twin/a.png", "some/a.png", "some/b.jpg"):
        Image.fromarray(RGB).save(name)
    os.link("in/a.png", "hard.png")
    os.symlink("nowhere.png", "broken.png")
    os.mkfifo("pipe.png")
    if "tiff" in arguments:
        (folder / "in" / (251 * "n" + ".gif")).write_bytes(b"")
        (folder / "out").mkdir()
    Image.fromarray(np.dstack([RGB, RGB[..., 0]])).save("clear.png")
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save("deep.png")
    assert message in refused(capsys, *arguments)


def test_refusals_of_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["--scale", "7"], "scale 7: "),
        (
            [],
            "no --scale: give it (weights are packaged for 2, 3, 4), --to WxH, or the --weights of",
        ),
        (["--weights", "absent"], "absent"),
        (["--weights", "in/a.png"], "in/a.png: "),
    ]:
        assert main(["upscale", "in/a.png", "-o", "out.png", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-ms", "0"),
        ("--max-ms", "nan"),
        ("--max-ms", "soon"),
        ("--max-memory", "-3"),
        ("--tile", "tall"),
        ("--tile", "0"),
        ("--quality", "101"),
        ("--format", "bmp"),
        ("--max-pixels", "many"),
    ],
)
def test_values_out_of_range_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        upscale("in/a.png", "-o", "out.png", option, value)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert option in last
    assert value in last


def test_help_and_wrong_arguments_load_no_torch() -> None:
    program = (
        "import sys; from elasticnet.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for arguments, status in [(["--help"], 0), (["a.png", "-o", "b.png", "--tile", "tall"], 2)]:
        run = subprocess.run(
            [sys.executable, "-c", program, "upscale", *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == status
        assert run.stderr.splitlines()[-1] == "False"


def test_debug_shows_the_traceback(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.png"):
        upscale("absent.png", "-o", "out.png", "--debug")
    with pytest.raises(ValueError, match=r"absent\.png"):
        main(["--debug", "upscale", "absent.png", "-o", "out.png", "--scale", "2"])


def test_force_overwrites(folder: Path) -> None:
    (folder / "out.png").write_bytes(b"old")
    assert upscale("in/a.png", "-o", "out.png", "--force", "--quiet") == 0
    assert read_photo("out.png").size == (24, 34)


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere; Windows has no such modes"
)
def test_a_read_only_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "locked").mkdir(mode=0o500)
    refusal = refused(capsys, "in/a.png", "-o", "locked/out.png")
    assert "locked/out.png: the folder locked cannot be written to" in refusal
    assert "locked: this folder cannot be written to" in refused(capsys, "in", "-o", "locked")


def test_a_target_that_cannot_be_written_stops_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(photo_upscale, "upscale_array", never)
    long = "x" * 250 + ".png"
    Image.fromarray(RGB).save("clear.png")
    # a name that no file system takes, whoever asks
    monkeypatch.setattr(os, "getpid", lambda: "y" * 250)
    assert f"could not write {folder / long}" in refused(capsys, "clear.png", "-o", long)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_a_failure_in_the_middle_leaves_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error("no room")

    monkeypatch.setattr(photo_upscale, "upscale_array", fail)
    before = files(folder)
    assert upscale("in/a.png", "-o", "out.png") == (130 if error is KeyboardInterrupt else 2)
    captured = capsys.readouterr().err
    assert ("interrupted" if error is KeyboardInterrupt else "no room") in captured
    assert captured.count("\n") == 1
    assert files(folder) == before


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_in_a_process_of_its_own(folder: Path) -> None:
    Image.fromarray(np.tile(RGB, (90, 90, 1))).save("large.png")
    before = files(folder)
    command = [
        sys.executable,
        "-m",
        "elasticnet.cli",
        "upscale",
        "large.png",
        "-o",
        "out.png",
        "--tile",
        "16",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    command += ["--weights", "net.safetensors"]
    process = warm_python.Popen(command, stderr=warm_python.PIPE, env=environment)
    deadline = time.monotonic() + 200
    while (
        not list(folder.glob(".*.tmp")) and time.monotonic() < deadline and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert (
        errors
        == b"elasticnet: interrupted; images that were not finished have left nothing behind\n"
    )
    assert files(folder) == before


# --- budgets


class NoCosts:
    """In the place of `PhotoCosts`: reading, converting and writing take a given time each."""

    instability = ""
    each_ms = 0.0

    def reading(self, *arguments: object) -> float:
        return self.each_ms

    def converting(self, *arguments: object) -> float:
        return self.each_ms

    def writing(self, *arguments: object) -> float:
        return self.each_ms


def store_made_card(milliseconds_a_block: float = 100.0) -> None:
    """A card of this machine in the file; the images have half of its pixels."""
    card = measure(NET, torch.rand(1, 3, 24, 17), repeats=1, memory=False)
    rows = [
        {
            **row,
            "latency_ms": milliseconds_a_block * row["depth"],
            "memory_mb": 10.0 * row["depth"],
        }
        for row in card.to_json()["rows"]
    ]
    store_card("net.safetensors", type(card).from_json({**card.to_json(), "rows": rows}))


class Clock:
    """In the place of the `time` module: each look at the clock is `step` seconds later."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def perf_counter(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def made_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes time beside the network, neither by what is expected nor by the clock."""
    monkeypatch.setattr(upscale_run, "PhotoCosts", NoCosts)
    monkeypatch.setattr(upscale_run, "time", Clock(step=0.0))


def line_of(
    capsys: pytest.CaptureFixture[str], *arguments: str, image: str = "in/a.png"
) -> tuple[str, str]:
    """What the command says of one image: its size and depth, and what was expected."""
    assert upscale(image, "-o", "out.png", "--force", *arguments) == 0
    line = without_times(capsys.readouterr().err)
    made, _, expected = line.strip().partition(" (")
    return made, expected.removesuffix(")")


def test_a_dtype_and_a_batch_of_tiles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert upscale("in/a.png", "-o", "exact.png") == 0
    options = ["--dtype", "bfloat16", "--tile", "16", "--tile-batch", "2"]
    assert upscale("in/a.png", "-o", "narrow.png", *options) == 0
    exact = np.asarray(Image.open("exact.png")).astype(int)
    narrow = np.asarray(Image.open("narrow.png")).astype(int)
    assert 0 < np.abs(narrow - exact).max() < 10
    capsys.readouterr()
    assert upscale("in/a.png", "-o", "auto.png", "--dtype", "auto") == 0
    said = "dtype: float32 at depth 3 (what bfloat16 loses is not known, "
    assert said in capsys.readouterr().err
    np.testing.assert_array_equal(np.asarray(Image.open("auto.png")), exact)


def test_a_budget_measured_on_the_spot_is_kept_for_later_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, expected = line_of(capsys, "--max-ms", "1e9")
    assert made == "out.png: 34x24, depth 3"
    assert expected.endswith(" expected, measured now and kept")

    def never(*arguments: object, **keywords: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(depth_choice, "measured_card", never)
    _, expected = line_of(capsys, "--max-ms", "1e9")
    assert expected.endswith(" expected, by the card that is kept of this machine")
    message = "elasticnet: in/a.png: no depth fits latency_ms <= 1e-09 ms: depth "
    assert message in refused(capsys, "in/a.png", "-o", "other.png", "--max-ms", "1e-9")


def test_a_card_that_cannot_be_kept_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    monkeypatch.setattr(upscale_run, "PhotoCosts", NoCosts)
    _, expected = line_of(capsys, "--max-ms", "1e9")
    assert "measured now; another run may choose another depth: " in expected
    assert str(folder / "file") in expected


@pytest.mark.slow
def test_a_memory_budget_measured_on_the_spot(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fresh process for each depth."""
    assert "in/a.png: no depth fits memory_mb <= 0.001 MB" in refused(
        capsys, "in/a.png", "-o", "out.png", "--max-memory", "0.001"
    )
    _, expected = line_of(capsys, "--max-memory", "1000")
    assert expected.endswith("MB expected, by the card that is kept of this machine")


@pytest.mark.usefixtures("made_costs")
@pytest.mark.parametrize(("budget", "depth"), [("160", 3), ("140", 2), ("51", 1)])
def test_a_budget_by_the_card_in_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str], budget: str, depth: int
) -> None:
    store_made_card()
    made, expected = line_of(capsys, "--max-ms", budget)
    assert made == f"out.png: 34x24, depth {depth}"
    assert expected.startswith(f"about {50 * depth} ms and ")
    assert expected.endswith(" MB expected, by the file's card of this machine")


@pytest.mark.usefixtures("made_costs")
def test_memory_symmetries_and_refusals_of_a_budget(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_made_card()
    made, expected = line_of(capsys, "--max-ms", "1300", "--self-ensemble")
    assert (made[-7:], expected[:13]) == ("depth 3", "about 1200 ms")
    made, expected = line_of(capsys, "--max-ms", "160", "--max-memory", "11")
    assert (made[-7:], expected[:24]) == ("depth 2", "about 100 ms and 10 MB e")
    message = (
        "in/a.png: no depth fits latency_ms <= 49 ms: depth 1 comes nearest, "
        "with latency_ms 50 ms, 1 ms too much"
    )
    assert message in refused(capsys, "in/a.png", "-o", "other.png", "--max-ms", "49")


@pytest.mark.usefixtures("made_costs")
def test_reading_converting_and_writing_count_in_a_budget(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_made_card()
    assert line_of(capsys, "--max-ms", "155")[0].endswith("depth 3")
    monkeypatch.setattr(NoCosts, "each_ms", 10.0)
    made, expected = line_of(capsys, "--max-ms", "155")
    assert made.endswith("depth 2")
    assert expected.startswith("about 130 ms and 10 MB expected")


def test_what_was_taken_is_said_and_whether_that_is_over_the_budget(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscale_run, "PhotoCosts", NoCosts)
    store_made_card()
    monkeypatch.setattr(upscale_run, "time", Clock(step=0.06))
    assert upscale("in/a.png", "-o", "out.png", "--max-ms", "181") == 0
    line = capsys.readouterr().err
    assert line.startswith("out.png: 34x24, depth 3; 60 ms reading, 60 network, 60 writing (about")
    monkeypatch.setattr(upscale_run, "time", Clock(step=0.07))
    assert upscale("in/a.png", "-o", "out.png", "--max-ms", "181", "--force") == 0
    assert "70 ms reading, 70 network, 70 writing; over --max-ms 181 (" in capsys.readouterr().err


def test_tiles_count_in_a_budget(folder: Path) -> None:
    card = measure(NET, torch.rand(1, 3, 40, 40), repeats=1, memory=False)
    rows = [{**row, "latency_ms": 1600.0, "memory_mb": 100.0} for row in card.to_json()["rows"]]
    store_card("net.safetensors", type(card).from_json({**card.to_json(), "rows": rows}))
    whole_plan = plan_upscale(NET, tile=None)
    tiled_plan = plan_upscale(NET, tile=20)
    whole = DepthChooser(whole_plan, "net.safetensors", max_ms=1e9)((400, 400))
    tiled = DepthChooser(tiled_plan, "net.safetensors", max_ms=1e9)((400, 400))
    assert whole.cost.startswith("160000 ms ")
    # what the tiles see around them is computed twice
    assert float(tiled.cost.split()[0]) > 1.5 * 160_000


def test_plan_finds_images_whatever_the_case_of_their_extension(folder: Path) -> None:
    Image.fromarray(RGB).save(folder / "in" / "D.JPG", "JPEG")
    assert [str(job.target) for job in plan_jobs(["in"], "out").jobs] == [
        "out/D.JPG",
        "out/a.png",
        "out/b.jpg",
        "out/c.png",
    ]


# --- what is left out, skipped and named


def test_an_interrupted_folder_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "a.png").write_bytes(b"as it was")
    assert upscale("in", "-o", "out", "--skip-existing") == 0
    assert "1 of 3 outputs exist and were left as they are\n" in capsys.readouterr().err
    assert (folder / "out" / "a.png").read_bytes() == b"as it was"
    assert files(folder / "out") == ["a.png", "b.jpg", "c.png"]
    assert upscale("in", "-o", "out", "--skip-existing", "--quality", "80") == 0
    assert "3 of 3 outputs exist" in capsys.readouterr().err


def test_one_image_whose_output_exists_is_skipped(folder: Path) -> None:
    (folder / "out.png").write_bytes(b"as it was")
    assert upscale("in/a.png", "-o", "out.png", "--skip-existing") == 0
    assert (folder / "out.png").read_bytes() == b"as it was"


def test_skipping_and_overwriting_exclude_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        upscale("in", "-o", "out", "--skip-existing", "--force")
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_failure_among_images_of_which_others_are_skipped_is_status_1(folder: Path) -> None:
    (folder / "in" / "z.png").write_bytes(b"")
    assert upscale("in", "-o", "out") == 1
    assert upscale("in", "-o", "out", "--skip-existing") == 1


@pytest.mark.parametrize("given", ["in", "in/*.*"])
def test_a_broken_link_is_named_and_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    (folder / "in" / "notes.txt").unlink()
    os.symlink("/nowhere/x.png", folder / "in" / "x.png")
    os.symlink("y.png", folder / "in" / "y.png")  # in a circle
    assert upscale(given, "-o", "out", "--quiet") == 1
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "elasticnet: 2 of 5 images could not be upscaled:",
        "  in/x.png: a broken link to /nowhere/x.png",
        "  in/y.png: a broken link to y.png",
    ]
    assert len(files(folder / "out")) == 3


def test_a_link_to_an_image_has_an_output_of_its_own(folder: Path) -> None:
    os.symlink("a.png", folder / "in" / "z.png")
    os.symlink("in", folder / "again")
    assert upscale("in", "in/a.png", "again/a.png", "-o", "out", "--quiet") == 0
    assert {"a.png", "z.png"} <= set(files(folder / "out"))


def test_what_a_folder_leaves_out_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in" / "more").mkdir()
    assert upscale("in", "-o", "out") == 0
    first_line = capsys.readouterr().err.splitlines()[0]
    assert first_line == "in: 2 (more/, notes.txt) were left out, as no images"
    for index in range(20):
        (folder / "in" / f"n{index:02}.txt").write_text("")
    assert upscale("in", "-o", "out", "--force") == 0
    first_line = capsys.readouterr().err.splitlines()[0]
    assert "in: 22 (more/, n00.txt, n01.txt, n02.txt, n03.txt, ...) were left out" in first_line


def test_images_that_are_not_read_fail_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert upscale("in", "-o", "out", "--quiet") == 1
    assert "in/a.heic: a HEIC (HEIF) file, which is not read" in capsys.readouterr().err
    assert files(folder / "out") == ["a.png", "b.jpg", "c.png"]


def test_many_failures_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(30):
        (folder / "in" / f"e{index:02}.png").write_bytes(b"")
    assert upscale("in", "-o", "out", "--quiet") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-7] == "elasticnet: 30 of 33 images could not be upscaled:"
    assert lines[-2] == "  cannot read image in/e04.png: it is empty"
    assert lines[-1] == "  and 25 more, named above"


@pytest.mark.parametrize("out", ["there", "there/", "new/", "new.png/"])
def test_one_image_into_a_folder(folder: Path, out: str) -> None:
    (folder / "there").mkdir()
    assert upscale("in/c.gif", "-o", out) == 0
    assert files(folder / out) == ["c.png"]


def test_process_substitution(folder: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, (folder / "in" / "a.png").read_bytes())
    os.close(write_end)
    assert upscale(f"/dev/fd/{read_end}", "-o", "out.png") == 0
    np.testing.assert_array_equal(read_photo("out.png").pixels, enlarge(NET, RGB))


def test_tiles_of_one_pixel_are_not_taken_literally(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale("in/a.png", "-o", "out.png", "--tile", "1") == 0
    assert "--tile 1: tiles of 16, the smallest, are used" in capsys.readouterr().err
    np.testing.assert_array_equal(read_photo("out.png").pixels, enlarge(NET, RGB, tile=16))


@pytest.mark.parametrize("length", [244, 245, 250, 255])
def test_names_of_up_to_255_bytes(folder: Path, length: int) -> None:
    name = "n" * (length % 2) + "ä" * ((length - 4) // 2) + ".png"
    (folder / "in" / name).write_bytes((folder / "in" / "a.png").read_bytes())
    assert len(os.fsencode(name)) == length
    assert upscale(f"in/{name}", "-o", "large/") == 0
    assert files(folder / "large") == [name]


# --- any registered architecture


class Doubling(torch.nn.Module):
    """Enlarges by 2, by repeating pixels, and keeps the largest value that it was given."""

    largest = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Doubling.largest = max(Doubling.largest, x.max().item())
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def doubling_net(num_blocks: int = 2, taps: Sequence[int] | None = None) -> ElasticWrapper:
    """Blocks that change nothing."""
    blocks = [torch.nn.Conv2d(3, 3, 1, bias=False) for _ in range(num_blocks)]
    for block in blocks:
        torch.nn.init.dirac_(block.weight)
    return ElasticWrapper(blocks, Doubling(), taps=taps)


def test_a_network_of_another_architecture_with_its_own_value_range(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = registry.Architecture(doubling_net, extras={"value_range": (0.0, 255.0)})
    monkeypatch.setattr(registry, "_registered", {"doubling": architecture})
    save(registry.build("doubling", num_blocks=3), "doubling.safetensors")
    weights = ["--weights", "doubling.safetensors"]
    assert main(["upscale", "in/a.png", "-o", "out.png", "--depth", "2", "--quiet", *weights]) == 0
    enlarged = RGB.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(read_photo("out.png").pixels, enlarged)
    assert Doubling.largest == RGB.max()
