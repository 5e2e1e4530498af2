"""Ctrl-C while a program imports torch: one line and the status that shells know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = (
    "asrn_div2k",
    "cnn_digits",
    "elastic_gpt",
    "elastic_timm",
    "head_to_head",
    "sr_retrofit",
    "vit_digits",
)


def run_with_module(
    folder: Path, module: str, content: str, *command: str
) -> subprocess.CompletedProcess[str]:
    """Run a program for which a module of this content takes the place of the real one."""
    (folder / f"{module}.py").write_text(content)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_ctrl_c_during_a_recipe_s_imports_is_one_line(tmp_path: Path, recipe: str) -> None:
    path = ROOT / "recipes" / f"{recipe}.py"
    done = run_with_module(tmp_path, "torch", "raise KeyboardInterrupt", str(path))
    assert done.stderr == "interrupted\n"
    assert done.returncode == 130


@pytest.mark.parametrize("module", ["torch", "tqdm"])
def test_ctrl_c_during_the_command_s_imports_is_one_line(tmp_path: Path, module: str) -> None:
    command = ("-m", "elasticnet", "benchmark", "--data", ".")
    done = run_with_module(tmp_path, module, "raise KeyboardInterrupt", *command)
    assert done.stderr == "elasticnet: interrupted\n"
    assert done.returncode == 130


def test_the_garbage_collector_rests_only_while_torch_is_imported(tmp_path: Path) -> None:
    content = "import gc; print('while', gc.isenabled())"
    program = (
        "import gc; from elasticnet.before_torch import import_torch; import_torch(); "
        "print('after', gc.isenabled(), gc.get_freeze_count() > 0)"
    )
    done = run_with_module(tmp_path, "torch", content, "-c", program)
    assert done.stdout == "while False\nafter True True\n"


def test_the_garbage_collector_is_on_again_after_an_import_that_failed(tmp_path: Path) -> None:
    program = (
        "import gc; from elasticnet.before_torch import import_torch\n"
        "try: import_torch()\n"
        "except OSError: print('after', gc.isenabled())"
    )
    done = run_with_module(tmp_path, "torch", "raise OSError", "-c", program)
    assert done.stdout == "after True\n"


def test_a_collector_that_a_program_has_switched_off_stays_off(tmp_path: Path) -> None:
    program = (
        "import gc; gc.disable(); from elasticnet.before_torch import import_torch\n"
        "import_torch()\n"
        "print('after', gc.isenabled(), gc.get_freeze_count())"
    )
    done = run_with_module(tmp_path, "torch", "", "-c", program)
    assert done.stdout == "after False 0\n"


def test_debug_shows_where_ctrl_c_came(tmp_path: Path) -> None:
    command = ("-m", "elasticnet", "--debug", "benchmark", "--data", ".")
    done = run_with_module(tmp_path, "torch", "raise KeyboardInterrupt", *command)
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    path = ROOT / "recipes" / "asrn_div2k.py"
    done = run_with_module(tmp_path, "torch", "raise OSError('broken')", str(path))
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("OSError: broken\n")
    assert done.returncode == 1
