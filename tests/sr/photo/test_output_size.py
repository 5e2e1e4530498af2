"""The size of a result: a number of times, or as large as fits into a box."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticnet.sr.photo.output_size import OutputSize


@pytest.mark.parametrize(
    ("output_size", "expected"),
    [
        (OutputSize(times=3.5), (350, 700)),
        (OutputSize(width=3840, height=2160), (1920, 3840)),  # as wide as the box
        (OutputSize(width=3840, height=1000), (1000, 2000)),  # as high as the box
        (OutputSize(width=500), (250, 500)),
        (OutputSize(height=500), (500, 1000)),
    ],
)
def test_sizes_of_a_picture_of_200_by_100(
    output_size: OutputSize, expected: tuple[int, int]
) -> None:
    assert output_size.of((100, 200)) == expected


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    box=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
)
def test_a_box_is_filled_and_never_left(size: tuple[int, int], box: tuple[int, int]) -> None:
    output_size = OutputSize(width=box[1], height=box[0])
    if output_size.times_for(size) <= 1:
        with pytest.raises(ValueError, match="would not make it larger"):
            output_size.of(size)
        return
    height, width = output_size.of(size)
    assert height <= box[0]
    assert width <= box[1]
    assert height == box[0] or width == box[1]
    assert abs(height * size[1] - width * size[0]) <= max(size)  # as wide as high but for rounding


def test_words() -> None:
    assert OutputSize(times=4).in_words == "--scale 4"
    assert OutputSize(width=3840).in_words == "--to 3840x"
    assert OutputSize(height=2160).in_words == "--to x2160"


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (1.0, 0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{wrong:g} times: expected a number above 1"):
            OutputSize(times=wrong)
    for both in ({}, {"times": 2.0, "width": 3}):
        with pytest.raises(ValueError, match="either a number of times or a box"):
            OutputSize(**both)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="it is 30x20 already, and --to 30x would not"):
        OutputSize(width=30).of((20, 30))
