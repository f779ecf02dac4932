"""Who else reaches the app: two users at once, hostile uploads, paths and requests."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from app_page import App, app, browser, opened, require_clean
from bad_inputs import plain
from browsing import Watched
from helpers import ROOT
from PIL import Image

from app.workplace import MOST_BYTES

pytestmark = pytest.mark.slow
__all__ = ["app", "browser"]  # fixtures
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def photos_of(app: App) -> set[Path]:
    """The photos that the app keeps, but for masks."""
    return set((app.site / "outputs" / "app" / "photos").glob("*/*.*g"))


def drop(watched: Watched, *files: Path) -> None:
    watched.page.locator("#photos input[type=file]").set_input_files(list(files))


def test_two_users_at_once_see_one_queue_and_each_their_own_photos(
    browser: Any, app: App, tmp_path: Path
) -> None:
    """Both drop a photo of the same name before either is answered."""
    before = photos_of(app)
    users: dict[str, Watched] = {name: opened(browser, app) for name in COLOURS}
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (80, 60), colour).save(tmp_path / name / "a.png")
    for name, user in users.items():
        drop(user, tmp_path / name / "a.png")
    for user in users.values():
        user.page.locator("#teach-said").get_by_text("the masks are being made").wait_for()
        user.page.locator("#sheet img").first.wait_for()

    kept = photos_of(app) - before
    assert len(kept) == 2 and len({path.parent for path in kept}) == 2
    stored = {tuple(np.asarray(Image.open(path))[0, 0]) for path in kept}
    assert stored == set(COLOURS.values())
    for name, user in users.items():
        address = user.page.locator("#sheet img").first.get_attribute("src")
        with urllib.request.urlopen(address, timeout=60) as got:
            found = np.asarray(Image.open(got).convert("RGB"), int)[0, 0]
        assert np.abs(found - COLOURS[name]).max() < 20, name
        rows = user.page.locator("#queue tbody tr", has_text="masks of new photos")
        rows.nth(1).wait_for()

    for path in kept:  # not even the one who knows the place is given a photo of somebody else
        for place in (path, path.relative_to(app.site)):
            code, _ = answer(f"{app.url}/gradio_api/file={urllib.request.quote(str(place))}")
            assert code >= 400, place
    users["red"].page.reload()
    users["red"].page.locator("#queue").get_by_text("masks of new photos").first.wait_for()
    assert users["red"].page.locator("#sheet img").count() == 0
    for user in users.values():
        require_clean(user, app)
        user.page.close()


@pytest.mark.parametrize(
    ("name", "content", "culprit"),
    [
        ("junk <b>.jpg", b"no picture", "not readable as a picture"),
        ("large.png", plain(14_000, 14_286), "200 million pixels; 100 million pixels are the most"),
        ("words.txt", b"text", "no photo; give one of"),
    ],
)
def test_an_upload_that_is_no_photo_is_one_line_without_a_path(
    browser: Any, app: App, tmp_path: Path, name: str, content: bytes, culprit: str
) -> None:
    before = photos_of(app)
    watched = opened(browser, app)
    (tmp_path / name).write_bytes(content)
    drop(watched, tmp_path / name)
    alert = watched.page.locator("#teach-said [role=alert]")
    alert.wait_for()
    assert culprit in alert.inner_text() and "/" not in alert.inner_text()
    assert watched.page.locator("#teach-said b").count() == 0
    assert photos_of(app) == before
    watched.page.close()


def test_an_upload_beyond_the_limit_is_told_and_nothing_of_it_is_kept(
    browser: Any, app: App, tmp_path: Path
) -> None:
    watched = opened(browser, app)
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MOST_BYTES + 2**20)
    drop(watched, tmp_path / "huge.png")
    watched.page.get_by_text("maximum", exact=False).first.wait_for()
    kept = [path for path in (app.site / "outputs").rglob("huge*") if path.is_file()]
    assert kept == []
    watched.page.close()


def test_it_listens_on_this_machine_alone(app: App) -> None:
    connections = psutil.Process(app.process.pid).net_connections()
    listening = [each.laddr for each in connections if each.status == psutil.CONN_LISTEN]
    assert [(at.ip, at.port) for at in listening] == [("127.0.0.1", app.port)]


def answer(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"} if data else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as got:
            return got.status, got.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_nothing_outside_the_output_folder_can_be_read_through_the_server(
    app: App, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of mine")
    (app.site / ".hidden").write_text("a secret of mine")
    (app.site / "notes.txt").write_text("a secret of mine")
    places = [str(secret), f"../{secret}", "/etc/passwd", str(app.site / ".hidden")]
    places += [str(app.site / "notes.txt"), str(app.site / "outputs" / ".." / "notes.txt")]
    places += [str(app.site / "server.log"), str(ROOT / "README.md")]
    for place in places:
        for door in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
            code, text = answer(f"{app.url}{door}{urllib.request.quote(place)}")
            assert code >= 400 and b"secret of mine" not in text, (door, place)

    _, text = answer(f"{app.url}/config")
    config = json.loads(text)
    upload = next(
        d for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == "upload"
    )
    file = {"path": str(secret), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [[file], "mug"], "fn_index": upload["id"], "session_hash": "abc"}
    answer(f"{app.url}/gradio_api/queue/join", json.dumps(body).encode())
    answer(f"{app.url}/gradio_api/run/predict", json.dumps(body).encode())
    time.sleep(3)
    kept = [p for p in (app.site / "outputs").rglob("*") if p.is_file()]
    assert not [path for path in kept if b"secret of mine" in path.read_bytes()]
    (app.site / ".hidden").unlink()
    (app.site / "notes.txt").unlink()
