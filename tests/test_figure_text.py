"""Texts of any script in figures: drawn where a font has them, readable where none has."""

from __future__ import annotations

import os
import warnings

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font

from elasticnet._figure_text import DEFAULT_FAMILY, SYMBOL_FAMILY, escaped, show_all_letters
from elasticnet.sr.benchmark.figures import crop_comparison, elastic_curve, parameter_dots

PHOTOGRAPHS = "\u5199\u771f"  # a word of Japanese and Chinese
FONTS = os.path.join(get_data_path(), "fonts", "ttf")


@pytest.fixture
def without_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no fonts but matplotlib's own."""
    own = [font for font in fontManager.ttflist if font.fname.startswith(get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)


def drawn(title: str) -> str:
    """Draw a figure without any warning; return its title as it was drawn."""
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(title)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        show_all_letters(figure)
        figure.draw_without_rendering()
    return axes.get_title()


def test_plain_names_stay_as_they_are():
    assert (
        drawn("Set5 x2\nPSNR \u00b1 \u00d7 \u00e4\u00f6\u03b1")
        == "Set5 x2\nPSNR \u00b1 \u00d7 \u00e4\u00f6\u03b1"
    )


@pytest.mark.parametrize("title", ["a $x^2$ b", "$\\frac$ x2", "100$ and 5$"])
def test_dollar_signs_are_letters(title):
    assert drawn(title) == title


@pytest.mark.usefixtures("without_other_fonts")
@pytest.mark.parametrize(
    ("title", "shown"),
    [
        (f"{PHOTOGRAPHS} x2", "\\u5199\\u771f x2"),
        ("a\tb", "a\\tb"),
        ("\U0001f984 x2", "\\U0001f984 x2"),
        ("broken \udcff name", "broken \\udcff name"),
    ],
)
def test_letters_that_no_font_has_are_escapes(title, shown):
    assert drawn(title) == shown


def test_letters_of_another_font_are_drawn_from_it():
    default = set(FT2Font(os.path.join(FONTS, "DejaVuSans.ttf")).get_charmap())
    symbols = set(FT2Font(os.path.join(FONTS, "STIXGeneral.ttf")).get_charmap())
    letter = chr(min(code for code in symbols - default if chr(code).isprintable()))
    figure = Figure()
    text = figure.text(0, 0, letter)
    show_all_letters(figure)
    assert text.get_text() == letter
    assert text.get_fontfamily() == [DEFAULT_FAMILY, SYMBOL_FAMILY]


def test_a_font_with_a_box_for_every_letter_is_not_taken():
    private = "\U00100000"  # belongs to nobody
    assert drawn(f"x{private}") == "x\\U00100000"


@pytest.mark.usefixtures("without_other_fonts")
def test_figures_of_a_set_with_such_a_name_are_drawn_without_warnings(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elastic_curve(tmp_path / "c.png", {PHOTOGRAPHS: {1: 30.0, 2: 31.0}}, title=PHOTOGRAPHS)
        parameter_dots(tmp_path / "p.png", {"ours": {PHOTOGRAPHS: (1e5, 30.0)}})
        crop_comparison(tmp_path / "i.png", noise, {PHOTOGRAPHS: 255 - noise}, title=PHOTOGRAPHS)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_escaped_replaces_the_given_letters_alone():
    assert escaped("a\u5199b", ["\u5199"]) == "a\\u5199b"
