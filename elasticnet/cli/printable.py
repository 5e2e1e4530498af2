"""Text that the command prints but did not write itself."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with each character that could steer a terminal replaced.

    File names, and the notes in a file, may hold anything; line breaks are replaced, too.

    Args:
        text: What is to be printed on one line.

    Returns:
        As many characters, each unprintable one as U+FFFD.
    """
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
