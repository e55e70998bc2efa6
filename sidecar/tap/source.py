"""An engine's version, told by the source of what the tap wraps and of what it relies on.

A version number says little: forks, nightlies and backports carry their own. So the text of each function is hashed. What is not
known is not tapped, and the log says so: states that belong to other rows than we think would be worse than none.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

Names = Iterable[tuple[str, str]]
"""Functions and classes, by file under the package."""


def unknown_source(package: str, part: str, names: Names, known: Mapping[str, str]) -> str:
    """Why this package is not tapped; empty if its sources are ``known``: digests, and the versions that have them."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return f"{package} is not installed"
    digest = source_digest(Path(next(iter(spec.submodule_search_locations))), names)
    if digest in known:
        return ""
    versions = ", ".join(sorted(known.values()))
    return f"the source of this {package} is not one that the tap knows (part {part}, {digest}; known: {versions})"


def source_digest(package: Path, names: Names) -> str:
    """First 16 hex digits of the SHA-256 over the sources. What is missing counts as empty: another digest, never an error."""
    seen = hashlib.sha256()
    trees: dict[str, tuple[str, ast.Module]] = {}
    for file, name in names:
        if file not in trees:
            path = package / file
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            trees[file] = (text, ast.parse(text))
        seen.update(f"{file}|{name}|{_source(*trees[file], name)}\n".encode())
    return seen.hexdigest()[:16]


def _source(text: str, tree: ast.Module, name: str) -> str:
    node: ast.AST = tree
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
        if not found:
            return ""
        node = found[-1]
    return ast.get_source_segment(text, node) or ""
