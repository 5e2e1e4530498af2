"""imresize against naive loops and rational arithmetic written out here."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from elasticnet.sr.resize import contributions, imresize


def kernel(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def fold(position: int, length: int, border: str) -> int:
    if border == "replicate":
        return min(max(position, 0), length - 1)
    while not 0 <= position < length:
        position = -1 - position if position < 0 else 2 * length - 1 - position
    return position


def naive_weights(
    length: int, target: int, scale: float, border: str, antialias: bool
) -> list[list[tuple[int, float]]]:
    """For each output pixel, (input pixel, weight) of all positions that the kernel could reach."""
    shrink = min(scale, 1.0) if antialias else 1.0
    rows = []
    for out in range(target):
        center = (out + 0.5) / scale - 0.5
        reach = range(math.floor(center - 2 / shrink) - 1, math.ceil(center + 2 / shrink) + 2)
        weights = [kernel(shrink * (center - position)) for position in reach]
        total = sum(weights)
        rows.append(
            [(fold(p, length, border), w / total) for p, w in zip(reach, weights, strict=True)]
        )
    return rows


def naive_resize(
    image: np.ndarray,
    target: tuple[int, int],
    scales: tuple[float, float],
    border: str,
    antialias: bool,
) -> np.ndarray:
    vertical = naive_weights(image.shape[0], target[0], scales[0], border, antialias)
    horizontal = naive_weights(image.shape[1], target[1], scales[1], border, antialias)
    result = np.zeros((*target, *image.shape[2:]))
    for i, rows in enumerate(vertical):
        for j, columns in enumerate(horizontal):
            for row, row_weight in rows:
                for column, column_weight in columns:
                    result[i, j] += row_weight * column_weight * image[row, column]
    return result


scales = st.one_of(st.sampled_from([1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0]), st.floats(0.15, 3.5))
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    shapes,
    scales,
    st.sampled_from(["symmetric", "replicate"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_float64_equals_the_naive_loop(
    shape: tuple[int, int], scale: float, border: str, antialias: bool, seed: int
) -> None:
    image = np.random.default_rng(seed).random((*shape, 2))
    target = (math.ceil(scale * shape[0]), math.ceil(scale * shape[1]))
    expected = naive_resize(image, target, (scale, scale), border, antialias)
    result = imresize(image, scale, border=border, antialias=antialias)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(shapes, shapes, st.sampled_from(["symmetric", "replicate"]), st.integers(0, 2**32 - 1))
def test_size_equals_the_naive_loop(
    shape: tuple[int, int], target: tuple[int, int], border: str, seed: int
) -> None:
    image = np.random.default_rng(seed).random(shape)
    factors = (target[0] / shape[0], target[1] / shape[1])
    expected = naive_resize(image, target, factors, border, True)
    np.testing.assert_allclose(
        imresize(image, size=target, border=border), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("scale", [0.25, 0.7, 1.9])
def test_images_larger_than_one_block_equal_the_dense_product(scale: float) -> None:
    image = np.random.default_rng(0).random((150, 400, 3))
    dense = []
    for length in (150, 400):
        indices, weights = contributions(
            length, math.ceil(scale * length), scale, "symmetric", True
        )
        outputs = np.arange(weights.shape[1])
        matrix = np.zeros((len(outputs), length))
        for positions, factors in zip(indices, weights, strict=True):
            np.add.at(matrix, (outputs, positions), factors)
        dense.append(matrix)
    expected = np.einsum("ih,hwc,jw->ijc", dense[0], image, dense[1], optimize=True)
    np.testing.assert_allclose(imresize(image, scale), expected, rtol=0, atol=1e-12)


def exact_pass(image: np.ndarray, scale: Fraction, top: int) -> np.ndarray:
    """One pass along the rows in rational numbers, rounded half away from zero, within 0..top."""
    length = image.shape[0]
    shrink = min(scale, Fraction(1))
    result = np.zeros((math.ceil(scale * length), image.shape[1]), image.dtype)
    for out, column in np.ndindex(result.shape):
        center = (out + Fraction(1, 2)) / scale - Fraction(1, 2)
        total = norm = Fraction(0)
        for position in range(math.floor(center - 2 / shrink), math.ceil(center + 2 / shrink) + 1):
            x = abs(shrink * (center - position))
            weight = Fraction(0)
            if x <= 1:
                weight = (3 * x**3 - 5 * x**2 + 2) / 2
            elif x < 2:
                weight = (-(x**3) + 5 * x**2 - 8 * x + 4) / 2
            total += weight * int(image[fold(position, length, "symmetric"), column])
            norm += weight
        result[out, column] = min(max(math.floor(total / norm + Fraction(1, 2)), 0), top)
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "scale", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3)]
)
def test_integers_equal_rational_arithmetic_rounded_after_each_pass(
    dtype: type, scale: Fraction
) -> None:
    top = int(np.iinfo(dtype).max)
    generator = np.random.default_rng(1)
    # Steps between black and white overshoot, which tests saturation; even values make ties at one
    # half.
    image = np.where(
        generator.random((12, 24)) < 0.5,
        generator.choice([0, top], (12, 24)),
        generator.integers(0, top, (12, 24)),
    ).astype(dtype)
    expected = exact_pass(exact_pass(image, scale, top).T, scale, top).T
    result = imresize(image, float(scale))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


def test_ties_round_half_away_from_zero() -> None:
    weights = contributions(16, 8, 0.5, "symmetric", True)[1][:, 4] * 256
    assert sorted(weights.tolist()) == [-9.0, -9.0, -3.0, -3.0, 29.0, 29.0, 111.0, 111.0]
    column = np.full((16, 1), 100, np.uint8)
    positions = contributions(16, 8, 0.5, "symmetric", True)[0][:, 4]
    # 111 + 29 - 3 - 9 = 128 of 256: one more in each of these four pixels lifts the output by
    # exactly a half.
    for value in (111.0, 29.0, -3.0, -9.0):
        column[positions[weights.tolist().index(value)]] += 1
    assert imresize(column, size=(8, 1))[4, 0] == 101
    # Rounding half to even would give 100 above, but 102 here as well.
    assert imresize(column + np.uint8(1), size=(8, 1))[4, 0] == 102


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)),
    scales,
    st.sampled_from(["symmetric", "replicate"]),
)
def test_uint8_tensors_equal_numpy_bit_for_bit(
    image: np.ndarray, scale: float, border: str
) -> None:
    planes = np.ascontiguousarray(image if image.ndim == 2 else image.transpose(2, 0, 1))
    result = imresize(torch.tensor(planes), scale, border=border).numpy()
    expected = imresize(image, scale, border=border)
    np.testing.assert_array_equal(
        result if image.ndim == 2 else result.transpose(1, 2, 0), expected
    )


@settings(max_examples=40, deadline=None)
@given(shapes, scales, st.sampled_from(["symmetric", "replicate"]), st.booleans())
def test_float64_tensors_equal_numpy(
    shape: tuple[int, int], scale: float, border: str, antialias: bool
) -> None:
    images = np.random.default_rng(0).random((2, 3, *shape))
    result = imresize(torch.tensor(images), scale, border=border, antialias=antialias)
    assert result.dtype == torch.float64
    for batch, channel in np.ndindex(2, 3):
        expected = imresize(images[batch, channel], scale, border=border, antialias=antialias)
        np.testing.assert_allclose(result[batch, channel].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
def test_narrow_floats_keep_their_dtype(dtype: torch.dtype, tolerance: float) -> None:
    image = torch.rand(1, 3, 30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = imresize(image, 1 / 3)
    assert result.dtype == dtype
    # One rounding at the end, not one per neighbour: the float64 result is matched to the dtype's
    # own precision.
    torch.testing.assert_close(
        result.double(), imresize(image.double(), 1 / 3), rtol=0, atol=tolerance
    )


def test_float32_arrays_are_summed_in_float64() -> None:
    image = np.random.default_rng(0).random((40, 30, 3)).astype(np.float32)
    result = imresize(image, 0.4)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, imresize(image.astype(np.float64), 0.4), rtol=0, atol=2e-7)


@pytest.mark.parametrize("scale", [1 / 3, 0.7, 2.0])
@pytest.mark.parametrize("border", ["symmetric", "replicate"])
def test_gradients(scale: float, border: str) -> None:
    image = torch.rand(
        2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale, border=border), (image,))
    assert torch.autograd.gradgradcheck(
        lambda x: imresize(x, scale, border=border).square(), (image,)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 3.0, 1.7])
def test_cuda_equals_the_cpu(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 61, 90), dtype=torch.uint8, generator=generator)
    result = imresize(image.cuda(), scale)
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), imresize(image, scale), rtol=0, atol=0)
    floats = image.float() / 255
    torch.testing.assert_close(
        imresize(floats.cuda(), scale).cpu(), imresize(floats, scale), rtol=0, atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(shapes, scales, st.integers(0, 255), st.sampled_from(["symmetric", "replicate"]))
def test_a_constant_image_stays_constant(
    shape: tuple[int, int], scale: float, value: int, border: str
) -> None:
    resized = imresize(np.full(shape, value, np.uint8), scale, border=border)
    assert resized.shape == (math.ceil(scale * shape[0]), math.ceil(scale * shape[1]))
    assert (resized == value).all()


def test_factor_one_is_the_identity() -> None:
    for dtype in (np.uint8, np.uint16, np.float32, np.float64):
        image = (np.random.default_rng(0).random((7, 5, 3)) * 255).astype(dtype)
        np.testing.assert_array_equal(imresize(image, 1), image)
        np.testing.assert_array_equal(imresize(image, size=(7, 5)), image)


def test_one_pixel_images() -> None:
    pixel = np.array([[[10, 200, 30]]], np.uint8)
    for scale in (0.1, 1 / 3, 1, 4):
        resized = imresize(pixel, scale)
        assert resized.shape == (math.ceil(scale), math.ceil(scale), 3)
        assert (resized == pixel).all()


def test_the_smaller_factor_goes_first() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    width_first = imresize(imresize(image, size=(20, 8)), size=(30, 8))
    height_first = imresize(imresize(image, size=(30, 24)), size=(30, 8))
    assert (width_first != height_first).any()
    np.testing.assert_array_equal(imresize(image, size=(30, 8)), width_first)
    np.testing.assert_array_equal(
        imresize(image, 0.5), imresize(imresize(image, size=(10, 24)), size=(10, 12))
    )


def test_borders_differ_only_near_the_edge() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    different = imresize(image, 1 / 4) != imresize(image, 1 / 4, border="replicate")
    assert different.any()
    assert not different[2:-2, 2:-2].any()


def test_antialias_off_reads_four_pixels() -> None:
    image = np.random.default_rng(0).random((9, 9))
    # At one third, centres fall on whole pixels, where the unwidened kernel is 1 and 0 elsewhere.
    np.testing.assert_allclose(
        imresize(image, 1 / 3, antialias=False), image[1::3, 1::3], rtol=0, atol=1e-12
    )


def test_layouts_of_memory_do_not_matter(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    expected = imresize(image, 1 / 3)
    mapped = np.memmap(tmp_path / "image", np.uint8, "w+", shape=image.shape)
    mapped[:] = image
    mapped.flush()
    read_only = np.memmap(tmp_path / "image", np.uint8, "r", shape=image.shape)
    for view in (np.asfortranarray(image), np.flip(np.flip(image, 1).copy(), 1), read_only):
        np.testing.assert_array_equal(imresize(view, 1 / 3), expected)
    channels_last = torch.tensor(image).permute(2, 0, 1)
    np.testing.assert_array_equal(imresize(channels_last, 1 / 3).permute(1, 2, 0).numpy(), expected)


def test_contributions_are_sparse_normalised_and_protected() -> None:
    indices, weights = contributions(400, 100, 0.25, "symmetric", True)
    assert indices.shape == weights.shape == (16, 100)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=0, atol=1e-15)
    assert indices.min() == 0
    assert indices.max() == 399
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "scale=None, size=None: give exactly one"),
        ({"scale": 2, "size": (4, 4)}, r"scale=2, size=\(4, 4\): give exactly one"),
        ({"scale": 0}, "scale 0: expected one positive"),
        ({"scale": -2.0}, "scale -2.0: expected one positive"),
        ({"scale": math.nan}, "scale nan: expected one positive"),
        ({"scale": math.inf}, "scale inf: expected one positive"),
        ({"scale": True}, "scale True: expected one positive"),
        ({"scale": (2, 3)}, r"scale \(2, 3\): expected one positive finite number; use size="),
        ({"size": (0, 4)}, r"size \(0, 4\): expected two positive integers"),
        ({"size": (4.5, 4)}, r"size \(4.5, 4\): expected two positive integers"),
        ({"size": (4, 4, 3)}, r"size \(4, 4, 3\): expected two positive integers"),
        ({"size": 4}, "size 4: expected two positive integers"),
        (
            {"scale": 2, "border": "reflect"},
            "border 'reflect': expected one of symmetric, replicate",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imresize(np.zeros((4, 4), np.uint8), **arguments)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros(4, np.uint8), ValueError, r"NumPy image of shape \(4,\): expected a non-empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), ValueError, r"shape \(0, 4\): expected a non-empty"),
        (
            np.zeros((4, 4), np.int64),
            TypeError,
            "NumPy image of int64: expected one of uint8, uint16",
        ),
        (np.zeros((4, 4), np.bool_), TypeError, "NumPy image of bool"),
        (torch.zeros(4), ValueError, r"torch image of shape \(4,\): expected a non-empty"),
        (torch.zeros(1, 4, 0), ValueError, r"torch image of shape \(1, 4, 0\)"),
        (
            torch.zeros(4, 4, dtype=torch.int32),
            TypeError,
            "torch image of torch.int32: expected uint8",
        ),
        (
            [[1, 2], [3, 4]],
            TypeError,
            "image of type list: expected a NumPy array or a torch tensor",
        ),
    ],
)
def test_wrong_images_are_named(image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        imresize(image, 2)  # pyright: ignore[reportArgumentType, reportCallIssue]
