"""A mark of the code that makes a cell, so that figures of other code are known as such."""

import ast
import hashlib
from functools import cache
from pathlib import Path

from studies.scripts import ROOT

# what a concept, its pictures and their measures depend on, and what of it they do not
FOLDERS = ("eqdiff", "toybox")
BESIDE = ("eqdiff/gallery", "eqdiff/process")
FILES = tuple(f"studies/reproduce/{name}.py" for name in ("cell", "facts", "measures"))


@cache
def code_mark(root: Path = ROOT, files: tuple[str, ...] = FILES) -> str:
    """A digest of the code, without its comments and docstrings: 12 hexadecimal digits.

    files: of the study, beside the folders that every study depends on.
    """
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    paths = [path for path in paths if not path.relative_to(root).as_posix().startswith(BESIDE)]
    digest = hashlib.sha256()
    for path in [*paths, *(root / name for name in files)]:
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(_bare(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def _bare(text: str) -> str:
    """A file's syntax tree without docstrings, as text."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_string(part)]
    return ast.dump(tree)


def _is_string(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
