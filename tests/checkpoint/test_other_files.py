"""Files that people take for checkpoints: what is said of each, and what is not taken for one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import elasticnet
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.other_files import describe_other_file
from elasticnet.checkpoint.safetensors_file import Entry, header_bytes, read_table
from elasticnet.cli import main
from elasticnet.sr import asrn
from elasticnet.sr.models.convert import read_official


def message_of(path: Path) -> str:
    """What `read_header` says of a file that is no checkpoint."""
    with pytest.raises((ValueError, OSError)) as raised:
        read_header(path)
    message = str(raised.value)
    assert "\n" not in message
    assert "Errno" not in message
    return message


# --- files that are not there, and folders


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    with pytest.raises(FileNotFoundError):
        read_header(path)
    assert message_of(path) == f"{path}: there is no such file"


def test_of_an_absent_file_the_weights_beside_it_are_named(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"net{number}.safetensors").touch()
    message = message_of(tmp_path / "net.safetensors")
    assert message.endswith(
        f"the weights in {tmp_path} are: net0.safetensors, net1.safetensors, net2.safetensors, "
        "net3.safetensors, net4.safetensors, ..."
    )


def test_of_a_file_in_an_absent_folder_the_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    path = folder / "net.safetensors"
    assert message_of(path) == f"{path}: there is no such file, and no folder {folder}"


def test_of_a_run_s_folder_the_best_network_is_named(tmp_path: Path) -> None:
    for name in ("best.safetensors", "a.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(IsADirectoryError):
        read_header(tmp_path)
    best = tmp_path / "best.safetensors"
    assert message_of(tmp_path).endswith(f"give a file in it, such as {best}")


def test_of_another_folder_the_first_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").touch()
    assert message_of(tmp_path).endswith(f"such as {tmp_path / 'net.safetensors'}")


def test_a_folder_without_weights_is_said_to_have_none(tmp_path: Path) -> None:
    assert "a folder, and a file of weights is needed; there is none in it" in message_of(tmp_path)


# --- files of other kinds, as the libraries write them


def test_a_pickle_of_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.ones(3)}, path)
    assert "pickles: read it with torch.load(..., weights_only=True)" in message_of(path)


def test_an_old_pickle_of_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert "pickles: read it with torch.load(..., weights_only=True)" in message_of(path)


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, path)
    assert "a program of torch.export (.pt2); exported networks are not read" in message_of(path)


def test_an_onnx_file_of_our_export(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from elasticnet.export import export

    path = tmp_path / "net.onnx"
    export(asrn(2, num_blocks=1, channels=8), path)
    assert "an ONNX file; exported networks are not read back: give the checkpoint" in message_of(
        path
    )


def test_archives_of_other_things(tmp_path: Path) -> None:
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, weight=np.ones(300))
    assert "an archive of NumPy arrays (.npz)" in message_of(arrays)
    archive = tmp_path / "models.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("models/asrn.safetensors", b"x" * 300)
    assert "a zip archive; unpack it, and give the checkpoint" in message_of(archive)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty; give the checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page; a page instead"),
        (b"\n <HTML lang='en'><head></head></html>", "an HTML page; a page instead"),
        (json.dumps({"preset": "best"}).encode(), "a JSON file; give the checkpoint"),
        (b"GGUF\3\0\0\0" + bytes(60), "a GGUF file; give the checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file, as Keras writes; give the checkpoint"),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "an XML file, such as a",
        ),
        (bytes(257) + b"ustar\x0000" + bytes(100), "a tar archive; give the checkpoint"),
        (b"\x1c\0\0\0TFL3" + bytes(60), "a TFLite file; give the checkpoint"),
        ("model: größe\n".encode() * 60, "a text file; give the checkpoint"),
        (b"II*\0" + bytes(60), "a TIFF file; give the checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "a PNG file; give the checkpoint"),
    ],
)
def test_other_kinds(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    message = message_of(path)
    assert message.startswith(f"{path}: not a safetensors file: ")
    assert said in message


# --- what is not taken for another kind


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    entries = {"weight": Entry(dtype="U8", shape=(1,), start=0, end=1)}
    padding = 0x0280 - len(header_bytes(entries, {"padding": ""})) + 8
    whole = header_bytes(entries, {"padding": "x" * padding})
    assert whole.startswith(b"\x80\2")
    path.write_bytes(whole + b"\0")
    assert list(read_table(path).entries) == ["weight"]


def test_a_cut_checkpoint_is_called_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=1, channels=8), path)
    path.write_bytes(path.read_bytes()[:300])
    assert "not a whole safetensors file (a header of" in message_of(path)
    assert "it is cut off, damaged, or a file of another kind" in message_of(path)


def test_nothing_is_said_of_bytes_that_nobody_knows() -> None:
    assert describe_other_file(b"\x17\x91" * 40) is None


# --- other ways to the same file


@pytest.mark.parametrize("command", ["info", "export", "profile", "benchmark", "upscale"])
def test_every_command_says_the_same(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "a.png")
    words = {
        "info": [],
        "export": ["-o", f"{tmp_path}/net.onnx"],
        "profile": ["--no-store"],
        "benchmark": ["--data", f"{tmp_path}", "--no-cache"],
        "upscale": [f"{tmp_path}/a.png", "-o", f"{tmp_path}/b.png", "--weights"],
    }[command]
    weights = f"{tmp_path}/runs"
    (tmp_path / "runs").mkdir()
    arguments = [command, *words, weights] if command == "upscale" else [command, weights, *words]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"elasticnet: {weights}: a folder, and a file of weights is needed; there is none in it "
        "whose name ends in .safetensors\n"
    )


def test_official_checkpoints_are_looked_for_in_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: there is no such file"):
        read_official(tmp_path / "absent.pth")
    with pytest.raises(IsADirectoryError, match="a folder, and a file of weights is needed"):
        read_official(tmp_path)
