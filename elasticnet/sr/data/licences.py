"""The terms of photographs, as a data set's LICENSES.md has them: one table row a picture.

    | picture | author | licence | copyleft |
    | --- | --- | --- | --- |
    | roof.jpg | not stated | CC0-1.0 | no |

Of a table's columns, "picture", "licence" (or "license") and "copyleft" are read, wherever they
stand. Tables that lack one of the three are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elasticnet._files import write_json
from elasticnet.sr.data.held_out import without_extension
from elasticnet.sr.data.joining import labels_of

LICENCES_FILE = "LICENSES.md"  # in a data set's folder
RECORD_FILE = "photographs.json"  # in a run folder
COPYLEFT_WORDS = {"yes": True, "no": False}
MAX_NAMED = 5  # photographs that a message names


class Terms(NamedTuple):
    """The terms of one photograph.

    Attributes:
        licence: The licence's name, such as "CC-BY-4.0".
        copyleft: Whether it asks that what is made of the photograph has the same licence.
    """

    licence: str
    copyleft: bool


def read_licences(root: str | os.PathLike[str]) -> dict[str, Terms]:
    """Return the terms of the photographs of a data set by file name.

    Args:
        root: The data set's folder.

    Returns:
        The terms; empty if the folder has no LICENSES.md.

    Raises:
        ValueError: The file has no row that could be read, or a row says neither yes nor no under
            "copyleft".
    """
    path = Path(root) / LICENCES_FILE
    if not path.is_file():
        return {}
    terms: dict[str, Terms] = {}
    columns: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = _cells(line)
        if not cells:
            columns = []  # the end of a table
        elif not columns:
            columns = [cell.lower().replace("license", "licence") for cell in cells]
        elif {"picture", "licence", "copyleft"} <= set(columns) and not _is_rule(cells):
            row = dict(zip(columns, cells, strict=False))
            terms[row["picture"]] = _terms_of_row(row, path)
    if not terms:
        raise ValueError(
            f"{path} has no table of photographs: expected columns picture, licence and copyleft"
        )
    return terms


def _cells(line: str) -> list[str]:
    """The cells of a line of a table in Markdown; empty for any other line."""
    line = line.strip()
    if not line.startswith("|"):
        return []
    inside = line.removeprefix("|").removesuffix("|")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", inside)]


def _is_rule(cells: Sequence[str]) -> bool:
    """Whether a row is the line of dashes below a table's header."""
    return all(re.fullmatch(":?-+:?", cell) for cell in cells)


def _terms_of_row(row: Mapping[str, str], path: Path) -> Terms:
    word = row.get("copyleft", "")
    if word.lower() not in COPYLEFT_WORDS:
        raise ValueError(
            f"{path}: copyleft of {row['picture']} is {word!r}: expected one of "
            f"{', '.join(COPYLEFT_WORDS)}"
        )
    return Terms(licence=row["licence"], copyleft=COPYLEFT_WORDS[word.lower()])


def terms_of_images(
    roots: Sequence[str | os.PathLike[str]], names: Sequence[str]
) -> dict[str, Terms | None]:
    """Return the terms of the images of a training.

    Args:
        roots: The folders of the training images. Of several, each image's name begins with the
            label of its folder (see `elasticnet.sr.data.joining.labels_of`).
        names: The names of the images.

    Returns:
        The terms by the image's name; None where its folder does not say them.

    Raises:
        ValueError: As `read_licences` does.
    """
    known: dict[str, Terms] = {}
    for label, root in zip(labels_of(roots), roots, strict=True):
        prefix = f"{label}/" if len(roots) > 1 else ""
        for picture, terms in read_licences(root).items():
            # An image's name has its extension only where two files differ in nothing else.
            known[prefix + picture] = terms
            known.setdefault(prefix + without_extension(picture), terms)
    return {name: known.get(name) for name in names}


def permissive_names(roots: Sequence[str | os.PathLike[str]], names: Sequence[str]) -> list[str]:
    """Return the names of the images that are not copyleft.

    Args:
        roots: The folders of the training images.
        names: The names of the images, as in `terms_of_images`.

    Raises:
        ValueError: The terms of an image are not known, or all are copyleft.
    """
    terms_by_name = terms_of_images(roots, names)
    permissive: list[str] = []
    unknown: list[str] = []
    for name, terms in terms_by_name.items():
        if terms is None:
            unknown.append(name)
        elif not terms.copyleft:
            permissive.append(name)
    if unknown:
        shown = ", ".join(unknown[:MAX_NAMED]) + (", ..." if len(unknown) > MAX_NAMED else "")
        raise ValueError(
            f"--licences permissive: {LICENCES_FILE} of the folders of --data does not have the "
            f"terms of {len(unknown)} of {len(names)} training images: {shown}"
        )
    if not permissive:
        raise ValueError(f"--licences permissive: all {len(names)} training images are copyleft")
    return permissive


def licence_record(terms_by_name: Mapping[str, Terms | None]) -> dict[str, Any]:
    """Return which photographs a training used by which terms, as JSON can hold it.

    Args:
        terms_by_name: The terms of the training images: see `terms_of_images`.

    Returns:
        "photographs", "copyleft" and "unknown" (their numbers: all, those that are copyleft, those
        whose terms are not known), and "licences": by a licence's name "copyleft" and "names". The
        licences of most photographs stand first.
    """
    licences: dict[str, dict[str, Any]] = {}
    num_copyleft = 0
    num_unknown = 0
    for name, terms in terms_by_name.items():
        if terms is None:
            num_unknown += 1
            continue
        num_copyleft += terms.copyleft
        entry = licences.setdefault(terms.licence, {"copyleft": terms.copyleft, "names": []})
        entry["names"].append(name)
    by_number = sorted(licences.items(), key=_number_of_photographs, reverse=True)
    return {
        "photographs": len(terms_by_name),
        "copyleft": num_copyleft,
        "unknown": num_unknown,
        "licences": dict(by_number),
    }


def _number_of_photographs(licence: tuple[str, Mapping[str, Any]]) -> int:
    return len(licence[1]["names"])


def licence_counts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of terms with the numbers of photographs in the place of their names.

    Args:
        record: What `licence_record` returned.

    Returns:
        The record, with "photographs" in the place of "names" under each licence.
    """
    licences: dict[str, dict[str, Any]] = {}
    for name, entry in record["licences"].items():
        licences[name] = {"copyleft": entry["copyleft"], "photographs": len(entry["names"])}
    return {**record, "licences": licences}


def licence_line(counts: Mapping[str, Any]) -> str:
    """Return in a line by which terms photographs are trained on.

    Args:
        counts: What `licence_counts` returned.

    Example:
        >>> terms = {"a": Terms("CC0-1.0", copyleft=False), "b": Terms("CC-BY-SA-4.0", True)}
        >>> licence_line(licence_counts(licence_record(terms)))
        'terms of 2 training images: CC0-1.0 1, CC-BY-SA-4.0 1; copyleft: 1'
    """
    words: list[str] = []
    for name, entry in counts["licences"].items():
        words.append(f"{name} {entry['photographs']}")
    if counts["unknown"]:
        words.append(f"not known {counts['unknown']}")
    return (
        f"terms of {counts['photographs']} training images: {', '.join(words)}; "
        f"copyleft: {counts['copyleft']}"
    )


def note_licences(
    folder: Path, roots: Sequence[str | os.PathLike[str]], names: Sequence[str]
) -> str | None:
    """Write the terms of a training's photographs into its run folder, if any are known.

    Args:
        folder: The run folder, which gets photographs.json: see `licence_record`.
        roots: The folders of the training images.
        names: The names of the training images, as in `terms_of_images`.

    Returns:
        A line on these terms; None where none are known, and nothing is written.

    Raises:
        ValueError: As `read_licences` does.
    """
    terms_by_name = terms_of_images(roots, names)
    if all(terms is None for terms in terms_by_name.values()):
        return None
    record = licence_record(terms_by_name)
    write_json(folder / RECORD_FILE, record)
    return licence_line(licence_counts(record))
