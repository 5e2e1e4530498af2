"""Packaged nets have names wherever a file is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from elasticnet import load, registry, save
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.packaged import find_packaged, packaged_files, source_of, why_no_name
from elasticnet.cli import main
from elasticnet.registry import Architecture
from elasticnet.sr import Upscaler, asrn
from elasticnet.sr.models import pretrained
from elasticnet.sr.models.pretrained import PackagedFile, packaged_list


@pytest.fixture
def packaged_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two small nets; the present folder is another one, and empty."""
    folder = tmp_path / "package"
    folder.mkdir()
    save(asrn(2, num_blocks=2, channels=8), folder / "asrn_x2.safetensors")
    save(asrn(2, num_blocks=1, channels=8), folder / "asrn_x2_photo.safetensors")
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    present = tmp_path / "present"
    present.mkdir()
    monkeypatch.chdir(present)
    return folder


def test_a_name_is_the_packaged_file(packaged_folder: Path) -> None:
    assert source_of("asrn-x2") == str(packaged_folder / "asrn_x2.safetensors")
    assert load("asrn-x2").taps == (1, 2)
    assert load("asrn-x2:photo").taps == (1,)
    assert read_header("asrn-x2:photo")["taps"] == [1]


def test_a_further_variant_needs_no_code(packaged_folder: Path) -> None:
    (packaged_folder / "asrn_x3_bd.safetensors").write_bytes(b"")
    assert list(packaged_files()) == ["asrn-x2", "asrn-x2:photo", "asrn-x3:bd"]
    assert packaged_list()[-1] == PackagedFile(
        scale=3, variant="bd", path=packaged_folder / "asrn_x3_bd.safetensors"
    )


def test_a_file_in_the_present_folder_wins(packaged_folder: Path) -> None:
    save(asrn(3, num_blocks=3, channels=8), "asrn-x2")
    assert source_of("asrn-x2") == "asrn-x2"
    assert load("asrn-x2").taps == (1, 2, 3)


@pytest.mark.parametrize("text", ["net.safetensors", "hf://owner/name", "asrn", "asrn-", "x2"])
def test_what_is_no_name_stays_what_it_is(packaged_folder: Path, text: str) -> None:
    assert find_packaged(text) is None
    assert source_of(text) == text


def test_an_unknown_name_lists_those_that_there_are_and_where_they_lie(
    packaged_folder: Path,
) -> None:
    message = (
        "asrn-x7: there is no such file, and no packaged net of that name; "
        f"there are asrn-x2, asrn-x2:photo (in {packaged_folder})"
    )
    with pytest.raises(FileNotFoundError) as caught:
        load("asrn-x7")
    assert str(caught.value) == message
    assert why_no_name("folder/asrn-x7") == ""
    assert why_no_name("x.safetensors") == ""


def test_another_package_has_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Path]:
        raise RuntimeError("no files here")

    def files() -> dict[str, Path]:
        return {"large": tmp_path / "large.safetensors"}

    architectures = {
        "broken": Architecture(asrn, packaged_files=broken),
        "mine": Architecture(asrn, packaged_files=files),
        "plain": Architecture(asrn),
    }
    monkeypatch.setattr(registry, "_registered", architectures)
    monkeypatch.setattr(registry, "_entry_points", dict)
    assert packaged_files() == {"mine-large": tmp_path / "large.safetensors"}
    assert find_packaged("broken-large") is None


def test_nothing_is_packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    monkeypatch.setattr(registry, "_entry_points", dict)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="asrn-x2: there is no such file, and no net is"):
        load("asrn-x2")


def test_the_upscaler_takes_a_name_or_a_scale(packaged_folder: Path) -> None:
    assert Upscaler(scale=2).depths == (1, 2)
    assert Upscaler("asrn-x2:photo").depths == (1,)
    with pytest.raises(ValueError, match="scale 3: weights are packaged for 2"):
        Upscaler(scale=3)
    with pytest.raises(ValueError, match="scale 2 beside weights"):
        Upscaler("asrn-x2", scale=2)
    with pytest.raises(ValueError, match="neither weights nor scale"):
        Upscaler()


def test_info_and_export_take_a_name(
    packaged_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "asrn-x2:photo"]) == 0
    assert "num_blocks=1" in capsys.readouterr().out
    assert main(["export", "asrn-x2:photo", "--format", "safetensors"]) == 0
    assert [path.name for path in Path().iterdir()] == ["asrn-x2_photo_d1.safetensors"]


def test_the_command_lists_the_names(
    packaged_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("info", "profile", "export"):
        assert main([command, "asrn-x9"]) == 2
        assert "there are asrn-x2, asrn-x2:photo (in " in capsys.readouterr().err
