"""The gallery opened from disk in a real browser: filters, slider, keys, a phone's width."""

from pathlib import Path
from typing import Any

import pytest
from browsing import NARROW, WIDE, Watched, require_browser, require_text
from PIL import Image
from test_gallery import EVIL, PROMPTS, WORD, make_photos, make_run, row, run_gallery

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, one of two, and one with its pictures beside it."""
    require_browser()
    here = tmp_path_factory.mktemp("pages")
    photos = make_photos(here / "photos")
    one = make_run(here / "outputs" / "disc", photos, PROMPTS)
    two = make_run(here / "outputs" / "other", photos, PROMPTS[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for words in (["one.html"], ["beside.html", "--no-embed"]):
            run_gallery(["--runs", str(one), "--output", *words])
        run_gallery(["--runs", str(one), str(two), "--output", "two.html"])
    return {name: here / f"{name}.html" for name in ("one", "two", "beside")}


def opened(browser: Any, path: Path, size: tuple[int, int]) -> Watched:
    watched = Watched(browser, size)
    watched.page.goto(path.as_uri())
    return watched


def all_drawn(watched: Watched) -> bool:
    """Whether every picture of the page has pixels; those out of sight are fetched first."""
    return watched.page.evaluate(
        """async () => {
          const pictures = [...document.querySelectorAll("main img")];
          pictures.forEach((picture) => { picture.loading = "eager"; });
          await Promise.all(pictures.map((picture) => picture.decode()));
          return pictures.every((picture) => picture.naturalWidth > 0 && picture.alt);
        }"""
    )


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["one", "two", "beside"])
def test_a_page_opens_from_disk_and_asks_nobody(
    browser: Any, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    watched = opened(browser, pages[name], size)
    assert all_drawn(watched)
    assert watched.errors == []
    assert all(url.startswith("file:") for url in watched.requests)
    assert len(watched.requests) == 1 or name == "beside"
    assert watched.width_of_all() <= size[0]
    watched.page.close()


def test_filters_slider_masks_and_keys_do_what_they_say(
    browser: Any, pages: dict[str, Path]
) -> None:
    watched = opened(browser, pages["one"], WIDE)
    page = watched.page
    cards = page.locator(".card")
    assert cards.count() == 4 and page.locator("#count").inner_text() == "4 of 4 pictures"
    page.select_option("#style", "oil painting")
    assert cards.count() == 2
    require_text(cards.first, EVIL)
    page.select_option("#seed", "1")
    assert cards.count() == 1
    page.select_option("#style", "")
    page.select_option("#seed", "")
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("beach")
    assert cards.count() == 2 and page.locator("#count").inner_text() == "2 of 4 pictures"

    slider = page.get_by_label("step of disc")
    preview = page.locator("#previews img")
    assert preview.get_attribute("alt") == "previews of disc at step 4"
    last = preview.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert preview.get_attribute("alt") == "previews of disc at step 2"
    assert preview.get_attribute("src") != last

    masked = page.locator("#photos img").nth(1)
    tinted = masked.get_attribute("src")
    page.locator("h1").click()
    page.keyboard.press("m")
    assert masked.get_attribute("src") != tinted
    page.keyboard.press("m")
    assert masked.get_attribute("src") == tinted
    assert watched.errors == []
    page.close()


def test_a_picture_opens_with_its_command_and_the_next_is_a_key_away(
    browser: Any, pages: dict[str, Path]
) -> None:
    watched = opened(browser, pages["one"], WIDE)
    page = watched.page
    page.locator(".card button").nth(1).focus()
    page.keyboard.press("Enter")
    large = page.locator("#large")
    assert large.is_visible()
    require_text(large, PROMPTS[0])
    require_text(page.locator("#large-command"), "--num_images_per_prompt 2")
    page.keyboard.press("ArrowRight")
    require_text(large, PROMPTS[1])
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert page.locator("b").count() == 0
    require_text(page.locator("#about"), WORD)
    assert watched.errors == []
    page.close()


def test_runs_stand_side_by_side_prompt_by_prompt(browser: Any, pages: dict[str, Path]) -> None:
    watched = opened(browser, pages["two"], WIDE)
    pairs = watched.page.locator(".pair")
    assert pairs.count() == 4 and pairs.nth(0).locator(".card").count() == 2
    require_text(pairs.nth(3), "not drawn by other")
    watched.page.close()


@pytest.mark.long
def test_two_hundred_pictures_of_512_pixels_are_shown(
    browser: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", tmp_path / "gone", tuple(f"a {{}} {n}" for n in range(100)))
    noise = Image.effect_noise((512, 512), 40).convert("RGB")
    for number in range(200):
        noise.rotate(number).save(run / "samples" / row(number, "")["file"], compress_level=1)
    run_gallery(["--runs", str(run), "--output", "page.html"])
    watched = opened(browser, tmp_path / "page.html", WIDE)
    assert watched.page.locator(".card img").count() == 200
    first = watched.page.locator(".card img").first
    first.evaluate("picture => picture.decode()")
    took = watched.page.evaluate("performance.now()")
    size = (tmp_path / "page.html").stat().st_size / 2**20
    record_property("200 pictures of 512 px", f"{size:.0f} MiB, shown after {took / 1000:.1f} s")
    assert watched.errors == []
