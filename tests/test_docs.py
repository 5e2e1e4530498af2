"""README and docs: their snippets run, their links lead somewhere, their signatures and options are
the code's.
"""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from elasticnet import registry
from elasticnet.training.options import CUDA, flag, flat_values
from loading import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Their snippets need packages of their own: tests/frameworks runs them.
GUIDES = ROOT / "docs" / "guides"
PAGES_OF_FRAMEWORKS = (GUIDES / "in_your_trainer.md", GUIDES / "web_server.md")
MAX_NOT_RUN = 1
NOT_RUN = re.compile(r"<!-- not run: (.*) -->")
OUTPUT = "<!-- output -->"


def name_of(page: Path) -> str:
    """Return a page's path from the root, as test ids and messages show it."""
    return page.relative_to(ROOT).as_posix()


class Fence(NamedTuple):
    """A fenced block: language, content, its first line counted from 0, and the lines around it."""

    language: str
    text: str
    line: int
    before: str
    after: list[str]


def fences(text: str) -> list[Fence]:
    """Return the fenced blocks of a Markdown text, in order."""
    lines, found, start = text.splitlines(), [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        elif line.strip() == "```":
            before = lines[start - 1].strip() if start else ""
            content = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(
                Fence(lines[start][3:].strip(), content, start + 1, before, lines[number + 1 :])
            )
            start = None
    assert start is None, f"line {start}: a fence is not closed"
    return found


def printed(after: list[str]) -> str | None:
    """Return what a snippet must print: the block behind an output comment that follows it, or None
    without one.
    """
    following = [line for line in after if line.strip()]
    if not following or following[0].strip() != OUTPUT:
        return None
    block = after[after.index(following[0]) + 1 :]
    if block[0].startswith("```"):
        return "\n".join(block[1 : block.index("```")]) + "\n"
    end = block.index("") if "" in block else len(block)
    return "\n".join(block[:end]) + "\n"


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# --- snippets


@pytest.fixture
def registry_as_before() -> Iterator[None]:
    """Forget the architectures that a page registers, which other tests must not see."""
    known = set(registry.names())
    yield
    for name in set(registry.names()) - known:
        registry.unregister(name)


@pytest.fixture
def library_that_is_silent() -> Iterator[None]:
    """Take back what a recipe, run by another test, has shown of the library's messages."""
    library = logging.getLogger("elasticnet")
    handlers, level = library.handlers[:], library.level
    library.handlers[:] = []
    library.setLevel(logging.NOTSET)
    yield
    library.handlers[:] = handlers
    library.setLevel(level)


@pytest.mark.usefixtures("registry_as_before", "library_that_is_silent")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in PAGES_OF_FRAMEWORKS], ids=name_of
)
def test_snippets_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each page's Python snippets run in order in one fresh namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for fence in fences(page.read_text(encoding="utf-8")):
        if fence.language != "python" or NOT_RUN.fullmatch(fence.before):
            continue
        source = "\n" * fence.line + fence.text  # so that a traceback names the page's own line
        capsys.readouterr()
        exec(compile(source, str(page), "exec", dont_inherit=True), namespace)
        expected = printed(fence.after)
        if expected is not None:
            assert capsys.readouterr().out == expected, (
                f"{name_of(page)}, snippet at line {fence.line}"
            )


def test_few_snippets_are_not_run_and_each_says_why() -> None:
    marks = [
        line
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if "<!-- not run" in line
    ]
    used = [fence.before for page in PAGES for fence in fences(page.read_text(encoding="utf-8"))]
    assert len(marks) <= MAX_NOT_RUN
    for mark in marks:
        reason = NOT_RUN.fullmatch(mark)
        assert reason, f"{mark}: expected <!-- not run: REASON -->"
        assert len(reason[1].split()) >= 3, f"{mark}: the reason is missing or too short"
        assert mark in used, f"{mark}: it stands before no snippet"


def test_every_output_comment_follows_a_snippet() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        followed = [
            fence
            for fence in fences(text)
            if fence.language == "python" and printed(fence.after) is not None
        ]
        assert text.count(OUTPUT) == len(followed), name_of(page)


def test_the_extraction_itself() -> None:
    snippet = "a\n<!-- not run: no data here -->\n```python\nx = 1\n```\n"
    text = f"{snippet}\n{OUTPUT}\n```text\n1\n```\n```diff\n-y\n```\n"
    first, second, third = fences(text)
    assert (first.language, first.text, first.line) == ("python", "x = 1\n", 3)
    assert NOT_RUN.fullmatch(first.before)
    assert printed(first.after) == "1\n"
    assert printed(["", OUTPUT, "| a |", "| b |", "", "text"]) == "| a |\n| b |\n"
    assert (second.language, third.language) == ("text", "diff")
    assert printed(third.after) is None
    with pytest.raises(AssertionError, match="line 1: a fence is not closed"):
        fences("a\n```python\nx = 1\n")


# --- links


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[str]:
    """Yield the targets of links and images outside of fenced blocks."""
    for pattern in (r"\]\(([^)\s]+)\)", r'(?:src|href|srcset)="([^"]+)"'):
        yield from re.findall(pattern, without_fences(text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_and_images_exist(page: Path) -> None:
    missing = []
    for link in links(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.is_file() or (
            anchor and anchor not in anchors(path.read_text(encoding="utf-8"))
        ):
            missing.append(link)
    assert missing == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page.suffix == ".md" and page.is_file() and page not in reached:
            reached.add(page)
            targets = [link.partition("#")[0] for link in links(page.read_text(encoding="utf-8"))]
            waiting += [
                (page.parent / target).resolve()
                for target in targets
                if target and ":" not in target
            ]
    assert [name_of(page) for page in PAGES if page not in reached] == []


def test_drawings_are_whole_and_used() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    drawings = sorted((ROOT / "docs" / "images").glob("*.svg"))
    assert len(drawings) >= 4
    for drawing in drawings:
        root = ElementTree.parse(drawing).getroot()
        assert root.find("{http://www.w3.org/2000/svg}title") is not None, (
            f"{drawing.name} has no title"
        )
        assert f"images/{drawing.name}" in text, f"{drawing.name} is in no page"


# --- options of the recipe


@pytest.fixture
def parse_asrn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function from a command line of recipes/asrn_div2k.py to the values of its options.

    It is called in a folder without data sets.
    """
    recipe = load_recipe("asrn_div2k")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: flat_values(recipe.parse(list(arguments)))


def test_options_named_in_the_pages_exist(parse_asrn: Callable[..., dict[str, Any]]) -> None:
    # --mixed_precision is the launcher's, --quick that of gpu.sh
    of_others = {"--help", "--mixed", "--quick"}
    known = {flag(name) for name in parse_asrn()} | of_others
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    # A launcher's options are its own, as another recipe's are, and --no-x switches --x off.
    others = r"(torchrun|accelerate launch) .*?(?=recipes/)|recipes/(?!asrn_div2k)\w+\.py .*"
    text = re.sub(rf"<!--.*?-->|{others}", "", text).replace("--no-", "--")
    assert sorted(set(re.findall(r"--[a-z][a-z-]+", text)) - known) == []


def test_preset_table_holds_the_recipes_values(parse_asrn: Callable[..., dict[str, Any]]) -> None:
    """When a preset was tuned: write its new values into the table of docs/training.md."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table, _, _ = page.partition("<!-- checked: options -->\n")[2].partition("\n\n")
    head, _, *rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()
    ]
    assert head == ["option", "demo", "paper", "best"]
    presets = [parse_asrn("--preset", name) for name in head[1:]]
    shown: set[str] = set()
    for option, *values in rows:
        if option == "--precision" and CUDA:  # the page has the defaults of a CPU
            values[1] = "bfloat16"
        name = option.removeprefix("--").replace("-", "_")
        assert values == [str(preset[name]) for preset in presets], option
        shown.add(name)
    first, *others = presets
    differing = {name for name in first if any(other[name] != first[name] for other in others)}
    assert sorted(differing - shown - {"preset"}) == []
