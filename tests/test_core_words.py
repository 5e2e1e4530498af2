"""The core knows nothing of images: it names no architecture, no room above it, no image metric.

Identifiers and strings are read. Docstrings and comments are prose, which may cite the paper, or
give images as an example.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "elasticnet"
ROOMS_ON_TOP = ("sr", "cli", "retrofit")
ENTRY_FILES = ("__main__.py",)  # they start the command
WORDS = {
    *("asrn", "edsr", "rcan"),
    *("sr", "image", "images", "photo", "photos", "pixel", "pixels"),
    *("psnr", "ssim", "mpix"),
    *("scale", "scales", "upscale", "upscaler"),
}
# Words that mean something else there.
ALLOWED = {
    ("elasticnet/card/light_operators.py", "pixel"): "PyTorch's pixel_shuffle",
    ("elasticnet/card/light_operators.py", "scale"): "PyTorch's _masked_scale and q_scale",
    ("elasticnet/export/int8.py", "scale"): "of a quantised weight",
    ("elasticnet/export/onnx_file.py", "scale"): "of a quantised weight",
    ("elasticnet/registry.py", "sr"): "the remedy that `find` names where nothing is installed",
    ("elasticnet/training/log.py", "image"): "TensorBoard's add_image",
    ("elasticnet/training/step.py", "scale"): "the gradient scaler's method",
}


def core_files() -> list[Path]:
    """Return the modules of the core, by their paths from the root."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in ROOMS_ON_TOP and room not in ENTRY_FILES:
            found.append(path.relative_to(ROOT))
    return found


def words_in(text: str) -> set[str]:
    """Return the words of a text or an identifier: `SRWords_of2` has sr, words and of."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
    return {part.lower() for part in parts}


def docstrings_of(tree: ast.AST) -> set[ast.AST]:
    """Return the nodes of all strings that stand as statements: docstrings, of fields, too."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def texts_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every identifier and every string of a module, with its line."""
    docstrings = docstrings_of(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)) if node not in docstrings:
                yield line, text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield line, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield line, name
            case ast.ClassDef(name=name):
                yield line, name
            case ast.keyword(arg=str(name)):
                yield line, name
            case ast.alias(name=name):
                yield line, f"{name} {node.asname or ''}"
            case ast.ImportFrom(module=str(name)):
                yield line, name


def forbidden(source: str, path: Path) -> list[tuple[str, str]]:
    """Return each forbidden word in a module, and where it stands."""
    found = []
    for line, text in texts_of(ast.parse(source)):
        for word in sorted(words_in(text) & WORDS):
            found.append((word, f"{path}:{line}: {word} in {text[:60]!r}"))
    return found


@pytest.mark.parametrize("path", core_files(), ids=str)
def test_the_core_knows_nothing_of_images(path: Path) -> None:
    found = forbidden((ROOT / path).read_text(encoding="utf-8"), path)
    assert [place for word, place in found if (path.as_posix(), word) not in ALLOWED] == []


@pytest.mark.parametrize(("path", "word"), ALLOWED)
def test_an_allowed_word_is_there(path: str, word: str) -> None:
    found = forbidden((ROOT / path).read_text(encoding="utf-8"), Path(path))
    assert word in [each for each, _ in found]


@pytest.mark.parametrize(
    "source",
    [
        "psnr = 1",
        "def f(image_size): ...",
        "async def upscale(): ...",
        "x.scale",
        "f(scale=2)",
        "class SRNet: ...",
        "x = 'the asrn of the paper'",
        "x = f'asrn {x}'",
        "print('psnr')",
        "from elasticnet.sr import resize",
        "import elasticnet.sr.models",
    ],
)
def test_a_forbidden_word_is_caught(source: str) -> None:
    assert forbidden(source, Path("module.py"))


@pytest.mark.parametrize(
    "source",
    [
        "GradScaler()",
        "# an image",
        "srand = imagery = 1",
        "'The ASRN paper.'",
        "x = 1\n'In images.'",
    ],
)
def test_other_words_and_prose_pass(source: str) -> None:
    assert forbidden(source, Path("module.py")) == []
