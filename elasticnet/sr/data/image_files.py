"""The image files of a folder, by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from elasticnet.sr.data.read_rgb import EXTENSIONS
from elasticnet.sr.photo.reading import OTHER_EXTENSIONS


def images_in(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name, sorted; see `image_files_in`.

    Args:
        folder: An existing folder; what lies in folders inside it does not count.

    Returns:
        The files. A name has no extension, unless two files differ in nothing else.
    """
    return {name: folder / file for name, file in image_files_in(folder).items()}


def image_files_in(folder: Path) -> dict[str, str]:
    """Return the image files of a folder by name, sorted.

    Links that lead nowhere, and images of formats that are not read, are among them, so that
    whoever reads the files names them as it names any unreadable file. Of a photograph that lies
    there in two formats, as raw files lie beside JPEGs, the one that is read stands for both.

    Args:
        folder: An existing folder; what lies in folders inside it does not count.

    Returns:
        The files' own names. The name that stands for one has no extension, unless two files differ
        in nothing else.
    """
    names = [name for name in _file_names(folder) if not name.startswith(".")]
    readable: list[str] = []
    others: list[str] = []
    for name in names:
        extension = os.path.splitext(name)[1].lower()
        if extension in EXTENSIONS:
            readable.append(name)
        elif extension in OTHER_EXTENSIONS:
            others.append(name)
    stem_of = {name: os.path.splitext(name)[0] for name in (*readable, *others)}
    readable_stems = {stem_of[name] for name in readable}
    chosen = readable + [name for name in others if stem_of[name] not in readable_stems]
    chosen.sort(key=os.path.normcase)  # as paths are sorted
    stems = Counter(stem_of[name] for name in chosen)
    images: dict[str, str] = {}
    for name in chosen:
        is_unique = stems[stem_of[name]] == 1
        images[stem_of[name] if is_unique else name] = name
    return images


def folders_in(parent: Path) -> list[Path]:
    """Return the folders in a folder, sorted, and links to folders.

    Args:
        parent: An existing folder.
    """
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if _is_folder(entry)]
    return [parent / name for name in sorted(names, key=os.path.normcase)]


def folders_and_links_in(parent: Path) -> list[Path]:
    """Return the folders in a folder and all links, wherever they lead, sorted.

    Args:
        parent: An existing folder.
    """
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if entry.is_symlink() or entry.is_dir()]
    return [parent / name for name in sorted(names, key=os.path.normcase)]


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


# Listing a folder tells which entries are files and folders; only links have to be looked up.


def _file_names(folder: Path) -> list[str]:
    """The names of the files in a folder, and of the links that lead nowhere."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_file(entry)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads nowhere."""
    if not entry.is_symlink():
        return entry.is_file()
    path = Path(entry.path)
    return path.is_file() or is_broken_link(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    if not entry.is_symlink():
        return entry.is_dir()
    return Path(entry.path).is_dir()
