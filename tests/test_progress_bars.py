"""Bars of progress are drawn on terminals alone, by one rule: tqdm's `disable=None`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# These two ask for a terminal themselves: the log writes lines in the place of its bar, and the
# digits' bar counts the steps also where it is not shown.
OWN_RULES = ("elasticnet/training/log.py", "recipes/vit_digits.py")


def bars_in(path: Path) -> Iterator[ast.Call]:
    """Yield the calls that make a bar."""
    text = path.read_text(encoding="utf-8")
    if "tqdm(" not in text:  # parsing every file would take seconds of each worker's start
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm":
            yield node


def files_with_bars() -> list[Path]:
    files = [*(ROOT / "elasticnet").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    return [path for path in sorted(files) if any(bars_in(path))]


def may_be_none(value: ast.expr | None, tree_text: str) -> bool:
    """Whether a value of `disable` can be None: it says so itself, or where its name is set."""
    if value is None:
        return False
    if isinstance(value, ast.Name):
        return f"{value.id} = None if " in tree_text or f"{value.id} = True if " in tree_text
    return "None" in ast.unparse(value)


@pytest.mark.parametrize("path", files_with_bars(), ids=lambda path: path.name)
def test_a_bar_is_hidden_where_there_is_no_terminal(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in OWN_RULES:
        assert "isatty()" in path.read_text(encoding="utf-8")
        return
    for call in bars_in(path):
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        assert may_be_none(options.get("disable"), path.read_text(encoding="utf-8")), (
            f"{path}:{call.lineno}: give disable=None, so that only a terminal gets the bar"
        )


def test_the_files_with_bars_are_found() -> None:
    names = {path.name for path in files_with_bars()}
    assert {
        "download.py",
        "decoding.py",
        "upscale_run.py",
        "evaluation.py",
        "measuring.py",
    } <= names
