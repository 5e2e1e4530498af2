"""The recipe's training images: several folders, images held out by name, terms of photographs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from elasticnet.sr.data import scikit_image_photos
from elasticnet.training.options import as_json
from loading import load_recipe

TINY = ["--num-blocks", "2", "--channels", "8", "--patch-size", "8", "--batch-size", "2"]
TINY += ["--steps", "2", "--eval-every", "2", "--log-every", "2", "--no-tensorboard"]
TINY += ["--no-figures", "--no-costs"]  # most of the time of a run as small as this


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("asrn_div2k")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two flat folders of three small images each, whose names are alike; one says its terms."""
    made: list[Path] = []
    photos = list(scikit_image_photos().values())
    for name, first in (("one", 0), ("two", 3)):
        folder = tmp_path / name
        folder.mkdir()
        for letter, photo in zip("abc", photos[first : first + 3], strict=True):
            Image.fromarray(photo[:64, :80]).save(folder / f"{letter}.png")
        made.append(folder)
    rows = ["| picture | licence | copyleft |", "| --- | --- | --- |"]
    rows += [
        "| a.png | CC0-1.0 | no |",
        "| b.png | CC-BY-SA-4.0 | yes |",
        "| c.png | CC0-1.0 | no |",
    ]
    (made[0] / "LICENSES.md").write_text("\n".join(rows))
    return made


def run(recipe: ModuleType, *arguments: object) -> None:
    recipe.main(recipe.parse([*TINY, *map(str, arguments)]))


def test_several_folders_are_trained_on_and_resumed(recipe, folders, tmp_path, capsys):
    out = tmp_path / "run"
    run(recipe, "--data", *folders, "--num-valid", 2, "--out", out)
    said = capsys.readouterr().out
    assert f"training images: 2 of {folders[0]}, 2 of {folders[1]}" in said
    assert "validation images: 2 of the training images, held out" in said
    assert json.loads((out / "options.json").read_text())["data"] == list(map(str, folders))

    (folders[1] / "d.png").write_bytes((folders[1] / "c.png").read_bytes())
    with pytest.raises(ValueError, match=r"not those that .* training: 1 more \(two/d\)"):
        run(recipe, "--resume", out, "--steps", 4)
    (folders[1] / "d.png").unlink()
    run(recipe, "--resume", out, "--steps", 4)
    assert f"resumed {out} at step 2" in capsys.readouterr().out


def test_a_run_from_when_data_was_one_folder_is_resumed(recipe, folders, tmp_path, capsys):
    out = tmp_path / "run"
    run(recipe, "--data", folders[0], "--num-valid", 1, "--out", out)
    stored = json.loads((out / "options.json").read_text())
    before = {**stored, "data": str(folders[0])}
    for later in ("held_out", "published_split", "licences"):
        del before[later]
    (out / "options.json").write_text(json.dumps(before))
    capsys.readouterr()

    options = recipe.parse(["--resume", str(out)])
    assert as_json(options) == {**stored, "published_split": False}
    recipe.main(options)
    assert "note: " not in capsys.readouterr().out, "nothing has changed"


def test_a_run_notes_the_terms_of_its_photographs(recipe, folders, tmp_path, capsys):
    out = tmp_path / "run"
    listed = tmp_path / "listed.txt"
    listed.write_text("one/c.png\n")
    run(recipe, "--data", *folders, "--held-out", listed, "--out", out)
    expected = "terms of 5 training images: CC0-1.0 1, CC-BY-SA-4.0 1, not known 3; copyleft: 1"
    assert expected in capsys.readouterr().out
    record = json.loads((out / "photographs.json").read_text())
    assert record["licences"]["CC0-1.0"]["names"] == ["one/a"]

    out = tmp_path / "permissive"
    run(recipe, "--data", folders[0], "--licences", "permissive", "--num-valid", 1, "--out", out)
    record = json.loads((out / "photographs.json").read_text())
    assert record["licences"] == {"CC0-1.0": {"copyleft": False, "names": ["c"]}}


def test_no_folder_is_not_the_default(recipe):
    with pytest.raises(ValueError, match="--data: expected at least one folder"):
        recipe.parse(["--data"])
