"""Packages of other people, as an installer would leave them: a module and its entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import warm_python

ROOT = Path(__file__).parent.parent
DISTRIBUTION = "ten-lines"
METADATA = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 1.0\n"


def install(folder: Path, module: str, code: str, entry_points: list[str]) -> None:
    """Put a package into a folder.

    Args:
        folder: Put on the path by `run_python`.
        module: The name of the package's only module.
        code: What stands in it.
        entry_points: Lines such as "name = module:ATTRIBUTE"; none where it declares nothing.
    """
    (folder / f"{module}.py").write_text(code)
    info = folder / "ten_lines-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    lines = ["[elasticnet_architectures]", *entry_points]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def environment_of(folder: Path) -> dict[str, str]:
    """Return the variables of a process that finds the package in a folder."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path}


def run_python(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that finds the package in a folder, and works in that folder.

    Args:
        folder: Where `install` put the package.
        *arguments: Of the interpreter, such as "-c" and code.
        **environment: Variables to set, too.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment_of(folder), **environment},
        capture_output=True,
        text=True,
    )


def run_code(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as `run_python` does, where all imports but those of the package are done already.

    Args:
        folder: Where `install` put the package.
        code: The program.
    """
    return warm_python.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment_of(folder),
        capture_output=True,
        text=True,
    )
