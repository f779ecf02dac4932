"""The pages: every link leads somewhere, every command exists, and the README stays short."""

import re
from pathlib import Path

import pytest
from helpers import ROOT
from test_repo import commands_of, flags_known_to

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "assets").rglob("*.md")),
]
MOST_WORDS = 1800
LONGEST_SENTENCE = 30  # words
LONGEST_ROW = 120  # characters
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {"#" + heading.strip().replace(" ", "-") for heading in plain}


def without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for file, anchor in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name_of(page)}: {file}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), f"{name_of(page)}: {file}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_ours_takes_the_flags_that_a_page_gives_it(page: Path) -> None:
    if page.name == "extending.md":
        return  # its flags are added by its diffs: see test_extending
    for words in commands_of(page.read_text(encoding="utf-8")):
        known = flags_known_to(words)
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert known is None or flags <= known, f"{flags - (known or set())} in {' '.join(words)}"


def sentences_of(markdown: str) -> list[str]:
    lines = without_code(markdown).splitlines()
    prose = "\n".join(line for line in lines if not line.startswith(("|", "#", "!")))
    paragraphs = re.split(r"\n\s*\n|\n- ", prose)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.:;!?])\s+", " ".join(paragraph.split()))
    ]


def test_the_readme_is_short_and_its_sentences_are() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < MOST_WORDS
    assert not [s for s in sentences_of(text) if len(s.split()) > LONGEST_SENTENCE]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert not [row for row in rows if len(row) > LONGEST_ROW]


def test_every_test_that_a_page_names_exists() -> None:
    here = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    named = {
        (page.name, file, test)
        for page in PAGES
        for file, test in re.findall(r"(test_\w+)::(test_\w+)(?![\w.])", page.read_text())
    }
    assert len(named) > 100
    assert not {(page, test) for page, file, test in named if f"def {test}(" not in here[file]}


def test_the_index_of_documents_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not {page for page in pages if f"({page})" not in index}
