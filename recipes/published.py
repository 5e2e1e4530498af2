"""Write what ASRN's paper prints, which the pages compare with, from its tables as data.

    python recipes/published.py TABLES [--notes FILE] [--out FILE]

TABLES is a tables.json with Tables 1 to 7 of "Adjustable Super-Resolution Network via Deep
Supervised Learning and Progressive Self-Distillation" (ASRN). The README.md beside it numbers the
places that have to be read with care, under the heading "Read with care". Both go into
docs/results/published.json. No value is typed: what the paper prints comes from TABLES alone. What
other papers print of the same methods is kept apart, in docs/results/reprinted.json.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elasticnet._files import write_atomic
from elasticnet.training.program import run_program

OUT = Path(__file__).parents[1] / "docs" / "results" / "published.json"
SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
SCORE_TABLES = (1, 2, 4, 5, 6)  # PSNR and SSIM on data sets
ABLATION_TABLE = 3
COMPLEXITY_TABLE = 7
# How many blocks an ASRN has in a row of Tables 1, 2 and 7 that does not say it (Section 4.2)
FULL_BLOCKS = 5
SOURCE = (
    "Li, Fang, Zeng, Zhang, Wang: Adjustable Super-Resolution Network via Deep Supervised "
    "Learning and Progressive Self-Distillation"
)
HEADING = "## Read with care"
# What the text says of the sizes and the training, by the topics that tables.json gives sentences
KEPT_TOPICS = (
    "larger versions (the sentence goes on after Table 2)",
    "input and augmentation",
    "learning rate and batch",
    "epoch and schedule",
    "lambda and optimizer",
    "routine loss",
    "upsample parameters A",
    "upsample parameters B",
)
NUMBERED = re.compile(r"(?P<number>\d+)\. (?P<text>.+)")
TABLES_IN_A_SENTENCE = re.compile(r"Tables? \d(?:(?:, | and | to )\d)*")

Row = dict[str, Any]


# --- rows


def score_rows(tables: Mapping[str, Any]) -> list[Row]:
    """Return every row of PSNR and SSIM, in the paper's order.

    Args:
        tables: The content of tables.json.

    Returns:
        Rows with `table`, `line` (of the paper's text), `degradation`, `scale`, `method`, `blocks`
        (None: not ASRN), `parameters` (None: not printed, or damaged), `scores` (PSNR in dB and
        SSIM by data set, without those that are not printed) and, where something has to be read
        with care, `note`.

    Raises:
        ValueError: A table or a value is missing or is not what its place says.
    """
    rows: list[Row] = []
    for number in SCORE_TABLES:
        printed = rows_of(tables, number)
        scales = scales_in_order([row["scale"] for row in printed])
        for row, scale in zip(printed, scales, strict=True):
            rows.append(score_row(number, row, scale))
    return rows


def rows_of(tables: Mapping[str, Any], number: int) -> list[Row]:
    """Return the rows of one table.

    Args:
        tables: The content of tables.json.
        number: Of the table.

    Raises:
        ValueError: There is no such table, or it has no rows.
    """
    table = tables.get(f"table{number}")
    if not isinstance(table, dict) or not table.get("rows"):
        raise ValueError(f"Table {number}: expected an entry 'table{number}' with 'rows'")
    return table["rows"]


def scales_in_order(printed: Sequence[int]) -> list[int]:
    """Return the scales that are meant, where a printed one is above that of a later row.

    The rows of every table are in order of the scale. Two rows of Table 6 stand among those of x3
    with x4 printed, and have values of x3.

    Args:
        printed: The scale of each row.
    """
    meant: list[int] = []
    smallest = printed[-1]
    for scale in reversed(printed):
        smallest = min(smallest, scale)
        meant.append(smallest)
    meant.reverse()
    return meant


def score_row(number: int, row: Row, scale: int) -> Row:
    """Return a row of PSNR and SSIM as published.json has it.

    Args:
        number: Of the table.
        row: As tables.json has it.
        scale: That is meant.

    Raises:
        ValueError: A score is out of its range.
    """
    new_row: Row = {
        "table": number,
        "line": row["line"],
        "degradation": row.get("degradation", "BI"),
        "scale": scale,
        "method": method_of(row["method"]),
        "blocks": blocks_of(row),
        "parameters": row.get("parameters_number"),
        "scores": scores_of(row, f"Table {number}, {row['method']} x{scale}"),
    }
    if scale != row["scale"]:
        new_row["scale_printed"] = row["scale"]
    if row.get("note"):
        new_row["note"] = row["note"]
    return new_row


def method_of(printed: str) -> str:
    """Return a method's name, without the blocks that Table 6 adds to ASRN's: "ASRN(25B)"."""
    return re.sub(r"\(\d+B\)", "", printed)


def blocks_of(row: Row) -> int | None:
    """Return how many blocks an ASRN has; None for another method."""
    if not row["method"].startswith("ASRN"):
        return None
    return row.get("blocks") or FULL_BLOCKS


def scores_of(row: Row, place: str) -> dict[str, dict[str, float]]:
    """Return PSNR and SSIM by data set, of the sets that have a score."""
    scores: dict[str, dict[str, float]] = {}
    for data in SETS:
        if data not in row:
            raise ValueError(f"{place}: expected the data set {data}")
        psnr: float | None = row[data]["psnr"]
        ssim: float | None = row[data]["ssim"]
        if psnr is None and ssim is None:
            continue  # the paper prints a dash
        if psnr is None or ssim is None:
            raise ValueError(f"{place}, {data}: expected PSNR and SSIM, or neither")
        if not 10 < psnr < 60 or not 0 < ssim < 1:
            raise ValueError(f"{place}, {data}: {psnr} dB and SSIM {ssim} cannot be")
        scores[data] = {"psnr": psnr, "ssim": ssim}
    return scores


def ablation_rows(tables: Mapping[str, Any]) -> list[Row]:
    """Return the seven cases of Table 3, without the column numbers of the text.

    Args:
        tables: The content of tables.json.
    """
    return [
        {key: value for key, value in row.items() if key != "column"}
        for row in rows_of(tables, ABLATION_TABLE)
    ]


def complexity_rows(tables: Mapping[str, Any]) -> list[Row]:
    """Return the methods of Table 7: parameters, seconds and FLOPs.

    Args:
        tables: The content of tables.json.
    """
    return [
        {
            "method": row["method"],
            "parameters": row["parameters_number"],
            "seconds": row["time_s"],
            "flops": row["flops_number"],
        }
        for row in rows_of(tables, COMPLEXITY_TABLE)
    ]


def sentences(tables: Mapping[str, Any]) -> list[Row]:
    """Return what the text says of the sizes and the training.

    Args:
        tables: The content of tables.json.

    Returns:
        For each its topic, section, line of the paper's text, and the sentence as printed.
    """
    return [quote for quote in tables["protocol"]["quotes"] if quote["topic"] in KEPT_TOPICS]


# --- what has to be read with care


def places_to_read_with_care(notes: str) -> list[Row]:
    """Return the numbered list under the heading "Read with care".

    Args:
        notes: The text of the README.md beside tables.json.

    Returns:
        For each entry its number, its text, and the tables that it names.

    Raises:
        ValueError: There is no such list, or a number is left out of it.
    """
    _, heading, rest = notes.partition(HEADING)
    found = [NUMBERED.fullmatch(line) for line in rest.splitlines()]
    entries = [match for match in found if match is not None]
    if not heading or not entries:
        raise ValueError(f"the notes have no numbered list under {HEADING!r}")
    places: list[Row] = []
    for expected, entry in enumerate(entries, start=1):
        if int(entry["number"]) != expected:
            raise ValueError(f"the notes number an entry {entry['number']}: expected {expected}")
        text = entry["text"]
        places.append({"number": expected, "tables": tables_named(text), "text": text})
    return places


def tables_named(sentence: str) -> list[int]:
    """Return the numbers of the tables that a sentence names, in order.

    Args:
        sentence: Such as "SSIM 0.8834 in Tables 4 and 5, and Table 1".
    """
    numbers: set[int] = set()
    for match in TABLES_IN_A_SENTENCE.finditer(sentence):
        numbers.update(int(digit) for digit in re.findall(r"\d", match[0]))
    return sorted(numbers)


# --- the file


def published(tables: Mapping[str, Any], notes: str) -> dict[str, Any]:
    """Return the content of published.json.

    Args:
        tables: The content of tables.json.
        notes: The text of the README.md beside it.
    """
    captions: dict[str, str] = {}
    for number in range(1, 8):  # Tables 1 to 7
        rows_of(tables, number)  # raises if a table is missing
        captions[f"Table {number}"] = tables[f"table{number}"]["caption"]
    return {
        "source": SOURCE,
        "made_by": "python recipes/published.py tables.json",
        "captions": captions,
        "read_with_care": places_to_read_with_care(notes),
        "sentences": sentences(tables),
        "not_said": tables["protocol"]["not_said"],
        "scores": score_rows(tables),
        "ablation": ablation_rows(tables),
        "complexity": complexity_rows(tables),
    }


def read_tables(file: Path) -> dict[str, Any]:
    """Return the content of a tables.json.

    Args:
        file: The path.

    Raises:
        ValueError: It holds no JSON, or no object.
    """
    try:
        tables = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON: {error}") from error
    if not isinstance(tables, dict):
        kind = type(tables).__name__
        raise ValueError(f"{file}: expected an object with 'table1' to 'table7', got a {kind}")
    return tables


def as_text(content: Mapping[str, Any]) -> str:
    """Return JSON with each row of a list on a line of its own, which a diff shows well.

    Args:
        content: Of published.json.
    """
    parts: list[str] = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = indented(json.dumps(entry, ensure_ascii=False) for entry in value)
            parts.append(f'  "{key}": [\n{lines}\n  ]')
        else:
            parts.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def indented(lines: Iterable[str]) -> str:
    """Return the entries of a list, each on a line."""
    return ",\n".join(f"    {line}" for line in lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, metavar="TABLES", help="the paper's tables.json")
    parser.add_argument(
        "--notes", type=Path, metavar="FILE", help="default: the README.md beside TABLES"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help="default: docs/results/published.json"
    )
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Write published.json.

    Args:
        options: Of the command line.

    Raises:
        ValueError: Something is missing in the tables or the notes.
    """
    notes_file = options.notes or options.tables.parent / "README.md"
    tables = read_tables(options.tables)
    notes = notes_file.read_text(encoding="utf-8")
    try:
        content = published(tables, notes)
    except KeyError as error:
        raise ValueError(f"{options.tables}: the tables have nothing named {error}") from error
    write_atomic(options.out, as_text(content))
    print(f"{options.out}: {len(content['scores'])} rows of scores")


if __name__ == "__main__":
    run_program(main, parse)
