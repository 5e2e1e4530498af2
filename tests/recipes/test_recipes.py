"""What holds for every recipe."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from loading import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))


def imported_first(source: str) -> str:
    """Return the name of the first module that a program imports, but for __future__."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            return node.names[0].name
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            return node.module or ""
    return ""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_must_be_set_before_torch_is_imported_first(path: Path) -> None:
    assert imported_first(path.read_text(encoding="utf-8")) == "elasticnet.before_torch"


def test_another_first_import_is_told() -> None:
    source = '"""Doc."""\nfrom __future__ import annotations\nimport torch\nimport elasticnet\n'
    assert imported_first(source) == "torch"


def test_a_recipe_whose_extra_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(
        SystemExit, match=r'this recipe needs Ray: pip install "elastic-depth\[ray\]"'
    ):
        load_recipe("upscale_ray")
