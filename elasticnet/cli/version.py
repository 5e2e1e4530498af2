"""`elasticnet --version`: this version, and which installed distribution it comes from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import elasticnet

DISTRIBUTION = "elastic-depth"  # what pip installs; the import and the command are `elasticnet`
NAMESAKE = "elasticnet"  # a distribution of other authors, with the same import name


class ShowVersion(argparse.Action):
    """The option that prints `version_text()` and ends the command.

    Args:
        option_strings: The option's names.
        dest: Unused: the option stores nothing.
        **settings: What argparse passes besides, such as `help`.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_parsed: Any) -> None:
        """Print the version and exit with status 0.

        Args:
            parser: The command's parser, which ends the process.
            *_parsed: Namespace, values and name of the option; not needed.
        """
        print(version_text())
        parser.exit()


def version_text() -> str:
    """Return the version, the distribution, and a warning where another one may overwrite it.

    Both distributions install a folder `elasticnet`, so that of two that are installed the last
    one wins, and removing either breaks the other.
    """
    text = f"elasticnet {elasticnet.__version__} (distribution {DISTRIBUTION})"
    ours = _installed_version(DISTRIBUTION)
    namesake = _installed_version(NAMESAKE)
    if ours is None:
        folder = Path(elasticnet.__file__).parent
        text += f"\n{DISTRIBUTION} is not installed: this is {folder}"
    if namesake is not None:
        text += (
            f"\nanother distribution, {NAMESAKE} {namesake}, is installed and claims the same "
            "import name: the files of the one that was installed last are in use. Run "
            f"`pip uninstall {NAMESAKE} {DISTRIBUTION}`, then install {DISTRIBUTION} again"
        )
    return text


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
