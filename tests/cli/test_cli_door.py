"""What the command does before it computes anything: its names, its version, `--import`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import warm_python
from elasticnet import __version__, save
from elasticnet.cli import main
from elasticnet.cli.arguments import resolve_device
from elasticnet.cli.printable import printable
from elasticnet.cli.version import version_text
from elasticnet.sr import asrn

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

HEAVY_MODULES = {"torch", "numpy", "PIL", "timm", "einops", "matplotlib", "onnx", "huggingface_hub"}

# A module of somebody else: a network that doubles the sides of an image, with two depths.
OTHER_MODULE = """
from torch import nn
from elasticnet import ElasticWrapper
from elasticnet.registry import Architecture, register

def build(num_blocks=2, taps=None):
    blocks = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(num_blocks)]
    head = nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2))
    return ElasticWrapper(blocks, head, stem=nn.Conv2d(3, 4, 1), taps=taps)

register("doubler", Architecture(build=build))
"""


def python(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, with its own imports done already."""
    return warm_python.run(
        [sys.executable, "-m", "elasticnet", *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )


def install(folder: Path, name: str, version: str) -> None:
    """Write the metadata of an installed distribution."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# --- nothing heavy is imported


def modules_after(*arguments: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Run the command; return which of the heavy modules it has imported, and how it ended."""
    code = (
        "import sys\n"
        "from elasticnet.cli import main\n"
        "try:\n"
        "    status = main(sys.argv[1:])\n"
        "except SystemExit as stopped:\n"
        "    status = stopped.code or 0\n"
        "print('\\nMODULES', *(name for name in sys.modules if '.' not in name))\n"
        "sys.exit(status)\n"
    )
    done = python("-c", code, *arguments)
    *_, last_line = done.stdout.splitlines()
    return {name for name in HEAVY_MODULES if name in last_line.split()}, done


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["info", "--help"], 0),
        (["benchmark", "--help"], 0),
        (["profile", "--help"], 0),
        (["export", "--help"], 0),
        (["upscale", "--help"], 0),
        (["recipes", "--help"], 0),
        ([], 2),
        (["upscal"], 2),
        (["benchmark", "FILE"], 2),
        (["profile", "FILE", "--repeats", "0"], 2),
        (["export", "FILE", "--depth", "deep"], 2),
        (["upscale", "FILE"], 2),
    ],
)
def test_help_and_wrong_arguments_import_nothing_heavy(arguments: list[str], status: int) -> None:
    imported, done = modules_after(*arguments)
    assert done.returncode == status, done.stderr
    assert imported == set()


def test_info_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(asrn(2, num_blocks=2, channels=8), path)
    quick = ["--size=8x6", "--repeats=1", "--no-memory", "--device=cpu"]
    assert main(["profile", str(path), *quick]) == 0
    imported, done = modules_after("info", str(path))
    assert done.returncode == 0, done.stderr
    assert "|     2 |" in done.stdout
    assert "card of " in done.stdout
    assert imported == set()


# Packages that PyTorch or this library may use, and that enlarging an image does not need.
NOT_NEEDED_TO_ENLARGE = {
    "elasticnet.card.measuring": "depths are measured for --max-ms and --max-memory alone",
    "elasticnet.sr.benchmark": "nothing is scored",
    "elasticnet.training": "nothing is trained",
    "huggingface_hub": "the weights are a file",
    "matplotlib": "nothing is drawn",
    "onnx": "nothing is exported",
    "onnxruntime": "PyTorch runs the network",
    "scipy": "resizing is our own",
    "skimage": "photographs are read by Pillow",
    "timm": "the network is our own",
    "torch._dynamo": "nothing is compiled",
    "torchvision": "photographs are read by Pillow",
    "transformers": "the network is our own",
    "triton": "it compiles for graphics cards; PyTorch's counter of operations imports it",
    "tyro": "it reads the options of recipes",
}


def test_upscale_of_one_image_imports_only_what_it_needs(tmp_path: Path) -> None:
    image, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (16, 16)).save(image)
    code = (
        "import sys, torch\n"
        "of_torch = set(sys.modules)\n"  # some versions of PyTorch import more than others
        "from elasticnet.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print('MODULES', *(set(sys.modules) - of_torch))\n"
        "sys.exit(status)\n"
    )
    done = python("-c", code, "upscale", str(image), "--scale=4", "-o", str(large), "--device=cpu")
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "elasticnet.sr.models.asrn" in imported  # what the list below would look like
    not_needed = set(NOT_NEEDED_TO_ENLARGE)
    if not hasattr(TorchDispatchMode, "_should_skip_dynamo"):
        # PyTorch 2.6 imports its compiler for every such mode, as the memory of a pass is counted.
        not_needed -= {"torch._dynamo", "triton"}
    assert imported & not_needed == set()


# --- python -m elasticnet


def test_python_dash_m_is_the_command() -> None:
    done = python("-m", "elasticnet", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"elasticnet {__version__} (distribution elastic-depth)\n")
    assert python("-m", "elasticnet.cli", "--version").stdout == done.stdout


def openmp_settings(before: str = "") -> dict[str, str]:
    """Return what is set of OpenMP after the command's import, without what the caller has set."""
    code = (
        "import json, os; "
        "[os.environ.pop(name, None) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')]; "
        f"{before}import elasticnet.cli; "
        "print(json.dumps({k: v for k, v in os.environ.items() if 'OMP_WAIT' in k or 'SPIN' in k}))"
    )
    return json.loads(python("-c", code).stdout)


def test_the_command_lets_waiting_threads_sleep_after_a_short_spin() -> None:
    assert openmp_settings() == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def test_settings_of_openmp_by_the_user_are_kept() -> None:
    policy = "os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; "
    assert openmp_settings(before=policy) == {"OMP_WAIT_POLICY": "ACTIVE"}
    count = "os.environ['GOMP_SPINCOUNT'] = '7'; "
    assert openmp_settings(before=count)["GOMP_SPINCOUNT"] == "7"


# --- --version


def test_the_version_names_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "elastic-depth", __version__)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert version_text() == f"elasticnet {__version__} (distribution elastic-depth)"


def test_a_source_tree_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    _, second = version_text().splitlines()
    assert second == f"elastic-depth is not installed: this is {ROOT / 'elasticnet'}"


def test_another_distribution_with_the_same_import_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "elastic-depth", __version__)
    install(tmp_path, "elasticnet", "7.8")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    _, warning = version_text().splitlines()
    assert "elasticnet 7.8, is installed and claims the same import name" in warning
    assert "`pip uninstall elasticnet elastic-depth`, then install elastic-depth" in warning


# --- --import


def test_an_imported_module_brings_its_architectures(tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(OTHER_MODULE)
    make = "import others, elasticnet; from elasticnet.registry import build; "
    make += "elasticnet.save(build('doubler'), 'net.safetensors')"
    made = python("-c", make, folder=tmp_path)
    assert made.returncode == 0, made.stderr

    profile = ["profile", "net.safetensors", "--size=8x6", "--repeats=1", "--no-memory"]
    without = command(*profile, folder=tmp_path)
    assert without.returncode == 2
    assert "architecture 'doubler' is not registered" in without.stderr
    assert "--import MODULE" in without.stderr
    assert without.stderr.count("\n") == 1

    done = command("--import", "others", *profile, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stored in net.safetensors" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no_such_module", None, "--import no_such_module: ModuleNotFoundError: No module named"),
        ("broken_syntax", "def", "--import broken_syntax: SyntaxError: "),
        ("broken_run", "1 / 0", "--import broken_run: ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    said: str,
) -> None:
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["--import", name, "info", "never-read.safetensors"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"elasticnet: {said}")
    assert error.count("\n") == 1


# --- values


def test_the_device_auto_is_one_that_computes() -> None:
    assert resolve_device("auto") in ("cpu", "cuda")


def test_a_device_that_does_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--device gpu9: .*; --device cpu always works$"):
        resolve_device("gpu9")


def test_what_could_steer_a_terminal_is_replaced() -> None:
    assert printable("a\x1b[31m\nb\u202eé") == "a\ufffd[31m\ufffdb\ufffdé"


def test_choices_of_the_command_are_the_library_s() -> None:
    from elasticnet.cli import benchmark
    from elasticnet.sr.data.lr_folders import TRACKS
    from elasticnet.sr.degrade import KINDS, NOISES
    from elasticnet.sr.metrics import OLD_PROTOCOLS, PROTOCOLS
    from elasticnet.sr.resize import BORDERS

    assert tuple(KINDS) == benchmark.DEGRADATIONS
    assert tuple(PROTOCOLS) == benchmark.PROTOCOLS
    assert benchmark.OLD_PROTOCOLS == OLD_PROTOCOLS
    assert tuple(TRACKS) == benchmark.TRACKS
    assert tuple(BORDERS) == benchmark.BORDERS
    assert tuple(NOISES) == benchmark.NOISES
