from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import elasticnet
from elasticnet import ElasticWrapper, registry
from elasticnet.cli import main
from elasticnet.registry import Architecture
from elasticnet.sr import asrn, edsr
from elasticnet.sr.benchmark import bicubic, evaluate, evaluate_bicubic, load_sets


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=2), path, {"step": 7})
    return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A flat data set of two images."""
    root = tmp_path_factory.mktemp("data") / "photos"
    root.mkdir()
    for index, width in enumerate((36, 48)):
        image = np.random.default_rng(index).integers(0, 256, (36, width, 3), np.uint8)
        Image.fromarray(image).save(root / f"image{index}.png")
    return root


def test_info_shows_architecture_depths_parameters_and_notes(file, capsys):
    assert main(["info", file]) == 0
    said = capsys.readouterr().out
    assert said.startswith("asrn(")
    assert "num_blocks=2, " in said
    assert "|     1 |     70,787 |" in said
    assert "|     2 |    109,955 |" in said
    assert "step  7" in said


def test_info_for_programs_is_one_json_object(file, capsys):
    assert main(["info", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "asrn"
    assert found["arguments"]["num_blocks"] == 2
    assert found["depths"]["1"] == {"values": 70_787, "bytes": 70_787 * 4}
    assert list(found["depths"]) == ["1", "2"]
    assert found["notes"] == {"step": 7}
    assert found["cards"] == {}


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


# --- benchmark


def lines_of(said: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in said.splitlines()
        if line.startswith("|")
    ]


def test_without_a_network_it_prints_the_bicubic_baselines(photos, capsys):
    assert main(["benchmark", "--data", str(photos), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "bicubic, BI; photos (2 images); protocol matlab-y\n" in said
    means = [evaluate_bicubic(pairs) for _, pairs in load_sets([photos], (2, 3, 4), progress=False)]
    assert lines_of(said)[0] == ["scale", "depth", "PSNR-Y (dB)", "SSIM-Y"]
    assert lines_of(said)[2:] == [
        [f"x{scale}", "bicubic", f"{mean.psnr:.2f}", f"{mean.ssim:.4f}"]
        for scale, mean in zip((2, 3, 4), means, strict=True)
    ]


def test_checkpoints_are_scored_at_their_own_scales_and_everything_is_written(
    file, photos, tmp_path, capsys
):
    third = tmp_path / "third.safetensors"
    elasticnet.save(asrn(3, num_blocks=2, channels=8), third)
    out, images = tmp_path / "a" / "out", tmp_path / "images"
    options = [
        "--depths",
        "2",
        "--border",
        "replicate",
        "--no-cost",
        "--device",
        "cpu",
        "--degradation",
        "BD",
    ]
    options += [
        "--protocol",
        "rounded-y",
        "--self-ensemble",
        "--save-images",
        str(images),
        "--out",
        str(out),
    ]
    assert main(["benchmark", file, str(third), "--data", str(photos), *options]) == 0
    said = capsys.readouterr().out
    assert "net, third, BD; photos (2 images); protocol rounded-y; x8 self-ensemble\n" in said
    assert [line[:4] for line in lines_of(said)[2:]] == [
        ["x2", "bicubic", "bicubic", ""],
        ["x2", "net", "2", "109,955"],
        ["x3", "bicubic", "bicubic", ""],
        ["x3", "third", "2", f"{sum(p.numel() for p in elasticnet.load(third).parameters()):,}"],
    ]
    stored = json.loads((out / "table.json").read_text())
    settings = {
        "protocol": "rounded-y",
        "self_ensemble": True,
        "border": "replicate",
        "degradation": "BD",
        "device": "cpu",
    }
    assert settings.items() <= stored["settings"].items()
    ((_, pairs),) = load_sets([photos], [2], degradation="BD", border="replicate", progress=False)
    mean = evaluate(
        elasticnet.load(file), pairs, depths=[2], protocol="rounded-y", self_ensemble=True
    )[2]
    assert (stored["rows"][1]["psnr"], stored["rows"][1]["ssim"]) == mean
    with open(out / "images.csv", newline="") as table:
        assert len(list(csv.DictReader(table))) == 8
    assert sorted(path.name for path in out.glob("*_x2_*")) == [
        *("photos_x2_crops.png", "photos_x2_curve.png", "photos_x2_parameters.png")
    ]
    assert len(list(images.glob("photos/image?_x?_*.png"))) == 8
    assert (images / "photos" / "image1_x3_d2.png").is_file()
    saved = np.array(Image.open(images / "photos" / "image0_x2_bicubic.png"))
    assert np.array_equal(saved, bicubic(pairs.lr(0), 2, "replicate"))
    assert (saved != bicubic(pairs.lr(0), 2)).any()


def test_the_noise_of_published_numbers_is_an_option(photos, tmp_path, capsys):
    options = ["--scale", "3", "--degradation", "DN", "--noise", "matlab", "--out", str(tmp_path)]
    assert main(["benchmark", "--data", str(photos), *options]) == 0
    assert "photos x3, LR: made (DN, noise of matlab)" in capsys.readouterr().out
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["settings"]["noise"] == "matlab"
    ((_, pairs),) = load_sets([photos], [3], degradation="DN", noise="matlab", progress=False)
    assert stored["rows"][0]["psnr"] == evaluate_bicubic(pairs).psnr


def test_a_built_in_model_with_its_costs(photos, capsys):
    assert (
        main(
            ["benchmark", "--model", "asrn", "--scale", "4", "--data", str(photos), "--depths", "1"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "asrn (untrained), BI; photos (2 images)" in said
    assert "MACs and ms of one pass to 1280x720 on" in said
    header, _, _, line = lines_of(said)
    assert header[:4] == ["depth", "parameters", "GMACs", "ms"]
    assert line[:2] == ["1", "87,235"]
    assert 4 < float(line[2]) < 6


def test_ctrl_c_is_one_line_and_exit_code_130(file, capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("elasticnet.cli.info.run", interrupted)
    assert main(["info", file]) == 130
    assert capsys.readouterr().err == "elasticnet: interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        main(["--debug", "info", file])


def test_every_built_in_model_is_offered(photos, capsys):
    common = ["benchmark", "--scale", "2", "--data", str(photos), "--depths", "1", "--no-cost"]
    assert main([*common, "--model", "edsr"]) == 0
    said = capsys.readouterr().out
    assert "edsr (untrained), BI" in said
    assert lines_of(said)[-1][:2] == [
        "1",
        f"{sum(p.numel() for p in edsr(2).truncate(1).parameters()):,}",
    ]


def enlarger(factor: int = 2, num_blocks: int = 2, taps: Any = None) -> ElasticWrapper:
    """Somebody's own network: its argument that decides on the scale has a name of its own."""
    blocks = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(num_blocks)]
    head = nn.Sequential(nn.Conv2d(4, 3 * factor**2, 1), nn.PixelShuffle(factor))
    return ElasticWrapper(blocks, head, stem=nn.Conv2d(3, 4, 1), taps=taps)


@pytest.fixture
def own_architecture() -> Iterator[None]:
    """Two registered architectures: one names its scale argument, the other has none."""
    named = Architecture(build=enlarger, extras={"scale_argument": "factor"})
    registry.register("own-enlarger", named)
    registry.register("own-doubler", Architecture(build=enlarger))
    yield
    registry.unregister("own-enlarger")
    registry.unregister("own-doubler")


@pytest.mark.usefixtures("own_architecture")
def test_any_registered_architecture_is_built(photos, capsys):
    common = ["benchmark", "--data", str(photos), "--depths", "1", "--no-cost", "--device", "cpu"]
    assert main([*common, "--model", "own-enlarger", "--scales", "2", "3"]) == 0
    lines = lines_of(capsys.readouterr().out)[2:]
    assert [line[:3] for line in lines] == [
        ["x2", "bicubic", ""],
        ["x2", "1", "224"],
        ["x3", "bicubic", ""],
        ["x3", "1", "299"],
    ]
    assert main([*common, "--model", "own-doubler"]) == 0
    assert lines_of(capsys.readouterr().out)[-1][:2] == ["1", "224"]
    assert main([*common, "--model", "own-enlarger"]) == 2
    assert "--model own-enlarger: give either checkpoints, or" in capsys.readouterr().err


@pytest.mark.usefixtures("own_architecture")
def test_a_file_of_any_registered_architecture_is_scored(photos, tmp_path, capsys):
    path = tmp_path / "own.safetensors"
    elasticnet.save(registry.build("own-enlarger", factor=3), path)
    assert main(["benchmark", str(path), "--data", str(photos), "--no-cost"]) == 0
    assert "own, BI; photos (2 images)" in capsys.readouterr().out


def put_noise(path: Path, side: int, seed: int = 0) -> None:
    """Save a random square image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def test_benchmark_says_where_lr_images_come_from(photos, tmp_path, capsys):
    put_noise(tmp_path / "pairs/HR/a.png", 64)
    put_noise(tmp_path / "pairs/LR/a.png", 16, seed=1)
    data = ["--data", str(tmp_path / "pairs"), str(photos)]
    assert main(["benchmark", *data, "--scale", "4", "--out", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "pairs x4, LR: from files (LR)"
    assert second == "photos x4, LR: made (BI)"
    settings = json.loads((tmp_path / "out/table.json").read_text())["settings"]
    assert settings["lr"] == {"pairs x4": "from files (LR)", "photos x4": "made (BI)"}


def test_benchmark_takes_given_lr_images_and_tracks(tmp_path, capsys):
    put_noise(tmp_path / "high/a.png", 64)
    put_noise(tmp_path / "low/a.png", 16, seed=1)
    common = ["benchmark", "--no-cost", "--scale", "4", "--data"]
    given = ["--data-lr", str(tmp_path / "low")]
    assert main([*common, str(tmp_path / "high"), *given]) == 0
    said = capsys.readouterr().out
    assert said.startswith("high x4, LR: from files (../low)\n")
    assert "bicubic, LR of low; high (1 image)" in said
    assert main([*common, str(tmp_path / "high"), str(tmp_path / "low"), *given]) == 2
    assert "beside 2 data sets: give the one that they belong to" in capsys.readouterr().err

    put_noise(tmp_path / "DIV2K/DIV2K_valid_HR/0801.png", 64)
    put_noise(tmp_path / "DIV2K/DIV2K_valid_LR_mild/0801x4m.png", 16, seed=1)
    assert main([*common, str(tmp_path / "DIV2K"), "--track", "mild"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("DIV2K x4, LR: from files (DIV2K_valid_LR_mild)\n")
    assert "bicubic, track mild; DIV2K (1 image)" in said


def test_a_link_that_leads_nowhere_is_reported_with_exit_code_1(photos, tmp_path, capsys):
    root = tmp_path / "set"
    put_noise(root / "good.png", 64)
    (root / "gone.png").symlink_to(tmp_path / "elsewhere.png")
    assert main(["benchmark", "--data", str(root), "--scales", "2"]) == 1
    end = capsys.readouterr().err.splitlines()[-2:]
    assert end[0] == "elasticnet: images left out: 1"
    assert end[1].startswith("  set x2 gone: ")
    assert end[1].endswith(f"is a link to {tmp_path / 'elsewhere.png'}, which is not there")


def test_a_black_frame_is_reported_and_spoils_no_mean(tmp_path, capsys):
    root = tmp_path / "set"
    put_noise(root / "noise.png", 64)
    Image.new("RGB", (64, 64)).save(root / "black.png")
    assert main(["benchmark", "--data", str(root), "--scales", "2"]) == 1
    said = capsys.readouterr()
    assert "set x2 black: it has one colour" in said.err
    assert "set (1 image)" in said.out
    assert "inf" not in said.out


def test_an_unreadable_image_is_reported_at_the_end_with_exit_code_1(tmp_path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(root / "good.png")
    (root / "bad.png").write_bytes(b"not an image")
    assert (
        main(["benchmark", "--data", str(root), "--scales", "2", "--out", str(tmp_path / "out")])
        == 1
    )
    said = capsys.readouterr()
    assert "set (1 image)" in said.out
    end = said.err.splitlines()[-2:]
    assert end[0] == "elasticnet: images left out: 1"
    assert end[1].startswith("  set x2 bad: cannot read image")
    assert json.loads((tmp_path / "out" / "table.json").read_text())["skipped"][0]["image"] == "bad"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no-such-set"], "data set no-such-set does not exist"),
        (
            ["--data", "DATA", "--model", "asrn"],
            "--model asrn: give either checkpoints, or --model with --scale",
        ),
        (
            ["FILE", "--data", "DATA", "--model", "asrn", "--scale", "2"],
            "give either checkpoints, or --model",
        ),
        (
            ["FILE", "--data", "DATA", "--depths", "1", "9"],
            "depth 9: this net has taps at depths 1, 2",
        ),
        (
            ["FILE", "--data", "DATA", "--scales", "3"],
            "network 'net' enlarges by 2, and the data sets are loaded at scale 3",
        ),
        (["--data", "DATA", "--model", "zzz"], "--model zzz: expected one of asrn, edsr, rcan, "),
        (["--data", "DATA", "DATA"], "another of the paths given is also called"),
        (["--data", "DATA", "--device", "gpu9"], "--device gpu9: "),
        (["nothing.safetensors", "--data", "DATA"], "nothing.safetensors"),
    ],
)
def test_bad_benchmark_arguments_are_exit_code_2(arguments, message, file, photos, capsys):
    places = {"FILE": file, "DATA": str(photos)}
    assert main(["benchmark", *(places.get(argument, argument) for argument in arguments)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("elasticnet: ")
    assert message in said


@pytest.mark.parametrize("option", ["--degradation", "--protocol", "--border"])
def test_an_unknown_choice_is_exit_code_2(option, photos, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "--data", str(photos), option, "zzz"])
    assert stopped.value.code == 2
    assert "invalid choice: 'zzz'" in capsys.readouterr().err
