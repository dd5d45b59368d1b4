"""The page of a training: what it tells, that it is harmless, that it fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests import browser

from camkit.contracts.trainer import TrainResult
from camkit.drawing.sheet import Panel
from camkit.pages.charts import chart
from camkit.training import training_page

HOSTILE = "</table><script>alert(1)</script>"
NAMES = ["Übergrößenträger", "三花猫", HOSTILE]
CLASSES = [
    {"class": name, "trained_on": 8, "held_out": 2, "recall": recall, "f1": ""}
    for name, recall in zip(NAMES, (0.5, 1.0, 0.0), strict=True)
]


def result(**changes: Any) -> TrainResult:
    epochs = tuple({"train_loss": 2 / n, "valid_loss": 2.1 / n, "error_rate": 0.5 / n} for n in (1, 2, 3))
    held_out = ((Path("1.jpg"), NAMES[0]),)
    return TrainResult(Path("bundle"), {}, **{"history": epochs, "validation": held_out} | changes)


def text(made: TrainResult, **given: Any) -> str:
    return "".join(training_page.text(made, ["error 33.3%: 2 of 6 held-out photographs"], **given))


def whole() -> str:
    """A page with everything on it."""
    steps = tuple({"loss": 3 / n, "lr": 1e-3 * n} for n in range(1, 2000))
    return text(
        result(steps=steps, told=(f"6 photographs of {HOSTILE}",)),
        panels=[Panel(f"1.jpg\nsaid {HOSTILE} 90%\nloss 2.30", Image.new("RGB", (900, 600)))] * 4,
        caption="highest losses",
        classes=CLASSES,
        pairs=[(NAMES[0], HOSTILE, 2), (NAMES[1], NAMES[0], 1)],
        confusion=(torch.tensor([[1, 0, 2], [1, 3, 0], [0, 0, 9]]), NAMES),
    )


def test_everything_is_told_and_texts_of_strangers_are_only_texts() -> None:
    page = whole()
    assert "Error 33.3%: 2 of 6 held-out photographs</h1>" in page
    assert [re.search(f"<td>{name}</td>", page) is not None for name in NAMES[:2]] == [True, True]
    assert re.findall(r'<td class="(\w+ h\d)">(\d+)</td>', page) == [
        *[("hit h1", "1"), ("miss h2", "2")],
        *[("miss h1", "1"), ("hit h2", "3")],
        ("hit h5", "9"),
    ]
    assert page.count('<figure class="chart">') == 4 and page.count("data:image/jpeg;base64,") == 4
    assert page.count("<script") == 1 and "alert(1)</script>" not in page
    assert "://" not in page.replace("http://www.w3.org", "")


def test_a_page_of_curves_alone_says_why() -> None:
    page = text(result(validation=()))
    assert "There were no held-out photographs" in page and "<table" not in page
    assert page.count('<figure class="chart">') == 2


def test_the_points_of_a_chart() -> None:
    made = chart("t", "epoch", {"a": [(1, 0.0), (2, 4.0), (3, float("nan"))], "b": [(1, float("inf"))]})
    assert made is not None and list(made.curves) == ["a"]
    assert made.curves["a"] == f"{made.left}.0,{made.bottom}.0 {made.right}.0,{made.top}.0"
    assert [tick.text for tick in made.up] == ["0", "1", "2", "3", "4"]
    assert chart("t", "epoch", {"a": [(1, float("nan"))]}) is None


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_the_page_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "index.html"
    path.write_text(whole(), "utf-8")
    with browser.fine(path, width, scheme) as shown:
        first = shown.locator("table.sortable tbody th").first
        shown.get_by_role("button", name="recall").click()
        assert first.inner_text() == NAMES[1]
        shown.get_by_role("button", name="recall").click()
        assert first.inner_text() == HOSTILE
