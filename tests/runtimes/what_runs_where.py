"""Tries exported files in every runtime and writes docs/guides/what_runs_where.md.

    make test-runtimes                               installs the runtimes into .runtimes/
    python tests/runtimes/what_runs_where.py         measures all; twenty minutes on one core
    python tests/runtimes/what_runs_where.py ncnn    measures this one alone
    python tests/runtimes/what_runs_where.py --page  measures none, and writes the page again

What was measured is kept in docs/results/what_runs_where.json. A runtime that is not installed
keeps its lines from there, with the version that they were measured with.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime_cases import FORMS, NETWORKS, Form
from runtime_list import ROOT, RUNTIMES, Outcome, Runtime, interpreter_of, is_right, try_file

PAGE = ROOT / "docs" / "guides" / "what_runs_where.md"
MEASURED = ROOT / "docs" / "results" / "what_runs_where.json"

INTRODUCTION = """\
# What runs where

An exported file is checked in ONNX Runtime when it is [written](export.md). Here the same files
were run in other runtimes, on a CPU, and their outputs compared with PyTorch's, borders included.
The networks: {networks}. The last two have random weights. A file of fixed size took an image of
120 × 160 pixels (`--size 120x160`); one of open size took that, one of 37 × 23 and one of 3 × 7,
which is smaller than a kernel.

Each cell is the largest difference over all networks and images, on a scale of 0..1. At most 0.001
is right in float32, and 2/255 = 0.0078 in float16. "–" was not tried. What is left in float32
is PyTorch's: at ×3, the coordinates of its own resize drift along an image.

"""
END = """
Measured with files that PyTorch 2.15 wrote. PyTorch 2.6 leaves more operators in them, which not
every runtime has.

In OpenVINO, say:

```python
import openvino
import torch

from elasticnet.export import export
from elasticnet.sr import asrn

net = asrn(scale=4, pretrained=True).eval()
export(net, "asrn_x4_d1.onnx", depth=1)

settings = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = openvino.Core().compile_model("asrn_x4_d1.onnx", "CPU", settings)
x = torch.rand(1, 3, 30, 50)
sr = torch.from_numpy(compiled(x.numpy())[0])
assert (sr - net(x, depth=1)).abs().max() < 1e-5
```

Written by `python tests/runtimes/what_runs_where.py`. `make test-runtimes` installs the runtimes,
each into an environment of its own, and tests the same.
"""


def measure(runtime: Runtime, form: Form, files: Path) -> dict[str, Any]:
    """Return what comes of all networks in a form: {network: outcome}."""
    found: dict[str, Any] = {}
    for network in NETWORKS:
        outcome = try_file(runtime, network, form, files)
        found[network.name] = outcome._asdict()
        print(f"{runtime.title}, {form.title}, {network.title}: {outcome}", flush=True)
    return found


def cell(outcomes: Mapping[str, Any] | None, form: Form) -> str:
    """Return a table's entry for one runtime and form."""
    if outcomes is None:
        return "–"
    wrong: list[str] = []
    differences: list[float] = []
    for network in NETWORKS:
        outcome = Outcome(**outcomes[network.name])
        if not is_right(outcome, form):
            wrong.append(network.title)
        elif outcome.difference is not None:
            differences.append(outcome.difference)
    if len(wrong) == len(NETWORKS):
        return "does not run"
    right = f"{max(differences):.6f}" if differences else "converts"
    if wrong:
        kinds = dict.fromkeys(title.partition(" ")[0] for title in wrong)
        return f"{right}, but not {' and '.join(kinds)}"
    return right


def version_of(of_runtime: Mapping[str, Any]) -> str:
    """Return the version that a runtime was measured with."""
    for outcomes in of_runtime.values():
        for outcome in outcomes.values():
            if outcome["version"] is not None:
                return outcome["version"]
    return "?"


def page(measured: Mapping[str, Any]) -> str:
    """Return the page's text."""
    titles = [network.title for network in NETWORKS]
    lines = [INTRODUCTION.format(networks="; ".join(titles))]
    head = ["runtime", "version", *(form.title for form in FORMS)]
    lines.append("| " + " | ".join(head) + " |\n")
    lines.append("| --- " * 2 + "| ---: " * len(FORMS) + "|\n")
    for name, runtime in RUNTIMES.items():
        if name not in measured:
            continue
        of_runtime = measured[name]
        cells = [cell(of_runtime.get(form.title), form) for form in FORMS]
        row = [runtime.title, version_of(of_runtime), *cells]
        lines.append("| " + " | ".join(row) + " |\n")
    lines.append("\n")
    for runtime in RUNTIMES.values():
        if runtime.note:
            lines.append(f"- **{runtime.title}**: {runtime.note}.\n")
    return "".join(lines) + END


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME", help=", ".join(RUNTIMES))
    parser.add_argument("--page", action="store_true", help="measure none, and write the page")
    options = parser.parse_args(arguments)
    for name in options.runtimes:
        if name not in RUNTIMES:
            parser.error(f"runtime {name!r}: expected one of {', '.join(RUNTIMES)}")
    return options


def main(options: argparse.Namespace) -> None:
    """Measure the runtimes that are named, or all that are installed, and write the page."""
    measured: dict[str, Any] = {}
    if MEASURED.exists():
        measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    names = options.runtimes or list(RUNTIMES)
    if options.page:
        names = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            runtime = RUNTIMES[name]
            if interpreter_of(runtime) is None:
                print(f"{name}: not installed")
                continue
            measured[name] = {
                form.title: measure(runtime, form, Path(folder)) for form in runtime.forms
            }
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
