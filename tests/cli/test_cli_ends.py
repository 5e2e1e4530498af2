"""How the command ends in odd surroundings: closed streams, signals, no memory, odd names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import warm_python
from elasticnet import load, load_into, save
from elasticnet.checkpoint import read_header, write_header
from elasticnet.cli import main
from elasticnet.sr import asrn

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="shells, signals and modes are POSIX's here"
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: n.safetensors (x2, 2 depths) and a.png of 20x14."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(asrn(2, 2, 8), tmp_path / "n.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 20, 3), np.uint8)).save("a.png")
    return tmp_path


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line in which `el` is the command."""
    el = f"{sys.executable} -m elasticnet.cli"
    line = f'el() {{ {el} "$@"; }}; {command}'
    return subprocess.run(
        line, shell=True, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("el upscale - -o out.png --weights n.safetensors <&-", 2, "-: standard input is closed"),
        ("el upscale a.png -o - --weights n.safetensors >&-", 2, "-o -: standard output is closed"),
        ("el upscale a.png -o out.png --weights n.safetensors 2>&-", 0, ""),
        ("el upscale missing.png -o out.png --weights n.safetensors 2>&-", 2, ""),
    ],
)
def test_closed_streams(folder: Path, command: str, status: int, said: str) -> None:
    before = names(folder)
    done = shell(command)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert names(folder) == (sorted([*before, "out.png"]) if status == 0 else before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing_half_written(folder: Path, name: str) -> None:
    number = getattr(signal, name)
    Image.effect_noise((900, 700), 80).convert("RGB").save("big.png")
    before = names(folder)
    command = [
        sys.executable,
        "-m",
        "elasticnet.cli",
        "upscale",
        "big.png",
        "-o",
        "out.png",
        "--tile",
        "8",
    ]
    command += ["--weights", "n.safetensors"]
    process = warm_python.Popen(command, env=ENVIRONMENT, stderr=warm_python.DEVNULL)
    while names(folder) == before and process.poll() is None:  # until its temporary file is there
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert names(folder) == before


def test_signal_handlers_are_put_back(folder: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["info", "n.safetensors"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_out_of_memory_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "900000x900000", "--repeats", "1", "--no-store", "--no-memory"]
    assert main(["profile", "n.safetensors", *size]) == 2
    said = capsys.readouterr().err
    assert "elasticnet: out of memory: " in said
    with pytest.raises(RuntimeError, match="allocate memory"):
        main(["--debug", "profile", "n.safetensors", *size])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["profile", "n.safetensors", "--device", "meta", "--no-store"], "--device meta: "),
        (
            ["upscale", "a.png", "-o", "o.png", "--weights", "n.safetensors", "--device", "meta"],
            "--device meta: ",
        ),
        (["upscale", "a.png", "-o", "", "--weights", "n.safetensors"], "-o: the name is empty"),
        (["upscale", "", "-o", "o.png", "--weights", "n.safetensors"], "INPUT: the name is empty"),
        (["export", "n.safetensors", "-o", ""], "-o: the name is empty"),
        (
            ["export", "n.safetensors", "-o", "small.pt"],
            "-o small.pt: a suffix among .onnx, .pt2, .safetensors",
        ),
        (
            ["export", "n.safetensors", "-o", "n.safetensors", "--depth", "1", "--force"],
            "is the checkpoint itself",
        ),
        (
            [
                "upscale",
                "a.png",
                "a.png",
                "b\n\x1b[31m.png",
                "-o",
                "o",
                "--weights",
                "n.safetensors",
            ],
            "b\ufffd\ufffd[31m",
        ),
        (["upscale", ".", "-o", "new", "--weights", "none.safetensors"], "none.safetensors"),
        (
            [
                "upscale",
                ".",
                "-o",
                "new",
                "--quality",
                "5",
                "--format",
                "png",
                "--weights",
                "n.safetensors",
            ],
            "--quality 5",
        ),
    ],
)
def test_refusals_leave_no_trace(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(folder)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert names(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["profile", "n.safetensors", "--threads", "100000"],
            "100000: expected at most 1024 threads",
        ),
        (["profile", "n.safetensors", "--threads", "99999999999"], "expected at most 1024 threads"),
        (
            ["upscale", "a.png", "-o", "o.png", "--tile", "none"],
            "'none': expected auto, whole, or LR pixels a side",
        ),
        (["upscale", "a.png", "-o", "o.png", "--quality", "abc"], "'abc': expected 1 to 100"),
    ],
)
def test_values_are_refused_with_what_is_expected(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_bfloat16_checkpoint_is_profiled_and_scored(folder: Path) -> None:
    save(load("n.safetensors").bfloat16(), "half.safetensors")
    Path("photos").mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 44, 3), np.uint8)).save(
        "photos/a.png"
    )
    options = ["--size", "16x16", "--repeats", "1", "--no-store", "--no-memory", "--data", "photos"]
    assert main(["profile", "half.safetensors", *options]) == 0
    assert main(["benchmark", "half.safetensors", "--data", "photos", "--no-cost"]) == 0


def test_a_rewritten_file_keeps_its_mode_and_a_link_stays_one(folder: Path) -> None:
    os.chmod("n.safetensors", 0o600)
    os.symlink("n.safetensors", "link.safetensors")
    header = read_header("link.safetensors")
    write_header("link.safetensors", {**header, "notes": {"seen": True}})
    assert Path("link.safetensors").is_symlink()
    assert read_header("n.safetensors")["notes"] == {"seen": True}
    assert Path("n.safetensors").stat().st_mode & 0o777 == 0o600
    assert main(["upscale", "a.png", "-o", "o.png", "--weights", "n.safetensors"]) == 0
    os.chmod("o.png", 0o600)
    assert main(["upscale", "a.png", "-o", "o.png", "--weights", "n.safetensors", "--force"]) == 0
    assert Path("o.png").stat().st_mode & 0o777 == 0o600


def test_webp_keeps_the_resolution_beside_exif(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.open("a.png").save("a.jpg", dpi=(300, 150), exif=exif)
    assert main(["upscale", "a.jpg", "-o", "o.webp", "--weights", "n.safetensors"]) == 0
    with Image.open("o.webp") as image:
        kept = image.getexif()
    assert (kept[282], kept[283], kept[296], kept[0x010F]) == (300, 150, 2, "a camera")


def test_only_elastic_nets_are_saved_and_loaded_into(folder: Path) -> None:
    with pytest.raises(TypeError, match="net is a Linear: expected an ElasticWrapper"):
        save(torch.nn.Linear(2, 2), "x.safetensors")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="net is a Linear: expected an ElasticWrapper"):
        load_into(torch.nn.Linear(2, 2), "n.safetensors")  # pyright: ignore[reportArgumentType]


def test_names_that_the_output_cannot_encode_are_escaped(folder: Path) -> None:
    """Whether they are letters of another language, or bytes that are no text at all."""
    strange = os.fsdecode(b"caf\xe9")
    for name in ("漢字", strange):
        Path(name).mkdir()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(
            Path(name, f"{name}.png")
        )
    command = "el benchmark --data 漢字 caf* --scale 2 --no-cost --no-cache --out out"
    ended = shell(f"export PYTHONIOENCODING=ascii; {command}")
    assert ended.returncode == 0, ended.stderr
    assert "\\u6f22\\u5b57" in ended.stdout
    assert r"caf\udce9" in Path("out/images.csv").read_text(encoding="utf-8")
