"""Five ways to make a low-resolution or degraded image from a photograph: BI, BD, DN, HAZE, photo.

The names and the settings of the first three are those of Zhang, Zuo and Zhang, "Learning a single
convolutional super-resolution network for multiple degradations", CVPR 2018, and of the papers that
compare on them, such as RCAN (ECCV 2018): BI is bicubic, BD is blur and downsampling, DN is bicubic
and noise.

HAZE is bicubic and haze by the standard scattering model (Koschmieder 1924; Narasimhan and Nayar,
"Vision and the atmosphere", IJCV 48, 2002): a hazy image is I = J t + A (1 - t), where J is the
photograph, A the light of the air and t = exp(-beta d) the share of the photograph's light that
comes through haze of thickness beta over a distance d. The distances of a photograph are not known,
so d is a smooth random map that knows nothing of what the photograph shows; DehazeNet (Cai et al.,
IEEE TIP 25, 2016) is trained on such haze, with one random t for each patch. The ranges of A and
beta are those of the indoor training set of RESIDE (Li et al., "Benchmarking single-image dehazing
and beyond", IEEE TIP 28, 2019), whose distances are measured ones.

photo is bicubic and JPEG compression of random quality: what most photographs have gone through
(see `elasticnet.sr.jpeg`).
"""

from __future__ import annotations

import numpy as np

from elasticnet.sr.jpeg import PHOTO_JPEG, compressed
from elasticnet.sr.matlab_random import matlab_normals
from elasticnet.sr.pixels import to_uint8
from elasticnet.sr.resize import imresize

KINDS = ("BI", "BD", "DN", "HAZE", "photo")
SEEDED_KINDS = ("DN", "HAZE", "photo")  # those that draw random numbers
SIGMAS = {"BD": "blur_sigma", "DN": "noise_sigma"}  # the setting of a kind that has one
BLUR_SIGMA = 1.6  # pixels of the photograph
NOISE_SIGMA = 30.0  # on the 0..255 scale
NOISES = ("numpy", "matlab")  # where the noise of "DN" comes from
BLUR_RADIUS = 3  # pixels; the Gaussian is 7x7
AIR_LIGHTS = (0.7, 1.0)  # smallest and largest A of "HAZE", on the 0..1 scale: near white
HAZE_THICKNESSES = (0.6, 1.8)  # smallest and largest beta of "HAZE", per unit of distance
DISTANCE_GRID = (4, 4)  # random distances in 0..1 that the smooth map of "HAZE" runs through


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    """Return an image cut at the bottom and at the right to multiples of `scale`, as a view.

    Args:
        image: Of shape (height, width) or (height, width, channels), of any dtype.
        scale: A positive number of pixels.

    Returns:
        A view of shape (height // scale * scale, width // scale * scale), and channels.

    Raises:
        TypeError: The image is no NumPy array.
        ValueError: The image has another shape or is smaller than `scale`, or `scale` is no
            positive whole number.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image of type {type(image).__name__}: expected a NumPy array (H, W) or (H, W, C)"
        )
    if isinstance(scale, bool) or not isinstance(scale, (int, np.integer)) or scale < 1:
        raise ValueError(f"scale {scale!r}: expected a positive integer")
    if image.ndim not in (2, 3):
        raise ValueError(f"image of shape {image.shape}: expected (H, W) or (H, W, C)")
    height, width = image.shape[:2]
    if min(height, width) < scale:
        raise ValueError(
            f"image of {height}×{width} pixels: scale {scale} needs at least {scale}×{scale}"
        )
    return image[: height - height % scale, : width - width % scale]


def degrade(
    image: np.ndarray,
    kind: str,
    scale: int,
    *,
    seed: int = 0,
    generator: np.random.Generator | None = None,
    border: str = "symmetric",
    blur_sigma: float = BLUR_SIGMA,
    noise_sigma: float = NOISE_SIGMA,
    noise: str = "numpy",
) -> np.ndarray:
    """Return the low-resolution or degraded image of a photograph.

    The photograph is cut to multiples of `scale` first. The kinds, as papers use them (BD and DN at
    scale 3):

    - "BI": `imresize` by 1 / scale.
    - "BD": blur by a 7×7 Gaussian (MATLAB's fspecial and imfilter: replicate border, rounded to
      uint8), then every scale-th pixel from index scale // 2 on.
    - "DN": BI, then Gaussian noise, rounded and clipped.
    - "HAZE": BI, then haze of random thickness, distances and light, rounded.
    - "photo": BI, then JPEG of a random quality from 30 to 95, 4:2:0 or 4:4:4; a fifth of the
      images are not compressed.

    At scale 1 nothing is made smaller: "BI" is the photograph itself, "BD" the blurred, "DN" the
    noisy, "HAZE" the hazy and "photo" the compressed one.

    The noise of published values of "DN" is that of MATLAB's `randn('seed', 0)`, set before every
    image: `noise="matlab"` makes the same images. NumPy's noise meets these values on average only.

    Args:
        image: uint8 of shape (height, width) or (height, width, channels), 0..255.
        kind: "BI", "BD", "DN", "HAZE" or "photo".
        scale: By how much to make the image smaller, a positive whole number.
        seed: Of NumPy's noise, which is `numpy.random.default_rng(seed).standard_normal` of the
            result's shape; and of haze and JPEG, which are drawn from the same kind of generator.
        generator: Where noise, haze or JPEG are drawn from instead; it moves on.
        border: What lies outside the image for all but "BD", as in `imresize`.
        blur_sigma: Standard deviation of the Gaussian of "BD", in pixels of the photograph.
        noise_sigma: Standard deviation of the noise of "DN", on the 0..255 scale.
        noise: Where the noise of "DN" comes from: "numpy", or "matlab", which is the same for all
            images of a size and takes neither a seed nor a generator.

    Returns:
        uint8 of shape (height // scale, width // scale), and channels.

    Raises:
        TypeError: The image is no NumPy array of uint8.
        ValueError: The image's shape, the kind, the scale, the border, a sigma or the noise is
            wrong. "photo" takes images of one or of three channels only.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    if noise not in NOISES:
        raise ValueError(f"noise {noise!r}: expected one of {', '.join(NOISES)}")
    _check_sigma("blur_sigma", blur_sigma)
    _check_sigma("noise_sigma", noise_sigma)
    image = modcrop(image, scale)
    if image.dtype != np.uint8:
        raise TypeError(
            f"image of {image.dtype}: expected uint8; round to 0..255 and convert it first"
        )
    if kind == "BD":
        return _blur_and_pick(image, scale, blur_sigma)
    low = imresize(image, size=(image.shape[0] // scale, image.shape[1] // scale), border=border)
    if kind == "BI":
        return low
    if kind == "DN" and noise == "matlab":
        # In single precision, as the script that made the published images has it.
        added = (noise_sigma * matlab_normals(low.shape)).astype(np.float32)
        return to_uint8(low.astype(np.float32) + added)
    if generator is None:
        generator = np.random.default_rng(seed)
    if kind == "HAZE":
        return _with_haze(low, generator)
    if kind == "photo":
        bits = int(generator.integers(1 << 64, dtype=np.uint64, endpoint=False))
        return compressed(low, PHOTO_JPEG.setting(bits))
    return to_uint8(low + noise_sigma * generator.standard_normal(low.shape))


def given_sigmas(
    kind: str, *, blur_sigma: float | None = None, noise_sigma: float | None = None
) -> dict[str, float]:
    """Return the sigmas that are not None, by their names.

    Args:
        kind: "BI", "BD", "DN", "HAZE" or "photo".
        blur_sigma: Of "BD"; None if it was not given.
        noise_sigma: Of "DN"; None if it was not given.

    Returns:
        None, one or both of "blur_sigma" and "noise_sigma".

    Raises:
        ValueError: A sigma was given that `kind` has no use for.
    """
    sigmas = {"blur_sigma": blur_sigma, "noise_sigma": noise_sigma}
    given = {name: sigma for name, sigma in sigmas.items() if sigma is not None}
    for name, sigma in given.items():
        if name != SIGMAS.get(kind):
            raise ValueError(f"{name} {sigma}: degradation {kind!r} has no such setting")
    return given


def _check_sigma(name: str, sigma: float) -> None:
    if not 0 < sigma < np.inf:
        raise ValueError(f"{name} {sigma!r}: expected a positive finite number")


def _blur_and_pick(image: np.ndarray, scale: int, sigma: float) -> np.ndarray:
    """Blur a uint8 image and take every scale-th pixel, both ways from index scale // 2 on.

    Only the pixels that are taken are computed: the same values as blurring all and then picking.
    The Gaussian is separable: the kernel of fspecial, exp(-(x² + y²) / (2 sigma²)) over its sum,
    is the product of two one-dimensional kernels of sum 1.
    """
    offsets = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    values = image.astype(np.float64)
    for axis in (0, 1):
        length = int(image.shape[axis])
        centers = np.arange(scale // 2, length, scale)
        # The edge pixel stands for what lies outside, as in imfilter's "replicate".
        shifted = [
            np.take(values, np.clip(centers + offset, 0, length - 1), axis=axis)
            for offset in offsets.tolist()
        ]
        values = np.tensordot(kernel, np.stack(shifted), axes=1)
    return to_uint8(values)


def _with_haze(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a uint8 image in haze, I = J t + A (1 - t), with A and t drawn from the generator."""
    air_light = 255 * generator.uniform(*AIR_LIGHTS)
    thickness = generator.uniform(*HAZE_THICKNESSES)
    coarse_distance = generator.random(DISTANCE_GRID)
    height, width = image.shape[:2]
    distance = imresize(coarse_distance, size=(height, width))
    distance = np.clip(distance, 0, 1)  # the cubic kernel overshoots
    transmission = np.exp(-thickness * distance)  # (height, width)
    if image.ndim == 3:
        transmission = transmission[:, :, None]
    return to_uint8(image * transmission + air_light * (1 - transmission))
