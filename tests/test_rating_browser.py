"""The rating sheet opened from disk in a real browser: pairs are answered, kept and downloaded."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from browsing import NARROW, WIDE, Watched
from test_rating import PROMPTS, plan, sheet_in, store  # noqa: F401

from studies.reproduce import rating
from studies.reproduce.plan import Plan
from studies.reproduce.store import Store

pytestmark = pytest.mark.slow
RATER = 'Ann "the eye", 1'


@pytest.fixture
def sheet(plan: Plan, store: Store) -> Path:  # noqa: F811
    """A sheet of three pairs."""
    return rating.write_sheet(plan, store, "table1", 3, 0)[0]


def answer(page: Any, row: int, word: str) -> None:
    page.locator("#questions p").nth(row).get_by_role("button", name=word).click()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_answers_are_kept_over_a_reload_and_downloaded_as_the_reader_wants_them(
    browser: Any, sheet: Path, size: tuple[int, int], tmp_path: Path
) -> None:
    watched = Watched(browser, size, accept_downloads=True)
    page = watched.page
    page.goto(sheet.as_uri())
    shown = sheet_in(sheet.read_text(encoding="utf-8"))["pairs"]
    assert page.locator("#words").inner_text() == f"\u201c{shown[0]['words']}\u201d"
    assert page.locator("#left").get_attribute("src") == shown[0]["pictures"][0]
    assert page.locator("#right").get_attribute("src") == shown[0]["pictures"][1]
    assert page.locator("b").count() == 0, PROMPTS  # a prompt's tags are words

    page.fill("#rater", RATER)
    answer(page, 0, "left")
    answer(page, 1, "right")
    page.click("#next")
    answer(page, 0, "same")
    page.reload()
    assert page.locator("#progress").inner_text() == "pair 1 of 3, 3 of 6 answers"
    assert page.locator('button[aria-pressed="true"]').all_inner_texts() == ["left", "right"]
    answer(page, 1, "left")  # a change of mind

    with page.expect_download() as waiting:
        page.click("#save")
    results = tmp_path / "results.csv"
    waiting.value.save_as(results)
    with results.open(encoding="utf-8", newline="") as opened:
        assert {row["rater"] for row in csv.DictReader(opened)} == {RATER}
    key = json.loads((sheet.parent / rating.KEY).read_text(encoding="utf-8"))
    assert rating.read_results([results], key) == [
        (RATER, "0", "identity", "left"),
        (RATER, "0", "text", "left"),
        (RATER, "1", "identity", "same"),
    ]
    assert watched.errors == [] and watched.requests == [sheet.as_uri()] * 2
    assert watched.width_of_all() <= size[0]
    page.close()


def test_the_first_and_the_last_pair_are_the_ends(browser: Any, sheet: Path) -> None:
    watched = Watched(browser, WIDE)
    page = watched.page
    page.goto(sheet.as_uri())
    page.click("#back")
    assert page.locator("#progress").inner_text().startswith("pair 1 of 3")
    for _ in range(5):
        page.click("#next")
    assert page.locator("#progress").inner_text().startswith("pair 3 of 3")
    assert watched.errors == []
    page.close()
