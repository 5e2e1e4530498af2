"""What published PSNR and SSIM of bicubic interpolation stand on, and what else was tried for DN.

    python tests/benchmarks/published_bicubic.py --data Set5 Set14 B100 [--seeds 3] [--json FILE]

The data sets may lie in any layout that `elasticnet benchmark` knows. The first table has the
published numbers, those of `elasticnet benchmark`, and those of the way that reproduces the
published ones. The second one has every way that was tried for DN, x3 with noise of level 30. Where
NumPy draws the noise, numbers are means over the seeds, with their standard deviation. The tables
of docs/studies/bicubic.md are made of docs/results/bicubic.json, which --json has written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import make_parser, require_at_least
from numpy.typing import NDArray

from elasticnet._files import write_json
from elasticnet._tables import aligned, table
from elasticnet.sr.benchmark import bicubic
from elasticnet.sr.data.folder_layouts import find_pairs
from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.degrade import degrade, modcrop
from elasticnet.sr.matlab_random import matlab_normals
from elasticnet.sr.metrics import psnr_y, rgb_to_y, ssim_y
from elasticnet.sr.pixels import to_uint8
from elasticnet.sr.resize import imresize

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "published.json"
# Gray, and in the papers' Set14 a file of one channel: its gray values 0..255 are compared, where
# the luma of the same picture as RGB is 16..235. SelfExSR's Set14 calls it img_003.
BRIDGE = ("bridge", "img_003")

SIGMA = 30.0  # of the noise, on the 0..255 scale

Pixels = NDArray[Any]
Draw = Callable[[tuple[int, ...]], NDArray[np.float64]]  # returns normal numbers of a shape
Enlarge = Callable[[Pixels, int, Draw], Pixels]  # from HR, scale and noise to the enlarged image


class Way(NamedTuple):
    """One way to score bicubic interpolation.

    Attributes:
        enlarge: Makes the LR image of an HR image and enlarges it again.
        is_numpy: Whether NumPy draws noise, whose seeds differ.
        protocol: As in `elasticnet.sr.metrics`.
        bridge_is_gray: Whether Set14's "bridge" has one channel.
        luma_alone: Whether the luma, rounded, takes the place of the RGB image.
        shaves: Whether as many pixels as the scale are cut off on every side.
    """

    enlarge: Enlarge
    is_numpy: bool = False
    protocol: str = "matlab-y"
    bridge_is_gray: bool = False
    luma_alone: bool = False
    shaves: bool = True


class Score(NamedTuple):
    """Means over the images of a set, and how far they vary with the seed of the noise.

    Attributes:
        psnr: In dB.
        ssim: 0 to 1.
        psnr_deviation: Standard deviation over the seeds, in dB; None without seeds.
    """

    psnr: float
    ssim: float
    psnr_deviation: float | None = None


# --- ways to make the enlarged image


def degraded(hr: Pixels, scale: int, _draw: Draw, *, kind: str) -> Pixels:
    """BI, BD or DN with MATLAB's noise, enlarged; uint8 after each pass, as MATLAB does."""
    return imresize(degrade(hr, kind, scale, noise="matlab"), scale)


def degraded_for_benchmark(hr: Pixels, scale: int, _draw: Draw, *, kind: str) -> Pixels:
    """BI or BD, enlarged as `elasticnet benchmark` does: rounded once, at the end."""
    return bicubic(degrade(hr, kind, scale), scale)


def luma_in_float(luma: Pixels, scale: int, _draw: Draw) -> Pixels:
    """The luma made smaller and enlarged in floating point, and rounded at the end."""
    return to_uint8(imresize(imresize(luma.astype(np.float64), 1 / scale), scale))


def noisy(
    hr: Pixels, scale: int, draw: Draw, *, border: str = "symmetric", antialias: bool = True
) -> Pixels:
    """DN as `degrade` makes it; the enlarged image is rounded and clipped after each pass."""
    lr = imresize(hr, 1 / scale, border=border, antialias=antialias)
    return imresize(to_uint8(lr + SIGMA * draw(lr.shape)), scale, border=border)


def lr_not_rounded(hr: Pixels, scale: int, draw: Draw) -> Pixels:
    """LR keeps its fractions until the noise is added, as with im2double and imnoise."""
    lr = np.clip(imresize(hr.astype(np.float64), 1 / scale), 0, 255)
    return imresize(to_uint8(lr + SIGMA * draw(lr.shape)), scale)


def enlarged_in_float(hr: Pixels, scale: int, draw: Draw) -> Pixels:
    """The noisy LR image is rounded and clipped, and the enlarged one only at the end."""
    lr = imresize(hr, 1 / scale)
    return bicubic(to_uint8(lr + SIGMA * draw(lr.shape)), scale)


def noise_not_clipped(hr: Pixels, scale: int, draw: Draw) -> Pixels:
    """The noisy LR image is neither rounded nor clipped."""
    lr = imresize(hr, 1 / scale)
    return to_uint8(imresize(lr + SIGMA * draw(lr.shape), scale))


def noise_on_hr(hr: Pixels, scale: int, draw: Draw) -> Pixels:
    """The noise is added before the image is made smaller."""
    noisy_hr = to_uint8(hr + SIGMA * draw(hr.shape))
    return imresize(imresize(noisy_hr, 1 / scale), scale)


def noise_alike_in_channels(hr: Pixels, scale: int, draw: Draw) -> Pixels:
    """One plane of noise for red, green and blue."""
    lr = imresize(hr, 1 / scale)
    plane = draw(lr.shape[:2])[..., np.newaxis]  # (h, w, 1)
    return imresize(to_uint8(lr + SIGMA * plane), scale)


# What reproduces the published rows: BI from the luma alone, BD and DN from RGB and with the luma
# rounded, all with a gray "bridge".
AS_PUBLISHED = {
    "BI": Way(luma_in_float, luma_alone=True, bridge_is_gray=True),
    "BD": Way(partial(degraded, kind="BD"), protocol="rounded-y", bridge_is_gray=True),
    "DN": Way(partial(degraded, kind="DN"), protocol="rounded-y", bridge_is_gray=True),
}
AS_BENCHMARK = {
    "BI": Way(partial(degraded_for_benchmark, kind="BI")),
    "BD": Way(partial(degraded_for_benchmark, kind="BD")),
    "DN": Way(enlarged_in_float, is_numpy=True),
}
TRIED = {
    "as `elasticnet benchmark`": AS_BENCHMARK["DN"],
    "enlarged image rounded after each pass": Way(noisy, is_numpy=True),
    "border of older MATLAB (replicate)": Way(partial(noisy, border="replicate"), is_numpy=True),
    "LR not rounded before the noise": Way(lr_not_rounded, is_numpy=True),
    "noise not clipped": Way(noise_not_clipped, is_numpy=True),
    "noise on HR": Way(noise_on_hr, is_numpy=True),
    "the same noise in all channels": Way(noise_alike_in_channels, is_numpy=True),
    "no antialiasing": Way(partial(noisy, antialias=False), is_numpy=True),
    "luma rounded": Way(noisy, is_numpy=True, protocol="rounded-y"),
    "nothing cut off": Way(noisy, is_numpy=True, shaves=False),
    "MATLAB's noise": Way(enlarged_in_float),
    "MATLAB's noise, rounded after each pass": Way(noisy),
    "MATLAB's noise, rounded after each pass, luma rounded": Way(noisy, protocol="rounded-y"),
    "as published: the same, and `bridge` of one channel": AS_PUBLISHED["DN"],
}
MODES = {"x2": ("BI", 2), "x3": ("BI", 3), "x4": ("BI", 4), "BD x3": ("BD", 3), "DN x3": ("DN", 3)}


# --- scores


def score(way: Way, images: Mapping[str, Pixels], scale: int, num_seeds: int) -> Score:
    """Return what one way comes to on the HR images of a set, which are given by name."""
    if not way.is_numpy:
        return means(way, images, scale, [matlab_normals] * len(images))
    found: list[Score] = []
    for seed in range(num_seeds):
        draws = [np.random.default_rng([seed, n]).standard_normal for n in range(len(images))]
        found.append(means(way, images, scale, draws))
    psnrs = [each.psnr for each in found]
    ssims = [each.ssim for each in found]
    deviation = float(np.std(psnrs, ddof=1)) if num_seeds > 1 else None
    return Score(float(np.mean(psnrs)), float(np.mean(ssims)), deviation)


def means(way: Way, images: Mapping[str, Pixels], scale: int, draws: Sequence[Draw]) -> Score:
    """Return the mean PSNR and SSIM; each image has its own source of noise."""
    psnrs: list[float] = []
    ssims: list[float] = []
    shave = scale if way.shaves else 0
    for (name, image), draw in zip(images.items(), draws, strict=True):
        hr = compared_planes(way, name, modcrop(image, scale))
        sr = way.enlarge(hr, scale, draw)
        psnrs.append(psnr_y(sr, hr, shave, way.protocol))
        ssims.append(ssim_y(sr, hr, shave, way.protocol))
    return Score(float(np.mean(psnrs)), float(np.mean(ssims)))


def compared_planes(way: Way, name: str, hr: Pixels) -> Pixels:
    """Return an HR image as a way sees it: RGB, its luma, or one channel of gray values."""
    if way.bridge_is_gray and name in BRIDGE:
        return hr[..., 0]
    if way.luma_alone:
        return to_uint8(rgb_to_y(hr))
    return hr


def hr_images(folder: Path) -> dict[str, Pixels]:
    """Return the HR images of a data set, as they lie in the folder, by name."""
    return {pair.name: read_rgb(pair.hr) for pair in find_pairs(folder, 3)}


def cell(found: Score) -> str:
    """Return a score as a cell of a table."""
    text = f"{found.psnr:.3f} / {found.ssim:.4f}"
    if found.psnr_deviation is not None:
        text += f" (± {found.psnr_deviation:.3f})"
    return text


def printed_bicubic(published: Mapping[str, Any], kind: str, scale: int) -> dict[str, Any]:
    """Return what the paper prints of bicubic interpolation, by data set."""
    for row in published["scores"]:
        if (row["method"], row["degradation"], row["scale"]) == ("Bicubic", kind, scale):
            return row["scores"]
    return {}


def main() -> None:
    """Score every way on every set, print the tables, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data sets")
    parser.add_argument("--seeds", type=int, default=3, help="of NumPy's noise; default: 3")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "seeds")
    sets = {folder.resolve().name: hr_images(folder) for folder in options.data}
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))

    baselines: list[dict[str, Any]] = []
    rows = [["bicubic", "set", "published", "`elasticnet benchmark`", "as published"]]
    for mode, (kind, scale) in MODES.items():
        for name, images in sets.items():
            usual = score(AS_BENCHMARK[kind], images, scale, options.seeds)
            reproduced = score(AS_PUBLISHED[kind], images, scale, options.seeds)
            row = {"mode": mode, "data": name}
            baselines.append(
                {**row, "benchmark": usual._asdict(), "as_published": reproduced._asdict()}
            )
            printed = printed_bicubic(published, kind, scale).get(name)
            theirs = f"{printed['psnr']:.2f} / {printed['ssim']:.4f}" if printed else ""
            rows.append([f"{kind} x{scale}", name, theirs, cell(usual), cell(reproduced)])
    print(aligned(table(rows)))

    tried: list[dict[str, Any]] = []
    rows = [["DN x3", *sets]]
    for label, way in TRIED.items():
        found = {name: score(way, images, 3, options.seeds) for name, images in sets.items()}
        tried += [{"way": label, "data": name, **each._asdict()} for name, each in found.items()]
        rows.append([label, *(cell(each) for each in found.values())])
    print(aligned(table(rows)))

    if options.json is not None:
        write_json(options.json, {"seeds": options.seeds, "baselines": baselines, "tried": tried})


if __name__ == "__main__":
    main()
