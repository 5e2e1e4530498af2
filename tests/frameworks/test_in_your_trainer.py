"""The page "in your trainer": every snippet runs, with the real packages.

A section's snippets run in order, behind those of the section "The plain loop", in one fresh
namespace. A snippet that begins with the comment `# NAME.py` is a script: it is written to a file
behind the plain loop's snippets, and the command that follows it on the page runs it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from test_docs import fences, printed

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "guides" / "in_your_trainer.md"
FIRST = "The plain loop"
HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
NEEDS = re.compile(r"<!-- needs: (.+) -->")
SCRIPT = re.compile(r"# (\w+\.py)\n")
TORCHRUN = "$ torchrun "


class Section(NamedTuple):
    """One section of the page.

    Attributes:
        needs: The packages that its snippets import.
        text: Its Markdown.
    """

    needs: list[str]
    text: str


def sections() -> dict[str, Section]:
    """Return the page's sections that hold snippets, by their headings."""
    _, *parts = HEADING.split(PAGE.read_text(encoding="utf-8"))
    found: dict[str, Section] = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        needs = NEEDS.search(text)
        if "```python" in text:
            found[heading] = Section(needs=needs[1].split() if needs else [], text=text)
    return found


SECTIONS = sections()


def plain_loop() -> str:
    """Return the source of the first section."""
    snippets = [each.text for each in fences(SECTIONS[FIRST].text) if each.language == "python"]
    return "\n".join(snippets)


def torchrun(arguments: str) -> None:
    """Run a script on the CPU by torchrun, whose arguments the page shows."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:  # gloo would otherwise look up this machine's name
        environment["GLOO_SOCKET_IFNAME"] = loopback[0]
    command = [sys.executable, "-m", "torch.distributed.run", *arguments.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_plain_loop_runs() -> None:
    exec(compile(plain_loop(), str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("heading", [heading for heading in SECTIONS if heading != FIRST])
def test_the_snippets_of_a_section_run(
    heading: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = SECTIONS[heading]
    for package in section.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if heading == "FSDP2" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        pytest.skip("torch 2.6 has no FSDP2 on the CPU")

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(plain_loop(), str(PAGE), "exec", dont_inherit=True), namespace)
    num_scripts = 0
    for fence in fences(section.text):
        script = SCRIPT.match(fence.text)
        if fence.language == "console":
            assert fence.text.startswith(TORCHRUN)
            torchrun(fence.text.removeprefix(TORCHRUN))
            num_scripts -= 1
        elif script is not None:
            Path(script[1]).write_text(plain_loop() + fence.text, encoding="utf-8")
            num_scripts += 1
        elif fence.language == "python":
            capsys.readouterr()
            exec(compile(fence.text, str(PAGE), "exec", dont_inherit=True), namespace)
            expected = printed(fence.after)
            assert expected is None or capsys.readouterr().out == expected
    assert num_scripts == 0, "a script has no command that runs it"
