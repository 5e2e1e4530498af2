"""The image files of a folder, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from elasticnet.sr.data.read_rgb import EXTENSIONS
from elasticnet.sr.photo.reading import OTHER_EXTENSIONS


def images_in(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name, sorted.

    Links that lead nowhere, and images of formats that are not read, are among them, so that
    whoever reads the files names them as it names any unreadable file. Of a photograph that lies
    there in two formats, as raw files lie beside JPEGs, the one that is read stands for both.

    Args:
        folder: An existing folder; what lies in folders inside it does not count.

    Returns:
        The files. A name has no extension, unless two files differ in nothing else.
    """
    files = [path for path in sorted(folder.iterdir()) if _is_file(path)]
    readable = [path for path in files if path.suffix.lower() in EXTENSIONS]
    readable_stems = {path.stem for path in readable}
    paths = list(readable)
    for path in files:
        if path.suffix.lower() in OTHER_EXTENSIONS and path.stem not in readable_stems:
            paths.append(path)
    paths.sort()
    stems = Counter(path.stem for path in paths)
    images: dict[str, Path] = {}
    for path in paths:
        is_unique = stems[path.stem] == 1
        images[path.stem if is_unique else path.name] = path
    return images


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return image files by their names without extension.

    Args:
        paths: Of one folder.

    Raises:
        ValueError: Two differ in nothing but their extension, and one would hide the other.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            other = found[path.stem].name
            raise ValueError(
                f"{path.parent} holds {other} and {path.name}, which are one image by their names: "
                "move one away"
            )
        found[path.stem] = path
    return found


def some_images_in(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name; an error if there are none.

    Args:
        folder: Which may be missing.

    Returns:
        As `images_in` does.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no images found: looked in {folder}, there is no such folder")
    images = images_in(folder)
    if not images:
        raise ValueError(f"no images found: looked in {folder}, it holds no image files")
    return images


def is_broken_link(path: Path) -> bool:
    """Return whether a path is a symbolic link that leads nowhere.

    Args:
        path: Any path.
    """
    return path.is_symlink() and not path.exists()


def _is_file(path: Path) -> bool:
    """Whether a path is a file that is not hidden, or a link that leads nowhere."""
    is_hidden = path.name.startswith(".")
    return not is_hidden and (path.is_file() or is_broken_link(path))
