"""A changed set of images is noticed by names and sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from elasticnet.sr.data import PairSet, pairs_from_arrays
from elasticnet.sr.data.image_record import changed_images, keep_image_record, note_images
from elasticnet.training.run_folder import Run


def pairs_of(**sides: int) -> PairSet:
    """Square images, by name and HR side."""
    images = {name: np.zeros((side, side, 3), np.uint8) for name, side in sides.items()}
    return pairs_from_arrays(images, scale=2)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"a": 40, "b": 40}, ""),
        ({"b": 40, "a": 40}, ""),
        ({"a": 40, "b": 40, "c": 40}, "training: 1 more (c)"),
        ({"a": 40}, "training: 1 gone (b)"),
        ({"a": 40, "b": 60}, "training: 1 of another size (b)"),
        ({"b": 60, "x": 40}, "training: 1 more (x), 1 gone (a), 1 of another size (b)"),
    ],
)
def test_the_difference_is_said(tmp_path: Path, now: dict[str, int], difference: str) -> None:
    note_images(tmp_path, {"training": pairs_of(a=40, b=40)})
    assert changed_images(tmp_path, {"training": pairs_of(**now)}) == difference


def test_the_validation_images_are_compared_too(tmp_path: Path) -> None:
    training = pairs_of(a=40)
    note_images(tmp_path, {"training": training, "validation": pairs_of(b=40, c=40)})
    now = {"training": training, "validation": pairs_of(b=40)}
    assert changed_images(tmp_path, now) == "validation: 1 gone (c)"


def test_of_many_images_the_first_five_are_named(tmp_path: Path) -> None:
    note_images(tmp_path, {"training": pairs_of(a=40)})
    many = pairs_of(a=40, **{f"n{number}": 40 for number in range(7)})
    difference = changed_images(tmp_path, {"training": many})
    assert difference == "training: 7 more (n0, n1, n2, n3, n4, ...)"


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    note = tmp_path / "images.json"
    note.write_text('{"training": ')
    with pytest.raises(ValueError, match=rf"^{re.escape(str(note))} is damaged .*: remove it"):
        changed_images(tmp_path, {})


def test_a_run_without_a_note_is_not_said_to_differ(tmp_path: Path) -> None:
    assert changed_images(tmp_path, {"training": pairs_of(a=40)}) == ""


def test_a_run_notes_its_images_and_goes_on_with_others_only_if_allowed(tmp_path: Path) -> None:
    said: list[str] = []
    before = {"training": pairs_of(a=40)}
    now = {"training": pairs_of(a=40, b=40)}
    with Run.create(tmp_path / "run", {}) as run:
        keep_image_record(run, before, changes_allowed=False, say=said.append)
        assert said == []

        with pytest.raises(
            ValueError, match=r"was started with: training: 1 more \(b\)\. Give those"
        ):
            keep_image_record(run, now, changes_allowed=False, say=said.append)
        assert changed_images(run.folder, before) == ""

        keep_image_record(run, now, changes_allowed=True, say=said.append)
        assert said == ["note: other images from now on: training: 1 more (b)"]
        assert changed_images(run.folder, now) == ""


def test_a_process_that_does_not_write_compares_only(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}, writer=False) as run:
        sets = {"training": pairs_of(a=40)}
        keep_image_record(run, sets, changes_allowed=False, say=print)
    assert list(tmp_path.iterdir()) == []
