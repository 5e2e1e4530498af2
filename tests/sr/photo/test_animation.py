"""Animations: every frame, how long it is shown, how often, and what is transparent come back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet.sr.inference.upscale_plan import UpscalePlan, plan_upscale
from elasticnet.sr.photo import ImageError, Photo
from elasticnet.sr.photo.animation import (
    Animation,
    check_animation_fits,
    is_animated,
    read_animation,
    upscale_animation,
    write_animation,
)
from elasticnet.sr.photo.gif_writer import GifFrame, write_gif
from elasticnet.sr.photo.writing import write_photo


def repeating_plan() -> UpscalePlan:
    """A network that makes four pixels of each."""
    return plan_upscale(ElasticWrapper([nn.Identity()], nn.Upsample(scale_factor=2)).eval())


def made_animation(
    num_frames: int = 3,
    size: tuple[int, int] = (5, 7),
    *,
    clear: bool = False,
    plays: int = 0,
    durations: Sequence[float] = (),
    seed: int = 0,
    **described: Any,
) -> Animation:
    """Frames of few colours, of which GIF loses none, no two alike."""
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 4, (num_frames, *size, 4), dtype=np.uint8) * 80
    frames[..., 3] = 255
    frames[:, 0, 0, 0] = np.arange(num_frames)
    if clear:
        frames[..., 3] *= generator.integers(0, 2, (num_frames, *size), dtype=np.uint8)
        frames[:, 0, 0, 3] = 255
        frames[:, -1, -1, 3] = 0
    return Animation(
        frames=frames,
        durations=tuple(durations) or (40.0,) * num_frames,
        plays=plays,
        has_still=False,
        is_opaque=not clear,
        described=Photo(pixels=frames[0, ..., :3], **described),
    )


def written(animation: Animation, format: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    write_animation(animation, file, format, **options)
    file.seek(0)
    return file


def read_again(animation: Animation, format: str, **options: Any) -> Animation:
    file = written(animation, format, **options)
    assert is_animated(file)
    return read_animation(file, "the file")


def assert_looks_alike(found: Animation, expected: Animation) -> None:
    """Equal but for colours that alpha hides."""
    np.testing.assert_array_equal(found.frames[..., 3], expected.frames[..., 3])
    is_seen = expected.frames[..., 3:] > 0
    np.testing.assert_array_equal(found.frames * is_seen, expected.frames * is_seen)


FORMATS = {"PNG": {}, "GIF": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("plays", [0, 1, 3])
def test_what_is_written_is_read_again(format: str, clear: bool, plays: int) -> None:
    durations = (30.0, 120.0, 500.0)
    animation = made_animation(clear=clear, plays=plays, durations=durations)
    found = read_again(animation, format, **FORMATS[format])
    assert_looks_alike(found, animation)
    assert found.durations == durations
    assert found.plays == plays
    assert found.is_opaque == (not clear)
    assert found.described.format == format


@example(num_frames=2, height=1, width=1, clear=False, ticks=201, format="PNG", seed=0)
@settings(deadline=None, max_examples=25)
@given(
    num_frames=st.integers(2, 5),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    clear=st.booleans(),
    ticks=st.integers(2, 300),
    format=st.sampled_from(["PNG", "GIF"]),
    seed=st.integers(0, 999),
)
def test_any_size_and_number_of_frames(
    num_frames: int, height: int, width: int, clear: bool, ticks: int, format: str, seed: int
) -> None:
    animation = made_animation(
        num_frames, (height, width), clear=clear, durations=(10.0 * ticks,) * num_frames, seed=seed
    )
    found = read_again(animation, format)
    assert_looks_alike(found, animation)
    # Pillow reads 201/100 seconds as 2009.9999999999998 milliseconds
    assert found.durations == pytest.approx(animation.durations, rel=1e-12)


def test_another_reader_sees_the_same_gif() -> None:
    """Pillow composes the frames by their disposal; each is shown on a cleared background."""
    animation = made_animation(clear=True)
    image = Image.open(written(animation, "GIF"))
    for index in range(3):
        image.seek(index)
        seen = np.asarray(image.convert("RGBA"))
        np.testing.assert_array_equal(seen[..., 3], animation.frames[index, ..., 3])


def test_frames_that_are_laid_over_others_are_read_as_they_are_seen() -> None:
    """Pillow writes the part of the second frame that differs; what stays of the first is kept."""
    first = Image.new("RGB", (6, 4), "red")
    second = first.copy()
    second.putpixel((2, 1), (0, 0, 255))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=[second], duration=[20, 50], loop=2)
    found = read_animation(file, "the file")
    np.testing.assert_array_equal(found.frames[1, ..., :3], np.asarray(second))
    assert found.durations == (20.0, 50.0)
    assert found.plays == 3  # shown once, and repeated twice


def test_durations_do_not_drift() -> None:
    thirds = (1000 / 30,) * 30
    animation = made_animation(30, durations=thirds)
    assert sum(read_again(animation, "GIF").durations) == 1000
    assert sum(read_again(animation, "WEBP", lossless=True).durations) == 1000
    assert read_again(animation, "PNG").durations == pytest.approx(thirds, abs=1e-9)


def test_every_frame_is_enlarged() -> None:
    animation = made_animation(4)
    animation.frames[2] = animation.frames[1]  # not computed again
    done: list[tuple[int, int]] = []
    large = upscale_animation(animation, repeating_plan(), progress=lambda *now: done.append(now))
    np.testing.assert_array_equal(large.frames, animation.frames.repeat(2, 1).repeat(2, 2))
    assert large.size == (10, 14)
    assert large.durations == animation.durations
    assert done == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_size_in_between() -> None:
    large = upscale_animation(made_animation(clear=True), repeating_plan(), size=(8, 11))
    assert large.size == (8, 11)
    assert read_again(large, "PNG").size == (8, 11)


def test_a_still_picture_in_front_stays_in_an_apng_and_is_left_out_elsewhere() -> None:
    animation = made_animation(3, durations=(0.0, 40.0, 40.0))
    with_still = Animation(**{**vars(animation), "has_still": True})
    found = read_again(with_still, "PNG")
    assert found.has_still
    np.testing.assert_array_equal(found.frames, animation.frames)
    file = io.BytesIO()
    [note, *_] = write_animation(with_still, file, "GIF")
    assert note == "the still picture in front of the animation was left out of GIF"
    np.testing.assert_array_equal(read_animation(file, "x").frames, animation.frames[1:])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_metadata_are_kept(format: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    animation = made_animation(icc=b"profile of RGB " * 20, exif=exif.tobytes())
    described = read_again(animation, format).described
    assert described.icc == animation.described.icc
    assert b"a description" in described.exif


def test_gif_says_what_it_cannot_hold() -> None:
    animation = made_animation(clear=True, icc=b"profile")
    animation.frames[1, 2, 2, 3] = 100
    notes = write_animation(animation, io.BytesIO(), "GIF")
    assert [note.split()[0] for note in notes] == ["GIF", "EXIF,", "half"]


def test_a_still_photograph_as_gif() -> None:
    pixels = made_animation().frames[0, ..., :3]
    file = io.BytesIO()
    write_photo(Photo(pixels=np.ascontiguousarray(pixels)), file, "GIF")
    np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), pixels)


@pytest.mark.parametrize("num_colors", [1, 2, 3, 200, 256])
def test_palettes_of_every_length(num_colors: int) -> None:
    gray = (np.arange(256) % num_colors).astype(np.uint8).reshape(16, 16)
    file = io.BytesIO()
    write_gif([GifFrame(gray, None, 10.0)] * 2, file, size=(16, 16), plays=0)
    np.testing.assert_array_equal(np.asarray(Image.open(file).convert("L")), gray)


def test_formats_that_hold_no_animation_are_refused() -> None:
    with pytest.raises(ImageError, match=r"it holds 3 frames, and JPEG holds one: write \.png"):
        check_animation_fits(3, "JPEG", (8, 8))
    with pytest.raises(ImageError, match="70000 pixels on one side, and GIF holds 65535"):
        check_animation_fits(3, "GIF", (8, 70000))


def test_stills_and_other_files_are_no_animations() -> None:
    still = io.BytesIO()
    Image.new("RGB", (4, 4)).save(still, "PNG")
    assert not is_animated(still)
    assert not is_animated(io.BytesIO(b"no image"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_animation_is_an_error_that_names_it(format: str) -> None:
    data = written(made_animation(4, (40, 40)), format, **FORMATS[format]).getvalue()
    messages: list[str] = []
    for end in range(20, len(data) - 30, max(1, len(data) // 23)):
        try:
            read_animation(io.BytesIO(data[:end]), "cut.file")
        except ImageError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith("cannot read animation cut.file: ") for message in messages)


def test_frames_above_the_limit_are_refused() -> None:
    file = written(made_animation(), "PNG")
    with pytest.raises(ImageError, match="35 pixels a frame are more than the limit of 34"):
        read_animation(file, "large.png", max_pixels=34)
