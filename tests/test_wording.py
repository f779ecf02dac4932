"""What strangers wrote cannot command a terminal, turn a line around, or add to a card."""

import dataclasses
import html
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, concept_of, tiny_objective

from eqdiff.concept.card import write_card
from eqdiff.errors import UserError
from eqdiff.wording import clean, say, start_logging

# a newcomer adds a row: what a stranger writes, and what is shown of it
TEXTS = {
    "clear the screen": ("a\x1b[2Jb", "a?[2Jb"),
    "a C1 command": ("a\x9b2Jb", "a?2Jb"),
    "bell and backspace": ("a\x07\x08b", "a??b"),
    "two lines": ("a\nerror: b", "a error: b"),
    "a line separator": ("a\u2028b", "a b"),
    "right to left override": ("mug\u202egnp.exe", "mug?gnp.exe"),
    "an isolate": ("a\u2066b\u2069", "a?b?"),
    "a mark of direction": ("a\u200fb", "a?b"),
    "invisible": ("a\u200bb\ufeff", "a?b?"),
    "half a character": ("a\udc80b", "a?b"),
    "letters of any script": ("Über \u05d0\u05d1 猫", "Über \u05d0\u05d1 猫"),
    "joined emoji": ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_errors_warnings_and_prints_show_strangers_text_without_its_commands(
    kind: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, shown = TEXTS[kind]
    assert str(UserError(f"{text}: bad")) == f"{shown}: bad"

    say(text)
    assert capsys.readouterr().out == f"{shown}\n"

    monkeypatch.setattr(logging.root, "handlers", [])
    start_logging()
    logging.getLogger("eqdiff.some").warning("%s: odd", text)
    assert capsys.readouterr().err == f"WARNING: {shown}: odd\n"


def test_every_script_warns_through_the_cleaning_formatter() -> None:
    files = [*ROOT.glob("*.py"), *(ROOT / "eqdiff").rglob("*.py")]
    own = [path for path in files if "basicConfig" in path.read_text(encoding="utf-8")]
    assert [path.name for path in own] == ["wording.py"]


def test_html_is_shown_and_not_read() -> None:
    text = "<script>\x1b & 'x' \"y\""
    assert html.unescape(clean(text, "html")) == "<script>? & 'x' \"y\""
    assert not set("<>'\"") & set(clean(text, "html"))


@pytest.fixture(scope="module")
def concept(tiny_base: Path, tiny_subject: Path) -> Any:
    return concept_of(*tiny_objective(tiny_base, tiny_subject))


# a newcomer adds a row: what a stranger's concept calls itself
MARKUP = [
    "<script>alert(1)</script>",
    "a\n---\nlicense: mit\n---",
    "a\n# Heading",
    "[cat](http://evil.example)",
    "![cat](http://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "a | b | c",
    "`code`",
    "<!-- a -->",
    "&lt;b&gt;",
    "**bold**",
    "~~gone~~",
    'x"); import os; os.system("id',
    "$(id)",
]


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("field", ["class_word", "base_name", "rra_layers", "base_fingerprint"])
def test_a_strangers_concept_adds_no_markup_to_the_card(
    concept: Any, tmp_path: Path, field: str, text: str
) -> None:
    changes: dict[str, Any] = {field: text}
    if field in ("class_word", "rra_layers"):
        value = (text,) if field == "rra_layers" else text
        changes = {"settings": {**concept.settings, field: value}}
    (tmp_path / "plain").mkdir()
    write_card(tmp_path / "plain", concept)
    write_card(tmp_path, dataclasses.replace(concept, **changes))

    plain = (tmp_path / "plain" / "README.md").read_text().splitlines()
    card = (tmp_path / "README.md").read_text().splitlines()
    assert len(card) == len(plain)  # nothing gets a line of its own
    added = [new for new, old in zip(card, plain, strict=True) if new != old]
    assert added

    for line, old in zip(card, plain, strict=True):
        for mark in ("<", "[", "`", "*", "|", "#", "!", "~", "://", "www."):
            assert _unescaped(line, mark) == _unescaped(old, mark), (mark, line)


def _unescaped(line: str, mark: str) -> int:
    """How often the mark stands in the line as markup; within `code` nothing but "`" does."""
    if mark != "`":
        line = re.sub("`[^`]*`", "", line)
    return line.replace("\\\\", "").count(mark) - line.count(f"\\{mark}")


def test_a_strangers_report_adds_no_markup_and_a_broken_one_nothing(
    concept: Any, tmp_path: Path
) -> None:
    report = tmp_path / "metrics.json"
    figure = '{"mean": 0.5, "n": 3}'
    report.write_text(f'{{"clip_model": "<b>", "dino_model": "d", "overall": {{"a|b": {figure}}}}}')
    write_card(tmp_path, concept, metrics=report)
    card = (tmp_path / "README.md").read_text()
    assert "\\<b\\>" in card
    assert "| a\\|b | 0.5000 | 3 |" in card

    for broken in ("[]", '{"overall": 3}', '{"overall": {"a": {"mean": "x"}}}', '{"overall": {}}'):
        report.write_text(broken)
        assert write_card(tmp_path, concept, metrics=report)


def test_a_strangers_file_name_is_no_command_in_the_card(concept: Any, tmp_path: Path) -> None:
    from eqdiff.concept.file import save_concept

    save_concept(concept, tmp_path / 'a$(id)"`b.safetensors')
    write_card(tmp_path, concept)
    card = (tmp_path / "README.md").read_text()
    assert "a?(id)??b.safetensors" in card
