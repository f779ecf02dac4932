"""What a breakage is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A breakage: its name says what is wrong with the method once `old` is `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(file: str, test_file: str, *rows: tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants of one file; a row is name, old, new and its tests, those of `test_file` by their
    names alone.
    """
    return [
        Mutant(
            name,
            file,
            old,
            new,
            tuple(t if "::" in t else f"tests/{test_file}.py::test_{t}" for t in tests.split()),
        )
        for name, old, new, tests in rows
    ]
