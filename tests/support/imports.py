"""The imports that first-party source files make, found by reading them, never by running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One import of one file.

    `module` is the dotted name of the importing module and `target` what it imports: for
    `from a.b import c` it is `a.b.c`, since `c` may be a module. `at_import` is true when the
    line runs as the module is imported: outside every function and every `if TYPE_CHECKING`.
    """

    module: str
    target: str
    at_import: bool
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.module} imports {self.target}"


def is_within(name: str, package: str) -> bool:
    """Whether the dotted `name` is `package` or lies below it."""
    return name == package or name.startswith(package + ".")


def imports_below(root: Path, packages: tuple[str, ...]) -> list[Import]:
    """Every import of every Python file of `packages`, which are folders of `root`."""
    found: list[Import] = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            found.extend(_imports_of(path, root))
    return found


def _imports_of(path: Path, root: Path) -> Iterator[Import]:
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    # What one leading dot stands for: the package itself, or the one that holds the module.
    parent = list(parts[:-1])
    for node, at_import in _statements(ast.parse(path.read_text("utf-8")), at_import=True):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = parent[: len(parent) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{prefix}.{alias.name}" for alias in node.names]
        for target in targets:
            yield Import(module, target, at_import, path, node.lineno)


def _statements(
    node: ast.AST, at_import: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, at_import=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), at_import=False)
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), at_import)
        else:
            yield from _statements(child, at_import)
