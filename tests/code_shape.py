"""How the code reads, counted: branches and lines of a function, and what its docstring lists.

    python tests/code_shape.py                       everything in elasticnet/ and recipes/
    python tests/code_shape.py elasticnet/taps.py    these files alone

Every line that it prints is a place to write out. tests/test_frame.py holds the count at none.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_BRANCHES = 11
MAX_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """One place that is too dense or not described."""

    path: str
    line: int
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}: {self.problem}"


def findings(source: str, path: str, *, docstrings: bool = True) -> list[Finding]:
    """Return every finding in one file.

    Args:
        source: The file's text.
        path: What the findings call it.
        docstrings: Whether public names need complete docstrings, as in the library.
    """
    tree = ast.parse(source)
    code_lines = _code_lines(source)
    found: list[Finding] = []
    for function, name in _functions(tree):
        branches = count_branches(function)
        if branches > MAX_BRANCHES:
            found.append(Finding(path, function.lineno, name, f"{branches} branches"))
        lines = count_lines(function, code_lines)
        if lines > MAX_LINES:
            found.append(Finding(path, function.lineno, name, f"{lines} lines of code"))
    if docstrings:
        found += _undocumented(tree, path)
    return found


def count_branches(function: Function) -> int:
    """Return how often a function's own code branches; functions inside it count for themselves.

    An `if`, an `elif`, a loop, an `except`, a `case`, a conditional expression, and each further
    operand of `and` and `or` count one, and so does each condition of a comprehension.
    """
    branches = 0
    for node in _own_nodes(function):
        match node:
            case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
                branches += 1
            case ast.ExceptHandler() | ast.match_case():
                branches += 1
            case ast.BoolOp():
                branches += len(node.values) - 1
            case ast.comprehension():
                branches += len(node.ifs)
    return branches


def count_lines(function: Function, code_lines: set[int]) -> int:
    """Return a function's lines of code: no docstrings, comments, blank lines or signature."""
    first_statement = function.body[0].lineno
    last = function.end_lineno or first_statement
    return len([line for line in range(first_statement, last + 1) if line in code_lines])


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of the functions and classes inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def _functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """Yield every function of a module, nested ones too, with its dotted name."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[Function, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, prefix + child.name
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            else:
                yield from visit(child, prefix)

    yield from visit(tree, "")


def _code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no comments, no docstrings."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in skipped:
            begins_statement = begins_statement or token.type == tokenize.NEWLINE
            continue
        is_docstring = begins_statement and token.type == tokenize.STRING
        begins_statement = False
        if not is_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


# --- docstrings


def _undocumented(tree: ast.Module, path: str) -> list[Finding]:
    """Return what the docstrings of a module's public names lack."""
    found: list[Finding] = []
    if not ast.get_docstring(tree):
        found.append(Finding(path, 1, "module", "no docstring"))
    for node, name in _public(tree):
        found += [Finding(path, node.lineno, name, problem) for problem in _lacks(node)]
    return found


def _public(tree: ast.Module) -> Iterator[tuple[Function | ast.ClassDef, str]]:
    """Yield public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            yield node, node.name
        if isinstance(node, ast.ClassDef):
            yield from _public_methods(node)


def _public_methods(owner: ast.ClassDef) -> Iterator[tuple[Function, str]]:
    for method in owner.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not method.name.startswith("_"):
            yield method, f"{owner.name}.{method.name}"


def _lacks(node: Function | ast.ClassDef) -> list[str]:
    if not isinstance(node, ast.ClassDef) and _decorated(node, "overload", "override"):
        return []  # the function that they stand for has the docstring
    text = ast.get_docstring(node)
    if text is None:
        return ["no docstring"]
    if isinstance(node, ast.ClassDef):
        return _class_lacks(node, text)
    problems = _arguments_lacking(node, text)
    says = re.search(r"^(Returns|Yields):$|^(Return|Yield)s? ", text, re.MULTILINE)
    is_property = _decorated(node, "property", "cached_property")
    if _returns_a_value(node) and not says and not is_property:
        problems.append("the docstring does not say what it returns (Returns: or Yields:)")
    return problems + _raises_lacking(node, text)


def _class_lacks(node: ast.ClassDef, text: str) -> list[str]:
    """The arguments of a class's constructor are listed in the class's docstring."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return _arguments_lacking(method, text) + _raises_lacking(method, text)
    fields = [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]
    public = [name for name in fields if not name.startswith("_")]
    # a field may also have a docstring of its own, the string behind it
    described = _followed_by_string(node)
    missing = [name for name in public if name not in described and not _lists(text, name)]
    return [f"the docstring lists no {name} under Attributes:" for name in missing]


def _followed_by_string(node: ast.ClassDef) -> set[str]:
    described: set[str] = set()
    for before, after in zip(node.body, node.body[1:], strict=False):
        if not isinstance(before, ast.AnnAssign) or not isinstance(before.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            described.add(before.target.id)
    return described


def _arguments_lacking(function: Function, text: str) -> list[str]:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    if names and names[0] in ("self", "cls"):
        names = names[1:]
    missing = [name for name in names if not name.startswith("_") and not _lists(text, name)]
    return [f"the docstring lists no {name} under Args:" for name in missing]


def _lists(text: str, name: str) -> bool:
    """Whether a section of the docstring has an entry for this name."""
    return bool(re.search(rf"^ +`?{re.escape(name)}`?( \([^)]*\))?:", text, re.MULTILINE))


def _raises_lacking(function: Function, text: str) -> list[str]:
    """Exceptions that the function itself raises; those of what it calls may be listed, too."""
    raised: set[str] = set()
    for node in _own_nodes(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call | ast.Name):
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(called).rpartition(".")[2]
            if name[:1].isupper():
                raised.add(name)
    missing = sorted(name for name in raised if not _lists(text, name))
    return [f"the docstring lists no {name} under Raises:" for name in missing]


def _returns_a_value(function: Function) -> bool:
    if function.returns is None:
        return False
    return ast.unparse(function.returns) not in ("None", "NoReturn", "Never")


def _decorated(function: Function, *names: str) -> bool:
    decorators = [ast.unparse(each).rpartition(".")[2] for each in function.decorator_list]
    return any(each in names for each in decorators)


def main(arguments: list[str]) -> int:
    """Print the findings in the files that are named, or in all; 1 where there are some."""
    root = Path(__file__).parent.parent
    paths = [Path(each) for each in arguments]
    paths = paths or [*(root / "elasticnet").rglob("*.py"), *(root / "recipes").glob("*.py")]
    found: list[Finding] = []
    for path in sorted(paths):
        library = "recipes" not in path.parts and "tests" not in path.parts
        found += findings(path.read_text(encoding="utf-8"), str(path), docstrings=library)
    for each in found:
        print(each)
    print(f"{len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
