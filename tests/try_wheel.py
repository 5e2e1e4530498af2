"""Install the wheel into an empty environment and run the README's first snippet with it.

    python tests/try_wheel.py dist

`make dist` calls it. It needs the package index, for what the wheel depends on, and some minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(folder: Path) -> None:
    """Try the one wheel in `folder`; a command that fails ends it with its output."""
    (wheel,) = folder.resolve().glob("*.whl")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippet is not None, "the README has no snippet"
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(temporary, "environment")
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        constraints = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "--quiet", "-c", str(constraints), str(wheel))
        # from another folder, so that the source tree beside this file is not what is imported
        work = Path(temporary, "work")
        work.mkdir()
        run(python, "-c", snippet[1], folder=work)
        run(python, "-m", "elasticnet", "--version", folder=work)
        run(python, "-m", "elasticnet", "recipes", folder=work)
    print(f"{wheel.name}: installed into an empty environment, and the README's snippet runs")


def run(*command: str | Path, folder: Path | None = None) -> None:
    """Run a command and show what it prints."""
    subprocess.run([str(word) for word in command], cwd=folder, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
