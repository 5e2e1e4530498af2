"""`elasticnet upscale` with an exported file: ONNX Runtime in the place of PyTorch, which may be
absent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elasticnet import save
from elasticnet.cli import main
from elasticnet.sr import asrn
from elasticnet.sr.inference.onnx_plan import OnnxPlan, plan_onnx
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.tile_engine import TilePart
from elasticnet.sr.inference.tile_layout import first_tiling
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
# The command in a process in which torch cannot be imported, as where it is not installed.
WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
from elasticnet.cli import main
sys.exit(main(sys.argv[1:]))
"""
torch.manual_seed(0)
NET = asrn(2, num_blocks=2, channels=8, skip="bicubic").eval()
RGB = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole network as an ONNX file, and beside it the checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    save(NET, folder / "net.safetensors")
    command = ["export", str(folder / "net.safetensors"), "-o", str(folder / "net.onnx")]
    assert main(command) == 0
    return folder / "net.onnx"


def plan_of(exported: Path, **options: Any) -> OnnxPlan:
    return plan_onnx(exported, threads=1, **options)


def test_photographs_of_all_kinds_are_enlarged_without_torch(
    exported: Path, tmp_path: Path
) -> None:
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(RGB).save(images / "color.png")
    Image.fromarray(RGB).save(images / "photo.jpg", quality=95)
    Image.fromarray(RGB[..., 0]).save(images / "gray.tif")
    Image.fromarray(np.dstack([RGB, RGB[..., :1]])).save(images / "alpha.webp", lossless=True)
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(images / "gray16.png")
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(images / "moving.png", save_all=True, append_images=frames[1:])
    command = ["upscale", str(images), "--scale", "1.5", "--tile", "16", "--png-level", "1"]
    in_onnx = [*command, "--weights", str(exported), "-o", str(tmp_path / "onnx"), "--depth", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *in_onnx, "--engine", "onnxruntime"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weights = ["--weights", str(exported.with_suffix(".safetensors"))]
    assert main([*command, *weights, "-o", str(tmp_path / "torch")]) == 0
    made = sorted(path.name for path in (tmp_path / "onnx").iterdir())
    assert made == sorted(path.name for path in images.iterdir())
    for name in made:
        found = Image.open(tmp_path / "onnx" / name)
        expected = Image.open(tmp_path / "torch" / name)
        assert (found.mode, found.size) == (expected.mode, (75, 60))
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
        # a JPEG that differs by one level is compressed to one that may differ by more
        tolerance = {"gray16.png": 257, "photo.jpg": 6}.get(name, 1)
        assert difference.max() <= tolerance, name


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "gray"])
def test_pixels_and_tiles_are_those_of_pytorch(exported: Path, kind: str) -> None:
    image = {
        "uint8": RGB,
        "uint16": RGB.astype(np.uint16) * 257,
        "float32": RGB / np.float32(255),
        "gray": RGB[..., 0],
    }[kind]
    expected = upscale_array(image, plan_upscale(NET)).astype(float)
    white = {"uint16": 65535, "float32": 1}.get(kind, 255)
    for options in ({}, {"tile": 16}, {"tile": 16, "tile_batch": 2}, {"tile": None}):
        found = upscale_array(image, plan_of(exported, **options))
        assert found.dtype == image.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=white / 255)


def test_a_file_says_how_far_its_network_sees_and_what_it_takes(exported: Path) -> None:
    plan = plan_of(exported)
    seen = footprint(NET, 2)
    assert (plan.reach, plan.depth, plan.scale) == (seen.reach, 2, 2)
    assert plan.bytes_per_pixel == round(seen.bytes_per_pixel)
    assert first_tiling(plan, (1000, 1000)).overlap == seen.reach


def test_a_file_that_does_not_say_it_runs_images_whole(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = onnx.load(exported)
    for entry in list(model.metadata_props):
        if entry.key in ("reach", "bytes_per_pixel"):
            model.metadata_props.remove(entry)
    onnx.save(model, "old.onnx")
    plan = plan_onnx("old.onnx", threads=1)
    assert first_tiling(plan, (500, 500)).num_tiles == 1
    Image.fromarray(RGB).save("a.png")
    assert main(["upscale", "a.png", "--weights", "old.onnx"]) == 0
    assert "old.onnx: does not say how far its network sees" in capsys.readouterr().err


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-ms", "100"], "--max-ms: {file} is run as it is; leave it out"),
        (["--dtype", "auto"], "--dtype: {file} is run as it is; leave it out"),
        (["--self-ensemble"], "--self-ensemble: {file} is run as it is; leave it out"),
        (["--device", "cuda"], "--device cuda: exported files run on the CPU; leave it out"),
        (["--depth", "1"], "--depth 1: {file} holds depth 2 alone"),
        (["--scale", "4"], "--scale 4: {file} enlarges 2 times"),
        (["--engine", "torch"], "--engine torch: {file} is an exported file"),
    ],
)
def test_what_an_exported_file_cannot_do_is_refused(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    command = ["upscale", str(tmp_path / "a.png"), "--weights", str(exported)]
    assert main([*command, *arguments]) == 2
    assert said.format(file=exported) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_engine_takes_exported_files_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", "a.png", "--engine", "onnxruntime", "--weights", "asrn-x4"]) == 2
    said = "--engine onnxruntime: give it an exported file, --weights FILE.onnx"
    assert said in capsys.readouterr().err


def edited(exported: Path, target: Path, **metadata: Any) -> Path:
    """A copy of a file with other metadata; None leaves an entry out."""
    model = onnx.load(exported)
    for entry in list(model.metadata_props):
        if entry.key in metadata:
            model.metadata_props.remove(entry)
    for key, value in metadata.items():
        if value is not None:
            model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, target)
    return target


def test_files_that_cannot_be_used_are_named(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx: no such file"):
        plan_onnx("absent.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no ONNX")
    with pytest.raises(ValueError, match=r"damaged\.onnx: ONNX Runtime cannot open it"):
        plan_onnx(damaged)
    other = edited(exported, tmp_path / "other.onnx", scale=None)
    with pytest.raises(ValueError, match=r"other\.onnx: says no scale and depth"):
        plan_onnx(other)
    model = onnx.load(exported)
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[2].dim_value, shape.dim[3].dim_value = 20, 30
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(ValueError, match=r"fixed\.onnx: takes images of 30x20 alone"):
        plan_onnx(tmp_path / "fixed.onnx")
    with pytest.raises(ValueError, match="tile 0: expected 'auto'"):
        plan_onnx(exported, tile=0)


def test_without_the_runtime_the_remedy_is_named(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="ONNX Runtime runs it: pip install onnxruntime"):
        plan_onnx(exported)


def fake_plan(exported: Path, run: Any) -> OnnxPlan:
    """A plan whose session does something else."""
    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x")], run=run)
    return replace(plan_of(exported), session=session)


def test_nan_and_a_lack_of_memory_are_told(exported: Path) -> None:
    whole = [TilePart(rows=slice(None), columns=slice(None))]
    nan = np.full((1, 3, 80, 100), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"net\.onnx gives NaN or infinity"):
        fake_plan(exported, lambda *_: [nan]).enlarge([RGB], whole)

    def fail(*_: Any) -> Any:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 123")

    with pytest.raises(MemoryError, match="buffer of size 123"):
        fake_plan(exported, fail).enlarge([RGB], whole)
