"""Exported files in the runtimes that people have, against PyTorch: `make test-runtimes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_cases import MAX_DIFFERENCE, NETWORKS, Form, Network
from runtime_list import RUNTIMES, interpreter_of, is_right, try_file

pytest.importorskip("onnxscript")

# What does not run, and why; the page says it, too. It is tried all the same, to see when it runs.
KNOWN = {("opencv4", "open"): "OpenCV 4 refuses the Concat of a block of open size"}


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name, runtime in RUNTIMES.items() for form in runtime.forms],
    ids=lambda value: value if isinstance(value, str) else f"{value.size}-{value.dtype}",
)
def test_a_runtime_computes_what_pytorch_does(
    request: pytest.FixtureRequest, name: str, form: Form, network: Network, files: Path
) -> None:
    runtime = RUNTIMES[name]
    if interpreter_of(runtime) is None:
        pytest.skip(f"{name} is not installed: make test-runtimes installs it into .runtimes/")
    if (name, form.size) in KNOWN and network.name.startswith("asrn"):
        request.applymarker(pytest.mark.xfail(reason=KNOWN[name, form.size], strict=True))
    outcome = try_file(runtime, network, form, files)
    assert is_right(outcome, form), (outcome, MAX_DIFFERENCE[form.dtype])
