"""A package of ten lines, and its networks work with everything that works with the library's own.

The package declares its architectures by entry points, or is named by `--import`. Each command runs
in a process of its own, as a user would run it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import warm_python
from loopback import serving
from third_party import environment_of, install, run_code, run_python

# The ten lines: a network for images, and below it one for sequences.
TEN_LINES = """
import torch
from torch import nn
from elasticnet import ElasticWrapper
from elasticnet.registry import Architecture

def build(num_blocks=3, channels=8, scale=2, taps=None):
    blocks = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_blocks)]
    head = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 1), nn.PixelShuffle(scale))
    return ElasticWrapper(blocks, head, nn.Conv2d(3, channels, 3, padding=1), taps=taps)

IMAGES = {"scale_argument": "scale", "value_range": (0.0, 1.0), "channels": "RGB"}
ENLARGER = Architecture(build, example=lambda arguments: torch.rand(1, 3, 9, 8), extras=IMAGES)

def build_sequences(layers=2, width=4, taps=None):
    blocks = [nn.Linear(width, width) for _ in range(layers)]
    return ElasticWrapper(blocks, nn.Linear(width, 2), taps=taps, layout="b n c")

def sequence_example(arguments):
    return torch.rand(2, 5, arguments["width"])

SEQUENCES = Architecture(
    build_sequences, depth_argument="layers", example=sequence_example
)
"""
DECLARED = ["enlarger = tenlines:ENLARGER", "sequences = tenlines:SEQUENCES"]
# the same, registered by a call for whoever imports it
CALLED = """
from elasticnet.registry import register_all
register_all({"enlarger": ENLARGER, "sequences": SEQUENCES})
"""

TRAIN = """
import torch
import elasticnet
from elasticnet.registry import build

for name, target in (("enlarger", torch.rand(1, 3, 18, 16)), ("sequences", torch.rand(2, 5, 2))):
    torch.manual_seed(0)
    net = build(name)
    x = torch.rand(1, 3, 9, 8) if name == "enlarger" else torch.rand(2, 5, 4)
    objective = elasticnet.ElasticObjective(net, task_loss=torch.nn.L1Loss(), psd_weight=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.head.state_dict() if name == "sequences" else net.head[0].state_dict()
    for _ in range(2):
        optimizer.zero_grad()
        objective(x, target).total.backward()
        optimizer.step()
    elasticnet.save(net, f"{name}.safetensors")
    torch.save((x, net.eval()(x, depth=1).detach()), f"{name}.pt")
"""

USE = """
import sys
import numpy as np
import torch
import elasticnet
from elasticnet.sr import Upscaler

for name in ("enlarger", "sequences"):
    x, expected = torch.load(f"{name}.pt")
    net = elasticnet.load(f"{name}.safetensors", depth=1)
    assert torch.equal(net(x), expected), name
    assert net.origin[0] == name

upscaler = Upscaler("enlarger.safetensors", depth=2)
assert upscaler.scale == 2
assert upscaler(np.zeros((5, 6, 3), np.uint8)).shape == (10, 12, 3)

source = elasticnet.push_to_hub("enlarger.safetensors", "owner/net")
assert elasticnet.load(source, depth=2).taps == (1, 2)
"""


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, two trained networks and a photograph in it."""
    folder = tmp_path_factory.mktemp("declared")
    install(folder, "tenlines", TEN_LINES, DECLARED)
    done = run_code(folder, TRAIN)
    assert done.returncode == 0, done.stderr
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photos" / "photo.png")
    return folder


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command, all of whose imports but those of the package are done already."""
    return warm_python.run(
        [sys.executable, "-m", "elasticnet", *words],
        cwd=folder,
        env=environment_of(folder),
        capture_output=True,
        text=True,
    )


PROFILE = ("--repeats", "1", "--no-memory", "--device", "cpu")
COMMANDS = {
    "info": (("info", "enlarger.safetensors"), "enlarger(channels=8, num_blocks=3, scale=2)"),
    "info of sequences": (("info", "sequences.safetensors"), "sequences(layers=2, width=4)"),
    "benchmark": (
        ("benchmark", "enlarger.safetensors", "--data", "photos", "--no-cost"),
        "enlarger, BI; photos (1 image)",
    ),
    "profile": (
        ("profile", "enlarger.safetensors", "--size", "9x8", "--data", "photos", *PROFILE),
        "stored in enlarger.safetensors",
    ),
    "profile of sequences": (
        ("profile", "sequences.safetensors", *PROFILE),
        "stored in sequences.safetensors",
    ),
    "export": (("export", "enlarger.safetensors", "--format", "torch", "--depth", "2"), "depth 2"),
    "export of sequences": (("export", "sequences.safetensors", "--format", "torch"), "depth 2"),
    "upscale": (
        ("upscale", "photos/photo.png", "-o", "large.png", "--weights", "enlarger.safetensors"),
        "",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_a_network_that_a_package_declares(declared: Path, name: str) -> None:
    words, expected = COMMANDS[name]
    done = command(declared, *words)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout + done.stderr


def test_a_command_takes_a_network_whose_module_is_named(declared: Path, tmp_path: Path) -> None:
    """Nothing is installed here: the module registers by a call."""
    (tmp_path / "tenlines.py").write_text(TEN_LINES + CALLED)
    file = tmp_path / "net.safetensors"
    file.write_bytes((declared / "sequences.safetensors").read_bytes())
    words = ("export", file.name, "--format", "safetensors", "--depth", "1")
    done = command(tmp_path, *words)
    assert done.returncode == 2
    assert "architecture 'sequences' is not registered" in done.stderr
    done = command(tmp_path, "--import", "tenlines", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "net_d1.safetensors").is_file()


def test_python_takes_a_network_that_a_package_declares(declared: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    with serving() as hub:
        done = run_python(
            declared,
            *("-c", USE),
            HF_ENDPOINT=hub.url,
            HF_HOME=str(declared / "home"),
            HF_HUB_DISABLE_TELEMETRY="1",
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_package_that_pip_installs(tmp_path: Path) -> None:
    """The one line of a pyproject.toml that the guide names."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "tenlines.py").write_text(TEN_LINES)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "ten-lines"\nversion = "1.0"\n'
        "[project.entry-points.elasticnet_architectures]\n"
        'enlarger = "tenlines:ENLARGER"\nsequences = "tenlines:SEQUENCES"\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["tenlines.py"]\n'
    )
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet"]
    done = run_python(tmp_path, *pip, "--target", str(site), str(package))
    assert done.returncode == 0, done.stderr
    done = run_code(site, TRAIN)
    assert done.returncode == 0, done.stderr
    done = command(site, "info", "sequences.safetensors")
    assert "sequences(layers=2, width=4)" in done.stdout, sys.version
