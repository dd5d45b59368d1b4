"""The page of a run: what it tells, that it is harmless, that no run fails of it, how it is used."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from PIL import Image
from tests import browser
from tests.conftest import CLASSES
from tests.test_cli import camkit_, explain, lines, photo

from camkit.core.class_names import class_from_path
from camkit.explaining import manifest, run_page, thumbnails
from camkit.explaining.map_facts import border_share
from camkit.explaining.repeating import command

pytestmark = pytest.mark.usefixtures("here")

OUT = Path("out")


def finished(*arguments: object, code: int = 3) -> list[dict[str, Any]]:
    """A folder with results of three photographs, two named after a class, and of one that failed."""
    photo("photos/red fox/1.png", 0)
    photo("photos/tabby_2.png", 1)
    photo("photos/三花猫 Übergröße.png", 2)
    Path("photos/bad.png").write_bytes(b"no picture")
    done = explain("photos", "--class", "top:2", "--workers", 0, *arguments)
    assert done.exit_code == code, done.stderr
    return lines()


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in each that has an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if name := self.found and self.found[-1][1].get("id"):
            self.texts[name] = self.texts.get(name, "") + data


def page(name: str = "index.html") -> Elements:
    return Elements((OUT / name).read_text("utf-8"))


def rows(name: str = "index.html") -> list[dict[str, Any]]:
    """What a page holds of each result, with what it shares with others."""
    data = json.loads(page(name).texts["data"])
    return [data["setups"][row["setup"]] | row for row in data["rows"]]


# --- what it tells --------------------------------------------------------------------------------


def test_a_run_has_a_page_that_tells_all_that_the_manifest_does() -> None:
    made = finished()
    assert len(made) == 7 and len(rows()) == 7
    for line, row in zip(made, rows(), strict=True):
        known = {name: value for name, value in line.items() if value is not None}
        assert {name: row[name] for name in known} == known
    drawn = [row for row in rows() if row["status"] == "ok"]
    assert len({row["thumb"] for row in drawn}) == 6
    for row in drawn:
        with Image.open(OUT / row["thumb"]) as small:
            assert small.format == "JPEG" and max(small.size) <= 200
    assert len(list((OUT / thumbnails.FOLDER).iterdir())) == 6
    labels = {row["image_name"]: row.get("label") for row in drawn}
    assert labels == {"red fox/1.png": "red fox", "tabby_2.png": "tabby", "三花猫 Übergröße.png": None}


def test_a_thumbnail_is_the_picture_without_its_caption_wherever_it_is_made() -> None:
    photo("cat.png", size=(300, 200))
    explain("cat.png")
    (line,) = lines()
    left, top, right, bottom = line["overlay_box"]
    assert (right - left, bottom - top) == (300, 200)
    (file,) = (OUT / thumbnails.FOLDER).iterdir()
    drawn = file.read_bytes()
    with Image.open(file) as small, Image.open(OUT / line["overlay_file"]) as large:
        assert small.size == (200, 133) and large.height > bottom
    file.write_bytes(b"")  # as a machine that went down may leave it
    assert run_page.write(OUT) == [] and file.read_bytes() == drawn


def test_a_page_is_written_anew_only_if_something_was_done() -> None:
    finished("--resume")
    path, other = OUT / "index.html", OUT / "index-2.html"
    before = path.stat().st_mtime_ns
    Path("photos/bad.png").unlink()
    explain("photos", "--class", "top:2", "--workers", 0, "--resume")
    assert path.stat().st_mtime_ns == before and not other.exists()
    path.unlink()
    explain("photos", "--class", "top:2", "--workers", 0, "--resume")
    assert len(rows()) == 7


def test_the_page_needs_nothing_from_elsewhere() -> None:
    finished()
    text = (OUT / "index.html").read_text("utf-8")
    found = page().found
    policy = next(str(attributes["content"]) for _, attributes in found if "http-equiv" in attributes)
    assert not {tag for tag, _ in found} & {"link", "iframe", "object", "embed", "form", "a", "base"}
    for _, attributes in found:
        assert not [n for n in attributes if n.startswith("on") or n in ("style", "src", "href")]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert "://" not in text and "url(" not in text and "@import" not in text


def test_a_command_of_the_page_makes_the_same_picture_again() -> None:
    photo("a cat's.png")
    explain("a cat's.png", "--class", "red fox", "--relu", "--alpha", 0.3, "-o", "reduction=mean")
    (line,) = lines()
    assert rows()[0]["command"] == command([line])
    done = camkit_(*shlex.split(str(command([line])))[1:], "--out", "again")
    assert done.exit_code == 0, done.stderr
    (again,) = lines("again")
    assert (again["map_sha256"], again["layer"]) == (line["map_sha256"], line["layer"])
    with (
        Image.open(OUT / line["overlay_file"]) as one,
        Image.open(Path("again") / again["overlay_file"]) as two,
    ):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_results_that_are_not_drawn_are_on_the_page(format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    finished("--format", format)
    assert [row["class_name"] for row in rows() if row["status"] == "ok"]
    assert not [row for row in rows() if "thumb" in row or "large" in row]
    camkit_("render", "out")
    assert len([row for row in rows() if "thumb" in row and (OUT / unquote(row["large"])).is_file()]) == 6


def test_joined_folders_have_a_page_and_so_has_a_run_that_went_on() -> None:
    parts = [
        len(finished("--shard", part, "--resume", code=code)) for part, code in (("1/2", 0), ("2/2", 3))
    ]
    assert 0 < parts[0] < parts[1] == len(rows()) == 7
    OUT.rename("one")
    assert camkit_("explain", "merge", "one", "--out", "out").exit_code == 0
    assert len(rows()) == 7 and len([row for row in rows() if (OUT / row.get("thumb", "-")).is_file()]) == 6


def test_many_results_are_split_over_pages_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = finished()
    monkeypatch.setattr(run_page, "MAX_ROWS", 3)
    run_page.write(OUT)
    names = ["index.html", "index-2.html", "index-3.html"]
    assert [row["name"] for name in names for row in rows(name)] == [line["name"] for line in made]
    links = [attributes["href"] for tag, attributes in page("index-2.html").found if tag == "a"]
    assert links == ["index.html", "index-3.html"]
    assert "Results 4 to 6 of 7" in (OUT / names[1]).read_text("utf-8")


def test_what_another_process_adds_meanwhile_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    made = finished()
    complete = thumbnails.complete

    def meanwhile(*given: Any) -> list[str]:
        monkeypatch.setattr(thumbnails, "complete", complete)
        manifest.append(OUT, [made[-1] | {"status": "error", "error": "late", "overlay_file": None}])
        return complete(*given)

    monkeypatch.setattr(thumbnails, "complete", meanwhile)
    run_page.write(OUT)
    assert [row["error"] for row in rows() if row.get("error") == "late"] == ["late"]


def test_the_numbers_of_the_lines_that_hold_are_those_of_the_latest() -> None:
    made = [line for line in finished() if line["status"] == "ok"]
    failure = dict.fromkeys(manifest.FIELDS) | lines()[0] | {"status": "error", "map_file": None}
    manifest.append(
        OUT,
        [
            made[0] | {"overlay_file": "other.png"},  # a second picture of the map
            made[1] | {"map_sha256": "0" * 64},  # another map in its place
            made[2] | {"image_sha256": "1" * 64},  # another photograph of that name
            failure | {"overlay_file": None},
            failure | {"overlay_file": None},
        ],
    )
    every = list(manifest.read(OUT))
    by_number = [every[number] for number in manifest.numbers(OUT)]
    latest = manifest.latest(OUT)
    assert len(by_number) == len(latest) < len(every)
    assert all(line in latest for line in by_number)


# --- figures --------------------------------------------------------------------------------------


def test_the_share_in_the_border() -> None:
    map = torch.full((4, 5), -7.0)
    assert border_share(map) is None
    map[1:3, 1:4] = 1
    assert border_share(map) == 0
    map[0, 0] = 6
    assert border_share(map) == 0.5
    assert border_share(torch.ones(7, 7)) == round(24 / 49, 4)
    assert border_share(torch.ones(2, 9)) is None
    assert border_share(torch.full((4, 5), -7.0).index_fill(0, torch.tensor(0), 1e-6)) is None  # rounding


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("photos/Red_Fox/1.png", "red fox"),
        ("/elsewhere/EGYPTIAN CAT/a/1.png", None),
        ("egyptian_cat_12.jpg", "Egyptian cat"),
        ("tabby/red_fox_1.jpg", "tabby"),
        ("photos/tabby.png", None),
        ("1.png", None),
        (None, None),
    ],
)
def test_the_class_that_a_photograph_is_named_after(path: str | None, said: str | None) -> None:
    assert class_from_path(path, CLASSES) == said


def test_a_name_that_classes_share_says_no_class() -> None:
    assert class_from_path("crane/1.png", ("crane", "Crane", "bird")) is None
    assert class_from_path("bird/1.png", ("crane", "Crane", "bird")) == "bird"


# --- what may go wrong ----------------------------------------------------------------------------


def test_a_file_of_somebody_else_is_kept_and_the_run_succeeds() -> None:
    photo()
    OUT.mkdir()
    (OUT / "index.html").write_text("<title>mine</title>")
    done = explain("cat.png")
    assert done.exit_code == 0 and "index.html is not a page of camkit and is kept" in done.stderr
    assert done.stderr.endswith("Raw maps and manifest.jsonl are in out\n")
    assert (OUT / "index.html").read_text() == "<title>mine</title>"
    (OUT / "index.html").unlink()
    assert explain("cat.png").stderr.endswith(
        "are in out; to look through all of it, open out/index.html\n"
    )


def test_without_small_pictures_the_page_says_why() -> None:
    photo()
    OUT.mkdir()
    (OUT / "thumbs").write_text("in the way")
    done = explain("cat.png")
    assert done.exit_code == 0 and "1 small picture of the page could not be made: " in done.stderr
    assert "thumb" not in rows()[0] and "large" in rows()[0]


def test_any_other_error_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "write", lambda *_, **__: 1 / 0)
    done = explain(photo())
    assert done.exit_code == 0 and "Warning: no page was made: ZeroDivisionError" in done.stderr


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\u202e"


def hostile() -> None:
    """A folder whose manifest somebody has made up."""
    made = [line for line in finished() if line["status"] == "ok"]
    Path("secret.png").write_bytes((OUT / made[2]["overlay_file"]).read_bytes())
    names = dict.fromkeys(("class_name", "method", "layer", "model", "predicted_name"), HOSTILE)
    names |= {"warnings": [HOSTILE], "predicted": [HOSTILE], "options": {HOSTILE: HOSTILE}}
    changed = [
        made[0] | names | {"image": HOSTILE.replace("\u2028", "")},
        made[1] | {"overlay_file": "../secret.png"},
        made[2] | {"overlay_file": "javascript:alert(1)//x.png", "sheet_file": "//elsewhere/x.png"},
        made[3] | {"overlay_sha256": "../../secret"},
        made[4] | {"overlay_sha256": "0" * 64},
        made[5]
        | {"predicted": 5, "warnings": "none", "probability": {}, "class_name": [], "border_share": "x"},
    ]
    (OUT / "manifest.jsonl").write_text("".join(manifest.as_json(line) + "\n" for line in changed), "utf-8")


def test_a_strangers_manifest_is_only_text() -> None:
    hostile()
    remarks = run_page.write(OUT)
    text = (OUT / "index.html").read_text("utf-8")
    assert text.isascii() or "\u2028" not in text
    assert text.count("<script") == 2 and "<img src=x" not in text and "\u202e" not in text
    shown = rows()
    assert len(shown) == 6 and shown[0]["class_name"].startswith("</script>")
    assert [row.get("large") for row in shown[1:3]] == [None, None]
    assert [("sheet" in row) for row in shown] == [True, True, False, True, True, True]
    assert [("thumb" in row) for row in shown] == [True, True, True, False, False, True]
    assert not shown[5].keys() & {"predicted", "warnings", "probability", "class_name", "border_share"}
    assert len(remarks) == 1 and re.search(
        "1 small picture .* is not the picture that was drawn", remarks[0]
    )


# --- in a browser ---------------------------------------------------------------------------------


def test_the_page_in_a_browser() -> None:
    made = finished()
    wrong = [n for n in made if n["status"] == "ok" and n["label"] and n["label"] not in n["predicted"]]
    size = {"width": 1200, "height": 800}
    with (
        browser.launched() as chromium,
        browser.opened(chromium, OUT / "index.html", viewport=size) as shown,
    ):
        tiles = shown.locator(".tile")
        assert tiles.count() == 7
        shown.wait_for_function("() => [...document.images].some((image) => image.naturalWidth > 0)")
        shown.keyboard.press("/")
        shown.keyboard.type("三花")
        shown.locator("#count").filter(has_text="2 of 7").wait_for()
        shown.keyboard.press("Escape")
        shown.locator('[data-kind="failed"]').click()
        assert tiles.count() == 1 and "bad.png" in tiles.inner_text()
        if wrong:
            shown.locator('[data-kind="wrong"]').click()
            assert tiles.count() == len(wrong)
        unsure = [n for n in made if n["status"] == "ok" and n["predicted_probability"] < 0.5]
        photographs = len({n["image"] for n in unsure})
        assert 0 < photographs < len(unsure), "each has two maps"
        shown.locator('[data-kind="unsure"]').click()
        assert tiles.count() == len(unsure) and "model unsure" in tiles.last.inner_text().lower()
        assert f"{len(unsure)} of 7, {photographs} photograph" in shown.locator("#count").inner_text()
        shown.locator('[data-kind="all"]').click()
        shown.select_option("#class", made[-1]["class_name"])
        assert tiles.count() == len([n for n in made if n["class_name"] == made[-1]["class_name"]])
        shown.select_option("#class", "")
        shown.select_option("#order", "most")
        best = max((n for n in made if n["probability"]), key=lambda n: n["probability"])
        assert best["class_name"] in tiles.first.inner_text()
        tiles.first.focus()
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("Enter")
        second = sorted((n["probability"] for n in made if n["probability"]), reverse=True)[1]
        line = next(n for n in made if n["probability"] == second)
        large = shown.locator("#large")
        assert line["map_sha256"] in large.inner_text() and str(command([line])) in large.inner_text()
        shown.wait_for_function("() => document.getElementById('large-picture').naturalWidth > 0")
        shown.keyboard.press("ArrowLeft")
        assert best["map_sha256"] in large.inner_text()
        shown.keyboard.press("Escape")
        assert not large.is_visible()
        reached = "() => document.activeElement.closest('[data-place]')?.dataset.place"
        assert shown.evaluate("() => document.activeElement.className") == "tile"
        shown.wait_for_function(f"() => ({reached})() === '0'", timeout=10_000)  # not the one opened first
        shown.keyboard.press("Enter")
        for _ in range(3):
            shown.keyboard.press("ArrowRight")
        shown.locator("#close").click()
        shown.wait_for_function(f"() => ({reached})() === '3'")


def test_a_page_says_that_its_maps_are_against_a_class() -> None:
    finished("--counterfactual")
    with browser.launched() as chromium, browser.opened(chromium, OUT / "index.html") as shown:
        shown.select_option("#order", "most")
        tile = shown.locator(".tile").first
        told = tile.inner_text()
        assert "\nagainst " in f"\n{told}" and re.search(r"\(\d+(\.\d+)?%\)", told)
        tile.click()
        assert shown.locator("#facts .big").inner_text().startswith("against ")
        shown.keyboard.press("Escape")
        shown.locator(".reading summary").click()
        assert "speaks against it" in shown.locator(".reading").inner_text()


def test_a_map_that_knows_no_class_is_against_none() -> None:
    finished("--counterfactual", "--method", "gradcam", "--method", "eigencam")
    told = {(row["method"], row.get("against", False)) for row in rows() if row["status"] == "ok"}
    assert {against for method, against in told if method == "eigencam"} <= {False}
    assert ("gradcam", True) in told


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_the_page_fits_and_can_be_used_by_all(width: int, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    finished()
    size = {"width": width, "height": 800}
    with (
        browser.launched() as chromium,
        browser.opened(chromium, OUT / "index.html", viewport=size, color_scheme=scheme) as shown,
    ):
        assert not browser.is_wide(shown)
        assert browser.faults(axe, shown) == []
        shown.locator(".tile").nth(2).click()
        assert shown.locator("#large").is_visible() and not browser.is_wide(shown)
        assert browser.faults(axe, shown) == []


def test_a_strangers_manifest_does_nothing_in_a_browser() -> None:
    hostile()
    run_page.write(OUT)
    with browser.launched() as chromium, browser.opened(chromium, OUT / "index.html") as shown:
        shown.locator(".tile", has_text="alert(1)").click()
        assert "alert(2)" in shown.locator("#large").inner_text()
        assert shown.evaluate("() => document.querySelectorAll('[onerror], [src=x]').length") == 0
