"""The frame: who imports whom, what `import elasticnet` loads, what the wheel holds, tidy files."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from code_shape import count_branches, findings
from elasticnet.cli.recipes import find_recipes
from import_arrows import (
    ALLOWED,
    PACKAGE,
    arrows_turned,
    documented_arrows,
    import_cycle,
    recipes_imported,
)

ROOT = Path(__file__).parent.parent
DISTRIBUTION = "elastic-depth"


def python_files(*folders: str) -> dict[Path, str]:
    """Return the source of every Python file in these folders, by its path from the root."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in files}


def text_files() -> list[Path]:
    """Return every text file of a checkout, without asking git; hidden files at the top are left
    out.
    """
    folders = [ROOT / name for name in (PACKAGE, "recipes", "tests", "docs", ".ci")]
    inside = [
        path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts
    ]
    top = [
        path
        for path in ROOT.iterdir()
        if not path.name.startswith(".") or path.name == ".gitignore"
    ]
    files = [path for path in sorted([*top, *inside]) if path.is_file()]
    return [path for path in files if b"\0" not in path.read_bytes()[:1024]]


# --- import arrows


def test_import_arrows_run_one_way() -> None:
    sources = python_files(PACKAGE)
    assert [line for path, source in sources.items() for line in arrows_turned(source, path)] == []


def test_no_import_cycles() -> None:
    assert import_cycle(python_files(PACKAGE)) is None


def test_nothing_imports_a_recipe() -> None:
    sources = python_files(PACKAGE, "recipes", "tests", "docs")
    recipes = {path.stem for path in sources if path.parts[0] == "recipes"}
    assert [
        line for path, source in sources.items() for line in recipes_imported(source, path, recipes)
    ] == []


def test_the_table_itself_has_no_cycle() -> None:
    TopologicalSorter(ALLOWED).prepare()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("elasticnet/taps.py", "import elasticnet.wrapper"),
        ("elasticnet/taps.py", "import torch, elasticnet.losses as losses"),
        ("elasticnet/losses.py", "from elasticnet.wrapper import Taps"),
        ("elasticnet/losses.py", "from elasticnet import wrapper"),
        ("elasticnet/losses.py", "from elasticnet import ElasticWrapper"),
        ("elasticnet/losses.py", "from . import wrapper"),
        ("elasticnet/losses.py", "from .wrapper import Taps"),
        (
            "elasticnet/losses.py",
            "if TYPE_CHECKING:\n    from elasticnet.wrapper import ElasticWrapper",
        ),
        ("elasticnet/wrapper.py", "def f():\n    from elasticnet.losses import psd_loss"),
        ("elasticnet/wrapper.py", "class A:\n    async def f(self):\n        import elasticnet.sr"),
        (
            "elasticnet/card/__init__.py",
            "try:\n    from elasticnet.export import to_onnx\nexcept ImportError:\n    pass",
        ),
        (
            "elasticnet/card/__init__.py",
            "module = importlib.import_module('elasticnet.sr.models.asrn')",
        ),
        (
            "elasticnet/card/__init__.py",
            "module = importlib.import_module(f'elasticnet.sr.models.{name}')",
        ),
        ("elasticnet/checkpoint/__init__.py", "from elasticnet.sr import asrn"),
        ("elasticnet/checkpoint/__init__.py", "def f():\n    from elasticnet.sr import asrn"),
        ("elasticnet/checkpoint/__init__.py", "NAMES = {'asrn': 'elasticnet.sr.models.asrn:asrn'}"),
        ("elasticnet/checkpoint/__init__.py", "def f():\n    from elasticnet.cli import main"),
        ("elasticnet/sr/data/__init__.py", "from ...cli import main"),
        ("elasticnet/sr/models/asrn.py", "from ...retrofit import timm"),
        ("elasticnet/sr/__init__.py", "from ..cli import main"),
        ("elasticnet/__init__.py", "from . import sr"),
        ("elasticnet/__init__.py", "from .retrofit.timm import split"),
        ("elasticnet/cli.py", "def main():\n    from recipes.asrn_div2k import train"),
        ("elasticnet/cli.py", "import tests.contract"),
        ("elasticnet/helpers.py", ""),
    ],
)
def test_a_turned_arrow_is_caught(path: str, source: str) -> None:
    (line,) = arrows_turned(source, Path(path))
    assert line.startswith(path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "elasticnet/losses.py",
            "from elasticnet.taps import sample_depths\nfrom . import distillation, loss_weights",
        ),
        (
            "elasticnet/losses.py",
            "'''A docstring may name elasticnet.wrapper.'''\nimport torch.nn.functional as F",
        ),
        (
            "elasticnet/sr/models/asrn.py",
            "from elasticnet import ElasticWrapper\nfrom .heads import head",
        ),
        ("elasticnet/sr/__init__.py", "from .models.asrn import asrn\nfrom . import resize"),
        ("elasticnet/cli.py", "def main():\n    from elasticnet.sr.benchmark import run"),
        ("elasticnet/retrofit/timm.py", "import timm\nfrom ..wrapper import ElasticWrapper"),
    ],
)
def test_an_allowed_arrow_passes(path: str, source: str) -> None:
    assert arrows_turned(source, Path(path)) == []


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("tests/test_x.py", "from recipes.asrn_div2k import train", True),
        ("recipes/best.py", "def f():\n    import asrn_div2k", True),
        ("recipes/best.py", "from elasticnet.sr import asrn", False),
        ("tests/test_x.py", "import runpy", False),
    ],
)
def test_an_imported_recipe_is_caught(path: str, source: str, caught: bool) -> None:
    assert bool(recipes_imported(source, Path(path), {"asrn_div2k", "best"})) is caught


def test_an_import_cycle_is_caught() -> None:
    sources = {
        Path("elasticnet/sr/__init__.py"): "from .data import read",
        Path("elasticnet/sr/data.py"): "from elasticnet.sr import resize",
        Path("elasticnet/sr/resize.py"): "import math",
    }
    assert import_cycle(sources) is None
    sources[Path("elasticnet/sr/resize.py")] = "def f():\n    from .data import read"
    assert set(import_cycle(sources) or ()) == {"elasticnet.sr.data", "elasticnet.sr.resize"}


def test_an_import_cycle_through_an_init_file_is_caught() -> None:
    sources = {
        Path("elasticnet/sr/__init__.py"): "NAMES = {'read': 'elasticnet.sr.data'}",
        Path("elasticnet/sr/data.py"): "def f():\n    from elasticnet.sr import read",
    }
    assert set(import_cycle(sources) or ()) == {"elasticnet.sr", "elasticnet.sr.data"}


def test_the_contributing_page_shows_the_same_arrows() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert documented_arrows(page) == ALLOWED


# --- how the code reads


def test_no_function_is_too_dense_and_every_public_name_is_described() -> None:
    library = python_files(PACKAGE)
    found = [each for path, source in library.items() for each in findings(source, str(path))]
    for path, source in python_files("recipes", "docs").items():
        found += findings(source, str(path), docstrings=False)
    assert [str(each) for each in found] == []


DENSE = """
def f(a, b, c):
    if a and b or c:
        return [x for x in a if x if b]
    return 1 if a else 2
"""


def test_branches_are_counted_wherever_they_stand() -> None:
    (function,) = ast.parse(DENSE).body
    assert isinstance(function, ast.FunctionDef)
    # the if, its `and`, its `or`, two conditions of the comprehension, the conditional expression
    assert count_branches(function) == 6


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def f(): ...", "no docstring"),
        ("def f(x):\n    'Do it.'", "lists no x under Args"),
        ("def f() -> int:\n    'Do it.'", "does not say what it returns"),
        ("def f():\n    'Do it.'\n    raise ValueError(1)", "no ValueError under Raises"),
        ("class A:\n    'It.'\n    def f(self, x):\n        'Do it.'", "lists no x"),
        ("class A:\n    'It.'\n    def __init__(self, x): ...", "lists no x"),
        ("class A(NamedTuple):\n    'It.'\n    x: int", "lists no x under Attributes"),
    ],
)
def test_what_a_docstring_lacks_is_named(source: str, problem: str) -> None:
    (found,) = findings(f"'A module.'\n{source}", "m.py")
    assert problem in found.problem


@pytest.mark.parametrize(
    "source",
    [
        "def _f(x): ...",
        "def f(x):\n    '''Do it.\n\n    Args:\n        x: A number.\n    '''",
        "def f() -> int:\n    'Return one.'",
        "class A(NamedTuple):\n    '''It.\n\n    Attributes:\n        x: One.\n    '''\n    x: int",
    ],
)
def test_what_is_described_or_private_passes(source: str) -> None:
    assert findings(f"'A module.'\n{source}", "m.py") == []


# --- what `import elasticnet` loads

COUNT_MODULES = """
import json, sys, warnings
import torch
warnings.simplefilter("error")
before = set(sys.modules)
import elasticnet
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_loads_little_beyond_torch() -> None:
    """Time is not asserted but counted in modules; tests/benchmarks/bench_import.py prints
    milliseconds.
    """
    run = subprocess.run(
        [sys.executable, "-c", COUNT_MODULES],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    added = json.loads(run.stdout)
    heavy = {
        "timm",
        "torchvision",
        "transformers",
        "matplotlib",
        "PIL",
        "skimage",
        "scipy",
        "tqdm",
        "onnx",
        "triton",
    }
    assert sorted(heavy & {name.split(".")[0] for name in added}) == []
    late = ("sr", "retrofit", "cli")
    assert [
        name for name in added if name.split(".")[:2] in [[PACKAGE, room] for room in late]
    ] == []
    others = [
        name
        for name in added
        if name.split(".")[0] not in (PACKAGE, "einops", "safetensors", "numpy")
    ]
    assert len(others) <= 8, f"import elasticnet also loads {others}"
    assert len(added) <= 45, f"import elasticnet loads {len(added)} modules beyond torch's: {added}"


# --- packaging


def declared_requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for: the dependencies and every extra, without the package
    itself.
    """
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    named = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [required for required in map(Requirement, named) if required.name != DISTRIBUTION]


def test_every_requirement_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    assert {pin.operator for pin in versions.values()} == {"=="}
    for required in declared_requirements():
        pin = versions.get(canonicalize_name(required.name))
        assert pin, f"{required.name} is in pyproject.toml and has no pin in constraints.txt"
        assert required.specifier.contains(pin.version), (
            f"{required} does not admit the pinned {pin.version}"
        )


def test_changelog_names_the_version_of_the_package() -> None:
    (version,) = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / PACKAGE / "__init__.py").read_text(), re.MULTILINE
    )
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == version


def test_wheel_holds_the_package_and_the_recipes_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = "".join(
            archive.read(name).decode() for name in archive.namelist() if "entry_points" in name
        )
    folder = ROOT / PACKAGE
    files = {path for path in folder.rglob("[!.]*") if path.is_file() and path.suffix != ".pyc"}
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    recipes = {f"{PACKAGE}/_recipes/{path.name}" for path in find_recipes().values()}
    assert held == expected | recipes
    assert f"{PACKAGE}/py.typed" in held
    assert "elasticnet = elasticnet.cli:main" in metadata


# --- tidy files

# Folders of one person's machine, and hosts of package registries: neither belongs into a project's
# files.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:home|Users)/\w+/|(?<![\w.])/roo[t]/|[A-Z]:\\Users\\|://[^\s)\"'>]*/simple\b"
    r"|(?:files\.)?pythonhosted\.or[g]|\bpypi\.or[g]/simple|registry\.npmjs\.or[g]|download\.pytorch\.or[g]/whl"
)


def test_no_private_paths_and_no_registry_hosts() -> None:
    here = (
        re.compile(rf"(?<![\w.:/-]){re.escape(str(ROOT))}(?![\w-])")
        if len(ROOT.parts) > 2
        else PRIVATE
    )
    found = []
    for path in text_files():
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
        ):
            match = PRIVATE.search(line) or here.search(line)
            if match:
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "see /hom" + "e/ada/data",
        "/roo" + "t/x",
        "C:\\Us" + "ers\\ada",
        "--index-url https://mirror.example/simpl" + "e",
    ],
)
def test_a_private_path_is_caught(line: str) -> None:
    assert PRIVATE.search(line)
