from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import elasticnet
from elasticnet import ElasticWrapper, registry
from elasticnet.checkpoint import read_header
from elasticnet.cli import main
from elasticnet.cli.export import DTYPES, FORMATS
from elasticnet.export import SUFFIXES, ExportError, export, plan, runner
from elasticnet.registry import Architecture
from elasticnet.sr import asrn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=2, channels=24), path, {"step": 7})
    return path


def table(said: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in said.splitlines()
        if line.startswith("|")
    ]


def test_the_formats_of_the_command_are_those_of_the_library():
    assert list(FORMATS) == list(SUFFIXES)


def test_all_depths_at_once_with_a_table(file, capsys):
    assert main(["export", str(file), "--all-depths"]) == 0
    said = capsys.readouterr()
    steps = (
        "trying which inputs it takes",
        "tracing",
        "translating to ONNX",
        "comparing the file with the network",
    )
    assert said.err.splitlines() == [f"depth {depth}: {step}" for depth in (1, 2) for step in steps]
    head, _, *rows = table(said.out)
    assert head == ["depth", "parameters", "MB", "max difference", "file"]
    whole = elasticnet.load(file)
    x = torch.rand(1, 3, 7, 9)
    for depth, row in zip((1, 2), rows, strict=True):
        path = file.with_name(f"net_d{depth}.onnx")
        parameters = sum(parameter.numel() for parameter in whole.truncate(depth).parameters())
        assert row[:3] == [str(depth), f"{parameters:,}", f"{path.stat().st_size / 1e6:.3f}"]
        assert 0 < float(row[3]) < 1e-5
        assert row[4] == str(path)
        with torch.no_grad():
            assert (runner(path)(x) - whole(x, depth=depth)).abs().max() < 1e-5
    (line,) = (
        line
        for line in said.out.splitlines()
        if line.startswith(f"{file.with_name('net_d1.onnx')}: ")
    )
    assert " MB, max difference " in line
    assert line.endswith("on 1x3x24x20, 1x3x48x60, 1x3x1x1, 6x3x27x22; open: batch, height, width")


def test_a_file_of_one_size_in_float16_and_of_an_older_opset(file, capsys):
    options = ["--depth", "1", "--size", "7x9", "--dtype", "float16", "--opset", "18"]
    assert main(["export", str(file), *options]) == 0
    assert capsys.readouterr().out.endswith(" on 1x3x7x9\n")
    model = onnx.load(file.with_name("net_d1.onnx"))
    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    weights = {tensor.data_type for tensor in model.graph.initializer}
    assert weights == {onnx.TensorProto.FLOAT16}
    x = torch.rand(1, 3, 7, 9)
    with torch.no_grad():
        expected = elasticnet.load(file, depth=1).eval()(x)
    assert (runner(file.with_name("net_d1.onnx"))(x) - expected).abs().max() < 2 / 255


@pytest.mark.parametrize("size", ["120", "0x9", "9x", "120x160x3"])
def test_a_size_that_is_none_is_refused(file, size, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(file), "--size", size])
    assert f"'{size}': expected HEIGHTxWIDTH" in capsys.readouterr().err


def test_the_dtypes_of_the_command_are_those_of_the_library():
    assert list(DTYPES) == list(plan.DTYPES)


def test_a_network_of_any_registered_architecture(tmp_path, monkeypatch, capsys):
    def mlp(num_blocks, width, taps=None):
        blocks = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(num_blocks)]
        return ElasticWrapper(blocks, nn.Linear(width, 3), taps=taps)

    architecture = Architecture(mlp, example=lambda arguments: torch.rand(1, arguments["width"]))
    monkeypatch.setitem(registry._registered, "mlp", architecture)
    net = registry.build("mlp", num_blocks=2, width=5)
    path = tmp_path / "mlp.safetensors"
    elasticnet.save(net, path)

    assert main(["export", str(path), "--depth", "1", "--format", "torch"]) == 0

    said = capsys.readouterr().out
    assert said.endswith("on 1x5, 6x5; open: batch\n")
    x = torch.rand(4, 5)
    with torch.no_grad():
        assert (runner(tmp_path / "mlp_d1.pt2")(x) - net(x, depth=1)).abs().max() < 1e-6


def masked_sum(num_blocks, width, taps=None):
    """Sums tokens (b, n, c) where a mask (b, n) is 1; with more than 9 tokens it fails."""

    class Masked(nn.Module):
        def forward(self, x, mask):
            if x.shape[1] > 9:
                raise IndexError("no position 9")
            return x * mask[..., None]

    blocks = [nn.Linear(width, width) for _ in range(num_blocks)]
    return ElasticWrapper(blocks, nn.Identity(), Masked(), taps=taps, layout="b n c")


@pytest.fixture
def masked_file(tmp_path, monkeypatch) -> Path:
    architecture = Architecture(
        masked_sum,
        example=lambda arguments: torch.rand(2, 5, arguments["width"]),
        extras={"example_keywords": lambda _: {"mask": torch.ones(2, 5)}},
    )
    monkeypatch.setitem(registry._registered, "masked-sum", architecture)
    path = tmp_path / "masked.safetensors"
    net = registry.build("masked-sum", num_blocks=2, width=3)
    elasticnet.save(net, path)
    return path


@pytest.mark.parametrize(
    "axes",
    [
        ["--axis", "0=batch", "--axis", "1=tokens:2:9"],
        [
            *("--axis", "input.0=batch", "--axis", "mask.0=batch"),
            *("--axis", "input.1=tokens:2:9", "--axis", "mask.1=tokens"),
        ],
    ],
)
def test_axes_with_bounds_of_a_network_with_keyword_arguments(masked_file, axes, capsys):
    assert main(["export", str(masked_file), "--format", "torch", *axes]) == 0

    said = capsys.readouterr().out
    assert said.endswith(
        "on 2x5x3, 1x9x3, 1x2x3, 7x9x3; inputs: input, mask; open: batch, tokens (2 to 9)\n"
    )
    run_file = runner(masked_file.with_name("masked_d2.pt2"))
    assert run_file(torch.rand(3, 8, 3), mask=torch.ones(3, 8)).shape == (3, 8, 3)


def test_a_limit_of_the_network_is_one_line_with_what_to_write(masked_file, capsys):
    assert main(["export", str(masked_file), "--axis", "1=tokens"]) == 2

    said = capsys.readouterr().err.splitlines()[-1]
    assert "it takes 1 to 9 tokens: " in said
    assert said.endswith("(on the command line: --axis 1=tokens:1:9)")


def test_no_axis_is_open_where_the_user_says_so(masked_file, capsys):
    assert main(["export", str(masked_file), "--format", "torch", "--axis", "none"]) == 0

    assert "open:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "value", ["tokens", "1:tokens", "1=tokens:2", "1=two words", "-1=tokens", "1=tokens:a:b"]
)
def test_a_wrong_axis_is_an_error_of_the_arguments(masked_file, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(masked_file), f"--axis={value}"])

    assert stopped.value.code == 2
    assert f"{value!r}: expected AXIS=NAME or AXIS=NAME:LEAST:MOST" in capsys.readouterr().err


def test_the_suffix_of_out_chooses_the_format_and_fold_can_be_off(file, tmp_path, capsys):
    command = ["export", str(file), "--depth", "1", "-o", str(tmp_path / "a.pt2")]
    assert main([*command, "--no-fold"]) == 0
    extra = {"description.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert json.loads(extra["description.json"])["depth"] == 1
    assert "head.deconvs.0.weight" in program.state_dict
    assert main([*command, "--fold", "--force"]) == 0
    assert "head.conv.weight" in torch.export.load(tmp_path / "a.pt2").state_dict
    assert "a.pt2: " in capsys.readouterr().out


def test_checkpoints_of_all_depths_go_into_a_folder_with_their_notes(file, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    command = ["export", str(file), "--depth", "all", "--format", "safetensors", "-o", str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "net_d1.safetensors",
        "net_d2.safetensors",
    ]
    assert elasticnet.load(out / "net_d1.safetensors").taps == (1,)
    assert read_header(out / "net_d2.safetensors")["notes"] == {"step": 7}
    assert "net_d1.safetensors: " in capsys.readouterr().out


def test_images_that_int8_cannot_be_measured_on_are_named(file, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(image).save(photos / "a.png")
    (photos / "b.png").write_bytes(b"no image")
    options = ["--int8", "--depth", "1", "-o", str(tmp_path / "a.pt2"), "--data", str(photos)]
    assert main(["export", str(file), *options]) == 1
    said = capsys.readouterr().err
    assert "elasticnet: images left out: 1\n  b: cannot read image" in said


def test_int8_prints_its_cost_also_on_data(file, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(image).save(photos / "image.png")
    command = ["export", str(file), "--int8", "-o", str(tmp_path / "a.pt2"), "--data", str(photos)]
    assert main(command) == 0
    where_lr_is_from, summary, on_data = capsys.readouterr().out.splitlines()
    assert where_lr_is_from == "photos x2, LR: made (BI)"
    assert float(summary.partition("; int8 against float: ")[2].removesuffix(" dB")) > 50
    assert on_data.startswith("  photos: ")
    before, after, cost = (
        float(word) for word in on_data.split()[1:] if word[0] in "+-0123456789" and "." in word
    )
    assert cost == pytest.approx(after - before, abs=0.0011)
    assert abs(cost) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "3"], "depth 3: this net has taps at depths 1, 2"),
        (["--depth", "0"], "depth 0: "),
        (
            ["--int8", "--format", "safetensors"],
            "--int8 with --format safetensors: a checkpoint keeps its weights",
        ),
        (["--fold", "--format", "safetensors"], "--fold with --format safetensors"),
        (["--axis", "0=b", "--format", "safetensors"], "--axis with --format safetensors"),
        (["--axis", "0=b", "--axis", "0=c"], "--axis 0=c: this axis was given before"),
        (["--axis", "0=b", "--axis", "none"], "--axis none: it stands alone"),
        (
            ["--axis", "2=h", "--axis", "input.3=w"],
            "--axis 2: name the input of each axis, or of none; the first input is called 'input'",
        ),
        (["--data", "photos"], "--data photos: it measures what --int8 costs; add --int8"),
        (["-o", "none/net.onnx"], "none/net.onnx: there is no folder none; make it first"),
        (
            ["-o", "there.onnx"],
            "there.onnx exists: use --force (in Python: overwrite=True), or choose another name",
        ),
        (["-o", "a.onnx", "--all-depths"], "-o a.onnx: one file for several depths; name a folder"),
        (["-o", "a.onnx", "--format", "torch"], "a.onnx: the suffix of format 'torch' is .pt2"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    file, options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_bytes(b"mine")
    assert main(["export", str(file), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"elasticnet: {message}")
    assert said.count("\n") == 1
    assert Path("there.onnx").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "there.onnx"]


def test_an_existing_file_stops_all_depths_before_any_work(file, capsys):
    file.with_name("net_d2.onnx").write_bytes(b"mine")
    assert main(["export", str(file), "--all-depths"]) == 2
    assert "net_d2.onnx exists" in capsys.readouterr().err
    assert not file.with_name("net_d1.onnx").exists()


def test_a_damaged_file_a_missing_one_and_a_missing_package(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"\x01\x02")
    assert main(["export", str(tmp_path / "broken.safetensors")]) == 2
    assert "broken.safetensors: not a whole safetensors file" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(file)]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == "elasticnet: format 'onnx' needs onnxruntime: pip install \"elastic-depth[export]\"\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(file), "--depth", "deep"])
    assert stopped.value.code == 2
    assert "'deep': expected a depth, or all" in capsys.readouterr().err


def test_a_file_that_differs_is_one_line_and_debug_raises(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export.__kwdefaults__, "tolerance", -1.0)  # no file can be as good as that
    options = ["export", str(file), "-o", str(tmp_path / "net.pt2")]
    assert main(options) == 2
    said = capsys.readouterr().err.splitlines()
    assert "net.pt2: depth 2 as torch differs from the net by up to" in said[-1]
    assert not (tmp_path / "net.pt2").exists()
    with pytest.raises(ExportError):
        main([*options, "--debug"])
