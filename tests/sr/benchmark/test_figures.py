"""Figures hold what they are given, and their labels do not cover each other."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from elasticnet.sr.benchmark.figures import (
    crop_comparison,
    elastic_curve,
    evenly,
    hardest_crop,
    parameter_dots,
)
from elasticnet.sr.metrics import psnr_y

CLOSE = {
    "DSL + PSD": {1: 30.02, 2: 30.21, 3: 30.36, 4: 30.42, 5: 30.45},
    "alone": {1: 29.97, 2: 30.19, 3: 30.33, 4: 30.43, 5: 30.47},
    "DSL": {1: 30.00, 2: 30.19, 3: 30.34, 4: 30.40, 5: 30.43},
}


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def assert_labels_are_free(figure: Figure) -> None:
    """No label covers another or leaves the axes."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {index: text.get_window_extent() for index, text in enumerate(axes.texts)}
    covered = [
        (axes.texts[a].get_text(), axes.texts[b].get_text())
        for a, b in combinations(boxes, 2)
        if boxes[a].overlaps(boxes[b])
    ]
    assert covered == []
    for box in boxes.values():
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1


def assert_panels_are_free(figure: Figure) -> None:
    """No panel, with its title, covers another or leaves the figure, as it was saved."""
    boxes = [box for box in (axes.get_tightbbox() for axes in figure.axes) if box]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1


# --- curves


def test_elastic_curve_draws_every_curve_and_baseline(tmp_path):
    curves = {"elastic": {1: 30.0, 2: 30.2, 3: 30.3}, "ordinary, cut short": {1: 21.25, 3: 30.4}}
    figure = elastic_curve(
        tmp_path / "c.png", curves, {"bicubic": 28.43, "SRCNN": 30.48}, "Set5 x4", "PSNR-Y (dB)"
    )
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "Set5 x4",
        "depth (blocks run)",
        "PSNR-Y (dB)",
    )
    drawn = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    for label, values in curves.items():
        assert drawn[label] == [[depth, value] for depth, value in values.items()]
    assert [y for _, y in drawn["bicubic 28.43"]] == [28.43, 28.43]
    assert legend_of(figure) == ["elastic", "ordinary, cut short", "bicubic 28.43", "SRCNN 30.48"]
    assert sorted(text.get_text() for text in axes.texts) == [
        "21.25",
        "30.00",
        "30.20",
        "30.30",
        "30.40",
    ]
    assert list(axes.get_xticks()) == [1, 2, 3]
    assert Image.open(tmp_path / "c.png").size == (900, 600)
    assert_labels_are_free(figure)


def test_labels_of_close_curves_do_not_cover_each_other(tmp_path):
    figure = elastic_curve(tmp_path / "c.png", CLOSE, {"bicubic": 28.43})
    assert len(figure.axes[0].texts) == 15
    assert_labels_are_free(figure)
    colors = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    # which may stand away from its dot, so that the colour has to tell
    for text in figure.axes[0].texts:
        label = next(label for label, color in colors.items() if color == text.get_color())
        assert text.get_text() in {f"{value:.2f}" for value in CLOSE[str(label)].values()}


def test_a_label_with_room_stands_right_beside_its_dot(tmp_path):
    figure = elastic_curve(tmp_path / "c.png", {"a": {1: 30.0, 2: 30.1}})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    for text, depth, value in zip(axes.texts, (1, 2), (30.0, 30.1), strict=True):
        box, (x, y) = text.get_window_extent(), axes.transData.transform((depth, value))
        assert (box.x0 + box.x1) / 2 == pytest.approx(x, abs=1)
        assert 3 < max(box.y0 - y, y - box.y1) * 72 / figure.dpi < 5  # points above it or below


def test_a_deep_network_has_few_labels(tmp_path):
    curve = {depth: 30 + depth**0.5 / 3 for depth in range(1, 46)}
    figure = elastic_curve(
        tmp_path / "c.png", {"45 blocks": curve, "other": {d: v - 0.05 for d, v in curve.items()}}
    )
    assert len(np.asarray(figure.axes[0].lines[0].get_xdata())) == 45
    assert len(figure.axes[0].texts) == 18
    assert list(figure.axes[0].get_xticks()) == [5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert_labels_are_free(figure)


@given(st.sets(st.integers(1, 99), min_size=1), st.integers(1, 12))
def test_evenly_keeps_the_deepest_and_at_most_so_many(depths, most):
    kept = evenly(depths, most)
    assert set(kept) <= depths
    assert kept == sorted(kept)
    assert kept[-1] == max(depths)
    assert len(kept) <= most
    if len(depths) <= most:
        assert set(kept) == depths


# --- dots


@pytest.mark.parametrize("log", [False, True])
def test_parameter_dots_are_where_they_belong_and_named(tmp_path, log):
    counts = (87_235, 126_403, 165_571, 204_739, 243_907)
    ours = {str(depth): (count, CLOSE["DSL"][depth]) for depth, count in enumerate(counts, start=1)}
    published = {"SRCNN": (57_184, 30.48), "VDSR": (665_984, 31.35), "CARN": (1_592_000, 32.13)}
    figure = parameter_dots(
        tmp_path / "p.png", {"one net": ours, "published": published}, log, "Set5 x4"
    )
    (axes,) = figure.axes
    assert axes.get_xscale() == ("log" if log else "linear")
    assert legend_of(figure) == ["one net", "published"]
    for drawn, points in zip(axes.collections, (ours, published), strict=True):
        assert np.asarray(drawn.get_offsets()).tolist() == [
            list(point) for point in points.values()
        ]
    assert [text.get_text() for text in axes.texts] == [*ours, *published]
    assert {tick.get_text() for tick in axes.get_xticklabels()} >= (
        {"100K", "1M"} if log else {"200K", "1M"}
    )
    assert_labels_are_free(figure)


# --- crops


def test_crop_comparison_shows_hr_beside_every_image_with_its_psnr(tmp_path):
    hr = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    images = {"bicubic": hr // 2, "depth 1": hr // 4 * 3, "depth 2": hr - hr // 9}
    figure = crop_comparison(
        tmp_path / "k.png", hr, images, size=20, corner=(5, 30), title="noise x2"
    )
    crops = {name: image[5:25, 30:50] for name, image in images.items()}
    titles = [f"{name}\n{psnr_y(crop, hr[5:25, 30:50], 0):.2f} dB" for name, crop in crops.items()]
    assert [axes.get_title() for axes in figure.axes] == ["noise x2", "HR\nPSNR", *titles]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    for found, wanted in zip(shown, [hr, hr[5:25, 30:50], *crops.values()], strict=True):
        assert np.array_equal(found, wanted)
    (marked,) = figure.axes[0].patches
    assert isinstance(marked, Rectangle)
    assert (*marked.get_xy(), marked.get_width(), marked.get_height()) == (30, 5, 20, 20)
    assert_panels_are_free(figure)
    named = {"bicubic": hr, **{f"a network\n{name}": image for name, image in images.items()}}
    # two or three lines over a crop
    assert_panels_are_free(crop_comparison(tmp_path / "k.png", hr, named, size=20))
    assert (tmp_path / "k.png").stat().st_size > 0


def test_by_default_the_first_image_chooses_the_crop_and_a_small_image_is_shown_whole(tmp_path):
    hr = np.zeros((50, 40, 3), np.uint8)
    worse = hr.copy()
    worse[30:40, 20:30] = 99
    figure = crop_comparison(tmp_path / "k.png", hr, {"worse": worse, "hr": hr}, size=10)
    (marked,) = figure.axes[0].patches
    assert isinstance(marked, Rectangle)
    assert marked.get_xy() == (20, 30)
    assert figure.axes[3].get_title() == "hr\nexact"
    small = crop_comparison(tmp_path / "k.png", hr, {"worse": worse}, size=96)
    assert np.asarray(small.axes[1].images[0].get_array()).shape == (40, 40, 3)


def test_crop_comparison_refuses_what_it_cannot_show(tmp_path):
    hr = np.zeros((30, 30, 3), np.uint8)
    with pytest.raises(
        ValueError,
        match=r"corner \(25, 0\): a crop of 10x10 there does not fit into HR of \(30, 30\)",
    ):
        crop_comparison(tmp_path / "k.png", hr, {"a": hr}, size=10, corner=(25, 0))
    with pytest.raises(
        ValueError,
        match=r"images of shape none: expected at least one, all of HR's shape \(30, 30, 3\)",
    ):
        crop_comparison(tmp_path / "k.png", hr, {})
    with pytest.raises(ValueError, match=r"images of shape \{'b': \(28, 30, 3\)\}"):
        crop_comparison(tmp_path / "k.png", hr, {"a": hr, "b": hr[:28]})
    assert list(tmp_path.iterdir()) == []


@given(st.integers(3, 9), st.integers(3, 9), st.integers(1, 3), st.integers(0, 2**31))
def test_hardest_crop_is_the_naive_search(height, width, size, seed):
    hr, other = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    errors = {
        (top, left): ((hr.astype(int) - other)[top : top + size, left : left + size] ** 2).sum()
        for top in range(height - size + 1)
        for left in range(width - size + 1)
    }
    assert errors[hardest_crop(hr, other, size)] == max(errors.values())


def test_pyplot_is_never_loaded():
    code = "import sys, elasticnet.sr.benchmark.figures; print('matplotlib.pyplot' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )
