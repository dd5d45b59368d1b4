"""`camkit bench scoreboard`: cells that are done stay done, one table over them that claims no more."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tests.conftest import runner

from camkit.bench import scoreboard, scoreboard_page, scoreboard_plan, scoreboard_table, statistics
from camkit.bench.metric_choice import chosen
from camkit.bench.results import ENERGY, GAIN, Score
from camkit.bench.scoreboard_plan import CONTROL, USUAL, BoardRequest, Cell, Measured, plan
from camkit.bench.scoreboard_table import Board, board, summaries
from camkit.bench.typed_json import Fault
from camkit.cli import cli
from camkit.errors import OptionError

# How red, green, blue and grey an image is.
MODEL = """
import torch
from torch import nn
from camkit import LoadedModel, Preprocess

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
        with torch.no_grad():
            kernel = torch.tensor([[2.0, -1, -1], [-1, 2.0, -1], [-1, -1, 2.0], [-1.0, -1, -1]])
            self.conv[0].weight.copy_(kernel[:, :, None, None].expand(4, 3, 4, 4))
            self.conv[0].bias.copy_(torch.zeros(4))
    def forward(self, x):
        return self.conv(x).mean((2, 3))

def colours():
    facts = {"name": "colours", "default_layer": "conv", "scores": "softmax"}
    names = ("red", "green", "blue", "grey")
    return LoadedModel(Net().eval(), names, Preprocess(size=(32, 32)), **facts)
"""
COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (0, 0, 0))


@pytest.fixture(autouse=True)
def _photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight photographs of a coloured square in a corner, with masks of it, and a model of colours."""
    monkeypatch.setenv("CAMKIT_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    for folder in ("photos", "masks"):
        Path(folder).mkdir()
    for index in range(8):
        y, x = (4, 12)[index % 2], (4, 12)[index // 4]
        pixels = np.full((32, 32, 3), 110 + index, np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        pixels[y : y + 16, x : x + 16], mask[y : y + 16, x : x + 16] = COLOURS[index % 4], 255
        Image.fromarray(pixels).save(f"photos/{index}.png")
        Image.fromarray(mask).save(f"masks/{index}.png")


def call(*more: str) -> Result:
    """The command on these photographs."""
    words = ["bench", "scoreboard", "photos", "--model", "model.py:colours", "--out", "board", *more]
    return runner().invoke(cli, words)


METHODS = ("--method", "gradcam", "--method", "eigencam")
ALL = (*METHODS, "--truth", "masks")
QUICK = (*ALL, "--metrics", "cost,localisation")
LOCAL = (*ALL, "--metrics", "localisation")


def cells() -> dict[str, int]:
    """The finished cells with the times they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path("board/cells").iterdir()}


def measured(result: Result) -> list[str]:
    """The cells that a command says it measures."""
    return [line for line in result.stderr.splitlines() if "model.py:colours" in line and "/" in line]


def test_all_is_measured_once_and_shown(tmp_path: Path) -> None:
    result = call(*ALL)
    assert result.exit_code == 0, result.stderr
    found = json.loads(Path("board/scoreboard.json").read_text("utf-8"))
    lines = {(line["backend"], line["method"]): line for line in found["lines"]}
    gradcam = lines["native", "gradcam"]
    assert set(gradcam["figures"]) == set(scoreboard_table.COLUMNS) and gradcam["cost"]["ratio"] > 0
    # The square is the only evidence for its colour; the controls know nothing of it.
    assert gradcam["figures"]["ENERGY"]["mean"] > lines["control", "uniform"]["figures"]["ENERGY"]["mean"]
    assert lines["control", "uniform"]["figures"]["GRIDPG"]["mean"] == pytest.approx(0.25)
    assert lines["control", "random"]["cost"] is None and "GAIN" in result.stdout
    before = cells()
    again = call(*ALL)
    assert again.exit_code == 0 and measured(again) == [] and cells() == before
    new = json.loads(Path("board/scoreboard.json").read_text("utf-8"))
    assert new | {"created": ""} == found | {"created": ""}
    page = Path("board/index.html").read_text("utf-8")
    assert "<h1>2 methods on 1 model" in page and "http" not in page.partition("<body")[2]
    assert str(tmp_path) not in page + Path("board/scoreboard.md").read_text("utf-8")


def test_a_command_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = scoreboard_plan.write_cell, 0

    def stopped(path: Path, cell: Measured) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        write(path, cell)

    monkeypatch.setattr(scoreboard, "write_cell", stopped)
    result = call(*QUICK)
    assert result.exit_code == 130 and "the same command goes on" in result.stderr
    first = cells()
    assert len(first) == 3 and all(name.endswith(".json") for name in first)
    monkeypatch.setattr(scoreboard, "write_cell", write)
    shown = call(*QUICK, "--minutes", "0")
    assert shown.exit_code == 3 and "6 cells not measured yet" in shown.stderr and cells() == first
    rest = call(*QUICK)
    assert rest.exit_code == 0 and len(measured(rest)) == 6 and "are of other" not in rest.stderr
    fewer = call(*ALL, "--minutes", "0", "--metrics", "cost")
    assert "7 finished cells in board of other methods, models, photographs" in fewer.stderr
    assert cells() | first == cells() and len(cells()) == 9


def test_costs_of_a_busy_machine_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for load, said in ((0.1, 0), (64.0, 2)):
        monkeypatch.setattr("camkit.bench.environment.conditions", lambda device, load=load: {"load": load})
        result = call(*ALL, "--metrics", "cost", "--out", f"board{load}")
        assert result.stdout.count("the machine was busy when this began, load 64.0") == said


def test_a_cell_of_something_else_is_another_file_and_a_damaged_one_is_none() -> None:
    assert call(*LOCAL).exit_code == 0
    before = cells()
    damaged = Path("board/cells", next(iter(before)))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert len(measured(call(*LOCAL))) == 1
    assert json.loads(damaged.read_text("utf-8"))["request"] == json.loads(whole)["request"]
    for changed, count in ((("--seed", "1"), 7), (("--metrics", "cost", "--batch-size", "2"), 2)):
        assert len(measured(call(*LOCAL, *changed))) == count, changed
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save("masks/0.png")  # another truth
    assert len(measured(call(*LOCAL))) == 7
    model = Path("model.py").read_text()
    Path("model.py").write_text(model.replace("[2.0", "[2.5"))  # other weights under the same name
    assert len(measured(call(*LOCAL))) == 7
    assert len(cells()) == 7 + 7 + 2 + 7 + 7


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("size=(32, 32)", "size=(32, 32), mean=(0.1, 0.1, 0.1)"),
        ('"default_layer": "conv"', '"default_layer": "conv.0"'),
        ('"scores": "softmax"', '"scores": "none"'),
        ("return self.conv(x)", "return 2 * self.conv(x)"),
        ('"red", "green"', '"green", "red"'),
    ],
)
def test_the_same_weights_in_another_model_are_measured_anew(before: str, after: str) -> None:
    asked = ("--method", "gradcam", "--truth", "masks", "--metrics", "localisation")
    assert call(*asked).exit_code == 0
    text = Path("model.py").read_text()
    assert text.count(before) == 1
    Path("model.py").write_text(text.replace(before, after))
    assert measured(call(*asked))
    assert measured(call(*asked)) == []


def test_photographs_under_other_names_have_other_annotations() -> None:
    Path("photos/0.png").rename("photos/00.png")
    assert call(*LOCAL).exit_code == 0
    Path("photos/00.png").rename("photos/0.png")
    assert len(measured(call(*LOCAL))) == 7


def test_what_a_model_cannot_have_costs_its_own_cells_only() -> None:
    result = call("--method", "gradcam", "--method", "legrad", "--metrics", "cost")
    assert result.exit_code == 3 and len(cells()) == 1
    assert "No figures: model.py:colours, cost, native legrad: " in result.stderr
    assert "\n    no attention is seen in the model" in result.stderr, "told when it happens"
    assert "legrad" in Path("board/scoreboard.md").read_text("utf-8")
    alone = call("--method", "legrad", "--metrics", "cost")
    assert alone.exit_code == 1 and alone.stderr.splitlines()[-1].startswith(
        "Error: there is nothing to show"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics", "costs"), "does not measure 'costs'; did you mean 'cost'?"),
        (("--metrics", "localisation"), "localisation needs --truth"),
        (("--method", "gradcamm"), "gradcamm"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], message: str) -> None:
    result = call(*words)
    assert result.exit_code == 2 and message in result.stderr and not Path("board/cells").exists()


# --- the plan ---------------------------------------------------------------------------------------


def test_slow_methods_and_those_that_change_inputs_have_fewer_photographs() -> None:
    request = BoardRequest(("photos",), black_box=5, faithfulness=10)
    assert request.all_methods == (*USUAL, "rise", "sobol", "hsic") and len(USUAL) >= 12
    rows = [("native", "gradcam"), ("native", "rise")]
    counts = {
        (cell.method, cell.group): cell.count for cell in plan(request, "m", rows, 100, request.all_groups)
    }
    assert counts["gradcam", "gridpg"] == 100 and counts["gradcam", "sanity"] == 10
    assert {counts["rise", group] for group in ("cost", "gridpg", "faithfulness", "sanity")} == {5}
    controls = [
        cell for cell in plan(request, "m", rows, 100, request.all_groups) if cell.backend == CONTROL
    ]
    assert {cell.count for cell in controls if cell.group == "faithfulness"} == {5, 10}
    assert request.all_groups == ("cost", "gridpg", "faithfulness", "sanity"), "there is no truth"
    with pytest.raises(OptionError, match="does not measure"):
        _ = dataclasses.replace(request, groups=("latency",)).all_groups


# --- the table --------------------------------------------------------------------------------------


def cell(method: str, values: Any, group: str, metric: str, backend: str = "native") -> Any:
    """A cell and what was measured in it."""
    score = Score(mean=None, low=None, high=None, passed=None, values=list(map(float, values)))
    found = Measured(request={}, scene={}, scores={metric: score}, cost=None, notes=[], environment={})
    found.photographs = [i // 4 for i in range(len(values))] if group == "gridpg" else []
    return Cell("m", backend, method, group, len(values)), found


def made(*found: Any) -> Board:
    """The board of some cells."""
    metrics = chosen(BoardRequest(("photos",), truth="masks").of_model("m")).classes
    return board(dict(found), metrics)


def figures(made: Board, column: str) -> dict[str, Any]:
    """The figures of a column, by method."""
    return {line.method: line.figures[column] for line in made.lines if column in line.figures}


def test_methods_that_cannot_be_told_apart_share_a_rank_and_controls_have_none() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (4, 60))
    rows = {"gradcam": 0.5 + noise[0], "layercam": 0.505 + noise[1], "eigencam": 0.2 + noise[2]}
    blind = cell("random", 0.3 + noise[3], "faithfulness", GAIN, CONTROL)
    found = made(*(cell(name, values, "faithfulness", GAIN) for name, values in rows.items()), blind)
    gain = figures(found, "GAIN")
    assert {name: figure.rank for name, figure in gain.items()} == {
        **{"gradcam": 1, "layercam": 1, "eigencam": 3},
        "random": None,
    }
    assert [gain[name].verdict for name in (*rows, "random")] == ["BETTER", "BETTER", "WORSE", None]
    assert found.intervals == 4 and found.comparisons == 3
    alone = statistics.mean(list(rows["gradcam"]))
    assert alone.low and alone.high and gain["gradcam"].low < alone.low < alone.high < gain["gradcam"].high
    first, *_, last = summaries(found)
    assert first.first == 1 and first.better == 1 and last.pair[1] == "eigencam" and last.worse == 1
    said = " ".join(scoreboard_page.words(found))
    assert "another method surely better than gradcam and layercam" in said and "eigencam (1)" in said


def test_the_tiles_of_a_mosaic_are_one_value_and_equal_values_are_no_proof() -> None:
    blind = np.full(80, 0.25)  # a map that is the same for all classes
    seeing = cell("gradcam", np.tile([0.9, 1.0, 0.95, 0.9], 20) - np.linspace(0, 0.2, 80), "gridpg", ENERGY)
    control = cell("uniform", blind, "gridpg", ENERGY, CONTROL)
    rows = {"eigencam": blind, "activations": blind + np.linspace(0, 1e-7, 80)}
    grid = figures(
        made(seeing, *(cell(n, v, "gridpg", ENERGY) for n, v in rows.items()), control), "GRIDPG"
    )
    assert grid["eigencam"].count == 20 and grid["eigencam"].mean == 0.25
    for name in rows:  # those that differ by rounding, too
        assert grid[name].low < 0.25 < grid[name].high and grid[name].rank == 2
    assert (grid["gradcam"].verdict, grid["eigencam"].verdict) == ("BETTER", "UNCLEAR")
    assert statistics.constant(1.0, 9, (0.0, 1.0)) == statistics.proportion(9, 9)
    assert statistics.constant(1.0, 9).low is None


def test_hits_have_the_exact_interval() -> None:
    none = statistics.proportion(0, 10)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    every = figures(made(cell("gradcam", np.ones(10), "localisation", "pointing-game")), "POINTING")[
        "gradcam"
    ]
    assert (every.low, every.high, every.rank) == (pytest.approx(0.025 ** (1 / 10)), 1.0, 1)


def test_slow_methods_are_compared_with_controls_on_their_own_photographs() -> None:
    rise = cell("rise", np.linspace(0.4, 0.6, 20), "faithfulness", GAIN)
    few = cell("random", np.linspace(0.1, 0.15, 20), "faithfulness", GAIN, CONTROL)
    many = cell("random", np.linspace(0.7, 0.9, 60), "faithfulness", GAIN, CONTROL)
    found = figures(made(rise, few, many), "GAIN")
    assert found["rise"].verdict == "BETTER" and found["random"].count == 60


def test_a_single_photograph_makes_no_method_better() -> None:
    hits, one_less = np.ones(20), np.append(np.ones(19), 0)
    centre = cell("centre", one_less, "localisation", "pointing-game", CONTROL)
    found = figures(made(cell("gradcam", hits, "localisation", "pointing-game"), centre), "POINTING")
    assert found["gradcam"].verdict == "UNCLEAR"


def test_corrected_intervals_hold_at_once() -> None:
    missed = 0
    for seed in range(40):
        values = np.random.default_rng(seed).normal(size=(8, 20))
        spans = [statistics.mean(list(row), level=statistics.corrected(8)) for row in values]
        missed += any(not (span.low or 0) <= 0 <= (span.high or 0) for span in spans)
    assert missed <= 4  # of single intervals, about 13
    assert statistics.corrected(1) == statistics.LEVEL


def test_a_page_shows_what_strangers_wrote_and_does_nothing_that_it_says(tmp_path: Path) -> None:
    found = made(cell("gradcam", np.linspace(0, 1, 20), "faithfulness", GAIN))
    found.lines[0].model = "<script>alert(1)</script>\x1b[2J"
    scoreboard_page.write(found, tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<script>alert" not in page and "\x1b" not in page
    again = scoreboard_table.read(json.loads((tmp_path / "scoreboard.json").read_text("utf-8")))
    assert scoreboard_page.report(again) == scoreboard_page.report(found)
    with pytest.raises(Fault, match="no scoreboard"):
        scoreboard_table.read({"schema": 99})
