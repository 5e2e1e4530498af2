"""The upscale command: names of results, folders in folders, any size, animations, raw frames."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import warm_python
from elasticnet import save
from elasticnet.cli import main, upscale_run
from elasticnet.cli.upscale_jobs import plan_jobs
from elasticnet.sr import asrn
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.models import pretrained
from elasticnet.sr.photo import read_photo
from elasticnet.sr.photo.animation import read_animation
from elasticnet.sr.resize import imresize

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
torch.manual_seed(0)
NETS = {scale: asrn(scale, num_blocks=2, channels=8).eval() for scale in (2, 4)}


def enlarged(image: np.ndarray, scale: int = 2, depth: int | None = None) -> np.ndarray:
    return upscale_array(image, plan_upscale(NETS[scale], depth=depth))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with packaged nets for 2 and 4 times, and images in folders."""
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    for scale, net in NETS.items():
        save(net, packaged / f"asrn_x{scale}.safetensors")
    monkeypatch.setattr(pretrained, "WEIGHTS", packaged)
    present = tmp_path / "present"
    for place in ("in", "in/deep/er", "in/.hidden"):
        (present / place).mkdir(parents=True)
        Image.fromarray(RGB).save(present / place / "a.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(present)
    return present


def upscale(*arguments: str) -> int:
    return main(["upscale", *arguments])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refusal with status 2; nothing is written."""
    before = files(Path())
    assert upscale(*arguments) == 2
    assert files(Path()) == before
    return capsys.readouterr().err


# --- the packaged nets


def test_a_jpeg_gets_the_net_for_compressed_photographs_where_there_is_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = asrn(2, num_blocks=1, channels=8).eval()
    file = pretrained.WEIGHTS / "asrn_x2_photo.safetensors"
    save(net, file)
    Image.fromarray(RGB).save("in/b.jpg")
    assert upscale("in", "-o", "out", "--scale", "2", "--format", "png") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines.count(f"network: asrn-x2 ({pretrained.WEIGHTS / 'asrn_x2.safetensors'})") == 1
    assert (
        f"network for JPEG: asrn-x2:photo ({file}); --weights asrn-x2 takes the other one" in lines
    )
    np.testing.assert_array_equal(read_photo("out/a.png").pixels, enlarged(RGB))
    decoded = read_photo("in/b.jpg").pixels
    expected = upscale_array(decoded, plan_upscale(net))
    np.testing.assert_array_equal(read_photo("out/b.png").pixels, expected)
    assert upscale("in/b.jpg", "-o", "other.png", "--weights", "asrn-x2") == 0
    np.testing.assert_array_equal(read_photo("other.png").pixels, enlarged(decoded))


# --- names of results


def test_without_out_the_result_lies_beside_the_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale("in/a.png", "--scale", "2") == 0
    np.testing.assert_array_equal(read_photo("in/a_large.png").pixels, enlarged(RGB))
    first_line = capsys.readouterr().err.splitlines()[0]
    assert first_line == f"network: asrn-x2 ({pretrained.WEIGHTS / 'asrn_x2.safetensors'})"


def test_results_beside_their_images_are_not_enlarged_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert upscale("in", "--scale", "2", "--suffix", "_x2", "--force") == 0
    assert files(folder / "in") == [".hidden/a.png", "a.png", "a_x2.png", "deep/er/a.png"]
    assert "1 (a_x2.png) was left out, as results (_x2)" in capsys.readouterr().err


def test_a_suffix_in_a_folder(folder: Path) -> None:
    assert upscale("in", "-o", "out", "--scale", "2", "--suffix", "_x2", "--format", "jpg") == 0
    assert files(folder / "out") == ["a_x2.jpg"]


def test_folders_are_mirrored(folder: Path) -> None:
    for _ in range(2):  # the second time the results lie in the folder that is gone through
        assert upscale("in", "-o", "in/out", "--scale", "2", "--recursive", "--force") == 0
    assert files(folder / "in/out") == ["a.png", "deep/er/a.png"]
    assert files(folder / "in/deep") == ["er/a.png"]


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_parts_are_all_images_each_once(
    folder: Path, capsys: pytest.CaptureFixture[str], num_parts: int
) -> None:
    for index in range(9):
        Image.fromarray(RGB[:4, :5]).save(f"in/{index}.png")
    lines: list[str] = []
    for number in range(1, num_parts + 1):
        shard = ["--shard", f"{number}/{num_parts}"]
        assert upscale("in", "-o", "out", "--recursive", "--scale", "2", *shard) == 0
        lines += capsys.readouterr().err.splitlines()
    names = [f"{index}.png" for index in range(9)]
    assert files(folder / "out") == [*names, "a.png", "deep/er/a.png"]
    assert sum(line.startswith("out/") for line in lines) == 11  # none was done twice


def test_a_part_does_not_depend_on_how_its_images_are_named(folder: Path) -> None:
    for index in range(9):
        Image.fromarray(RGB[:4, :5]).save(f"in/{index}.png")
    targets = [
        [str(job.target) for job in plan_jobs(inputs, "out", shard=(2, 3)).jobs]
        for inputs in (["in"], ["in/*.png"], ["./in/../in"])
    ]
    assert 0 < len(targets[0]) < 10
    [note] = plan_jobs(["in/*.png"], "out", shard=(2, 3)).notes
    assert note == f"part 2/3: {len(targets[0])} of 10 images"
    assert targets[0] == targets[1] == targets[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in/a.png", "-o", "-", "--shard", "1/2"], "--shard 1/2: -o - has one image"),
        ([], "no INPUT: name images, folders, globs, or - for standard input"),
        (["-"], "-: standard input has no name to put a result beside; give -o OUT"),
        (["in/a.png", "--suffix", ""], "--suffix '': results beside their images need one"),
        (["in/a.png", "--suffix", "/x"], "--suffix /x: a part of a name, without /\n"),
        (["in/a.png", "-o", "b.png", "--suffix", "_x"], "--suffix _x: -o b.png is the whole name"),
        (["in/a.png", "--png-level", "3", "-o", "b.jpg"], "--png-level 3: no output is PNG"),
        (["in/a.png", "--to", "99x"], "--scale 2 beside --to 99x: give one of them"),
        (["empty", "-o", "out", "--recursive"], "empty: no folder in it has images"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "empty").mkdir()
    assert message in refusal(capsys, *arguments, "--scale", "2")


# --- any size


@pytest.mark.parametrize(
    ("arguments", "size", "scale"),
    [
        (["--scale", "1.5"], (26, 18), 2),  # 25.5 is rounded to even
        (["--scale", "2.0"], (34, 24), 2),
        (["--scale", "3.5"], (60, 42), 4),
        (["--to", "51x999"], (51, 36), 4),
        (["--to", "999x36"], (51, 36), 4),
        (["--to", "30x"], (30, 21), 2),
        (["--to", "x48"], (68, 48), 4),
    ],
)
def test_any_size_is_made_by_the_next_larger_net(
    folder: Path, arguments: list[str], size: tuple[int, int], scale: int
) -> None:
    assert upscale("in/a.png", "-o", "out.png", *arguments) == 0
    width, height = size
    expected = imresize(enlarged(RGB, scale), size=(height, width))
    np.testing.assert_array_equal(read_photo("out.png").pixels, expected)


def test_alpha_and_16_bits_of_any_size(folder: Path) -> None:
    deep = RGB.astype(np.uint16) * 257
    Image.fromarray(deep[..., 0]).save("deep.png")
    assert upscale("deep.png", "-o", "large.png", "--scale", "1.25") == 0
    large = read_photo("large.png").pixels
    np.testing.assert_array_equal(large, imresize(enlarged(deep[..., 0]), size=(15, 21)))
    alpha = np.full((12, 17), 200, np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save("clear.png")
    assert upscale("clear.png", "-o", "large.png", "--scale", "1.25", "--force") == 0
    assert read_photo("large.png").alpha is not None
    assert size_of("large.png") == (21, 15)


def test_images_of_a_folder_get_the_net_that_each_needs(folder: Path) -> None:
    Image.fromarray(np.tile(RGB, (2, 2, 1))).save("in/b.png")  # 34x24
    assert upscale("in", "-o", "out", "--to", "60x60", "--quiet") == 0
    assert size_of("out/a.png") == (60, 42)
    np.testing.assert_array_equal(
        read_photo("out/a.png").pixels, imresize(enlarged(RGB, 4), size=(42, 60))
    )
    large = enlarged(np.tile(RGB, (2, 2, 1)), 2)
    np.testing.assert_array_equal(read_photo("out/b.png").pixels, imresize(large, size=(42, 60)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "10x"], "in/a.png: it is 17x12 already, and --to 10x would not make it larger"),
        (["--to", "999x"], "58.76 times as large: weights are packaged for 2, 4; upscale twice"),
        (["--scale", "4.5"], "4.5 times as large: weights are packaged for 2, 4; upscale twice"),
        (["--weights", "asrn-x2", "--scale", "3"], "--scale 3: asrn-x2 enlarges 2 times"),
        (["--weights", "asrn-x2", "--to", "60x"], "--to 60x: asrn-x2 enlarges 2 times, and 3.53"),
    ],
)
def test_sizes_that_cannot_be_made(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refusal(capsys, "in/a.png", "-o", "out.png", *arguments)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--scale", "1"),
        ("--scale", "inf"),
        ("--to", "x"),
        ("--to", "0x5"),
        ("--frames", "7x"),
        ("--png-level", "10"),
        ("--shard", "3/2"),
        ("--shard", "0/2"),
    ],
)
def test_values_out_of_range_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        upscale("in/a.png", "-o", "out.png", option, value)
    last = capsys.readouterr().err.splitlines()[-1]
    assert option in last
    assert repr(value) in last


# --- PNG levels, several images


def test_every_png_level_holds_the_same_pixels(folder: Path) -> None:
    sizes: dict[str, int] = {}
    for level in ("0", "1", "6", "9"):
        arguments = ["-o", f"{level}.png", "--scale", "4", "--png-level", level]
        assert upscale("in/a.png", *arguments) == 0
        np.testing.assert_array_equal(read_photo(f"{level}.png").pixels, enlarged(RGB, 4))
        sizes[level] = os.path.getsize(f"{level}.png")
    assert sizes["1"] < sizes["0"]


def test_lines_come_in_the_order_of_the_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "d"):
        Image.fromarray(RGB).save(f"in/{name}.png")
    (folder / "in" / "c.png").write_bytes(b"no image")
    assert upscale("in", "-o", "out", "--scale", "2") == 1
    lines = capsys.readouterr().err.splitlines()
    _folders, _network, *of_images = [line.partition(":")[0] for line in lines]
    assert of_images[:4] == ["out/a.png", "out/b.png", "elasticnet", "out/d.png"]
    assert files(folder / "out") == ["a.png", "b.png", "d.png"]


def test_images_are_read_and_written_beside_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three steps waits for the others to begin: one after another they would never end."""
    Image.fromarray(RGB[:, :16]).save("in/b.png")  # 16 wide, and a.png 17
    Image.fromarray(RGB[:, :15]).save("in/c.png")
    reads_c, writes_a, enlarges_b = (threading.Event() for _ in range(3))
    read, enlarge, write = (
        upscale_run.read_photo,
        upscale_run.upscale_photo,
        upscale_run.write_photo,
    )

    def reading(file: Any, **keywords: Any) -> Any:
        if keywords["name"] == "in/c.png":
            reads_c.set()
        return read(file, **keywords)

    def enlarging(photo: Any, *arguments: Any, **keywords: Any) -> Any:
        if photo.size[1] == 16:
            enlarges_b.set()
            assert reads_c.wait(timeout=60)
            assert writes_a.wait(timeout=60)
        return enlarge(photo, *arguments, **keywords)

    def writing(photo: Any, *arguments: Any, **keywords: Any) -> Any:
        if photo.size[1] == 34:
            writes_a.set()
            assert enlarges_b.wait(timeout=60)
        return write(photo, *arguments, **keywords)

    monkeypatch.setattr(upscale_run, "read_photo", reading)
    monkeypatch.setattr(upscale_run, "upscale_photo", enlarging)
    monkeypatch.setattr(upscale_run, "write_photo", writing)
    assert upscale("in", "-o", "out", "--scale", "2") == 0
    assert files(folder / "out") == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_ctrl_c_among_several_images_leaves_whole_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    for name in ("b", "c"):
        Image.fromarray(RGB).save(f"in/{name}.png")
    calls: list[int] = []
    upscale_photo = upscale_run.upscale_photo

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return upscale_photo(*arguments, **keywords)

    monkeypatch.setattr(upscale_run, "upscale_photo", interrupted)
    assert upscale("in", "-o", "out", "--scale", "2") == 130
    found = files(folder / "out")
    assert found == ["a.png", "b.png", "c.png"][: fails_at - 1]
    for name in found:
        assert read_photo(folder / "out" / name).size == (24, 34)


def test_a_failure_while_writing_is_one_of_that_image_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "c"):
        Image.fromarray(RGB).save(f"in/{name}.png")
    write_photo = upscale_run.write_photo
    calls: list[int] = []

    def fails_once(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write_photo(*arguments, **keywords)

    monkeypatch.setattr(upscale_run, "write_photo", fails_once)
    assert upscale("in", "-o", "out", "--scale", "2") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files(folder / "out") == ["a.png", "c.png"]


CRASH = """
import os
import sys

from elasticnet.cli import main, upscale_run
from elasticnet.sr.models import pretrained
from pathlib import Path

pretrained.WEIGHTS = Path(sys.argv[1])
write_photo = upscale_run.write_photo
calls = []


def crash(photo, file, *arguments, **keywords):
    calls.append(1)
    if len(calls) == 2:
        file.write(b"a part of an image")
        file.flush()
        os._exit(9)  # as a kill ends it: nothing is tidied up
    return write_photo(photo, file, *arguments, **keywords)


upscale_run.write_photo = crash
main(["upscale", "in", "-o", "out", "--scale", "2"])
"""


def test_a_crash_leaves_whole_files_and_the_next_run_goes_on(folder: Path) -> None:
    for name in ("b", "c"):
        Image.fromarray(RGB).save(f"in/{name}.png")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CRASH, str(pretrained.WEIGHTS)]
    run = warm_python.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 9, run.stderr
    seen = [name for name in files(folder / "out") if not name.startswith(".")]
    assert seen == ["a.png"]
    assert upscale("in", "-o", "out", "--scale", "2", "--skip-existing") == 0
    assert files(folder / "out") == ["a.png", "b.png", "c.png"]
    for name in ("a", "b", "c"):
        np.testing.assert_array_equal(read_photo(f"out/{name}.png").pixels, enlarged(RGB))


# --- animations


@pytest.mark.parametrize(
    ("out", "format"), [("out.png", "PNG"), ("out.gif", "GIF"), ("out.webp", "WEBP")]
)
def test_an_animation(folder: Path, out: str, format: str) -> None:
    frames = [Image.fromarray(RGB[row:][:9]) for row in range(3)]
    frames[0].save("in.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    lossless = ["--lossless"] if format == "WEBP" else []
    assert upscale("in.webp", "-o", out, "--scale", "2", *lossless) == 0
    with open(out, "rb") as file:
        found = read_animation(file, out)
    assert found.described.format == format
    assert found.durations == (40.0, 40.0, 40.0)
    assert found.size == (18, 34)
    if format != "GIF":
        for index, frame in enumerate(frames):
            expected = enlarged(np.asarray(frame))
            np.testing.assert_array_equal(found.frames[index, ..., :3], expected)


def test_an_animated_gif_in_a_folder_becomes_an_apng(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (9, 8), color) for color in ("red", "blue")]
    frames[0].save("in/b.gif", save_all=True, append_images=frames[1:], duration=70)
    assert upscale("in", "-o", "out", "--scale", "2") == 0
    assert files(folder / "out") == ["a.png", "b.png"]
    with open("out/b.png", "rb") as file:
        assert read_animation(file, "b.png").durations == (70.0, 70.0)
    assert "out/b.png: 18x16, 2 frames, depth 2; " in capsys.readouterr().err


def test_an_animation_and_a_format_that_holds_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (9, 8), color) for color in ("red", "blue")]
    frames[0].save("b.gif", save_all=True, append_images=frames[1:])
    message = "b.gif: it holds 2 frames, and JPEG holds one: write .png, .webp or .gif"
    assert message in refusal(capsys, "b.gif", "-o", "out.jpg", "--scale", "2")


# --- raw frames


def pump(
    monkeypatch: pytest.MonkeyPatch, data: bytes, *arguments: str, output: Any = None
) -> tuple[int, bytes]:
    """The status of the command, and what it wrote to standard output."""
    target = output or io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    stdout = io.TextIOWrapper(target)
    monkeypatch.setattr(sys, "stdout", stdout)
    status = upscale("--frames", "17x12", *arguments)
    if output is not None:
        return status, b""
    stdout.flush()
    return status, target.getvalue()


def made_frames(num_frames: int) -> np.ndarray:
    """(n, 12, 17, 3)"""
    frames = np.empty((num_frames, *RGB.shape), np.uint8)
    for index in range(num_frames):
        frames[index] = np.roll(RGB, index, axis=1)
    return frames


@settings(
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(num_frames=st.integers(0, 4))
def test_frames_go_through_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int
) -> None:
    frames = made_frames(num_frames)
    with monkeypatch.context() as patch:
        status, output = pump(patch, frames.tobytes(), "--scale", "2", "--depth", "1")
    assert status == 0
    expected = b"".join(enlarged(frame, depth=1).tobytes() for frame in frames)
    assert output == expected


def test_frames_of_any_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = pump(monkeypatch, RGB.tobytes(), "--to", "50x50", "-", "-o", "-")
    assert status == 0
    assert output == imresize(enlarged(RGB, 4), size=(35, 50)).tobytes()
    errors = capsys.readouterr().err
    assert "frames of 17x12 become 50x35, rgb24, depth 2\n" in errors
    assert "frames: 1, " in errors


def test_a_pipe_may_give_a_frame_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100))

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Dribble(RGB.tobytes())))
    target = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(target))
    assert upscale("--frames", "17x12", "--scale", "2", "--quiet") == 0
    assert target.getvalue() == enlarged(RGB).tobytes()


def test_half_a_frame_is_an_error_and_those_before_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made_frames(2).tobytes()
    status, output = pump(monkeypatch, data[:-100], "--scale", "2")
    assert status == 2
    assert output == enlarged(RGB).tobytes()
    message = "frame 2: the input ended after 512 of its 612 bytes; the frames before are written."
    assert message in capsys.readouterr().err


def test_a_pipe_that_is_closed_ends_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    status, _ = pump(monkeypatch, made_frames(3).tobytes(), "--scale", "2", output=Closed())
    assert status == 141


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in/a.png"], "--frames 17x12: frames come from standard input and go to standard output"),
        (["-o", "out.png"], "--frames 17x12: frames come from standard input"),
        (["--quality", "80"], "--frames 17x12: --quality has no meaning for raw frames"),
        (["--depth", "1", "--max-ms", "9"], "--depth 1 beside a budget"),
    ],
)
def test_what_has_no_meaning_for_frames(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refusal(capsys, "--frames", "17x12", "--scale", "2", *arguments)
