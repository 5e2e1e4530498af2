"""imresize against MATLAB's published files, recorded hashes, and naive loops written out here."""

from __future__ import annotations

import hashlib
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from elasticnet.sr.resize import imresize, resize_taps

DATA = os.environ.get("ELASTICNET_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="ELASTICNET_DATA is not set: the benchmark images are needed")

# SHA-256 of the pixels of scikit-image's photographs (PNG, so the same for every decoder), and of imresize on
# them, recorded by the code that proved the Set5 and Set14 files exact.
PHOTOGRAPHS = {
    "astronaut": "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071",
    "chelsea": "416b729128bfb2c3d1eb69bf9b1734a796293abc17939267b2dc94f8a5784031",
    "coffee": "0ce2b51640b9c95f19617f03eabf40c3f0368589cc1ee1190b70966165ac184f",
    "camera": "5cb24482a53416f99052258be2b1ee38cd31c559a70c8a8b321cba231b332e21",
}
RESIZED = [
    ("astronaut", 1 / 2, "symmetric", "86e24d8e2e582de831fd6d67f238586d6ee8b6fcea4b52df99cac23131f3a606"),
    ("astronaut", 1 / 3, "symmetric", "1e2abf780a5ef8869bbcc71ffd844ab84b827990cf22baf355e7396e3f394f99"),
    ("astronaut", 1 / 4, "symmetric", "53ca505a86fd24fa38e922ad4427a2106d12646194c306f0b379f234e78e1763"),
    ("astronaut", 1 / 2, "replicate", "b42293a43c150dda507f68516bb0a4aac2f0727abe2748ebb02ea1f83679bd96"),
    ("astronaut", 1 / 3, "replicate", "89e999492d2f637b84fd9aa81d7bbdd4a4f65108cd73dd38101980d11c052d8e"),
    ("astronaut", 1 / 4, "replicate", "779079bcc93ec25299324a20e627ad9bd6d317fe6e0ccc2c0037703d25ae14f7"),
    ("astronaut", 3, "symmetric", "0bc28a9cb2f0accaee139e0b07c2ca5f1b14c1451a79de6c3294e5c265f58dfb"),
    ("astronaut", 1.7, "symmetric", "da85de43959ec6bd4664cf3ecd9817e349b13a46d6218da2140009d43f5ee05c"),
    ("chelsea", 1 / 2, "symmetric", "351e07c2bf506f7b552a78caf8e137da2dc0607c258d2c3f861dc005c379a656"),
    ("chelsea", 1 / 3, "symmetric", "198797be15fe852328fbd5b30f2f6db195cfddfb212b87d81ebebf666e392bcb"),
    ("chelsea", 1 / 4, "symmetric", "2763b9379ac9f726ee00ad212737db81c87a04f01df75a854f9a013df80b082d"),
    ("chelsea", 1 / 2, "replicate", "63adba6301a3bf31dd1aba5260f579f29cc040f8d159facb561a6ec3b72b01e3"),
    ("chelsea", 1 / 3, "replicate", "2dffe991cfceaa580bba65552b6a20d518575f5e8afd345f04cc6efa8dcceaf3"),
    ("chelsea", 1 / 4, "replicate", "2b0830814fe14fa964c6a060c1a1bfa8814259f4c8bc185afacff3910ece3927"),
    ("chelsea", 3, "symmetric", "ee8f2e599929c3bca61dec626e3369b54e35024f292b0c127fc3ac2d7d771832"),
    ("chelsea", 1.7, "symmetric", "0dfa665e1facb93483e56874506d1102d9e583d294d6a78adb974dedc2dc98c7"),
    ("coffee", 1 / 2, "symmetric", "2356f976210326d9da0084e51ae5eef686960868631bf2ff18b0d4e8e7d4a8d0"),
    ("coffee", 1 / 3, "symmetric", "ec9c2440bc955e42a2e124e2383abe5924cbd3eacba4978076deab713d3346c2"),
    ("coffee", 1 / 4, "symmetric", "5c42e9762536e70034d6aac632d789664d63b4d080db53ac6a3a8913dee849ae"),
    ("coffee", 1 / 2, "replicate", "cb05065a3ca43c76d3f372bfe559708dd741efde7248a2fd015ce687ea544fb3"),
    ("coffee", 1 / 3, "replicate", "ec1a7a830803b5c82132ac60522d502afdf9aa07e4564e220509cacd5e577ed6"),
    ("coffee", 1 / 4, "replicate", "662956125f621d51c00a6200a7c95b9776a3a8a8429764cdcde0143e4b17e3f3"),
    ("coffee", 3, "symmetric", "c02bd4472627213715d09d3f467a9126b4ba7838dcef1f153be02b3bc0981433"),
    ("coffee", 1.7, "symmetric", "cf8f851910f33391698db9461a6eec35be9f81e87e32716023fb25283fdf137a"),
    ("camera", 1 / 2, "symmetric", "19535cfc899077732238bcbaa0a85d89a7a0199ef7fe74b8ea840ad7782ab249"),
    ("camera", 1 / 3, "symmetric", "54af5a92b4f889bceb1006d68f5a93b2542ad38919ddb0c718b1f8b5282ad2c8"),
    ("camera", 1 / 4, "symmetric", "b91f37a475a30eaad62c10f54e7e17a43cf91d79653846949b5877c3f3d11eb3"),
    ("camera", 1 / 2, "replicate", "391ab1edcb27baed3f937bb504c109909266a195c393df188570a8df3f4b1d9f"),
    ("camera", 1 / 3, "replicate", "6114dfd34fb30dce051eaf3111879ddd07a8cf45e988a9bb6b3cb56cdd6269b7"),
    ("camera", 1 / 4, "replicate", "49d5586e676d882b751d6796d38734ab4348b1b9a33e3e09bf837d5677eb5fef"),
    ("camera", 3, "symmetric", "959fa626cb5f3991299a2bdd90b176449978f8a5ff75466c97cf360c6372b6f0"),
    ("camera", 1.7, "symmetric", "109ad573faa66f8174218efa98c471b728e8497617a3c6b45007588bd0c4fa42"),
]


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    return image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]


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
    """For each output pixel, (input pixel, weight) pairs over all positions that the kernel could reach."""
    shrink = min(scale, 1.0) if antialias else 1.0
    rows = []
    for out in range(target):
        center = (out + 0.5) / scale - 0.5
        reach = range(math.floor(center - 2 / shrink) - 1, math.ceil(center + 2 / shrink) + 2)
        weights = [kernel(shrink * (center - position)) for position in reach]
        total = sum(weights)
        rows.append([(fold(p, length, border), w / total) for p, w in zip(reach, weights, strict=True)])
    return rows


def naive_resize(
    image: np.ndarray, target: tuple[int, int], scales: tuple[float, float], border: str, antialias: bool
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


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_low_resolution_files_come_out_exactly(scale: int) -> None:
    folder = Path(DATA or "") / "benchmark" / "Set5"
    files = sorted((folder / "HR").glob("*.png"))
    assert len(files) == 5
    for file in files:
        high = modcrop(np.asarray(Image.open(file).convert("RGB")), scale)
        low = np.asarray(Image.open(folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png"))
        np.testing.assert_array_equal(imresize(high, 1 / scale), low, err_msg=file.name)


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set14_low_resolution_files_come_out_exactly(scale: int) -> None:
    files = sorted((Path(DATA or "") / "benchmark" / "Set14" / f"image_SRF_{scale}").glob("*_HR.png"))
    assert len(files) == 14
    for file in files:
        high = modcrop(np.asarray(Image.open(file)), scale)
        low = np.asarray(Image.open(file.with_name(file.name.replace("_HR", "_LR"))))
        np.testing.assert_array_equal(imresize(high, 1 / scale, border="replicate"), low, err_msg=file.name)


@pytest.mark.parametrize(
    ("name", "scale", "border", "digest"), RESIZED, ids=[f"{n}-{s:.2f}-{b}" for n, s, b, _ in RESIZED]
)
def test_photographs_keep_their_recorded_hashes(name: str, scale: float, border: str, digest: str) -> None:
    data = pytest.importorskip("skimage.data")
    photograph = getattr(data, name)()
    assert hashlib.sha256(photograph.tobytes()).hexdigest() == PHOTOGRAPHS[name], "another source picture"
    resized = imresize(photograph, scale, border=border)
    assert resized.flags.c_contiguous
    assert hashlib.sha256(resized.tobytes()).hexdigest() == digest


scales = st.one_of(st.sampled_from([1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0]), st.floats(0.15, 3.5))
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(shapes, scales, st.sampled_from(["symmetric", "replicate"]), st.booleans(), st.integers(0, 2**32 - 1))
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
def test_size_equals_the_naive_loop(shape: tuple[int, int], target: tuple[int, int], border: str, seed: int) -> None:
    image = np.random.default_rng(seed).random(shape)
    factors = (target[0] / shape[0], target[1] / shape[1])
    expected = naive_resize(image, target, factors, border, True)
    np.testing.assert_allclose(imresize(image, size=target, border=border), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.25, 0.7, 1.9])
def test_images_larger_than_one_block_equal_the_dense_product(scale: float) -> None:
    image = np.random.default_rng(0).random((150, 400, 3))
    dense = []
    for length in (150, 400):
        indices, weights = resize_taps(length, math.ceil(scale * length), scale, "symmetric", True)
        matrix = np.zeros((weights.shape[1], length))
        for tap in range(len(weights)):
            np.add.at(matrix, (np.arange(weights.shape[1]), indices[tap]), weights[tap])
        dense.append(matrix)
    expected = np.einsum("ih,hwc,jw->ijc", dense[0], image, dense[1], optimize=True)
    np.testing.assert_allclose(imresize(image, scale), expected, rtol=0, atol=1e-12)


def exact_pass(image: np.ndarray, scale: Fraction, top: int) -> np.ndarray:
    """One pass along the rows in rational numbers, rounded half away from zero and saturated to 0..top."""
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
@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3)])
def test_integers_equal_rational_arithmetic_rounded_after_each_pass(dtype: type, scale: Fraction) -> None:
    top = int(np.iinfo(dtype).max)
    generator = np.random.default_rng(1)
    # Steps between black and white overshoot, which tests saturation; even values make ties at one half.
    image = np.where(
        generator.random((12, 24)) < 0.5, generator.choice([0, top], (12, 24)), generator.integers(0, top, (12, 24))
    ).astype(dtype)
    expected = exact_pass(exact_pass(image, scale, top).T, scale, top).T
    result = imresize(image, float(scale))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


def test_ties_round_half_away_from_zero() -> None:
    weights = resize_taps(16, 8, 0.5, "symmetric", True)[1][:, 4] * 256
    assert sorted(weights.tolist()) == [-9.0, -9.0, -3.0, -3.0, 29.0, 29.0, 111.0, 111.0]
    column = np.full((16, 1), 100, np.uint8)
    positions = resize_taps(16, 8, 0.5, "symmetric", True)[0][:, 4]
    # 111 + 29 - 3 - 9 = 128 of 256: one more in each of these four pixels lifts the output by exactly a half.
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
def test_uint8_tensors_equal_numpy_bit_for_bit(image: np.ndarray, scale: float, border: str) -> None:
    planes = np.ascontiguousarray(image if image.ndim == 2 else image.transpose(2, 0, 1))
    result = imresize(torch.tensor(planes), scale, border=border).numpy()
    expected = imresize(image, scale, border=border)
    np.testing.assert_array_equal(result if image.ndim == 2 else result.transpose(1, 2, 0), expected)


@settings(max_examples=40, deadline=None)
@given(shapes, scales, st.sampled_from(["symmetric", "replicate"]), st.booleans())
def test_float64_tensors_equal_numpy(shape: tuple[int, int], scale: float, border: str, antialias: bool) -> None:
    images = np.random.default_rng(0).random((2, 3, *shape))
    result = imresize(torch.tensor(images), scale, border=border, antialias=antialias)
    assert result.dtype == torch.float64
    for batch, channel in np.ndindex(2, 3):
        expected = imresize(images[batch, channel], scale, border=border, antialias=antialias)
        np.testing.assert_allclose(result[batch, channel].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_narrow_floats_keep_their_dtype(dtype: torch.dtype, tolerance: float) -> None:
    image = torch.rand(1, 3, 30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = imresize(image, 1 / 3)
    assert result.dtype == dtype
    # One rounding at the end, not one per tap: the float64 result is matched to the dtype's own precision.
    torch.testing.assert_close(result.double(), imresize(image.double(), 1 / 3), rtol=0, atol=tolerance)


def test_float32_arrays_are_summed_in_float64() -> None:
    image = np.random.default_rng(0).random((40, 30, 3)).astype(np.float32)
    result = imresize(image, 0.4)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, imresize(image.astype(np.float64), 0.4), rtol=0, atol=2e-7)


@pytest.mark.parametrize("scale", [1 / 3, 0.7, 2.0])
@pytest.mark.parametrize("border", ["symmetric", "replicate"])
def test_gradients(scale: float, border: str) -> None:
    image = torch.rand(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale, border=border), (image,))
    assert torch.autograd.gradgradcheck(lambda x: imresize(x, scale, border=border).square(), (image,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 3.0, 1.7])
def test_cuda_equals_the_cpu(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 61, 90), dtype=torch.uint8, generator=generator)
    result = imresize(image.cuda(), scale)
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), imresize(image, scale), rtol=0, atol=0)
    floats = image.float() / 255
    torch.testing.assert_close(imresize(floats.cuda(), scale).cpu(), imresize(floats, scale), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(shapes, scales, st.integers(0, 255), st.sampled_from(["symmetric", "replicate"]))
def test_a_constant_image_stays_constant(shape: tuple[int, int], scale: float, value: int, border: str) -> None:
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
    np.testing.assert_array_equal(imresize(image, 0.5), imresize(imresize(image, size=(10, 24)), size=(10, 12)))


def test_borders_differ_only_near_the_edge() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    different = imresize(image, 1 / 4) != imresize(image, 1 / 4, border="replicate")
    assert different.any()
    assert not different[2:-2, 2:-2].any()


def test_antialias_off_reads_four_pixels() -> None:
    image = np.random.default_rng(0).random((9, 9))
    # At one third, centres fall on whole pixels, where the unwidened kernel is 1 and 0 elsewhere.
    np.testing.assert_allclose(imresize(image, 1 / 3, antialias=False), image[1::3, 1::3], rtol=0, atol=1e-12)


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


def test_taps_are_sparse_normalised_and_protected() -> None:
    indices, weights = resize_taps(400, 100, 0.25, "symmetric", True)
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
        ({"scale": 2, "border": "reflect"}, "border 'reflect': expected one of symmetric, replicate"),
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
        (np.zeros((4, 4), np.int64), TypeError, "NumPy image of int64: expected one of uint8, uint16"),
        (np.zeros((4, 4), np.bool_), TypeError, "NumPy image of bool"),
        (torch.zeros(4), ValueError, r"torch image of shape \(4,\): expected a non-empty"),
        (torch.zeros(1, 4, 0), ValueError, r"torch image of shape \(1, 4, 0\)"),
        (torch.zeros(4, 4, dtype=torch.int32), TypeError, "torch image of torch.int32: expected uint8"),
        ([[1, 2], [3, 4]], TypeError, "image of type list: expected a NumPy array or a torch tensor"),
    ],
)
def test_wrong_images_are_named(image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        imresize(image, 2)  # pyright: ignore[reportArgumentType, reportCallIssue]
