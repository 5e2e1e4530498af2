"""`elasticnet recipes`: the training recipes that come with the package, to be copied and changed.

A recipe is a program of one file. Nothing here imports one; its text is read.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import TYPE_CHECKING

from elasticnet._files import check_target, write_atomic
from elasticnet.cli.arguments import add_debug

if TYPE_CHECKING:
    from elasticnet.cli.arguments import Commands

PACKAGE = Path(__file__).parents[1]
# Programs beside the recipes in a source tree that write this project's own pages.
NOT_RECIPES = ("complexity", "published", "record", "results")


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "recipes", help="list the training recipes, or copy one to change and run it"
    )
    parser.description = (
        "List the training recipes that come with the package. A recipe is a program of one file, "
        "with its training loop in it: copy it, change it, run it with python."
    )
    add_debug(parser)
    parser.set_defaults(run=run)

    actions = parser.add_subparsers(metavar="copy")
    copy = actions.add_parser("copy", help="copy a recipe into the current folder")
    copy.description = "Copy a recipe, by default into the current folder under its own name."
    copy.add_argument("name", metavar="NAME", help="a recipe, as `elasticnet recipes` lists it")
    copy.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="the copy; default: NAME.py"
    )
    copy.add_argument("--force", action="store_true", help="replace a file that exists")
    add_debug(copy)
    copy.set_defaults(run=run_copy)


def run(options: argparse.Namespace) -> int:
    """Print the name of every recipe and the first line of its docstring.

    Args:
        options: The parsed command line.

    Returns:
        The exit status, 0.

    Raises:
        FileNotFoundError: This installation has no recipes.
    """
    recipes = find_recipes()
    width = max(len(name) for name in recipes)
    for name, path in recipes.items():
        print(f"{name:{width}}  {summary(path)}")
    print("\nTo change and run one: elasticnet recipes copy NAME")
    return 0


def run_copy(options: argparse.Namespace) -> int:
    """Copy one recipe, and print how to run it.

    Args:
        options: The parsed command line.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: There is no recipe of this name, or the file is a folder.
        OSError: The file exists and `--force` is not given, or it cannot be written.
    """
    recipes = find_recipes()
    name = options.name.removesuffix(".py")
    if name not in recipes:
        raise ValueError(f"recipe {options.name!r}: expected one of {', '.join(recipes)}")
    target = Path(f"{name}.py") if options.file is None else options.file
    check_target(target, overwrite=options.force)
    write_atomic(target, recipes[name].read_text(encoding="utf-8"))
    print(f"written to {target}; its options: python {target} --help")
    return 0


def find_recipes(package: Path = PACKAGE) -> dict[str, Path]:
    """Return the recipes' files by their names, sorted.

    Args:
        package: The folder of the installed package, or of the package in a source tree.

    Raises:
        FileNotFoundError: There are none.
    """
    # A wheel carries them inside the package, as it owns no other folder where it is installed. In
    # a source tree they stand beside the package.
    inside = package / "_recipes"
    folder = inside if inside.is_dir() else package.parent / "recipes"
    found = {path.stem: path for path in sorted(folder.glob("*.py"))}
    recipes = {name: path for name, path in found.items() if name not in NOT_RECIPES}
    if not recipes:
        raise FileNotFoundError(
            f"this installation has no recipes ({inside} does not exist); install the wheel, or "
            "take them from the source"
        )
    return recipes


def summary(path: Path) -> str:
    """Return the first line of a recipe's docstring.

    Args:
        path: The recipe's file.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first_line, _, _ = docstring.partition("\n")
    return first_line
