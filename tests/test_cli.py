from __future__ import annotations

import pytest

import elasticnet
from elasticnet.cli import main
from elasticnet.sr import asrn


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=2), path, {"step": 7})
    return str(path)


def test_info_shows_architecture_depths_parameters_and_notes(file, capsys):
    assert main(["info", file]) == 0
    said = capsys.readouterr().out
    assert said.startswith("asrn(")
    assert "num_blocks=2, " in said
    assert "depth 1: 70,787 parameters" in said
    assert "depth 2: 109,955 parameters" in said
    assert "step: 7" in said


def test_bad_input_is_one_line_and_exit_code_2(file, capsys, tmp_path):
    assert main(["info", str(tmp_path / "no.safetensors")]) == 2
    assert "no.safetensors" in capsys.readouterr().err
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x01\x02")
    assert main(["info", str(broken)]) == 2
    said = capsys.readouterr().err
    assert "broken.safetensors: not a whole safetensors file" in said
    assert said.count("\n") == 1


def test_debug_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["--debug", "info", str(tmp_path / "no.safetensors")])


def test_version_and_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert elasticnet.__version__ in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["upscal"])
    assert stopped.value.code == 2
