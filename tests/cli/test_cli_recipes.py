"""`elasticnet recipes`: what comes with the package is listed, and copied as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elasticnet.cli import main
from elasticnet.cli.recipes import find_recipes

ROOT = Path(__file__).parents[2]


def test_every_recipe_is_listed_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[:-2]}
    assert list(listed) == [
        "asrn_div2k",
        "cnn_digits",
        "elastic_gpt",
        "elastic_timm",
        "head_to_head",
        "interpolate",
        "sr_retrofit",
        "upscale_ray",
        "vit_digits",
    ]
    for name, first_line in listed.items():
        assert f'"""{first_line}\n' in (ROOT / "recipes" / f"{name}.py").read_text()
    assert lines[-1] == "To change and run one: elasticnet recipes copy NAME"


@pytest.mark.parametrize("name", ["vit_digits", "vit_digits.py"])
def test_a_recipe_is_copied_into_the_current_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", name]) == 0
    copy = tmp_path / "vit_digits.py"
    assert copy.read_bytes() == (ROOT / "recipes" / "vit_digits.py").read_bytes()
    assert capsys.readouterr().out == (
        "written to vit_digits.py; its options: python vit_digits.py --help\n"
    )


def test_a_file_that_exists_is_replaced_with_force_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("changed")
    assert main(["recipes", "copy", "vit_digits", str(mine)]) == 2
    assert f"{mine} exists: use --force" in capsys.readouterr().err
    assert mine.read_text() == "changed"
    assert main(["recipes", "copy", "vit_digits", str(mine), "--force"]) == 0
    assert mine.read_bytes() == (ROOT / "recipes" / "vit_digits.py").read_bytes()


def test_an_unknown_recipe_is_named_with_those_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes", "copy", "results"]) == 2
    message = (
        "recipe 'results': expected one of asrn_div2k, cnn_digits, elastic_gpt, elastic_timm, "
        "head_to_head, interpolate, sr_retrofit, upscale_ray, vit_digits"
    )
    assert message in capsys.readouterr().err


def test_a_package_s_own_recipes_come_before_a_folder_beside_it(tmp_path: Path) -> None:
    """Another package may have put a folder of that name beside ours."""
    package = tmp_path / "elasticnet"
    for folder in (package / "_recipes", tmp_path / "recipes"):
        folder.mkdir(parents=True)
        (folder / "train.py").touch()
    assert find_recipes(package) == {"train": package / "_recipes" / "train.py"}


def test_an_installation_without_recipes_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="this installation has no recipes"):
        find_recipes(tmp_path / "elasticnet")


def test_listing_loads_no_torch() -> None:
    program = (
        "import sys; from elasticnet.cli import main; main(['recipes']); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.stderr.splitlines()[-1] == "False"
