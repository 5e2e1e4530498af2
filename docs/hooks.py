"""What the site takes from outside docs/: the README, the changelog, the licence and the recipes.

Links are written for the page that hosts the project, where README.md lies above docs/. Here each
is turned into one that works in the site; a link to a file that the site does not have is left
alone, and the strict build then fails.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# a file of the project, and its page in the site
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "CITATION.cff": "citation.md",
}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/, and rewrite the links of all pages.

    Args:
        files: Those that MkDocs found in docs/.
        config: The site's configuration.
    """
    root = Path(config.config_file_path).parent
    pages = dict(PAGES)
    for recipe in sorted((root / "recipes").glob("*.py")):
        pages[f"recipes/{recipe.name}"] = f"recipes/{recipe.stem}.md"
    for source, page in pages.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_as_page(text, source, pages)))
    for file in list(files):
        if file.src_uri.endswith(".md") and file.abs_src_path is not None:
            text = Path(file.abs_src_path).read_text(encoding="utf-8")
            source = posixpath.join("docs", file.src_uri)
            content = _with_links(text, source, pages)
            files.remove(file)
            files.append(File.generated(config, file.src_uri, content=content))
    return files


def _as_page(text: str, source: str, pages: dict[str, str]) -> str:
    """Return a file's text as Markdown."""
    if source.endswith(".py"):
        return f"# {source}\n\n```python\n{text}```\n"
    if source in ("LICENSE", "CITATION.cff"):
        return f"# {source}\n\n```text\n{text}```\n"
    return _with_links(text, source, pages)


def _with_links(text: str, source: str, pages: dict[str, str]) -> str:
    """Return Markdown whose relative links lead to the site's pages.

    `source` is the file's path from the project's root.
    """
    own_page = pages.get(source, source.removeprefix("docs/"))

    def rewritten(match: re.Match[str]) -> str:
        target, anchor = match[2], match[3] or ""
        if ":" in target:
            return match[0]
        from_root = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page = pages.get(from_root, from_root.removeprefix("docs/"))
        relative = posixpath.relpath(page, posixpath.dirname(own_page) or ".")
        return f"{match[1]}{relative}{anchor})"

    return LINK.sub(rewritten, text)
