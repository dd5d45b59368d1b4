"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from camkit_explorer.models import Models
from camkit_explorer.session import Given, Photographs, Session
from click.testing import CliRunner
from PIL import Image

import camkit
from camkit import LoadedModel, Style
from camkit.cli import cli
from camkit.drawing.evidence import signed
from camkit.plugin import load_image, sample_image

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright (pip install playwright)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium (apt-get install chromium)")

Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(
    models: Models, read: Callable[..., Any], serve: Callable[..., AbstractContextManager[str]]
) -> Iterator[str]:
    with serve(Session(models, Photographs([Given("chelsea.png", sample_image())], read))) as found:
        yield found


class Watched:
    """A page, what it asked for, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.troubles: list[str] = []
        page.on("request", lambda request: self.requests.append(f"{request.method} {request.url}"))
        page.on("console", lambda message: self.troubles.append(message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))

    def answered(self, path: str, act: Callable[[], object]) -> Any:
        """What the server answers to what `act` makes the page ask."""
        with self.page.expect_response(lambda answer: answer.url.endswith(path)) as found:
            act()
        return found.value


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    """The page, ready; afterwards nothing may have gone wrong, and nobody else been asked."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    found = Watched(context.new_page())
    found.page.set_default_timeout(60_000)
    found.page.goto(address)
    found.page.wait_for_selector("body[data-ready]")
    yield found
    context.close()
    own = address.partition("/?")[0]
    elsewhere = [r for r in found.requests if not r.partition(" ")[2].startswith((own, "blob:" + own))]
    assert (elsewhere, found.troubles) == ([], [])


def selected(page: Page) -> str:
    return str(page.locator("#classes [aria-selected=true] .name").inner_text())


def pixels(page: Page, canvas: str = "#picture") -> str:
    return str(page.evaluate("(id) => document.querySelector(id).toDataURL()", canvas))


def choose(page: Page, name: str, value: str) -> None:
    page.locator(f"input[name={name}][value={value}]").check(force=True)


# --- playing --------------------------------------------------------------------------------------


def test_the_address_shows_no_token_and_a_reload_works(watched: Watched) -> None:
    page = watched.page
    assert page.url.endswith("/") and "token" not in page.url
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.title().endswith("camkit explorer")


def test_keys_change_the_class_at_once_and_ask_nobody(watched: Watched) -> None:
    page = watched.page
    first, before, asked = selected(page), pixels(page), len(watched.requests)
    page.locator("#classes").focus()
    page.keyboard.press("ArrowDown")
    assert selected(page) != first and pixels(page) != before
    assert page.locator("#shown").inner_text().startswith(selected(page))
    page.keyboard.press("ArrowUp")
    assert selected(page) == first and pixels(page) == before
    page.locator("#classes li").nth(3).click()
    for view in ("for", "against", "signed"):
        choose(page, "view", view)
    for scale in ("classes", "held", "map"):
        choose(page, "scale", scale)
    page.locator("#opacity").fill("0.3")
    page.locator("#colours").select_option("magma")
    page.locator("#cells").check()
    assert len(watched.requests) == asked
    # The whole of a change, by the browser's own clock, the median of some.
    milliseconds = page.evaluate("""() => {
        const times = [];
        for (let i = 0; i < 21; i++) {
            const begun = performance.now();
            document.querySelector("#classes").dispatchEvent(
                new KeyboardEvent("keydown", {key: i % 2 ? "ArrowUp" : "ArrowDown", bubbles: true}));
            document.querySelector("#picture").getContext("2d").getImageData(0, 0, 1, 1);
            times.push(performance.now() - begun);
        }
        return times.sort((a, b) => a - b)[10];
    }""")
    assert milliseconds < 250, "50 on a quiet machine; this one may be shared"
    watched.troubles.clear()  # the advice to read canvases in another way


def test_what_is_drawn_depends_on_what_is_asked_for(
    watched: Watched, small: Callable[..., LoadedModel]
) -> None:
    page, model = watched.page, small()
    view = model.preprocess(load_image(sample_image()).image)[None]
    peaks = camkit.class_maps(model.module, view, layer="high")[0].abs().amax((1, 2))
    page.locator(f"#class-{int(peaks.argmin())}").click()  # whose own scale is not that of all
    looks = {pixels(page)}
    for name, value in (("view", "for"), ("view", "against"), ("view", "signed"), ("scale", "classes")):
        choose(page, name, value)
        looks.add(pixels(page))
    choose(page, "scale", "map")
    page.locator("#cells").check()
    looks.add(pixels(page))
    page.locator("#cells").uncheck()
    drawn = pixels(page)
    page.locator("#opacity").fill("0")
    assert pixels(page) != drawn
    page.locator("#opacity").fill("0.8")
    assert pixels(page) == drawn and drawn in looks and len(looks) >= 5


@pytest.mark.parametrize("grid", [(7, 7), (2, 3), (14, 9)])
def test_the_canvas_shows_what_the_pictures_show(
    browser: Any,
    read: Callable[..., Any],
    serve: Callable[..., AbstractContextManager[str]],
    small: Callable[..., LoadedModel],
    tmp_path: Path,
    grid: tuple[int, int],
) -> None:
    """Pixel by pixel, of a grey photograph, which a JPEG leaves as it is."""
    file = tmp_path / "grey.png"
    Image.new("RGB", (960, 640), (90, 90, 90)).save(file)
    model = small()
    result = camkit.explain(model, file)
    torch.manual_seed(1)
    map = torch.randn(grid) * 3
    with serve(Session(Models(["pets"], small), Photographs([Given("grey.png", file)], read))) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        table = page.evaluate("async () => (await (await fetch('/api/session')).json()).colours")
        left = (960 - 640) / 2 / 960  # the model sees the square in the middle
        looks: list[dict[str, Any]] = [{}, {"relu": True}, {"counterfactual": True}, {"cells": True}]
        for view, look in zip(("signed", "for", "against", "signed"), looks, strict=True):
            drawn = page.evaluate(
                """async ([values, [height, width], box, look]) => {
                    const drawing = await import("/static/drawing.js");
                    const bytes = await (await fetch("/api/models/0/photographs/0/picture")).blob();
                    const canvas = document.createElement("canvas");
                    const photograph = await createImageBitmap(bytes);
                    drawing.drawMap(canvas, photograph, { values, width, height }, box, look);
                    return canvas.toDataURL("image/png");
                }""",
                [
                    map.double().flatten().tolist(),
                    list(grid),
                    [left, 0, 1 - left, 1],
                    {"view": view, "table": table[view], "opacity": 0.8, "cells": "cells" in look}
                    | {"scale": float(evidence(map, view).max())},
                ],
            )
            seen = np.asarray(
                Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("RGB")
            )
            picture = dataclasses.replace(result, map=map).overlay(caption=False, **look)
            off = np.abs(seen.astype(int) - np.asarray(picture.convert("RGB")).astype(int)).max(axis=2)
            off[:, [*range(150, 160), *range(800, 810)]] = 0  # the line around what the model saw
            assert off.shape == (640, 960) and off.max() <= 2, (view, off.max())
        page.close()


def test_the_browser_leaves_out_what_is_only_rounding_as_pictures_do(watched: Watched) -> None:
    for last in (1e-6, 1e-3):
        map = torch.tensor([[-2.0, -1.0, last]], dtype=torch.float64)
        for view, look in (("signed", Style()), ("for", Style(relu=True))):
            seen = watched.page.evaluate(
                """async ([values, view]) =>
                    [...(await import("/static/drawing.js")).seen({ values }, view)]""",
                [map[0].tolist(), view],
            )
            assert seen == pytest.approx(signed(map, look)[0].tolist())


def evidence(map: torch.Tensor, view: str) -> torch.Tensor:
    """What is drawn of a map, as far as its scale is concerned."""
    return {"signed": map.abs(), "for": map.clamp(min=0), "against": (-map).clamp(min=0)}[view]


def test_pointing_reads_the_raw_value_and_so_do_keys(
    watched: Watched, small: Callable[..., LoadedModel]
) -> None:
    page, model = watched.page, small()
    view = model.preprocess(load_image(sample_image()).image)[None]
    scores = model.module(view)[0]
    map = camkit.maps(model.module, view, int(scores.argmax()), layer="high")[0]
    place = page.locator("#marks").bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2 + 4, place["y"] + place["height"] / 2 + 4)
    text = page.locator("#reading").inner_text()
    row, column = (int(n) - 1 for n in re.findall(r"Row (\d+), column (\d+) of 8 × 8", text)[0])
    assert (row, column) == (4, 4)
    assert float(re.findall(r": ([+−]?[\d.]+)", text)[0].replace("−", "-")) == pytest.approx(
        float(map[4, 4]), rel=6e-3, abs=1e-3
    )
    assert page.locator("#needle").is_visible()
    page.mouse.move(0, 0)
    assert page.locator("#needle").is_hidden()
    page.locator("#marks").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#reading").inner_text().startswith("Row 4, column 5 ")
    assert selected(page) == model.classes[int(scores.argmax())], "no other class"


def test_arrow_keys_are_for_classes_after_a_click_on_a_method(watched: Watched) -> None:
    page = watched.page
    first = selected(page)
    watched.answered("/api/maps", lambda: page.locator(".chip", has_text="layercam").click())
    page.keyboard.press("ArrowDown")
    assert selected(page) != first
    assert page.locator("input[name=method]:checked").get_attribute("value") == "layercam"
    page.locator("input[name=method]:checked").focus()
    page.keyboard.press("ArrowRight")  # who came by the keyboard stays there
    assert page.locator("input[name=method]:checked").get_attribute("value") != "layercam"


def test_layers_methods_and_models_are_asked_for(watched: Watched) -> None:
    page = watched.page
    before = pixels(page)
    watched.answered("/api/maps", lambda: page.locator("#layer").fill("0"))
    page.wait_for_function("() => document.querySelector('#shown').textContent.includes('low')")
    assert "low · 32 × 32" in page.locator("#layer-name").inner_text() and pixels(page) != before
    watched.answered("/api/maps", lambda: page.locator("input[value=eigencam]").check(force=True))
    page.wait_for_function("() => document.querySelector('#notes').textContent.includes('knows no class')")
    watched.answered("/api/model", lambda: page.locator("#model").select_option("1"))
    page.wait_for_function("() => document.querySelector('#shown').textContent.startsWith('other.pth')")
    page.locator("#search").fill("other.pth 5")
    page.keyboard.press("Enter")
    assert selected(page) == "other.pth 5"


def test_after_an_error_the_controls_are_those_of_the_map_that_is_shown(watched: Watched) -> None:
    page = watched.page
    refused = '{"error": "That took longer than 60 seconds."}'
    page.route(
        "**/api/maps",
        lambda route: route.fulfill(status=503, body=refused, content_type="application/json"),
    )
    page.locator("input[value=eigencam]").check(force=True)
    page.wait_for_selector("#alert:not([hidden])")
    page.wait_for_function("() => document.querySelector('input[value=gradcam]').checked")
    assert page.locator("#alert").inner_text() == "That took longer than 60 seconds."
    assert "gradcam" in page.locator("#shown").inner_text()
    page.unroute("**/api/maps")
    watched.answered("/api/maps", lambda: page.locator("input[value=eigencam]").check(force=True))
    page.wait_for_function("() => document.querySelector('#shown').textContent.includes('eigencam')")
    watched.troubles = [text for text in watched.troubles if "503" not in text]  # which the browser tells


def test_what_takes_long_is_given_up_for_what_is_asked_next(watched: Watched) -> None:
    page = watched.page

    def answer(route: Any) -> None:
        if "scorecam" not in route.request.post_data:
            route.continue_()  # the other one is never answered

    page.route("**/api/maps", answer)
    with page.expect_event("requestfailed") as given_up:
        page.locator("input[value=scorecam]").check(force=True)
        page.locator("input[value=eigencam]").check(force=True)
    assert "scorecam" in given_up.value.post_data
    page.wait_for_function("() => document.querySelector('#shown').textContent.includes('eigencam')")
    assert page.locator("#alert").is_hidden(), "nobody is told of what was given up on purpose"


def test_what_is_taken_away_is_what_is_shown_while_another_map_is_on_its_way(watched: Watched) -> None:
    page = watched.page
    page.route("**/api/maps", lambda route: None)  # never answered
    page.locator("input[value=eigencam]").check(force=True)
    watched.answered("/api/lines", lambda: page.locator("#command").click())
    page.wait_for_function("() => document.querySelector('#done').value === 'Copied'")
    assert "eigencam" not in page.evaluate("() => navigator.clipboard.readText()")


def test_a_scale_is_kept_as_it_is_shown_and_says_what_goes_beyond(watched: Watched) -> None:
    page = watched.page
    ticks = page.locator("#ticks")
    together = alone = ""
    for _ in range(4):  # of one of these classes the peak is not the largest of all
        alone = ticks.inner_text()
        page.locator("input[name=scale][value=classes]").check(force=True)
        together = ticks.inner_text()
        if together != alone:
            break
        page.locator("input[name=scale][value=map]").check(force=True)
        page.keyboard.press("ArrowDown")
    assert together != alone
    page.locator("input[name=scale][value=held]").check(force=True)
    assert ticks.inner_text() == together
    page.locator("input[name=scale][value=map]").check(force=True)
    assert ticks.inner_text() == alone
    page.locator("input[name=scale][value=held]").check(force=True)
    texts = []
    for key in 4 * ["ArrowUp"] + 8 * ["ArrowDown"]:  # of one of these the peak is larger
        page.keyboard.press(key)
        texts.append(ticks.inner_text())
    assert "≥" not in alone and "≤" not in alone
    assert any("≥" in text or "≤" in text for text in texts)


# --- photographs ----------------------------------------------------------------------------------


def test_photographs_are_chosen_dropped_and_pasted(watched: Watched, png: Callable[..., bytes]) -> None:
    page = watched.page
    file = {"name": "猫 <b>.png", "mimeType": "image/png", "buffer": png(colour="teal")}
    watched.answered("/picture", lambda: page.locator("#file").set_input_files(file))
    page.wait_for_function("() => document.querySelector('#shown').textContent.includes('猫 <b>.png')")
    assert page.locator("#photographs li").count() == 2
    for event, holder, name in (
        ("drop", "dataTransfer", "dropped.png"),
        ("paste", "clipboardData", "pasted.png"),
    ):
        page.evaluate(
            """([event, holder, name, data]) => {
                const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
                const carried = new DataTransfer();
                carried.items.add(new File([bytes], name, {type: "image/png"}));
                document.body.dispatchEvent(event === "drop"
                    ? new DragEvent(event, {bubbles: true, cancelable: true, dataTransfer: carried})
                    : new ClipboardEvent(event, {bubbles: true, clipboardData: carried}));
            }""",
            [event, holder, name, base64.b64encode(png(colour="red")).decode()],
        )
        page.wait_for_function(
            "(name) => document.querySelector('#shown').textContent.includes(name)", arg=name
        )
    page.keyboard.press("PageUp")
    page.wait_for_function("() => document.querySelector('#shown').textContent.includes('dropped.png')")
    assert page.locator("#photographs [aria-current=true]").get_attribute("title") == "dropped.png"


def test_a_file_that_cannot_be_read_is_said_and_leaves_no_picture_of_another(
    models: Models,
    read: Callable[..., Any],
    serve: Callable[..., AbstractContextManager[str]],
    browser: Any,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    given = [Given("chelsea.png", sample_image()), Given("broken.jpg", broken)]
    with serve(Session(models, Photographs(given, read))) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        page.locator("#photographs button").nth(1).click()
        page.wait_for_selector("#alert:not([hidden])")
        page.wait_for_function(
            "() => document.querySelector('#shown').textContent === 'broken.jpg could not be explained'"
        )
        assert page.evaluate("() => document.querySelector('#picture').width") == 1
        page.keyboard.press("PageUp")
        page.wait_for_function("() => document.querySelector('#shown').textContent.includes('chelsea.png')")
        page.close()


def test_what_is_no_photograph_is_said_and_the_page_goes_on(watched: Watched) -> None:
    page = watched.page
    bad = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"}
    watched.answered("/api/photographs", lambda: page.locator("#file").set_input_files(bad))
    page.wait_for_selector("#alert:not([hidden])")
    assert "notes.txt: " in page.locator("#alert").inner_text()
    first = selected(page)
    page.locator("#classes").focus()
    page.keyboard.press("ArrowDown")
    assert selected(page) != first
    assert [t for t in watched.troubles if "422" not in t] == []
    watched.troubles.clear()  # the browser notes every refused request


# --- believing ------------------------------------------------------------------------------------


def test_the_brush_compares_what_the_map_predicts_with_what_happens(
    watched: Watched, small: Callable[..., LoadedModel]
) -> None:
    page, model = watched.page, small()
    page.locator("#brush").click()
    page.locator("#marks").focus()

    def cover_two_cells() -> None:
        page.keyboard.press(" ")  # row 4, column 4 of 8 x 8
        page.keyboard.press("ArrowRight")
        page.keyboard.press(" ")

    cover_two_cells()
    page.wait_for_function("() => document.querySelector('#covered').textContent.includes('3.1 %')")
    said = dict(
        zip(
            page.locator("#covered dt").all_inner_texts(),
            page.locator("#covered dd").all_inner_texts(),
            strict=True,
        )
    )
    view = model.preprocess(load_image(sample_image()).image)[None]
    with torch.no_grad():
        scores = model.module(view)[0]
    target = int(scores.argmax())
    map = camkit.maps(model.module, view, target, layer="high")[0]
    number = lambda text: float(re.findall(r"[+−]?[\d.]+", text)[0].replace("−", "-"))  # noqa: E731
    assert number(said["The map predicts"]) == pytest.approx(
        -float(map[3, 3] + map[3, 4]), rel=6e-3, abs=2e-3
    )
    from camkit_explorer.asking import FILLS

    covered = view.clone()
    covered[:, :, 24:32, 24:40] = FILLS["blur"](view)[:, :, 24:32, 24:40]
    with torch.no_grad():
        after = model.module(covered)[0, target]
    assert number(said["Measured"]) == pytest.approx(float(after - scores[target]), rel=6e-3, abs=2e-3)
    assert "→" in page.locator("#classes li .value").first.inner_text()
    choose(page, "fill", "colour")
    page.locator("#clear").click()
    assert "→" not in page.locator("#classes li .value").first.inner_text()
    place = page.locator("#marks").bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    watched.answered(
        "/api/cover", lambda: page.mouse.move(place["x"] + place["width"] / 2 + 20, place["y"] + 99)
    )
    page.mouse.up()
    page.wait_for_selector("#covered dl")
    assert re.match("The score (hardly )?changes ", page.locator("#covered h3").inner_text())
    page.keyboard.press("Escape")
    assert page.locator("#brushing").is_hidden() and page.locator("#covered").inner_text() == ""


def test_curves_and_the_sanity_check_belong_to_the_map_that_is_shown(watched: Watched) -> None:
    page = watched.page
    page.locator("#curves").click()
    page.wait_for_selector("#tested svg")
    assert page.locator("#tested polyline").count() == 6
    assert page.locator("#tested .legend").first.inner_text().startswith("this map 0.")
    page.locator("#sanity").click()
    page.wait_for_selector("#tested .stages li")
    assert re.match("Passed|Failed", page.locator("#tested h3").inner_text())
    page.locator("#classes").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#tested").inner_text() == ""


def test_another_method_beside_comes_with_its_rank_correlation(watched: Watched) -> None:
    page = watched.page
    watched.answered("/api/beside", lambda: page.locator("#beside").select_option("native"))
    page.wait_for_selector("#agreement:not([hidden])")
    assert "Rank correlation" in page.locator("#agreement").inner_text()
    assert page.locator("#between").is_hidden(), "other units"
    watched.answered("/api/beside", lambda: page.locator("#beside-method").select_option("gradcam"))
    page.wait_for_selector("#between:not([hidden])")
    assert "Rank correlation 1.000" in page.locator("#agreement").inner_text()
    assert "Largest difference 0 of the peak" in page.locator("#agreement").inner_text()
    page.locator("#beside").select_option("")
    assert page.locator("#other").is_hidden()


# --- taking away ----------------------------------------------------------------------------------


def test_the_picture_and_the_lines_can_be_taken_away(watched: Watched) -> None:
    page = watched.page
    with page.expect_download() as download:
        page.locator("#save").click()
    assert re.fullmatch(r"chelsea\.png\.gradcam\..+\.png", download.value.suggested_filename)
    image = load_image(download.value.path().read_bytes()).image
    shown = CliRunner().invoke(cli, ["show", str(download.value.path())])
    assert shown.exit_code == 0 and "gradcam" in shown.stdout, shown.output
    assert "camkit explain " in shown.stdout.splitlines()[-1]
    assert image.width >= 450 and len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 1000
    for kind, begins in (("command", "camkit explain "), ("python", "import camkit\n")):
        watched.answered("/api/lines", lambda kind=kind: page.locator(f"#{kind}").click())
        page.wait_for_function("() => document.querySelector('#done').value === 'Copied'")
        assert page.evaluate("() => navigator.clipboard.readText()").startswith(begins)


def test_what_is_saved_is_what_is_shown(watched: Watched) -> None:
    page = watched.page
    page.evaluate("""() => {
        const write = OffscreenCanvasRenderingContext2D.prototype.fillText;
        window.told = [];
        OffscreenCanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
            told.push(text);
            return write.call(this, text, ...at);
        };
    }""")

    def saved() -> tuple[np.ndarray, str]:
        page.evaluate("() => { told.length = 0; }")
        with page.expect_download() as download:
            page.locator("#save").click()
        pixels = np.asarray(load_image(download.value.path().read_bytes()).image).astype(int)
        return pixels, " ".join(page.evaluate("() => told"))

    alone, said = saved()
    assert alone.shape[1] == page.evaluate("() => document.querySelector('#picture').width")
    assert "own scale" in said and "Covered" not in said and "Rank correlation" not in said
    watched.answered("/api/beside", lambda: page.locator("#beside").select_option("native"))
    watched.answered("/api/beside", lambda: page.locator("#beside-method").select_option("gradcam"))
    page.wait_for_selector("#between:not([hidden])")
    page.locator("#brush").click()
    page.locator("#marks").focus()
    watched.answered("/api/cover", lambda: page.keyboard.press("Space"))
    page.wait_for_selector("#covered dl")
    both, said = saved()
    for words in (
        "Covered: ",
        "The map predicts: ",
        "Rank correlation 1.000",
        "difference, on the same scale",
    ):
        assert words in said
    wide, high = 592, 400  # three of them and two gaps of 12 pixels
    assert both.shape[1] == 1800
    first, second = both[10 : high - 20, :wide], both[10 : high - 20, wide + 12 : 2 * wide + 12]
    off = np.abs(first - second).max(axis=2)
    covered = off > 8  # the same map twice, and what covers one of them
    assert 0.01 < covered.mean() < 0.5 and np.median(off[~covered]) == 0
    assert np.abs(first[covered] - (235, 236, 240)).mean() < 40


# --- everybody ------------------------------------------------------------------------------------

WIDTHS = (390, 820, 1440)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_axe_finds_no_serious_fault(watched: Watched, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    page.locator("#brush").click()
    page.locator("#beside").select_option("native")
    page.wait_for_selector("#agreement:not([hidden])")
    page.locator("#curves").click()
    page.wait_for_selector("#tested svg")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        shown = page.evaluate("() => document.documentElement.scrollWidth")
        assert shown <= width, "it scrolls to the side"
        names = page.locator("#classes .name").all_inner_texts()
        assert any("außergewöhnlich langem" in name for name in names)
        assert any("阿比西尼亚猫" in name for name in names) and "<img src=x onerror=alert(1)>" in names
        if width == 820:
            continue
        found = axe.Axe().run(page).response["violations"]
        assert [
            (v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")
        ] == []


def test_the_keys_are_told(watched: Watched) -> None:
    page = watched.page
    page.locator("#help").click()
    assert page.locator("#keys").is_visible()
    before = selected(page)
    page.keyboard.press("ArrowDown")
    assert selected(page) == before, "the dialog has the keys"
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()
