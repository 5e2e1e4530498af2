"""Who imports whom: a table of the arrows between the package's rooms, and its check by ast."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

PACKAGE = "elasticnet"  # also stands for the package's own __init__.py, the facade

# Which rooms each room may import. A room is elasticnet/<room>.py or the folder elasticnet/<room>/.
# docs/contributing.md shows the same table, with what each room is for.
CORE = {
    "taps",
    "distillation_losses",
    "distillation",
    "loss_weights",
    "layer_dropout",
    "losses",
    "recompute",
    "wrapper",
    "registry",
    "recalibration",
    "memory",
    "parameter_groups",
    "_autocast",
    "_figure_text",
    "_files",
    "_lazy",
    "_modules",
    "_net",
    "_objective",
    "_tables",
    "checkpoint",
    "card",
    "exits",
    "export",
    "training",
}
ALLOWED: dict[str, set[str]] = {
    "before_torch": set(),
    "_autocast": set(),
    "_modules": set(),
    "_figure_text": set(),
    "_net": {"taps", "_modules"},
    "_files": set(),
    "_lazy": set(),
    "_objective": {
        "taps",
        "distillation_losses",
        "distillation",
        "loss_weights",
        "parameter_groups",
        "recompute",
        "_modules",
        "_net",
    },
    "_tables": set(),
    "memory": set(),
    "parameter_groups": {"_modules"},
    "taps": set(),
    "distillation_losses": set(),
    "distillation": {"distillation_losses", "loss_weights", "_autocast", "_modules"},
    "loss_weights": set(),
    "layer_dropout": set(),
    # and not wrapper: neither knows the other
    "losses": {
        "taps",
        "distillation_losses",
        "distillation",
        "loss_weights",
        "parameter_groups",
        "_modules",
        "_net",
        "_objective",
    },
    "recompute": {"_modules", "_net"},
    "wrapper": {"taps", "recompute", "parameter_groups", "_modules", "_net"},
    "registry": {"wrapper"},
    "recalibration": {"taps", "wrapper", "_modules", "_net"},
    "checkpoint": {
        "taps",
        "wrapper",
        "registry",
        "recalibration",
        "_files",
        "_lazy",
        "_modules",
        "_net",
        "_tables",
    },
    "card": {
        "taps",
        "wrapper",
        "registry",
        "memory",
        "_autocast",
        "_figure_text",
        "_files",
        "_lazy",
        "_tables",
        "checkpoint",
    },
    "exits": {"taps", "wrapper", "export", "_files", "_modules", "_net"},
    "export": {"taps", "wrapper", "registry", "_files", "_lazy", "_modules", "checkpoint"},
    "training": {
        "taps",
        "distillation_losses",
        "distillation",
        "loss_weights",
        "losses",
        "wrapper",
        "_files",
        "_modules",
    },
    PACKAGE: CORE,
    "retrofit": CORE | {PACKAGE},
    "sr": CORE | {PACKAGE},
    "cli": CORE | {PACKAGE, "before_torch", "retrofit", "sr"},
    "__main__": {"cli"},
}


class Import(NamedTuple):
    """One import: the dotted name, its line, and whether it waits until a function is called."""

    name: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package, given by its path from the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, path: Path) -> Iterator[Import]:
    """Yield every import in `source`: in functions, under TYPE_CHECKING, relative ones made
    absolute.

    A string that is a dotted name of this package, or the start of one, counts as a lazy import,
    because import_module takes it.
    """
    folder = ".".join(path.parts[:-1])
    by_name = re.compile(rf"{PACKAGE}(\.\w+)+([.:]\w*)?")

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = folder.split(".")[: len(path.parts) - child.level]
                    base = ".".join([*parents, base] if base else parents)
                yield from (
                    Import(f"{base}.{alias.name}", child.lineno, lazy) for alias in child.names
                )
            elif isinstance(child, ast.Constant) and isinstance(child.value, str):
                if by_name.fullmatch(child.value):
                    yield Import(child.value.replace(":", "."), child.lineno, True)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, lazy or inside)

    return visit(ast.parse(source, str(path)), False)


def room_of(name: str) -> str | None:
    """Return the room of a dotted name: the facade for `elasticnet.Name`, None outside the
    package.
    """
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else PACKAGE


def arrows_turned(source: str, path: Path) -> list[str]:
    """Return one line for each import in a file of the package that the table does not allow."""
    parts = module_name(path).split(".")
    room = parts[1] if len(parts) > 1 else PACKAGE
    if room not in ALLOWED:
        return [
            f"{path}: the room {room!r} is not in the table ALLOWED: say there what it may import"
        ]
    found = []
    for imported in imports_of(source, path):
        target = room_of(imported.name)
        if target is None:
            wrong = imported.name.split(".")[0] in ("recipes", "tests")
        else:
            wrong = target != room and target not in ALLOWED[room]
        if wrong:
            found.append(f"{path}:{imported.line}: {room} must not import {imported.name}")
    return found


def recipes_imported(source: str, path: Path, recipes: set[str]) -> list[str]:
    """Return one line for each import of a recipe, by package or, among recipes, by file name."""
    found = []
    for imported in imports_of(source, path):
        first = imported.name.split(".")[0]
        if first == "recipes" or (path.parts[0] == "recipes" and first in recipes):
            found.append(
                f"{path}:{imported.line}: recipes are run, never imported: {imported.name}"
            )
    return found


def import_cycle(sources: dict[Path, str]) -> list[str] | None:
    """Return the modules of one import circle, or None; lazy imports and `__init__` files count.

    Only what a file says itself counts: that importing a module also runs the `__init__` of its
    package does not.
    """
    modules = {module_name(path): path for path in sources}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for imported in imports_of(sources[path], path):
            target = imported.name
            if target not in modules:  # a name in a module, not a module
                target = target.rpartition(".")[0]
            if target in modules and target != name:
                graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def room_named(name: str) -> str:
    """Return the room that the contributing page calls by this name."""
    return PACKAGE if name == "__init__" else name


def documented_arrows(page: str) -> dict[str, set[str]]:
    """Return the table of the contributing page as ALLOWED has it.

    A row is `| room | what it is for | rooms that it may import |`; the facade is called
    `__init__`, and "the core" stands for CORE.
    """
    arrows: dict[str, set[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`(\w+)/?`", cells[0])
        if len(cells) != 3 or not names:
            continue
        allowed = {
            PACKAGE if name == "__init__" else name for name in re.findall(r"`(\w+)/?`", cells[2])
        }
        if "the core" in cells[2]:
            allowed |= CORE
        for name in names:
            arrows[PACKAGE if name == "__init__" else name] = allowed
    return arrows
