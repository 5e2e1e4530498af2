"""Checkpoints that come with a package, by a short name in the place of a file.

The name is that of the architecture, a hyphen, and what the architecture calls the file: "asrn-x4",
"asrn-x4:published". Which files there are is said by `Architecture.packaged_files`.
"""

from __future__ import annotations

import os
from pathlib import Path

from elasticnet.registry import Architecture, find, names


def packaged_files() -> dict[str, Path]:
    """Return all checkpoints that come with the installed packages, by name.

    Packages that cannot be imported, or whose files cannot be listed, are left out.
    """
    files: dict[str, Path] = {}
    for architecture_name in names():
        files.update(_files_of(architecture_name))
    return files


def find_packaged(name: str) -> Path | None:
    """Return the checkpoint of a name, or None if no package has one.

    Only architectures whose name the text begins with are looked at, so that a text that is no such
    name imports no package.

    Args:
        name: Such as "asrn-x4".
    """
    for architecture_name in names():
        if name.startswith(f"{architecture_name}-"):
            file = _files_of(architecture_name).get(name)
            if file is not None:
                return file
    return None


def source_of(text: str) -> str:
    """Return what a user means by the name of a file or of a packaged checkpoint.

    A file or folder of this name wins over a packaged checkpoint: what lies in the present folder
    is what its user sees.

    Args:
        text: A path, a URL, an `hf://` name, or the name of a packaged checkpoint.

    Returns:
        The path of the packaged checkpoint; anything else as it came.
    """
    if os.path.lexists(text):
        return text
    file = find_packaged(text)
    return text if file is None else str(file)


def why_no_name(text: str) -> str:
    """Return what to add to the message of a file that is not there: the names that there are.

    Args:
        text: What was looked for.

    Returns:
        A clause that lists the packaged checkpoints and where they lie. Empty if the text cannot
        have been meant as a name, because it has a folder in it or ends in .safetensors.
    """
    has_folder = os.path.basename(text) != text
    if has_folder or text.endswith(".safetensors"):
        return ""
    by_folder: dict[Path, list[str]] = {}
    for name, file in packaged_files().items():
        by_folder.setdefault(file.parent, []).append(name)
    if not by_folder:
        return ", and no net is packaged"
    listed = [f"{', '.join(found)} (in {folder})" for folder, found in by_folder.items()]
    return f", and no packaged net of that name; there are {'; '.join(listed)}"


def _files_of(architecture_name: str) -> dict[str, Path]:
    """The packaged checkpoints of one architecture, by their whole names."""
    try:
        architecture = find(architecture_name)
        return _listed_files(architecture_name, architecture)
    except Exception:  # another package's code may raise anything, and is not what was asked for
        return {}


def _listed_files(architecture_name: str, architecture: Architecture) -> dict[str, Path]:
    if architecture.packaged_files is None:
        return {}
    files: dict[str, Path] = {}
    for name, file in architecture.packaged_files().items():
        files[f"{architecture_name}-{name}"] = Path(file)
    return files
