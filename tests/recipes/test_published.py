"""The paper's tables as published.json has them: by the command, from its tables as data alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loading import load_recipe

COMMITTED = Path(__file__).parents[2] / "docs" / "results" / "published.json"
NOTES = """# Tables

1. Not of the list.

## Read with care

1. Manga109 differs between Table 1 and Table 5.
2. Two rows of Tables 4, 5 and 6 print another scale.
"""


@pytest.fixture
def published() -> ModuleType:
    return load_recipe("published")


def scored(method: str, scale: int, psnr: float, **more: object) -> dict[str, Any]:
    """A row of PSNR and SSIM, the same on every set."""
    sets = ("Set5", "Set14", "B100", "Urban100", "Manga109")
    scores = {data: {"psnr": psnr, "ssim": 0.9} for data in sets}
    return {
        "line": 7,
        "method": method,
        "scale": scale,
        "parameters_number": 57000,
        **scores,
        **more,
    }


def made_up_tables() -> dict[str, Any]:
    """Tables 1 to 7 with a row or two each."""
    rows: dict[int, list[dict[str, Any]]] = {
        1: [scored("SRCNN", 2, 36.5), scored("ASRN", 2, 37.5)],
        2: [scored("Bicubic", 3, 24.0, degradation="DN")],
        3: [{"column": 0, "case": 1, "fusion_layer": False, "psnr": 26.85}],
        4: [scored("ASRN (DSL)", 4, 30.5, blocks=1, note="read with care")],
        5: [scored("ASRN", 4, 30.75, blocks=1)],
        6: [
            scored("CRN", 3, 34.5),
            scored("ACNet", 4, 34.0),
            scored("ASRN(25B)", 3, 34.25, blocks=25),
            scored("ASRN(25B)", 4, 32.0, blocks=25),
        ],
        7: [
            {
                "method": "RDN",
                "parameters_number": 22_000_000,
                "time_s": 0.9,
                "flops_number": 1,
            }
        ],
    }
    tables: dict[str, Any] = {
        f"table{number}": {"caption": f"Table {number}: a caption", "rows": each}
        for number, each in rows.items()
    }
    quotes = [{"topic": topic, "quote": f"about {topic}"} for topic in ("colours", "routine loss")]
    return {**tables, "protocol": {"quotes": quotes, "not_said": ["patch size"]}}


def test_the_committed_file_is_what_the_command_makes(published: ModuleType, data_dir: Path):
    tables = data_dir.parent / "paper" / "tables.json"
    if not tables.is_file():
        pytest.skip(f"{tables} is not there: the paper's tables as data lie beside the data sets")
    notes = (tables.parent / "README.md").read_text(encoding="utf-8")
    content = published.published(json.loads(tables.read_text(encoding="utf-8")), notes)
    assert COMMITTED.read_text(encoding="utf-8") == published.as_text(content), (
        f"run python recipes/published.py {os.path.relpath(tables)}"
    )


def test_each_row_has_its_table_its_method_by_name_and_its_blocks(published: ModuleType):
    rows = published.score_rows(made_up_tables())
    named = [(row["table"], row["method"], row["scale"], row["blocks"]) for row in rows]
    assert named == [
        (1, "SRCNN", 2, None),
        (1, "ASRN", 2, 5),
        (2, "Bicubic", 3, None),
        (4, "ASRN (DSL)", 4, 1),
        (5, "ASRN", 4, 1),
        (6, "CRN", 3, None),
        (6, "ACNet", 3, None),
        (6, "ASRN", 3, 25),
        (6, "ASRN", 4, 25),
    ]
    assert rows[0]["scores"]["Urban100"] == {"psnr": 36.5, "ssim": 0.9}
    assert rows[0]["parameters"] == 57000
    assert [row["degradation"] for row in rows[:3]] == ["BI", "BI", "DN"]


def test_a_scale_above_that_of_a_later_row_is_kept_as_printed(published: ModuleType):
    of_acnet = published.score_rows(made_up_tables())[6]
    assert (of_acnet["scale"], of_acnet["scale_printed"]) == (3, 4)
    assert published.scales_in_order([2, 3, 4, 3, 4]) == [2, 3, 3, 3, 4]


def test_a_note_of_a_row_is_carried_along(published: ModuleType):
    rows = published.score_rows(made_up_tables())
    assert [row["note"] for row in rows if "note" in row] == ["read with care"]


def test_a_dash_is_left_out_and_half_a_dash_is_an_error(published: ModuleType):
    row = scored("CRN", 3, 34.5, Manga109={"psnr": None, "ssim": None})
    assert "Manga109" not in published.scores_of(row, "Table 6, CRN x3")
    row["Set5"] = {"psnr": 34.5, "ssim": None}
    with pytest.raises(ValueError, match="Table 6, CRN x3, Set5: expected PSNR and SSIM"):
        published.scores_of(row, "Table 6, CRN x3")


def test_a_score_that_cannot_be_is_named(published: ModuleType):
    row = scored("CRN", 3, 345.0)
    with pytest.raises(ValueError, match=r"CRN x3, Set5: 345\.0 dB and SSIM 0\.9 cannot be"):
        published.scores_of(row, "Table 6, CRN x3")


def test_a_missing_set_and_a_missing_table_are_named(published: ModuleType):
    row = scored("CRN", 3, 34.5)
    del row["B100"]
    with pytest.raises(ValueError, match="Table 6: expected the data set B100"):
        published.scores_of(row, "Table 6")
    tables = made_up_tables()
    del tables["table4"]
    with pytest.raises(ValueError, match="Table 4: expected an entry 'table4' with 'rows'"):
        published.published(tables, NOTES)


def test_the_places_to_read_with_care_name_their_tables(published: ModuleType):
    places = published.places_to_read_with_care(NOTES)
    assert [(place["number"], place["tables"]) for place in places] == [(1, [1, 5]), (2, [4, 5, 6])]
    assert places[0]["text"] == "Manga109 differs between Table 1 and Table 5."


def test_notes_without_the_list_or_with_a_gap_in_it_are_refused(published: ModuleType):
    with pytest.raises(ValueError, match="no numbered list under '## Read with care'"):
        published.places_to_read_with_care("1. A list without its heading.")
    with pytest.raises(ValueError, match="number an entry 3: expected 2"):
        published.places_to_read_with_care(NOTES.replace("2. Two", "3. Two"))


def test_what_is_missing_in_the_tables_is_named(published: ModuleType, tmp_path: Path):
    tables = made_up_tables()
    del tables["protocol"]
    (tmp_path / "tables.json").write_text(json.dumps(tables))
    (tmp_path / "README.md").write_text(NOTES)
    options = published.parse([str(tmp_path / "tables.json"), "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="the tables have nothing named 'protocol'"):
        published.main(options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"tables\.json: expected JSON: Expecting property name"),
        ("[]", r"tables\.json: expected an object with 'table1' to 'table7', got a list"),
    ],
)
def test_tables_of_another_kind_are_named(
    published: ModuleType, tmp_path: Path, text: str, message: str
):
    (tmp_path / "tables.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        published.main(published.parse([str(tmp_path / "tables.json")]))


def test_the_command_writes_a_row_a_line(published: ModuleType, tmp_path: Path):
    (tmp_path / "tables.json").write_text(json.dumps(made_up_tables()))
    (tmp_path / "README.md").write_text(NOTES)
    out = tmp_path / "published.json"
    words = [str(tmp_path / "tables.json"), "--out", str(out)]
    published.main(published.parse(words))
    text = out.read_text(encoding="utf-8")
    assert text == published.as_text(published.published(made_up_tables(), NOTES))
    content = json.loads(text)
    assert content["not_said"] == ["patch size"]
    assert [each["topic"] for each in content["sentences"]] == ["routine loss"]
    assert content["ablation"] == [{"case": 1, "fusion_layer": False, "psnr": 26.85}]
    assert content["complexity"] == [
        {"method": "RDN", "parameters": 22_000_000, "seconds": 0.9, "flops": 1}
    ]
    # scores, places to read with care, a sentence, Tables 3 and 7
    num_rows = 9 + 2 + 1 + 1 + 1
    assert text.count("\n    {") == num_rows
