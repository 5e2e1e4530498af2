"""The runtimes that exported files are tried in: where each is installed, and how it is run.

    python tests/runtimes/runtime_list.py install     every runtime into .runtimes/, as `make` does
    python tests/runtimes/runtime_list.py install ncnn

Several of them cannot live in one environment, so each has its own, from the extra of its name in
pyproject.toml and without elasticnet. A program of that environment (`engines/`) runs the files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

from runtime_cases import (
    FORMS,
    MAX_DIFFERENCE,
    Form,
    Network,
    expected_of,
    file_of,
    image_of,
    sizes_of,
)

ROOT = Path(__file__).parents[2]
ENGINES = Path(__file__).parent / "engines"
ENVIRONMENTS = ROOT / ".runtimes"
MAX_SECONDS = 600  # of one file in one runtime
MAX_REASON = 160  # characters
SAME_ENVIRONMENT = ""  # the runtime is part of the environment of the tests
NODE_PACKAGE = "onnxruntime-web"
# asks for PyTorch, 3 GB, which its converter does without
WITHOUT_DEPENDENCIES = ("pnnx",)

LITERT_NEEDS = (
    "ai-edge-litert<2.4,>=2.3",
    "ai-edge-quantizer==0.10.*",
    "fire",
    "flatbuffers",
    "immutabledict",
    "jax",
    "jaxlib",
    "jaxtyping",
    "kagglehub",
    "litert-converter==0.5.*",
    "ml_dtypes",
    "multipledispatch",
    "opt_einsum",
    "scipy",
    "tabulate",
    "torchao",
    "wadler_lindig",
)


class Runtime(NamedTuple):
    """A program that runs exported files, or converts them.

    Attributes:
        title: On the page.
        environment: The folder of its environment in .runtimes/.
        extra: Of pyproject.toml, which names its packages; "" where `packages` do.
        engine: The script in engines/.
        suffix: Of the files that it takes.
        forms: What it is tried with; others it does not have, see `note`.
        packages: What is installed where there is no extra.
        borrows_torch: Whether PyTorch and what else is missing come from the environment of the
            tests: a .pt2 file is read by the PyTorch that wrote it and by newer ones alone, and
            PyTorch has 3 GB. The packages are then installed without what they ask for.
        further: What it needs beside them, if it borrows PyTorch.
        note: What a reader should know.
        converts: Whether files are converted and not run.
    """

    title: str
    environment: str
    extra: str
    engine: str
    suffix: str = ".onnx"
    forms: Sequence[Form] = FORMS
    packages: Sequence[str] = ()
    borrows_torch: bool = False
    further: Sequence[str] = ()
    note: str = ""
    converts: bool = False


RUNTIMES = {
    "onnxruntime": Runtime(
        title="ONNX Runtime",
        environment=SAME_ENVIRONMENT,
        extra="export",
        engine="onnxruntime_engine.py",
    ),
    "onnxruntime-web": Runtime(
        title="ONNX Runtime Web, in Node.js",
        environment="onnxruntime-web",
        extra="",
        packages=[NODE_PACKAGE],
        engine="onnxruntime_web.mjs",
        note="WebAssembly, as in a browser",
    ),
    "openvino": Runtime(
        title="OpenVINO",
        environment="openvino",
        extra="openvino",
        engine="openvino_engine.py",
        note="with `INFERENCE_PRECISION_HINT` f32; without it, some processors compute in bfloat16",
    ),
    "opencv5": Runtime(
        title="OpenCV 5, dnn",
        environment="opencv5",
        extra="opencv",
        engine="opencv_engine.py",
    ),
    "opencv4": Runtime(
        title="OpenCV 4, dnn",
        environment="opencv4",
        extra="",
        packages=["opencv-python-headless>=4.14,<5"],  # not an extra, beside that of version 5
        engine="opencv_engine.py",
        note="its importer refuses the Concat of ASRN's blocks where sizes are open: "
        "export with `--size`",
    ),
    "ncnn": Runtime(
        title="ncnn, by pnnx",
        environment="ncnn",
        extra="ncnn",
        engine="ncnn_engine.py",
        note="float16: `pnnx FILE fp16=1` of the float32 file, pnnx's own default; "
        "float32: `fp16=0`; open sizes: `inputshape=` and `inputshape2=`",
    ),
    "coreml": Runtime(
        title="Core ML, by coremltools",
        environment="coreml",
        extra="coreml",
        engine="coreml_engine.py",
        suffix=".pt2",
        forms=[form for form in FORMS if form.size == "fixed"],
        converts=True,
        borrows_torch=True,
        further=["attrs", "cattrs", "packaging", "protobuf", "pyaml", "pyyaml", "tqdm"],
        note="from the `.pt2` file; converted only, since Core ML predicts on macOS alone",
    ),
    "litert": Runtime(
        title="LiteRT (TFLite), by litert-torch",
        environment="litert",
        extra="litert",
        engine="litert_engine.py",
        suffix=".pt2",
        forms=[form for form in FORMS if form == Form("fixed", "float32")],
        borrows_torch=True,
        further=LITERT_NEEDS,
        note="from the `.pt2` file, with a newer PyTorch than its package asks for (below 2.15)",
    ),
}


class Outcome(NamedTuple):
    """What came of one file in one runtime.

    Attributes:
        version: Of the runtime; None where it did not get that far.
        difference: The largest difference from PyTorch; None where nothing was compared.
        reason: Why nothing was, in one line; None where something was.
    """

    version: str | None
    difference: float | None
    reason: str | None


# --- running


def interpreter_of(runtime: Runtime) -> Path | None:
    """Return the program that runs a runtime's engine; None where it is not installed."""
    if runtime.environment == SAME_ENVIRONMENT:
        return Path(sys.executable)
    folder = ENVIRONMENTS / runtime.environment
    if runtime.engine.endswith(".mjs"):
        node = shutil.which("node")
        installed = (folder / "node_modules" / NODE_PACKAGE).exists()
        return Path(node) if node is not None and installed else None
    python = folder / "bin" / "python"
    return python if (folder / "installed").exists() else None


def try_file(runtime: Runtime, network: Network, form: Form, files: Path) -> Outcome:
    """Run a network's file in a runtime and compare it with PyTorch.

    Args:
        runtime: It is installed.
        network: What is exported.
        form: How.
        files: A folder of exported files, which are used again.
    """
    model = file_of(network, form, runtime.suffix, files)
    if runtime.environment == "ncnn":
        file_of(network, Form(form.size, "float32"), runtime.suffix, files)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, size in enumerate(sizes_of(form)):
            np.save(folder / f"input_{index}.npy", image_of(size).numpy())
        done = _run_engine(runtime, model, folder)
        if done.returncode != 0:
            return Outcome(version=None, difference=None, reason=_reason(done.stderr))
        version = done.stdout.strip().splitlines()[-1].removeprefix("version: ")
        if runtime.converts:
            return Outcome(version=version, difference=None, reason="converted")
        differences = [
            np.abs(np.load(folder / f"output_{index}.npy") - expected).max()
            for index, expected in enumerate(expected_of(network, form))
        ]
        return Outcome(version=version, difference=float(np.max(differences)), reason=None)


def is_right(outcome: Outcome, form: Form) -> bool:
    """Return whether a difference is within what the form allows."""
    if outcome.difference is None:
        return outcome.reason == "converted"
    return outcome.difference <= MAX_DIFFERENCE[form.dtype]


def _run_engine(runtime: Runtime, model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an engine in a process of its own, since engines' threads disturb each other."""
    interpreter = interpreter_of(runtime)
    assert interpreter is not None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    environment["ORT_WEB"] = str(ENVIRONMENTS / runtime.environment / "node_modules" / NODE_PACKAGE)
    command = [interpreter, ENGINES / runtime.engine, model.resolve(), folder]
    return subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
    )


def _reason(stderr: str) -> str:
    """The line of an engine's errors that says what is wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    with_error = [line for line in lines if "rror" in line]
    last = (with_error or lines or ["it said nothing"])[-1]
    return last if len(last) <= MAX_REASON else last[:MAX_REASON] + " ..."


# --- installing


def install(name: str) -> None:
    """Make the environment of a runtime, if it is not there.

    Args:
        name: A key of `RUNTIMES`.
    """
    runtime = RUNTIMES[name]
    if interpreter_of(runtime) is not None:
        return
    folder = ENVIRONMENTS / runtime.environment
    if runtime.engine.endswith(".mjs"):
        _install_node_packages(runtime.packages, folder)
    else:
        _install_packages(runtime, folder)


def _install_node_packages(packages: Sequence[str], folder: Path) -> None:
    """Install packages of Node.js, where there is Node.js."""
    if shutil.which("npm") is None:
        print("Node.js is not installed, so it is left out")
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([*command, "--prefix", str(folder), *packages], check=True)


def _install_packages(runtime: Runtime, folder: Path) -> None:
    """Install a runtime's packages of Python into a new environment."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pip.append("--disable-pip-version-check")
    packages = requirements_of(runtime.extra) if runtime.extra else runtime.packages
    alone: list[str] = list(runtime.further)
    whole: list[str] = []
    for requirement in packages:
        name = re.split(r"[<>=]", requirement)[0]
        if runtime.borrows_torch and name == "torch":
            continue
        if runtime.borrows_torch or name in WITHOUT_DEPENDENCIES:
            alone.append(requirement)
        else:
            whole.append(requirement)
    if not runtime.borrows_torch:
        subprocess.run([*pip, "numpy", *whole], check=True)
    if alone:
        subprocess.run([*pip, "--no-deps", *alone], check=True)
    if runtime.borrows_torch:
        _borrow_packages(folder)
    (folder / "installed").touch()


def _borrow_packages(folder: Path) -> None:
    """Let an environment find what it does not have in the one that runs this."""
    (site_packages,) = folder.glob("lib/python*/site-packages")
    borrowed = sysconfig.get_path("purelib")
    (site_packages / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")


def requirements_of(extra: str) -> list[str]:
    """Return what an extra of pyproject.toml asks for.

    Args:
        extra: Its name.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["optional-dependencies"][extra]


def main(arguments: Sequence[str]) -> None:
    """Install the runtimes that the command line names, or all of them."""
    if not arguments or arguments[0] != "install":
        raise SystemExit(__doc__)
    for name in arguments[1:] or RUNTIMES:
        print(f"{name}: installing", flush=True)
        try:
            install(name)
        except subprocess.CalledProcessError as error:
            print(f"{name}: not installed: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
