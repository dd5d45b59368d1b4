"""The report of a benchmark: what it concludes, maps of all explainers side by side, how it fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import browser
from tests.test_bench_strangers import latency, line, made, score

from camkit.bench import bench_report, examples, page_formats, results
from camkit.bench.conclusion import conclusion
from camkit.bench.scenes import Scene
from camkit.contracts.model import LoadedModel
from camkit.images.preprocess import Preprocess
from camkit.pages.charts import FINE, chart, scatter, strips

HOSTILE = "</table><script>alert(1)</script>"


def timed(*processes: float) -> dict[str, Any]:
    """A record of processes, in each of which six rounds took so many seconds, or nearly so."""
    median = float(np.median(processes))
    rounds = [seconds * (1 + 0.001 * n) for seconds in processes for n in range(6)]
    numbers = [number for number in range(len(processes)) for _ in range(6)]
    return latency(median) | {"samples": {"process": numbers, "host": rounds}}


def raced(**times: tuple[float, ...]) -> dict[str, Any]:
    """A document in which explainers took these seconds in each process."""
    rows = [
        line("explainer", name, "gradcam", latency=[timed(*took)], scores={})
        for name, took in times.items()
    ]
    return made(rows=rows, agreement={})


def said(found: dict[str, Any]) -> tuple[str, str]:
    """The headline of a document, and its sentences."""
    told = conclusion(results.read(found))
    return told.headline, " ".join(told.words)


# --- the conclusion -------------------------------------------------------------------------------


def test_the_fastest_is_named_if_it_is_faster_than_each_other() -> None:
    headline, words = said(raced(slow=(0.3, 0.31, 0.3), fast=(0.1, 0.101, 0.1), mid=(0.15, 0.15, 0.151)))
    assert headline == "fast gradcam is the fastest of 3"
    assert words.startswith("fast gradcam takes 100 ms for 1 photograph, 0.1 times as long as a bare")
    assert re.search(r"Slower: mid gradcam \(1\.5 \[1\.4\d, 1\.5\d\] times as long\) and slow", words)
    assert "over 3 processes, wide enough for all 3 pairs at once" in words


def test_nobody_is_the_fastest_if_an_interval_does_not_exclude_it() -> None:
    headline, words = said(raced(slow=(1.0, 1.0, 1.01), a=(0.1, 0.12, 0.11), b=(0.11, 0.11, 0.12)))
    assert headline == "No explainer is clearly the fastest"
    assert "a gradcam has the lowest median: 110 ms" in words
    assert re.search(r"Slower: slow gradcam \(9\.\d+ \[", words)
    assert re.search(r"Not clearly slower: b gradcam \(1\.0\d \[0\.\d+, 1\.\d+\] times as long\)", words)


def test_more_explainers_need_clearer_differences() -> None:
    pair = {"a": (0.1, 0.1, 0.1003), "b": (0.1004, 0.1006, 0.1009)}
    assert said(raced(**pair))[0] == "a gradcam is the fastest of 2"
    others = {f"x{n}": (1.0 + n, 1.001 + n, 1.0 + n) for n in range(12)}
    assert said(raced(**pair, **others))[0] == "No explainer is clearly the fastest"


def test_one_process_proves_nothing() -> None:
    headline, words = said(raced(slow=(10.0,), fast=(0.1,)))
    assert headline == "fast gradcam had the lowest time, in a single process"
    assert "slow gradcam (100 [100, 100] times as long)" in words and "proves nothing" in words
    assert "Slower" not in words and "processes, wide" not in words


def test_what_was_not_timed_or_is_alone_claims_no_place() -> None:
    rows = [line("explainer", "a", "gradcam", latency=[]), line("explainer", "b", "gradcam", latency=[])]
    headline, words = said(made(rows=rows, agreement={}))
    assert headline == "2 explainers, not timed" and "ms" not in words
    assert said(raced(a=(0.1, 0.1, 0.1)))[0] == "a gradcam, measured"
    rows[0]["latency"], rows[1]["latency"] = [timed(1.0)], [timed(2.0) | {"batch": 8}]
    assert said(made(rows=rows, agreement={}))[0] == "2 explainers, not timed", "no batch size in common"


def agreed(value: float, *, parity: float | None = None, images: int = 20, **machine: Any) -> str:
    """What is said of two explainers whose maps have this rank correlation."""
    names = ["a gradcam", "control random", "b gradcam"]
    table = [[None, -0.9, value], [-0.9, None, -0.9], [value, -0.9, None]]
    measures = {"spearman": {"mean": table, "null": [-0.3, 0.0, 0.31]}}
    rows = [line("explainer", name, "gradcam", latency=[], scores={}) for name in ("a", "b")]
    rows[1]["parity"] = parity
    agreement = {"photographs": {"names": names, "size": [7, 7], "measures": measures}}
    scenes = [{"name": "photographs", "images": images, "with_truth": 0}]
    document = made(rows=rows, agreement=agreement, scenes=scenes)
    document["environment"] |= machine
    return said(document)[1]


def test_how_far_maps_agree_stands_beside_what_chance_reaches() -> None:
    words = agreed(0.512)
    assert (
        "a gradcam and b gradcam agree least, with a mean rank correlation of 0.51 over 20 photographs"
        in words
    )
    assert "one in 40 pairs of random maps reaches 0.31" in words and "cannot speak" not in words
    assert "4 photographs cannot speak for others." in agreed(0.512, images=4)
    assert "agree least" not in agreed(0.9999)


def test_backends_give_the_same_maps_or_it_is_said_which_do_not() -> None:
    assert "the same from all backends, up to 2.0e-07 of the peak" in agreed(0.9999, parity=2e-7)
    differing = "Maps differ from those of the reference of the same method for b gradcam (by 5.0e-01"
    assert differing in agreed(0.5, parity=0.5)
    assert "Maps differ" in agreed(0.5, parity=4e-3, precision="ieee")
    assert "the same from all backends" in agreed(0.5, parity=4e-3, precision="tf32")


def test_a_backend_that_was_not_compared_is_not_one_of_all() -> None:
    """As of maps that are NaN: JSON has no number for how far they differ."""
    rows = [line("explainer", name, "gradcam", latency=[], scores={}) for name in ("a", "b", "c")]
    rows[1]["parity"] = 1e-7
    scenes = [{"name": "photographs", "images": 20, "with_truth": 0}]
    words = said(made(rows=rows, scenes=scenes))[1]
    assert "c gradcam could not be compared with the reference of the same method." in words
    assert "all backends" not in words
    rows[2]["notes"] = ["c has no gradcam"]  # so there is nothing that could have been compared
    assert "could not be compared" not in said(made(rows=rows, scenes=scenes))[1]


def test_comparisons_with_what_knows_nothing_are_counted() -> None:
    def scored(*values: float) -> dict[str, Any]:
        return {"photographs": {"road": score(*values) | {"mean": float(np.mean(values))}}}

    high, low = [0.9 + 0.001 * n for n in range(20)], [0.1 + 0.001 * (n % 7) for n in range(20)]
    rows = [
        line("explainer", "a", "gradcam", latency=[], scores=scored(*high)),
        line("control", "control", "random", latency=[], scores=scored(*low)),
    ]
    words = said(made(rows=rows, agreement={}))[1]
    assert (
        "Compared with maps that know nothing of the model: better in road on photographs (a gradcam)."
        in words
    )
    assert "nothing of the model" not in said(made(rows=rows[:1], agreement={}))[1]


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    rows = [
        line("explainer", "a", "gradcam", notes=["no maps of the photographs: out of luck"], failed=True),
        line("explainer", "b", "odd", latency=[], scores={}, notes=["b has no odd"]),
        line("explainer", "c", "gradcam", notes=["the reference"]),
    ]
    shapes = [
        {"name": "photographs", "images": 2, "with_truth": 0, "failures": ["bad.png is no picture"]},
        {"name": "shapes", "images": 2, "with_truth": 2},
    ]
    found = made(rows=rows, scenes=shapes)
    found["settings"]["quick"] = True
    lines = conclusion(results.read(found)).missing
    assert lines[:3] == [
        "a gradcam: no maps of the photographs: out of luck",
        "b odd: b has no odd",
        "1 photograph could not be used: bad.png is no picture",
    ]
    assert lines[3].startswith("A quick run leaves out mosaics and the metrics ") and "road" not in lines[3]
    assert "--truth" in lines[4] and len(lines) == 5
    found["settings"]["metrics"] = ["latency", "road"]
    assert "Only what was asked for was measured: latency, road." in conclusion(results.read(found)).missing


# --- maps side by side ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Six inputs of a small model with two classes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
        inputs = torch.randn(6, 3, 16, 16)
    model = LoadedModel(net.eval(), ("Übergröße", "三花猫"), Preprocess(size=(16, 16)), name="m")
    targets = net(inputs).argmax(1)
    net.requires_grad_(False)
    titles, names = tuple(f"{n}.png" for n in range(6)), tuple(model.classes[t] for t in targets.tolist())
    return Scene("photographs", model, "0", inputs, targets, titles, names)


def test_the_maps_of_one_method_share_the_scale_of_their_reference(scene: Scene) -> None:
    base = torch.linspace(-0.5, 1, 36).reshape(1, 6, 6).expand(6, 6, 6)
    maps = {"a x": base, "b x": 2 * base, "c x": 1000 * base, "d y": 7 * base, "control random": base}
    flat = {"e x": base * 0, "f x": base * torch.nan, "g x": -base.abs()}
    reference_of = {key: "d y" if key == "d y" else "a x" for key in [*maps, *flat]}
    pictures, shown = examples.side_by_side(scene, {**maps, **flat}, reference_of)
    assert [one.title for one in shown] == ["0.png", "1.png", "3.png", "4.png"]
    for one in shown:
        by_row = {map.row: map for map in one.maps}
        assert "control random" not in by_row
        assert [by_row[key].full for key in ("a x", "b x", "c x", "d y")] == [1, 1, 1000, 7]
        assert [by_row[key].remark for key in ("a x", "b x", "d y")] == [""] * 3
        assert by_row["c x"].remark == "on a scale of its own"
        assert by_row["e x"].remark == "all values are equal; on a scale of its own"
        assert by_row["f x"].file is None and "not finite" in by_row["f x"].remark
        assert by_row["g x"].remark == "no value is positive"
        assert {map.file for map in one.maps if map.file} | {one.file} <= pictures.keys()
        names = {map.row: np.asarray(pictures[map.file]) for map in one.maps if map.file}
        assert not np.array_equal(names["a x"], names["b x"])
        assert np.array_equal(names["a x"], names["c x"]) and np.array_equal(names["a x"], names["d y"])
    chances = torch.softmax(scene.module(scene.inputs), 1)
    assert shown[0].probability == pytest.approx(float(chances[0, scene.targets[0]]), abs=1e-6)
    assert shown[0].class_name == scene.model.classes[int(scene.targets[0])]


# --- charts ---------------------------------------------------------------------------------------


def test_a_chart_reaches_below_zero_and_has_its_bands() -> None:
    found = chart("t", "share", {"a": [(0, -1.0), (1, 3.0)]}, {"a": [(0, -2, 0), (1, 2, 4)]}, axis="share")
    assert found is not None and [tick.text for tick in found.up] == ["-2", "0", "2", "4"]
    assert [tick.text for tick in found.across] == ["0%", "25%", "50%", "75%", "100%"]
    height = (found.bottom - found.top) / 6
    assert found.curves["a"].split() == [
        f"{found.left}.0,{found.bottom - height:.1f}",
        f"{found.right}.0,{found.top + height:.1f}",
    ]
    assert len(found.bands["a"].split()) == 4


def test_marks_are_on_a_logarithmic_axis() -> None:
    found = scatter("t", "ms", {"a": (1.0, 0.5), "b": (10.0, 1.0), "c": (100.0, 0.0)}, ["a", "b"])
    a, b, c = found.marks.values()
    assert b.x - a.x == pytest.approx(c.x - b.x, abs=0.2) and b.y < a.y < c.y == found.bottom
    assert found.curves[""] == f"{a.x},{a.y} {b.x},{found.top}.0"
    assert [mark.chosen for mark in found.marks.values()] == [True, True, False]
    assert [tick.text for tick in found.across] == ["1", "10", "100"]
    found = scatter("t", "ms", {"a": (1.0, 0.5), "b": (1.01, 0.5), "c": (9.0, 0.5)}, ["a"])
    assert list(found.marks) == ["a, b", "c"], "none covers another"


def test_samples_are_on_a_strip_with_their_median() -> None:
    found = strips("t", {"a": [1.0, 2.0, 100.0], "b": [1.0, 1.0]})
    assert [row.text for row in found.rows] == ["2", "1"]
    assert found.rows[0].path.count("M") == 3 and found.rows[1].path.count("M") == 1
    assert 0 < found.rows[1].middle < found.rows[0].middle < FINE
    assert [tick.text for tick in found.across] == ["1", "10", "100"]
    assert [tick.text for tick in strips("t", {"a": [20.1, 20.9]}).across] == ["20", "21"]


# --- the page -------------------------------------------------------------------------------------


def whole(folder: Path) -> Path:
    """A page with everything on it, made of a document as a run leaves it."""
    (folder / "examples").mkdir()
    curves = [[0.9, 0.5, 0.1], [0.8, 0.2, 0.0]]
    scores = {
        "photographs": {
            "deletion": score(0.1, 0.9) | {"curves": curves},
            "symmetric-relevance-gain": score(0.2, 0.4),
        }
    }
    explainers = [("native", "gradcam"), ("a-backend-with-a-long-name", "layercam"), ("other", HOSTILE)]
    rows = [
        line("forward", "bare", "forward", latency=[timed(0.01, 0.011)], scores={}),
        *(line("explainer", *names, latency=[timed(0.02, 0.02)], scores=scores) for names in explainers),
        line("control", "control", "random", latency=[], scores=scores),
    ]
    names = [f"{row['backend']} {row['method']}" for row in rows[1:]]
    table = [[None if a == b else 0.9 - 0.5 * (a + b) for b in range(4)] for a in range(4)]
    measures = {name: {"mean": table, "null": [-0.1, 0.0, 0.1]} for name in ("spearman", "ssim")}
    pictures = iter(f"{n}.png" for n in range(99))

    def picture(colour: str) -> str:
        name = next(pictures)
        Image.new("RGB", (64, 64), colour).save(folder / "examples" / name)
        return name

    shown = [
        {
            "title": f"{name}.jpg",
            "class_name": name,
            "probability": 0.5,
            "file": picture("grey"),
            "maps": [
                *({"row": row, "file": picture("orange"), "full": 0.25} for row in names[:2]),
                {"row": names[2], "remark": "not finite, so it is not drawn"},
            ],
        }
        for name in ("Rindfleischetikettierungsüberwachung", "三花猫與很長很長的名字沒有空格的類別")
    ]
    facts = {"direction": "higher", "limit": None, "summary": "what it tells", "paper": "a paper"}
    found = made(
        rows=rows,
        metrics={"deletion": facts, "symmetric-relevance-gain": facts},
        agreement={"photographs": {"names": names, "size": [2, 2], "measures": measures}},
        shown=shown,
        examples=[{"file": picture("red"), "title": "the worst one"}],
        hard_cases=[
            {"method": "gradcam", "case": "plain", "backend": "native", "difference": 0.1}
            | {"error": None, "equal": True}
        ],
    )
    bench_report.write(results.read(found), folder)
    return folder / page_formats.HTML


def test_the_conclusion_comes_first_and_everything_else_can_be_found(tmp_path: Path) -> None:
    page = whole(tmp_path).read_text("utf-8")
    heads = re.findall("<h[12]>(.*?)</h[12]>", page)
    assert heads == [
        "No explainer is clearly the fastest",
        "The same photographs, explained by all",
        "All in one table",
        "Latency and memory",
        "Speed against faithfulness",
        "Better than maps that know nothing?",
        "Parity in hard cases",
        "Agreement: photographs",
        "Scores: photographs",
        "Where explainers disagree most",
        "Environment",
        "Again",
    ]
    assert page.count("data:image/jpeg;base64,") == 6 and page.count("data:image/png;base64,") == 1
    assert "三花猫與很長很長的名字沒有空格的類別 50.0%" in page and "up to 0.25" in page
    assert page.count("<script") == 1 and "alert(1)</script>" not in page
    assert page.count('<figure class="chart') == 3 and page.count('<table class="matrix">') == 2
    told = (tmp_path / page_formats.MARKDOWN).read_text("utf-8")
    assert told.index("No explainer is clearly") < told.index("## All in one table")


def test_a_picture_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="left out of the report") as told:
        found = made(
            shown=[{"title": "t", "class_name": "c", "file": "gone.png", "maps": []}],
            examples=[{"file": "../secret.png", "title": "t"}],
        )
        bench_report.write(results.read(found), tmp_path)
    assert len(told) == 2
    page = (tmp_path / page_formats.HTML).read_text("utf-8")
    assert "explained by all" not in page and "gone.png" in page


def test_a_document_of_old_has_its_report(tmp_path: Path) -> None:
    found = made()
    assert "shown" not in found
    bench_report.write(results.read(found), tmp_path)
    assert "explained by all" not in (tmp_path / page_formats.HTML).read_text("utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (820, "light"), (1440, "light")])
def test_the_page_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    with browser.fine(whole(tmp_path), width, scheme) as shown:
        assert shown.evaluate("() => [...document.images].every((image) => image.naturalWidth > 0)")
        table = shown.locator("table.figures").first
        first = table.locator("tbody th").first
        table.get_by_role("button", name="NOTES").click()
        table.get_by_role("button", name=re.compile(r"^MS\b")).click()
        assert first.inner_text().split()[0] in ("native", "a-backend-with-a-long-name", "other")
        table.get_by_role("button", name=re.compile(r"^MS\b")).click()
        assert first.inner_text().split() == ["bare", "forward"], "what has no time comes last"
        small = shown.evaluate(
            "() => [...document.querySelectorAll('.chart text, .chart th, .matrix td')]"
            ".filter((e) => e.textContent && e.getBoundingClientRect().height < 9).length"
        )
        assert small == 0, "numbers are large enough to be read"
