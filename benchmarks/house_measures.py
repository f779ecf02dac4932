"""Measures how the code reads: air, width, density, and how many settings each file reads.

    python -m benchmarks.house_measures [--revision REV] [--before REV]

Measures the working tree, or REV without checking it out. `--before` sets another revision beside
it. Nothing is run or imported: the figures come from the text and the syntax tree. They are those
of the review that asked for this rebuilding, by the same definitions, so both can be compared:

    mean line     characters of a line that is not blank
    long lines    share of the lines that are not blank with more than 100 characters
    blank lines   blank lines per 100 lines inside functions, docstrings included
    air in code   the same without docstrings, which the review did not measure
    tuples        statements like `a, b = x, y` per 1,000 lines
    packed        comprehensions and conditional expressions per 1,000 lines
    imports       import statements inside functions
    docstrings    share of the functions that have one
"""

import argparse
import ast
import io
import statistics
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("eqdiff", "toybox", "studies", "benchmarks")
LONGEST = 100  # characters of a line
SETTINGS = ("TrainConfig", "Recipe")
HOLDERS = ("config", "recipe", "settings")  # how the code names a settings object

Sources = dict[str, str]  # path from the root -> text
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measures:
    """How a set of files reads. Units are in the module's docstring."""

    files: int
    lines: int
    median_file: float
    mean_line: float
    long_lines: float
    blank_lines: float
    air_in_code: float
    tuples: float
    packed: float
    imports: int
    docstrings: float
    median_function: float


COLUMNS: dict[str, Callable[[Measures], str]] = {
    "files": lambda m: f"{m.files}",
    "lines": lambda m: f"{m.lines:,}",
    "median file": lambda m: f"{m.median_file:g}",
    "mean line": lambda m: f"{m.mean_line:.1f}",
    "long lines": lambda m: f"{100 * m.long_lines:.1f} %",
    "blank lines": lambda m: f"{m.blank_lines:.1f}",
    "air in code": lambda m: f"{m.air_in_code:.1f}",
    "tuples": lambda m: f"{m.tuples:.1f}",
    "packed": lambda m: f"{m.packed:.1f}",
    "imports": lambda m: f"{m.imports}",
    "docstrings": lambda m: f"{100 * m.docstrings:.0f} %",
    "median function": lambda m: f"{m.median_function:g}",
}


def sources_now() -> Sources:
    """The Python files of the working tree."""
    folders = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
    paths = sorted([*folders, *ROOT.glob("*.py")])
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def sources_at(revision: str) -> Sources:
    """The Python files of a git revision. Raises SystemExit if git does not know it."""
    command = ["git", "archive", "--format=tar", revision]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(
            f"error: git has no revision {revision}: {archive.stderr.decode().strip()}"
        )

    sources = {}
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        for member in tar.getmembers():
            folder, slash, _ = member.name.partition("/")
            if member.name.endswith(".py") and (not slash or folder in FOLDERS):
                sources[member.name] = tar.extractfile(member).read().decode("utf-8")
    return dict(sorted(sources.items()))


def groups_of(sources: Sources) -> dict[str, Sources]:
    """The files by wing, then all of the package, the root scripts, and the other folders."""
    groups: dict[str, Sources] = {}
    for path, text in sources.items():
        parts = path.split("/")
        wing = "/".join(parts[:2]) if parts[0] == "eqdiff" and len(parts) > 2 else None
        whole = parts[0] if len(parts) > 1 else "root scripts"
        if whole == "eqdiff":
            groups.setdefault(wing or "eqdiff, top", {})[path] = text
        groups.setdefault(f"{whole}, all" if whole == "eqdiff" else whole, {})[path] = text

    package = [name for name in sorted(groups) if name.startswith("eqdiff")]
    others = [
        name for name in ("root scripts", "toybox", "studies", "benchmarks") if name in groups
    ]
    package.remove("eqdiff, all")
    return {name: groups[name] for name in [*package, "eqdiff, all", *others]}


def measure(sources: Mapping[str, str]) -> Measures:
    """The measures of these files together."""
    trees = [ast.parse(text) for text in sources.values()]
    lines = [line for text in sources.values() for line in text.splitlines()]
    filled = [line for line in lines if line.strip()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, Function)]

    inside, code = _lines_in_functions(sources)
    packed = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)

    return Measures(
        files=len(sources),
        lines=len(lines),
        median_file=statistics.median(len(text.splitlines()) for text in sources.values()),
        mean_line=statistics.mean(map(len, filled)),
        long_lines=_share([len(line) > LONGEST for line in filled]),
        blank_lines=100 * _share([not line.strip() for line in inside]),
        air_in_code=100 * _share([not line.strip() for line in code]),
        tuples=1000 * sum(map(_is_tuple_assignment, nodes)) / len(lines),
        packed=1000 * sum(isinstance(node, packed) for node in nodes) / len(lines),
        imports=sum(len(imports_inside(tree)) for tree in trees),
        docstrings=_share([ast.get_docstring(node) is not None for node in functions]),
        median_function=statistics.median(map(length, functions)) if functions else 0,
    )


def length(function: Function) -> int:
    """Lines of a function, its decorators apart."""
    return function.end_lineno - function.lineno + 1


def imports_inside(tree: ast.AST) -> list[ast.stmt]:
    """The import statements inside functions."""
    return [
        statement
        for function in outermost(tree)
        for statement in ast.walk(function)
        if isinstance(statement, ast.Import | ast.ImportFrom)
    ]


def outermost(tree: ast.AST) -> Iterator[Function]:
    """The functions and methods that stand in no other function."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, Function):
            yield child
        else:
            yield from outermost(child)


def _lines_in_functions(sources: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """All lines inside functions, and those of them that are in no docstring of theirs."""
    inside = []
    code = []
    for text in sources.values():
        lines = text.splitlines()
        for function in outermost(ast.parse(text)):
            body = range(function.lineno - 1, function.end_lineno)
            first = function.body[0]
            described = ast.get_docstring(function) is not None
            docstring = range(first.lineno - 1, first.end_lineno) if described else range(0)

            inside += [lines[number] for number in body]
            code += [lines[number] for number in body if number not in docstring]
    return inside, code


def _is_tuple_assignment(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def settings_fields(sources: Mapping[str, str]) -> set[str]:
    """The names of all fields of SETTINGS, those that they inherit included."""
    classes: dict[str, ast.ClassDef] = {}
    for path, text in sources.items():
        if path.startswith("eqdiff/"):
            nodes = ast.walk(ast.parse(text))
            classes |= {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    names: set[str] = set()
    waiting = [name for name in SETTINGS if name in classes]
    while waiting:
        node = classes[waiting.pop()]
        fields = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
        names |= {field.id for field in fields if isinstance(field, ast.Name)}
        waiting += [base.id for base in node.bases if isinstance(base, ast.Name)]
        waiting = [name for name in waiting if name in classes]
    return names


def settings_read(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The settings that each file of eqdiff/ reads as attributes of a HOLDERS object.

    Fields of the same name in another settings class count too, such as SampleConfig's `rra`.
    """
    fields = settings_fields(sources)
    read = {}
    for path, text in sources.items():
        if path.startswith("eqdiff/"):
            attributes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)]
            names = {n.attr for n in attributes if n.attr in fields and _is_holder(n.value)}
            read |= {path: names} if names else {}
    return read


def _is_holder(node: ast.expr) -> bool:
    """Whether an expression is a settings object by its last name: config, self.config, ..."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in HOLDERS


def table(sources: Sources) -> str:
    """The measures by wing, a line each."""
    rows = [["set", *COLUMNS]]
    for name, group in groups_of(sources).items():
        measures = measure(group)
        rows.append([name, *(show(measures) for show in COLUMNS.values())])
    return aligned(rows)


def settings_table(before: Sources | None, after: Sources) -> str:
    """How many settings each file reads, most first."""
    counts = [settings_read(sources) for sources in ([before] if before else []) + [after]]
    paths = sorted({path for files in counts for path in files})
    paths.sort(key=lambda path: -max(len(files.get(path, ())) for files in counts))

    heads = ["before", "after"] if before else ["settings read"]
    rows = [["file", *heads]]
    for path in paths:
        rows.append([path, *(str(len(files[path])) if path in files else "-" for files in counts)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--revision", metavar="REV", help="measure this instead of the working tree"
    )
    parser.add_argument("--before", metavar="REV", help="set this revision beside it")
    args = parser.parse_args(argv)

    after = sources_at(args.revision) if args.revision else sources_now()
    before = sources_at(args.before) if args.before else None
    if before:
        print(f"before, {args.before}\n\n{table(before)}\n")
    print(f"{'after' if before else 'now'}, {args.revision or 'working tree'}\n\n{table(after)}\n")
    print(settings_table(before, after))


if __name__ == "__main__":
    main()
