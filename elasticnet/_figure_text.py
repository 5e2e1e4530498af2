"""Text in figures, whatever its letters: names of files and data sets may be of any script."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry
    from matplotlib.text import Text

DEFAULT_FAMILY = "DejaVu Sans"  # it comes with matplotlib, in this file
DEFAULT_FILE = "fonts/ttf/DejaVuSans.ttf"
SYMBOL_FAMILY = "STIXGeneral"  # the other font of matplotlib whose letters are in their places


def show_all_letters(figure: Figure) -> None:
    """Make the texts of a figure readable; see `show_letters_of`.

    Args:
        figure: With its title, labels and legend in place, and not drawn yet.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        show_letters_of(text)


def show_letters_of(text: Text) -> None:
    """Give a text a font that has its letters.

    Letters that the default font lacks are taken from an installed font that has all of them.
    Without one they are written as escapes, such as \\u5199: an empty box would say nothing.
    Dollar signs are letters here, and not the beginning of a formula.

    Args:
        text: A text of a figure.
    """
    content = text.get_text()
    if "$" in content:
        text.set_parse_math(False)
    missing = _missing_letters(content)
    if not missing:
        return
    family = _family_with(missing)
    if family is None:
        text.set_text(escaped(content, missing))
    else:
        text.set_fontfamily([DEFAULT_FAMILY, family])


def escaped(text: str, letters: Iterable[str]) -> str:
    """Return a text with some of its letters as escapes, such as \\u5199.

    Args:
        text: The text.
        letters: Those that are replaced.
    """
    for letter in letters:
        text = text.replace(letter, letter.encode("unicode_escape").decode())
    return text


def _missing_letters(text: str) -> frozenset[str]:
    """The letters of a text that the default font lacks; a line break needs none."""
    from matplotlib import get_data_path

    available = _letters_of(os.path.join(get_data_path(), DEFAULT_FILE))
    return frozenset(letter for letter in text if letter != "\n" and ord(letter) not in available)


def _family_with(letters: frozenset[str]) -> str | None:
    """The name of an installed font that has all these letters; None if there is none."""
    wanted = {ord(letter) for letter in letters}
    for font in _usable_fonts():
        if wanted <= _letters_of(font.fname):
            return font.name
    return None


def _usable_fonts() -> Iterator[FontEntry]:
    """The fonts of this machine with letters that can be drawn, by name."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager

    for font in sorted(fontManager.ttflist, key=lambda font: font.name):
        # Matplotlib's own fonts hold mathematics in odd places, and one has a box for every letter.
        is_special = font.fname.startswith(get_data_path()) and font.name != SYMBOL_FAMILY
        is_pictures = "emoji" in font.name.lower()  # in colour, which matplotlib does not draw
        if font.style == "normal" and not is_special and not is_pictures:
            yield font


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    """The code points that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that is listed may be gone, or damaged
        return frozenset()
