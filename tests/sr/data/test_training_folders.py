"""Which images a training has: of several folders, of DIV2K as published, listed, by licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import contents, put

from elasticnet.sr.data import PairSet, joining, load_pairs
from elasticnet.sr.data.held_out import find_listed, read_names
from elasticnet.sr.data.image_record import changed_images, note_images
from elasticnet.sr.data.joining import joined, labels_of
from elasticnet.sr.data.licences import (
    Terms,
    licence_counts,
    licence_line,
    licence_record,
    note_licences,
    read_licences,
    terms_of_images,
)
from elasticnet.sr.data.splits import training_pairs

SCALE = 2
TERMS = """# Licences

| prefix | copyleft | where the licence stands |
| --- | --- | --- |
| `p` | no | README |

| picture | source | author | licence | copyleft |
| --- | --- | --- | --- | --- |
| a.png | x\\|y | not stated | CC0-1.0 | no |
| b.png | x | B. B. | CC-BY-SA-4.0 | yes |

Those of another source:

| Picture | License | Copyleft |
| :-- | ---: | --- |
| c.png | CC-BY-4.0 | no |
| d.png | CC-BY-SA-4.0 | yes |
"""


def photos(folder: Path, names: str, seed: int = 0) -> Path:
    """Make a flat folder of images whose names are letters."""
    for number, name in enumerate(names):
        put(folder / f"{name}.png", 16, 20, seed=seed + number)
    return folder


def split(*folders: Path, **settings: Any) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the training and the validation images, and what was said."""
    said: list[str] = []
    training, validation = training_pairs(
        folders, None, SCALE, progress=False, say=said.append, **settings
    )
    return training.names, validation.names, said


# --- several folders


def test_folders_are_labelled_by_their_names() -> None:
    roots = ["photos/train", "DIV2K", "scans/train", "train/"]
    assert labels_of(roots) == ["train", "DIV2K", "train-2", "train-3"]


def test_images_of_several_folders_are_one_set(tmp_path: Path) -> None:
    """They may have the same names, and lie in folders of the same name."""
    first = photos(tmp_path / "one" / "train", "abc")
    second = photos(tmp_path / "two" / "train", "abc", seed=10)
    names, valid_names, said = split(first, second, num_valid=2)
    assert (names, valid_names) == (
        ["train/b", "train/c", "train-2/b", "train-2/c"],
        ["train/a", "train-2/a"],
    )
    assert said == [
        f"training images: 2 of {first}, 2 of {second}",
        "validation images: 2 of the training images, held out",
    ]


@pytest.mark.parametrize("free_bytes", [10**12, 0])
def test_joined_sets_hold_the_pixels_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    """In memory, and in a temporary file where memory is short."""
    monkeypatch.setattr(joining, "free_memory", lambda: free_bytes)
    sets = [
        load_pairs(photos(tmp_path / name, letters, seed), SCALE, progress=False)
        for name, letters, seed in (("one", "abc", 0), ("two", "ab", 10))
    ]
    sets[1] = sets[1].subset(["b"])  # its pixels do not begin at row 0
    together = joined(sets, ["one", "two"])
    assert isinstance(together.hr_pixels, np.memmap) is (free_bytes == 0)
    expected = {f"one/{name}": pixels for name, pixels in contents(sets[0]).items()}
    expected |= {f"two/{name}": pixels for name, pixels in contents(sets[1]).items()}
    assert contents(together) == expected
    assert together.lr_source == "made (BI)"


def test_joined_sets_say_where_the_lr_images_of_each_come_from(tmp_path: Path) -> None:
    """Where some are made, the set counts as made: nothing there is restored."""
    put(tmp_path / "pairs" / "HR" / "a.png", 16, 16)
    put(tmp_path / "pairs" / "LR" / "a.png", 8, 8)
    from_files = load_pairs(tmp_path / "pairs", SCALE, progress=False)
    made = load_pairs(photos(tmp_path / "photos", "a"), SCALE, progress=False)
    together = joined([from_files, made], ["pairs", "photos"])
    assert together.lr_source == "made (BI) for photos, from files (LR) for pairs"
    assert together.lr_is_made
    assert not joined([from_files, from_files], ["a", "b"]).lr_is_made


def test_sets_of_two_scales_are_not_joined(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a")
    sets = [load_pairs(folder, scale, progress=False) for scale in (2, 4)]
    with pytest.raises(ValueError, match=r"sets of scales \[2, 4\]: expected sets of one scale"):
        joined(sets, ["a", "b"])


def test_images_left_out_are_named_with_their_folder(tmp_path: Path) -> None:
    first = photos(tmp_path / "one", "ab")
    put(first / "small.png", 4, 4)
    sets: list[PairSet] = []
    with pytest.warns(UserWarning, match="left out 1 of 3 images"):
        sets.append(load_pairs(first, SCALE, min_size=8, progress=False))
    assert [skipped.name for skipped in joined(sets, ["one"]).skipped] == ["one/small"]


def test_a_resumed_run_compares_the_images_of_all_folders(tmp_path: Path) -> None:
    first = photos(tmp_path / "one", "abc")
    second = photos(tmp_path / "two", "abc", seed=10)
    before, _ = training_pairs([first, second], None, SCALE, num_valid=1, progress=False)
    note_images(tmp_path, {"training": before})
    photos(second, "abcd", seed=10)
    now, _ = training_pairs([first, second], None, SCALE, num_valid=1, progress=False)
    assert changed_images(tmp_path, {"training": now}) == "training: 1 more (two/d)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_root": "small"}, "--data-lr small with 2 folders of --data: it belongs to one"),
        ({"licences": "free"}, "--licences free: expected one of all, permissive"),
    ],
)
def test_what_does_not_fit_several_folders_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folders = [photos(tmp_path / name, "ab") for name in ("one", "two")]
    with pytest.raises(ValueError, match=message):
        split(*folders, **settings)


def test_a_folder_given_twice_is_refused(tmp_path: Path) -> None:
    folder = photos(tmp_path / "one", "ab")
    with pytest.raises(ValueError, match=rf"--data {re.escape(str(folder))}: given more than once"):
        split(folder, tmp_path / "other" / ".." / "one")
    with pytest.raises(ValueError, match="--data: expected at least one folder"):
        split()


def test_a_single_string_is_no_list_of_folders() -> None:
    with pytest.raises(TypeError, match="data 'photos': expected a list of folders"):
        training_pairs("photos", None, SCALE)


# --- DIV2K as published


def div2k(root: Path, training: list[int], validation: list[int], *, edsr: bool) -> Path:
    """Make DIV2K as its zips unpack, or in EDSR's layout, of images with these numbers."""
    for number in training:
        put(root / "DIV2K_train_HR" / f"{number:04}.png", 16, 20, seed=number)
    for number in validation:
        folder = "DIV2K_train_HR" if edsr else "DIV2K_valid_HR"
        put(root / folder / f"{number:04}.png", 16, 20, seed=number)
    return root


def test_div2k_is_validated_on_its_validation_set(tmp_path: Path) -> None:
    root = div2k(tmp_path / "DIV2K", [1, 2, 800], [801, 802, 900], edsr=False)
    names, valid_names, said = split(root, num_valid=1)
    assert names == ["0001", "0002", "0800"]
    assert valid_names == ["0801", "0802", "0900"]
    assert said == [f"validation images: the 3 of DIV2K_valid_HR in {root}"]


def test_div2k_in_edsrs_layout_is_validated_on_the_first_from_801_on(tmp_path: Path) -> None:
    root = div2k(tmp_path / "DIV2K", [1, 2, 800], [801, 802, 900], edsr=True)
    names, valid_names, said = split(root, num_valid=2)
    assert names == ["0001", "0002", "0800"]
    assert valid_names == ["0801", "0802"]
    assert said == [
        f"validation images: 0801 to 0802 of DIV2K_train_HR in {root}, where they lie beside the "
        "training images"
    ]
    with pytest.raises(ValueError, match="--num-valid 0: expected at least 1"):
        split(root, num_valid=0)


def test_div2k_without_validation_images_is_held_out_of(tmp_path: Path) -> None:
    root = div2k(tmp_path / "DIV2K", [1, 2, 800], [], edsr=False)
    names, valid_names, said = split(root, num_valid=1)
    assert (names, valid_names) == (["0002", "0800"], ["0001"])
    assert said == ["validation images: 1 of the training images, held out"]


@pytest.mark.parametrize("edsr", [True, False])
def test_div2k_beside_other_folders_is_validated_on_its_own_images(
    tmp_path: Path, edsr: bool
) -> None:
    root = div2k(tmp_path / "DIV2K", [1, 2], [801], edsr=edsr)
    others = photos(tmp_path / "photos", "ab")
    names, valid_names, _ = split(others, root)
    assert names == ["photos/a", "photos/b", "DIV2K/0001", "DIV2K/0002"]
    assert valid_names == ["0801"]


def test_with_lr_images_of_its_own_div2k_is_held_out_of(tmp_path: Path) -> None:
    root = div2k(tmp_path / "DIV2K", [1, 2], [801], edsr=False)
    for number in (1, 2):
        put(tmp_path / "small" / f"{number:04}.png", 8, 10, seed=number)
    _, valid_names, _ = split(root, num_valid=1, lr_root=tmp_path / "small")
    assert valid_names == ["0001"]


# --- images that a list holds out


def test_listed_images_are_held_out(tmp_path: Path) -> None:
    """With or without the extension, in any order, of every folder that has the name."""
    first = photos(tmp_path / "one", "abc")
    second = photos(tmp_path / "two", "cde", seed=10)
    listed = tmp_path / "listed.txt"
    listed.write_text("two/e.png\n\n  c.png  \nb\n")
    names, valid_names, said = split(first, second, held_out=listed)
    assert names == ["one/a", "two/d"]
    assert valid_names == ["one/b", "one/c", "two/c", "two/e"]
    assert said[1] == (
        f"validation images: 4 of the training images, held out as {listed} lists them"
    )


def test_a_list_goes_before_div2ks_own_split(tmp_path: Path) -> None:
    root = div2k(tmp_path / "DIV2K", [1, 2], [801], edsr=False)
    listed = tmp_path / "listed.txt"
    listed.write_text("0002.png")
    names, valid_names, _ = split(root, held_out=listed)
    assert (names, valid_names) == (["0001"], ["0002"])


def test_all_listed_names_that_are_not_there_are_named(tmp_path: Path) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text("a.png\nx.png\nsmall.png\ny\n")
    message = (
        r"--held-out .*listed\.txt: 3 of its names are not among the training images: "
        r"x\.png, small\.png \(left out: its LR image is too small\), y$"
    )
    with pytest.raises(ValueError, match=message):
        find_listed(listed, ["a", "b"], {"small": "its LR image is too small"})


def test_two_files_that_differ_in_their_extension_are_told_apart(tmp_path: Path) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text("a.png")
    assert find_listed(listed, ["a.jpg", "a.png"], {}) == ["a.png"]


def test_a_list_that_leaves_nothing_or_is_none_is_refused(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "ab")
    listed = tmp_path / "listed.txt"
    listed.write_text("a\nb")
    with pytest.raises(ValueError, match=r"listed\.txt: lists all of the 2 training images"):
        split(root, held_out=listed)
    listed.write_text("\n \n")
    with pytest.raises(ValueError, match=r"listed\.txt holds no names"):
        read_names(listed)
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"listed\.txt is no list of names in UTF-8"):
        read_names(listed)


def test_a_list_beside_other_validation_images_or_without_data_is_refused(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "ab")
    with pytest.raises(ValueError, match="--held-out names beside --valid other: give one"):
        training_pairs([root], "other", SCALE, held_out="names")
    with pytest.raises(ValueError, match=r"--held-out names: give the images .* by --data"):
        training_pairs(None, None, SCALE, held_out="names")


# --- the terms of photographs


@pytest.fixture
def licensed(tmp_path: Path) -> Path:
    """Four photographs, two of them copyleft, by their LICENSES.md."""
    root = photos(tmp_path / "licensed", "abcd")
    (root / "LICENSES.md").write_text(TERMS)
    return root


def test_terms_are_read_from_every_table_of_pictures(licensed: Path) -> None:
    assert read_licences(licensed) == {
        "a.png": Terms("CC0-1.0", copyleft=False),
        "b.png": Terms("CC-BY-SA-4.0", copyleft=True),
        "c.png": Terms("CC-BY-4.0", copyleft=False),
        "d.png": Terms("CC-BY-SA-4.0", copyleft=True),
    }


def test_a_folder_without_terms_has_none(tmp_path: Path) -> None:
    assert read_licences(tmp_path) == {}
    assert note_licences(tmp_path, [photos(tmp_path / "photos", "ab")], ["a", "b"]) is None
    assert not (tmp_path / "photographs.json").exists()


def test_terms_that_cannot_be_read_are_named(licensed: Path) -> None:
    file = licensed / "LICENSES.md"
    file.write_text(TERMS.replace("| CC-BY-4.0 | no |", "| CC-BY-4.0 | maybe |"))
    with pytest.raises(ValueError, match=r"LICENSES\.md: copyleft of c\.png is 'maybe': expected"):
        read_licences(licensed)
    file.write_text("All are CC0.\n")
    with pytest.raises(ValueError, match=r"LICENSES\.md has no table of photographs"):
        read_licences(licensed)


def test_copyleft_photographs_are_left_out_of_the_training(licensed: Path) -> None:
    names, valid_names, _ = split(licensed, num_valid=1)
    assert (names, valid_names) == (["b", "c", "d"], ["a"])
    names, valid_names, _ = split(licensed, num_valid=1, licences="permissive")
    assert (names, valid_names) == (["c"], ["a"]), "validated on the same image"


def test_photographs_of_unknown_terms_are_not_taken_for_permissive(
    tmp_path: Path, licensed: Path
) -> None:
    others = photos(tmp_path / "others", "ab", seed=10)
    message = r"does not have the terms of 2 of 5 training images: others/a, others/b$"
    with pytest.raises(ValueError, match=message):
        split(licensed, others, num_valid=1, licences="permissive")
    listed = tmp_path / "listed.txt"
    listed.write_text("a\nc")
    with pytest.raises(ValueError, match="permissive: all 2 training images are copyleft"):
        split(licensed, held_out=listed, licences="permissive")
    with pytest.raises(ValueError, match=r"--licences permissive: give the .* by --data"):
        training_pairs(None, None, SCALE, licences="permissive")


def test_a_run_records_which_photographs_by_which_terms(tmp_path: Path, licensed: Path) -> None:
    others = photos(tmp_path / "others", "ab", seed=10)
    names = ["licensed/a", "licensed/b", "licensed/d", "others/a"]
    line = note_licences(tmp_path, [licensed, others], names)
    assert line == (
        "terms of 4 training images: CC-BY-SA-4.0 2, CC0-1.0 1, not known 1; copyleft: 2"
    )
    record = json.loads((tmp_path / "photographs.json").read_text())
    assert record == {
        "photographs": 4,
        "copyleft": 2,
        "unknown": 1,
        "licences": {
            "CC-BY-SA-4.0": {"copyleft": True, "names": ["licensed/b", "licensed/d"]},
            "CC0-1.0": {"copyleft": False, "names": ["licensed/a"]},
        },
    }
    assert licence_counts(record)["licences"] == {
        "CC-BY-SA-4.0": {"copyleft": True, "photographs": 2},
        "CC0-1.0": {"copyleft": False, "photographs": 1},
    }


def test_where_all_terms_are_known_the_line_says_nothing_of_unknown_ones(licensed: Path) -> None:
    record = licence_record(terms_of_images([licensed], ["a", "c"]))
    expected = "terms of 2 training images: CC0-1.0 1, CC-BY-4.0 1; copyleft: 0"
    assert licence_line(licence_counts(record)) == expected
