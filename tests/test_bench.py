"""`camkit bench`: statistics by hand, rows and notes, comparisons, reports that run nothing."""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from scipy.stats import ttest_ind
from tests.conftest import runner

from camkit.bench import (
    bench_json,
    bench_report,
    compare,
    conditions,
    environment,
    latency,
    metric_choice,
    page_formats,
    request,
    results,
    shapes,
    significance,
    statistics,
    survey,
    timing,
    typed_json,
)
from camkit.bench import runner as run
from camkit.bench.entrants import Entrant
from camkit.bench.latency import Measured
from camkit.bench.request import BenchRequest
from camkit.bench.results import Against, Document, Median
from camkit.bench.scenes import Scene
from camkit.bench.timing import Cold, Rounds, Sample, Timed
from camkit.cli import cli
from camkit.cli.bench import bench as bench_command
from camkit.cli.model_options import OPTIONS as FACTS
from camkit.errors import AmbiguousPlugin, CamkitError, OptionError, PluginError, UsageError
from camkit.metrics.controls import CONTROLS
from camkit.registry import discovery, loading

# A model source whose model is small and whose classes have odd names, and explainers that go wrong.
SITE = """
import multiprocessing
import os
import torch
from torch import nn
from camkit import Explainer, LoadedModel, Metric, ModelSource, Preprocess, Scores

class Toy(ModelSource):
    summary = "for tests"
    def load(self, reference, *, device, trust):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = nn.Sequential()
            net.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
            net.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Tanh())
            net.pool = nn.AdaptiveAvgPool2d(1)
            net.flat = nn.Flatten()
            net.fc = nn.Linear(8, 3)
        names = ("<script>alert(1)</script>", "a|b", "`c`")
        if reference in ("colours", "fixed"):
            net, names = Colours(reference == "fixed"), ("red", "green", "blue", "grey")
        shown, output = Preprocess(size=(32, 32)), None
        if reference == "grey":
            net.stem[0] = nn.Conv2d(1, 6, 3, stride=2, padding=1)
            shown = Preprocess(size=(32, 32), mean=(0.45,), std=(0.23,))
        if reference == "table":
            net, output = Table(net), "logits"
        name = f"toy:{reference}"
        return LoadedModel(net.eval(), names, shown, name=name, output=output)

class Table(nn.Module):
    # Returns its scores beside others, as networks of Hugging Face do.
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x):
        return {"loss": x.mean(), "logits": self.net(x)}

class Colours(nn.Module):
    # How red, green, blue and grey an image is, of one size only if it is fixed.
    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        with torch.no_grad():
            kernel = torch.tensor([[2.0, -1, -1], [-1, 2.0, -1], [-1, -1, 2.0], [-1.0, -1, -1]])
            self.conv.weight.copy_(kernel[:, :, None, None].expand(4, 3, 4, 4))
            self.conv.bias.copy_(torch.tensor([0.0, 0, 0, 20]))
    def forward(self, x):
        assert not self.fixed or x.shape[-1] == 32, "32 pixels only"
        return self.conv(x).relu().mean((2, 3))

class InPlace(Explainer):
    summary = "as careless as some libraries are"
    methods = ("gradcam",)
    def maps(self, query):
        kept = []
        hook = query.module.get_submodule(query.layer).register_forward_hook(lambda *a: kept.append(a[2]))
        try:
            with torch.enable_grad():
                scores = query.module(query.inputs)
                score = scores.gather(1, query.targets[:, None]).sum()
                gradient = torch.autograd.grad(score, kept[0])[0]
        finally:
            hook.remove()
        kept = kept[0].detach()
        return (kept * gradient.mean((2, 3), keepdim=True)).sum(1)

class Raises(Explainer):
    summary = "always fails"
    methods = ("gradcam",)
    def maps(self, query):
        raise RuntimeError("<b>out of luck</b>\\nand more")

class Own(Explainer):
    summary = "maps of its own"
    methods = ("gradcam", "owncam")
    def maps(self, query):
        return query.inputs.mean(1)[:, ::4, ::4]

class Slow(Own):
    summary = "for small batches only"
    methods = ("gradcam", "slowcam")
    def maps(self, query):
        if len(query.inputs) > 2:
            raise RuntimeError("too many")
        return super().maps(query)

class Dies(Own):
    summary = "takes down every process but the first"
    def maps(self, query):
        if multiprocessing.parent_process():
            os._exit(1)
        return super().maps(query)

class Strange(Metric):
    summary = "always fails"
    direction = "higher"
    range = (0.0, 1.0)
    def score(self, batch):
        raise ValueError("no idea")

class Count(Metric):
    summary = "how many values a map has"
    category = "size"
    direction = "higher"
    range = (0.0, 1e9)
    def score(self, batch):
        return Scores(torch.full((len(batch.maps),), float(batch.maps[0].numel())))

class Even(Count):
    summary = "whether that is even"
    category = "complexity"
    def score(self, batch):
        return Scores(1 - super().score(batch).values % 2)
"""
ENTRIES = """
[camkit.models]
toy = camkit_toy:Toy
[camkit.explainers]
raises = camkit_toy:Raises
own = camkit_toy:Own
slow = camkit_toy:Slow
inplace = camkit_toy:InPlace
gone = camkit_nowhere:Gone
[camkit.metrics]
count = camkit_toy:Count
even = camkit_toy:Even
"""
ODD_ENTRIES = """
[camkit.explainers]
dies = camkit_toy:Dies
[camkit.metrics]
strange = camkit_toy:Strange
lost = camkit_nowhere:Lost
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with all that."""
    folder = tmp_path_factory.mktemp("site")
    for name, entries in (("toy", ENTRIES), ("odd", ODD_ENTRIES)):
        info = folder / f"camkit_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: camkit-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
    (folder / "camkit_toy.py").write_text(SITE)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _trained_once() -> Iterator[None]:
    """The network of the drawn shapes is the same in all tests."""
    train = cache(shapes.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "train", lambda *seed, **more: deepcopy(train(*seed, **more)))
        yield


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plugins that go wrong."""
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-toy,camkit-odd")


@pytest.fixture(autouse=True)
def _here(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with these plugins only."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-toy,camkit-other")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def photo(name: str, seed: int = 0) -> str:
    """A picture of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((48, 40)).save(name)
    return name


def toy(**given: Any) -> dict[str, Any]:
    """The document of a run on two photographs, with few rounds."""
    images = (photo("p/a.png"), photo("p/b.png", 1))
    settings = {"model": "toy:net", "backends": ("native",), "images": images, "rounds": 5, "quick": True}
    document = run.run(BenchRequest(**(settings | {"batch_sizes": (1,)} | given))).document
    found: dict[str, Any] = json.loads(bench_json.as_json(document))
    return found


def loaded(folder: Path) -> dict[str, Any]:
    """What the file in a folder holds."""
    found: dict[str, Any] = json.loads((folder / "bench.json").read_text("utf-8"))
    return found


def written(folder: str, found: dict[str, Any]) -> None:
    """The file with that, in a folder."""
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "bench.json").write_text(json.dumps(found), "utf-8")


NO_INTERVAL = {"low": None, "high": None}


def document(**parts: Any) -> Document:
    """A document with these parts; of rows, records and scores what is missing is filled in."""
    parts["rows"] = [whole_row(**row) for row in parts.get("rows", [])]
    settings = {"model": "m", "layer": "l", "dtype": "float32"}
    empty: dict[str, Any] = {"command": "", "settings": settings, "environment": {}, "conditions": {}}
    empty |= {"scenes": [], "metrics": {}, "agreement": {}, "examples": []}
    return results.read(empty | parts)


def whole_row(**row: Any) -> dict[str, Any]:
    scores = {
        scene: {metric: whole_score(**score) for metric, score in found.items()}
        for scene, found in row.pop("scores", {}).items()
    }
    latency = [whole_record(**record) for record in row.pop("latency", [])]
    return {"kind": "explainer", "parity": None, "notes": [], "latency": latency, "scores": scores, **row}


def whole_record(**record: Any) -> dict[str, Any]:
    found = {"seconds": {"median": 1.0}, "ratio": None, "against": None, "images_per_second": 1.0}
    found |= {"memory": {}, "samples": {"host": []}, **record}
    for key in ("seconds", "ratio"):
        found[key] = found[key] and {**NO_INTERVAL, **found[key]}
    return found


def whole_score(**score: Any) -> dict[str, Any]:
    return {**NO_INTERVAL, "passed": None, "values": [], **score}


def markdown(found: Document) -> str:
    """The report of a document without pictures."""
    return "".join(page_formats.render(page_formats.MARKDOWN, bench_report.report(found, Path())))


def html(found: Document, folder: Path) -> str:
    """The report of a document in a folder."""
    return "".join(page_formats.render(page_formats.HTML, bench_report.report(found, folder)))


def row(found: dict[str, Any], backend: str, method: str = "gradcam") -> dict[str, Any]:
    """One row of a document."""
    (it,) = [r for r in found["rows"] if (r["backend"], r["method"]) == (backend, method)]
    return dict(it)


# --- statistics -------------------------------------------------------------------------------------


def test_a_median_of_equal_samples_has_an_interval_of_no_width() -> None:
    assert statistics.median([2.0] * 6) == statistics.Estimate(2.0, 2.0, 2.0)
    assert statistics.mean([2.0] * 6) == statistics.Estimate(2.0, 2.0, 2.0)


def test_an_estimate_suits_the_values() -> None:
    """Hits: Clopper and Pearson. Limits that a value is beyond, as of scores without any, are none."""
    hits = statistics.estimate([1.0] * 8, limits=(0.0, 1.0))
    assert hits.low == pytest.approx(0.631, abs=1e-3) and hits.high == 1.0
    some = statistics.estimate([1.0] * 5 + [0.0] * 3, limits=(0.0, 1.0))
    assert (some.low, some.high) == pytest.approx((0.245, 0.915), abs=1e-3)
    values = [5.0, 7.0, 4.0, 6.0, 5.5, 0.5]
    wide = statistics.estimate(values, limits=(-1.0, 1.0))
    assert wide == statistics.mean(values) and wide.high is not None and wide.high > 7
    assert statistics.estimate([5.0] * 8, limits=(-1.0, 1.0)) == statistics.Estimate(5.0)


def test_an_interval_needs_six_samples() -> None:
    assert statistics.median([1.0, 2.0, 9.0, 3.0]) == statistics.Estimate(2.5)
    assert statistics.mean([1.0, 2.0, 9.0, 4.0]) == statistics.Estimate(4.0)
    assert statistics.median([5.0, 1, 2, 9, 3, 7]) == statistics.Estimate(4.0, 1.0, 9.0), (
        "missed with 2 of 64"
    )
    assert statistics.mean_p([1.0, 2.0, 1.0, 2.0, 1.0]) == 1


def test_an_interval_holds_the_middle_and_narrows_with_samples() -> None:
    random = np.random.default_rng(0)
    few, many = (statistics.median(random.normal(10, 1, n).tolist()) for n in (20, 2000))
    for found in (few, many):
        assert found.low is not None and found.high is not None
        assert found.low < found.middle < found.high
    assert many.high - many.low < (few.high - few.low) / 4  # type: ignore[operator]


def test_an_interval_stays_within_what_a_value_can_be() -> None:
    """Most of what is drawn from such values is equal: only the limits say how far the mean may lie."""
    values = [1.0] * 9 + [0.0]
    assert statistics.mean(values) == statistics.Estimate(0.9), "without limits there is no interval"
    found = statistics.mean(values, limits=(0.0, 1.0))
    assert found.low is not None and 0 <= found.low < 0.9 and found.high == 1.0


def test_a_paired_ratio_does_not_mind_a_machine_that_slows_down() -> None:
    bare = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert statistics.paired([3 * s for s in bare], bare) == statistics.Estimate(3.0, 3.0, 3.0)


def test_the_interval_over_processes_is_that_of_t_on_the_logarithms() -> None:
    found = statistics.over_processes([1.0, 2.0, 4.0]).interval()
    wide = np.exp(4.302653 * np.log(2) / np.sqrt(3))  # t of two degrees of freedom, 97.5 %
    assert [found.middle, found.low, found.high] == pytest.approx([2.0, 2 / wide, 2 * wide])
    assert statistics.over_processes([3.0]).interval() == statistics.Estimate(pytest.approx(3.0))


def test_a_change_is_that_of_welch() -> None:
    before, after = [1.0, 1.1, 1.2], [1.5, 1.8, 1.6, 1.7]
    expected = ttest_ind(np.log(after), np.log(before), equal_var=False).confidence_interval(0.95)
    found = statistics.change(before, after).interval()
    assert [found.low, found.high] == pytest.approx(np.exp([expected.low, expected.high]).tolist())


def test_one_process_has_no_spread_and_nothing_is_clear() -> None:
    for pair in (([1.0], [100.0, 101.0]), ([1.0, 1.1], [100.0])):
        ((ratio, verdict),) = statistics.verdicts([statistics.change(*pair)])
        assert verdict == "UNCLEAR" and ratio.low is None and ratio.middle > 90


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0] and statistics.holm([]) == []


def spread(low: float, high: float) -> statistics.Spread:
    """Of a ratio whose 95 % interval, if it is the only one, is this."""
    middle, half = (np.log(high) + np.log(low)) / 2, (np.log(high) - np.log(low)) / 2
    return statistics.Spread(middle, half / 1.959964, 1e9)


def test_the_more_rows_the_wider_the_intervals() -> None:
    clear, unclear = spread(1.01, 1.2), spread(0.99, 1.1)
    for count, verdict in ((0, "SLOWER"), (1, "UNCLEAR"), (9, "UNCLEAR")):
        found = statistics.verdicts([unclear] * count + [clear], 0.0)
        assert [one for _, one in found] == ["UNCLEAR"] * count + [verdict]
        low = found[-1][0].low
        assert low is not None and (low > 1) is (verdict == "SLOWER"), "it says what the verdict says"
    sure = spread(1.1, 1.2)
    alone, (first, second) = statistics.verdicts([clear]), statistics.verdicts([sure, clear])
    assert first[1] == second[1] == "SLOWER" and second == alone[0], "the next has one row less beside it"
    assert statistics.verdicts([sure])[0][0].low > first[0].low  # type: ignore[operator]


@pytest.mark.parametrize(("percent", "least"), [(50, 1), (90, 64), (99, 662)])
def test_a_percentile_is_told_only_of_enough_samples(percent: int, least: int) -> None:
    values = [float(n) for n in range(least)]
    assert statistics.percentile(values, percent) == pytest.approx(percent / 100 * (least - 1))
    if least > 1:
        assert statistics.percentile(values[1:], percent) is None


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "verdict"),
    [
        (0.8, 0.9, 0.0, "FASTER"),
        (1.1, 1.2, 0.0, "SLOWER"),
        (0.9, 1.1, 0.0, "UNCLEAR"),
        (0.999, 1.2, 0.0, "UNCLEAR"),
        (0.97, 1.04, 0.05, "SAME"),
        (1.01, 1.04, 0.05, "SAME"),
        (1.01, 1.06, 0.05, "UNCLEAR"),
        (1.06, 1.20, 0.05, "SLOWER"),
        (0.94, 0.99, 0.05, "UNCLEAR"),
        (0.80, 0.94, 0.05, "FASTER"),
        (0.9, 1.01, 0.05, "UNCLEAR"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_the_tolerance(
    low: float, high: float, tolerance: float, verdict: str
) -> None:
    ((ratio, found),) = statistics.verdicts([spread(low, high)], tolerance)
    assert found == verdict and [ratio.low, ratio.high] == pytest.approx([low, high], rel=1e-3)


# --- simulations in which the truth is known --------------------------------------------------------

RUNS = 2000  # false verdicts of 5 % are found to within 0.5 %
MOST = 0.06
Draw = Callable[[np.random.Generator, tuple[int, int]], Any]
# Differences whose mean is 0: even, skewed, of two kinds of scores, with a hump at one end.
DIFFERENCES: dict[str, Draw] = {
    "normal": lambda random, size: random.normal(size=size),
    "skewed": lambda random, size: random.exponential(size=size) - 1,
    "bounded": lambda random, size: random.beta(0.5, 2, size) - 0.2,
    "of scores": lambda random, size: random.beta(0.6, 0.2, size) - random.beta(6, 2, size),
    "hits and misses": lambda random, size: random.choice([-1.0, 0.0, 1.0], size, p=[0.2, 0.6, 0.2]),
}


def drawn(name: str, count: int) -> Any:
    """`[RUNS, count]` of these differences."""
    return DIFFERENCES[name](np.random.default_rng(count), (RUNS, count))


def false_ps(samples: Any) -> float:
    """How often samples whose mean is 0 are called better or worse."""
    return float(np.mean([statistics.mean_p(part) <= 0.05 for part in np.split(samples, 8)]))


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_false_verdicts_on_means_are_at_most_six_in_a_hundred(name: str, count: int) -> None:
    assert false_ps(drawn(name, count)) <= MOST


@pytest.mark.parametrize("name", ["skewed", "of scores"])
def test_the_percentile_bootstrap_would_not_hold_that(name: str) -> None:
    """The method of old, so that the simulation is known to see what it is for."""
    samples = drawn(name, 8)
    draws = np.random.default_rng(0).multinomial(8, [1 / 8] * 8, 999) / 8
    low, high = np.quantile(samples @ draws.T, [0.025, 0.975], axis=1)
    assert np.mean((low > 0) | (high < 0)) > 2 * MOST


@pytest.mark.parametrize("name", DIFFERENCES)
def test_intervals_of_means_hold_the_truth(name: str) -> None:
    found = [statistics.mean(sample.tolist(), limits=(-99.0, 99.0)) for sample in drawn(name, 8)[:1000]]
    missed = [one.low is None or one.high is None or not one.low <= 0 <= one.high for one in found]
    assert np.mean(missed) <= MOST + 0.01  # of a thousand only


def test_what_is_better_is_seen() -> None:
    samples = np.random.default_rng(0).normal(1.0, 0.5, (200, 8))
    assert np.mean(statistics.mean_p(samples) <= 0.05) > 0.9


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(
    ("truth", "right"), [(1.0, "SAME"), (1.04, "SAME"), (0.96, "SAME"), (1.06, "SLOWER"), (0.94, "FASTER")]
)
@pytest.mark.parametrize("count", [3, 8])
def test_verdicts_on_rows_are_wrong_in_at_most_six_of_a_hundred_runs(
    truth: float, right: str, count: int, rows: int
) -> None:
    """Processes differ by 3 %, and all rows of a run count as one."""
    random = np.random.default_rng(1)
    wrong, runs = 0, 400
    for _ in range(runs):
        before, after = (np.exp(random.normal(0, 0.03, (rows, count))) for _ in range(2))
        found = statistics.verdicts(list(map(statistics.change, before, truth * after)), 0.05)
        wrong += any(verdict not in (right, "UNCLEAR") for _, verdict in found)
    assert wrong / runs <= MOST - 0.02, "so few that it is no luck"


@pytest.mark.parametrize(
    ("truth", "right"), [(1.0, "SAME"), (1.1, "SLOWER"), (0.9, "FASTER"), (1.05, "UNCLEAR")]
)
def test_processes_that_differ_little_make_it_clear(truth: float, right: str) -> None:
    random = np.random.default_rng(2)
    logs = random.normal(0, 0.003, (2, 100, 6, 3))
    before, after = np.exp(logs[0]), truth * np.exp(logs[1])
    found = [
        verdict
        for old, new in zip(before, after, strict=True)
        for _, verdict in statistics.verdicts(list(map(statistics.change, old, new)), 0.05)
    ]
    assert found.count(right) > 0.9 * len(found)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (4.0, 0.9), (1.0, 0.5)]
    assert statistics.pareto(points) == [1, 3, 0]


# --- timing -----------------------------------------------------------------------------------------


class Machine:
    """A clock that goes on by what each call says it takes, and keeps the order of calls."""

    def __init__(self) -> None:
        self.time = 0.0
        self.calls: list[str] = []

    def call(self, name: str, seconds: float, fails_at: int | None = None) -> Callable[[], float]:
        """A call that takes `seconds`."""

        def it() -> float:
            if self.calls.count(name) == fails_at:
                raise RuntimeError("broken")
            self.calls.append(name)
            self.time += seconds
            return seconds

        return it

    def timed(self, call: Callable[[], Any]) -> Sample:
        """How long a call takes."""
        start = self.time
        call()
        return Sample(self.time - start)


def interleaved(machine: Machine, calls: dict[str, Any], rounds: Rounds) -> dict[str, Timed]:
    """Timed by that machine."""
    return timing.interleaved(calls, machine.timed, rounds, seed=0, now=lambda: machine.time)


def test_every_round_calls_everything_once_in_changing_order() -> None:
    machine = Machine()
    calls = {name: machine.call(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    found = interleaved(machine, calls, Rounds(warmup=2, least=10, most=10))
    rounds = [machine.calls[i : i + 3] for i in range(0, len(machine.calls), 3)]
    assert len(rounds) == 2 + 10
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 2
    assert {name: set(timed.host) for name, timed in found.items()} == {"a": {1.0}, "b": {2.0}, "c": {3.0}}
    assert all(len(timed.samples) == 10 for timed in found.values())


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 5), (50.0, 50 - 2), (1e9, 64)])
def test_time_decides_on_the_number_of_rounds_within_limits(seconds: float, count: int) -> None:
    machine = Machine()
    rounds = Rounds(warmup=2, least=5, most=64, seconds=seconds)
    found = interleaved(machine, {"a": machine.call("a", 1.0)}, rounds)
    assert len(found["a"].samples) == count


def test_a_call_that_fails_is_left_out_from_then_on() -> None:
    machine = Machine()
    calls = {"good": machine.call("good", 1.0), "bad": machine.call("bad", 1.0, fails_at=3)}
    found = interleaved(machine, calls, Rounds(warmup=1, least=6, most=6))
    assert len(found["good"].samples) == 6 and found["good"].error is None
    assert len(found["bad"].samples) == 2 and str(found["bad"].error) == "broken"


@pytest.mark.parametrize(("kernels", "bound"), [(0.9, False), (0.2, True), (None, None)])
def test_launch_bound_is_a_call_in_which_the_device_mostly_waits(
    kernels: float | None, bound: bool | None
) -> None:
    assert timing.launch_bound(kernels, 1.0) is bound


def test_a_latency_record_by_hand() -> None:
    own, bare, other = ([Measured([Sample(s)] * 6, Cold(9.0), {"resident": 1})] for s in (0.3, 0.1, 0.2))
    found = latency.latency_record(4, own, bare, other)
    assert found.ratio and found.against
    assert found.seconds == Median(0.3, 0.3, 0.3)
    assert found.ratio.median == pytest.approx(3.0)
    assert found.against.median == pytest.approx(1.5), "of one process"
    assert found.against.verdict == "UNCLEAR", "and so without a verdict"
    assert found.images_per_second == pytest.approx(4 / 0.3) and found.cold == 9.0
    assert found.p90 is None and found.samples.host == [0.3] * 6
    assert found.samples.process == [0] * 6 and found.memory == {"resident": 1}


def test_figures_of_several_processes_are_those_of_their_medians() -> None:
    own = [Measured([Sample(s), Sample(s), Sample(9.0)]) for s in (1.0, 2.0, 4.0)]
    bare = [Measured([Sample(s)] * 3) for s in (0.5, 1.0, 2.0)]
    found = latency.latency_record(1, own, bare, None)
    assert found.ratio and found.seconds.low is not None and found.seconds.high is not None
    assert found.seconds.median == pytest.approx(2.0), "the geometric mean"
    assert found.seconds.low < 1 and found.seconds.high > 4
    assert list(vars(found.ratio).values()) == pytest.approx([2.0, 2.0, 2.0]), "of each process"
    assert found.samples.process == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.samples.by_process() == {0: [1, 1, 9], 1: [2, 2, 9], 2: [4, 4, 9]}


def test_verdicts_against_the_reference_are_of_all_rows_at_once() -> None:
    rows = [
        Entrant("forward", *results.FORWARD),
        *(
            Entrant(kind="explainer", backend=name, method="gradcam")
            for name in ("native", "slow", "alike", "broken")
        ),
    ]
    seconds = {"bare forward": 1.0, "native gradcam": 2.0, "slow gradcam": 3.0, "alike gradcam": 2.0}
    jitter = np.random.default_rng(0).normal(1, 0.01, (3, len(seconds)))
    found = [
        {
            **{
                (key, 1): Measured([Sample(value * own)] * 5)
                for (key, value), own in zip(seconds.items(), of, strict=True)
            },
            ("broken gradcam", 1): Measured([], error="no luck" if number == 1 else None),
        }
        for number, of in enumerate(jitter)
    ]
    latency.add_records(rows, {one.key: "native gradcam" for one in rows[1:]}, found)
    none, nothing, slower, unclear = [one.latency[0].against for one in rows[:4]]
    assert none is nothing is None
    assert isinstance(slower, Against) and isinstance(unclear, Against)
    assert (slower.verdict, unclear.verdict) == ("SLOWER", "UNCLEAR")
    assert slower.low and slower.low > 1 and unclear.low and unclear.high
    assert unclear.low < 1 < unclear.high
    assert rows[4].notes == ["batch of 1: no luck"] and not rows[4].latency


@pytest.mark.parametrize(
    ("cold", "seconds", "compiling"),
    [(None, None, None), (Cold(9.0), 9.0, None), (Cold(9.0, True), 9.0, 8.0), (Cold(0.5, True), 0.5, 0.0)],
)
def test_compiling_is_what_the_first_call_took_beyond_a_usual_one(
    cold: Cold | None, seconds: float | None, compiling: float | None
) -> None:
    usual = [Measured([Sample(1.0)] * 5, cold)]
    found = latency.latency_record(1, usual, usual, None)
    assert (found.cold, found.compile) == (seconds, compiling)


def test_a_first_call_is_one_call_and_one_that_fails_is_none() -> None:
    machine = Machine()
    assert timing.cold(machine.call("a", 3.0), machine.timed) == Cold(3.0)
    assert machine.calls == ["a"]
    assert timing.cold(machine.call("b", 1.0, fails_at=0), machine.timed) is None


def test_a_first_call_sees_whether_the_compiler_ran() -> None:
    # Only the tracing part of it: no compiler for C is needed.
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    timer = timing.timer(torch.device("cpu"))
    first, second = (timing.cold(lambda: compiled(torch.ones(2)), timer) for _ in range(2))
    assert first and second and first.compiled and not second.compiled


def test_peak_memory_sees_what_a_call_takes() -> None:
    device = torch.device("cpu")
    found = timing.peak_memory(lambda: torch.ones(64, 2**20).sum(), device)
    if not found:
        pytest.skip("the peak of resident memory cannot be read here")
    assert 200 * 2**20 < found["resident"] < 400 * 2**20
    assert timing.peak_memory(lambda: None, device)["resident"] < 50 * 2**20


# --- the environment --------------------------------------------------------------------------------


def test_the_environment_tells_machine_and_versions_but_not_who_or_where() -> None:
    found = environment.environment(torch.device("cpu"), torch.float32, ["click", "no-such-package"])
    found["conditions"] = environment.conditions(torch.device("cpu"))
    assert found["threads"] == 1 and found["cores"] >= 1 and found["dtype"] == "float32"
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "click" in found["versions"] and "no-such-package" not in found["versions"]
    text = json.dumps(found)
    for private in (getpass.getuser(), platform.node(), str(Path.home()), str(Path.cwd())):
        assert not re.search(rf"\b{re.escape(private)}\b", text) or private in ("root", "")
    assert "/" not in text.replace("[ms]/", "")


def test_sources_that_are_not_under_git_have_no_state(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    assert environment.git_state(tmp_path) is None


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (
            "550.54, 1980, 1980, 0x0000000000000000, 35\n",
            {
                "driver": "550.54",
                "clock_mhz": "1980",
                "clock_max_mhz": "1980",
                "throttle_reasons": "0x0000000000000000",
                "celsius": "35",
            },
        ),
        (
            "550.54, 1980, [N/A], [Not Supported], 35",
            {"driver": "550.54", "clock_mhz": "1980", "celsius": "35"},
        ),
        ("No devices were found", {}),
        ("", {}),
    ],
)
def test_what_the_tool_of_a_gpu_tells(told: str, found: dict[str, str]) -> None:
    assert environment.parsed_gpu_facts(told) == found


# --- conditions -------------------------------------------------------------------------------------

VALUES = {"native.gradcam.ratio": 1.3, "pytorch_grad_cam.gradcampp.ms": 20.0, "a.b.c": None}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("native.gradcam.ratio > 1.2", True),
        ("native.gradcam.ratio > 1.3", False),
        ("1.2 < native.gradcam.ratio <= 1.3", True),
        ("1.2 < native.gradcam.ratio < 1.3", False),
        ("native.gradcam.ratio != 1.3 or pytorch_grad_cam.gradcampp.ms >= 20", True),
        ("native.gradcam.ratio == 1.3 and pytorch_grad_cam.gradcampp.ms < 20", False),
        ("native.gradcam.ratio > -1", True),
        (" (native.gradcam.ratio > 2) or (native.gradcam.ratio < 1.5 and 1 < 2) ", True),
    ],
)
def test_a_condition_by_hand(text: str, holds: bool) -> None:
    condition = conditions.parse(text)
    condition.check(VALUES)
    assert condition.holds(VALUES) is holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2",
        "native.gradcam.ratio",
        "ratio > 1",
        "a.b > 1",
        "a.b.c.d > 1",
        "native.gradcam.ratio > '1'",
        "native.gradcam.ratio > True",
        "not native.gradcam.ratio > 1",
        "native.gradcam.ratio in (1, 2)",
        "native.gradcam.ratio is 1",
        "native.gradcam.ratio + 1 > 2",
        "native.gradcam.ratio > 9 ** 9 ** 9",
        "__import__('os').system('touch hacked')",
        "__import__('os').system('touch hacked') > 1",
        "().__class__.__bases__ > 1",
        "[x for x in (1,)] > 1",
        "(lambda: 1)() > 0",
        "native.gradcam.ratio > 1; import os",
        "native.gradcam.ratio := 1",
        "native.gradcam.ratio > 1\nor 1 < 2",
        "native[0].gradcam > 1",
        "f'{1}' > 1",
        "a.b.c > 1j",
        "(" * 500 + "1 < 2" + ")" * 500,
        "1 < 2 or " * 200 + "1 < 2",
        "a.b.c > 1\0",
    ],
)
def test_nothing_else_is_a_condition(text: str) -> None:
    with pytest.raises(OptionError, match="--fail-if"):
        conditions.parse(text)
    assert not Path("hacked").exists()


def test_a_condition_on_what_does_not_exist_or_was_not_measured_is_no_pass() -> None:
    with pytest.raises(OptionError, match=r"'native.gradcam.ration'.*'native.gradcam.ratio'"):
        conditions.parse("native.gradcam.ration > 1").check(VALUES)
    with pytest.raises(CamkitError, match=r"a\.b\.c .*measured"):
        conditions.parse("native.gradcam.ratio > 9 or a.b.c > 1").holds(VALUES)


@pytest.mark.parametrize(
    ("name", "slug"), [("pytorch-grad-cam", "pytorch_grad_cam"), ("gradcam++", "gradcampp")]
)
def test_names_in_conditions(name: str, slug: str) -> None:
    assert bench_json.slug(name) == slug


# --- a run ------------------------------------------------------------------------------------------


def test_maps_of_the_same_method_are_compared_with_the_reference_before_they_are_timed(
    other_backend: str,
) -> None:
    same = toy(backends=("native", other_backend), metrics=("latency",))
    assert row(same, "other")["parity"] < 1e-4 and row(same, "other")["notes"] == []
    assert row(same, "native")["parity"] is None
    wrong = row(
        toy(backends=(other_backend, "native"), options={"size": "2"}, metrics=("latency",)), "other"
    )
    assert wrong["parity"] > 0.1
    assert wrong["notes"] == [
        "its maps of the photographs differ from those of native gradcam by "
        f"{wrong['parity']:.1e} of the peak"
    ]


def test_models_whose_scores_are_taken_out_and_models_of_one_channel(other_backend: str) -> None:
    """Each is measured as the network itself; the bare forward and the metrics see its scores."""
    asked: dict[str, Any] = {
        "backends": ("native", other_backend),
        "metrics": ("latency", "agreement", "symmetric-relevance-gain", "sanity-cascading"),
    }
    plain, table, grey = (toy(model=f"toy:{name}", **asked) for name in ("net", "table", "grey"))
    assert [found["settings"]["layer"] for found in (plain, table, grey)] == ["body", "net.body", "body"]
    for found in (plain, table, grey):
        assert row(found, "native")["notes"] == ["the reference"] and row(found, "other")["notes"] == []
        assert row(found, "bare", "forward")["latency"] and row(found, "other")["latency"]
    scores = [row(found, "other")["scores"]["photographs"] for found in (plain, table)]
    assert scores[0].keys() == scores[1].keys() and len(scores[0]) == 3
    for name, score in scores[0].items():
        assert scores[1][name]["values"] == pytest.approx(score["values"], abs=1e-5)


def test_who_fails_costs_its_own_cells_only() -> None:
    found = toy(backends=(), methods=("gradcam", "slowcam"), metrics=("latency", "agreement", "gini"))
    keys = [(r["kind"], r["backend"], r["method"]) for r in found["rows"]]
    assert keys[:3] == [
        ("forward", "bare", "forward"),
        ("explainer", "native", "gradcam"),
        ("explainer", "native", "slowcam"),
    ]
    assert [method for kind, _, method in keys if kind == "control"] == [
        "random",
        "centre",
        "uniform",
        "edges",
        "blurred",
    ]
    assert row(found, "native")["latency"] and row(found, "native")["notes"] == ["the reference"]
    assert row(found, "native", "slowcam")["notes"] == ["native has no slowcam"]
    assert not row(found, "native", "slowcam")["failed"]
    raises = row(found, "raises")
    assert raises["failed"] and not raises["latency"] and not raises["scores"]
    assert raises["notes"] == ["no maps of the photographs: RuntimeError: <b>out of luck</b>"]
    (gone,) = row(found, "gone")["notes"]
    assert gone.startswith("not run: explainer 'gone' from camkit-toy 1.0 cannot be imported")
    assert row(found, "slow")["scores"]["photographs"]["gini"]["mean"] is not None
    assert row(found, "control", "random")["latency"] == []


def test_a_batch_that_is_too_large_costs_only_that_batch() -> None:
    found = toy(backends=("native", "slow"), metrics=("latency",), batch_sizes=(1, 3))
    assert [record["batch"] for record in row(found, "slow")["latency"]] == [1]
    assert "batch of 3: RuntimeError: too many" in row(found, "slow")["notes"]
    assert [record["batch"] for record in row(found, "native")["latency"]] == [1, 3]
    assert len(row(found, "native")["latency"][0]["samples"]["host"]) == 5


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (("size",), ["count"]),
        (("complexity",), ["entropy", "even", "gini"]),
        (("complexity", "count", "gini"), ["entropy", "even", "gini", "count"]),
        (("latency",), []),
    ],
)
def test_a_category_means_its_metrics_whoever_wrote_them(asked: tuple[str, ...], names: list[str]) -> None:
    assert list(metric_choice.chosen(BenchRequest(metrics=asked)).classes) == names


def test_every_installed_metric_runs_if_none_is_named(odd: None) -> None:
    found = metric_choice.chosen(BenchRequest())
    installed = {item.name for item in discovery.find("metric")}
    assert installed - {"lost"} == set(found.classes) and len(installed) > 20
    assert list(found.broken) == ["lost"] and "cannot be imported" in str(found.broken["lost"])
    quick = metric_choice.chosen(BenchRequest(quick=True)).classes
    assert {"count", "even", "strange", "gini"} < set(quick) and "road" not in quick
    assert installed > request.LEFT_OUT, "a name that is none leaves nothing out"
    assert "road" in metric_choice.chosen(BenchRequest(quick=True, metrics=("road",))).classes
    with pytest.raises(PluginError, match="imported"):
        metric_choice.chosen(BenchRequest(metrics=("lost",)))


def test_a_metric_that_two_packages_offer_runs_under_both_names(
    site: Path, odd: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "camkit_twin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-twin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[camkit.metrics]\ncount = camkit_toy:Even\ngini = camkit_toy:Count\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-toy,camkit-twin")
    found = metric_choice.chosen(BenchRequest())
    assert {"camkit-toy:count", "camkit-twin:count", "gini"} <= set(found.classes)
    assert found.classes["gini"].category == "complexity" and not found.broken
    with pytest.raises(AmbiguousPlugin, match="camkit-toy:count or camkit-twin:count"):
        metric_choice.chosen(BenchRequest(metrics=("count",)))


def test_metrics_that_are_named_need_no_others(odd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda found: loaded.append(found.name) or load(found))
    metric_choice.chosen(BenchRequest(metrics=("latency", "gini", "count")))
    assert sorted(loaded) == ["count", "gini"]


def test_a_metric_that_cannot_be_imported_costs_a_note(odd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers = [item for item in discovery.find("metric") if item.dist != "camkit"]
    find = discovery.find
    monkeypatch.setattr(discovery, "find", lambda kind=None: strangers if kind == "metric" else find(kind))
    found = toy(metrics=())
    assert row(found, "native")["failed"] and list(found["metrics"]) == ["count", "even", "strange"]
    (lost,) = [note for note in row(found, "native")["notes"] if note.startswith("no lost: ")]
    assert "camkit-odd 1.0 " in lost
    assert row(found, "native")["latency"] and found["settings"]["metrics"] == "all"


def test_a_process_that_dies_costs_the_times_and_nothing_else(odd: None) -> None:
    found = toy(backends=("native", "dies"), metrics=("latency", "gini"), processes=2)
    assert row(found, "native")["scores"]["photographs"]["gini"] and not row(found, "native")["latency"]
    assert row(found, "dies")["failed"]
    (note,) = [note for note in row(found, "dies")["notes"] if note.startswith("not timed: ")]
    assert "died" in note


def test_metrics_of_other_packages_take_part_and_may_fail(odd: None) -> None:
    found = toy(metrics=("count", "strange"))
    assert row(found, "native")["scores"]["photographs"]["count"]["mean"] == 64
    assert row(found, "native")["failed"]
    assert "ValueError: no idea" in "; ".join(row(found, "native")["notes"])
    assert found["metrics"]["count"]["summary"] == "how many values a map has"
    assert (found["metrics"]["count"]["category"], found["metrics"]["count"]["dist"]) == (
        "size",
        "camkit-toy",
    )
    assert found["metrics"]["strange"]["category"] == "other"


def test_truth_beside_the_photographs_is_used_and_what_lacks_it_is_no_hit() -> None:
    toy_masks = Path("masks")
    toy_masks.mkdir()
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(toy_masks / "a.png")
    found = toy(metrics=("localisation",), truth="masks")
    (scene,) = found["scenes"]
    assert (scene["name"], scene["images"], scene["with_truth"]) == ("photographs", 2, 1)
    energy = row(found, "control", "uniform")["scores"]["photographs"]["energy-pointing-game"]
    assert energy["values"] == [1.0, None] and (energy["mean"], energy["defined"]) == (1.0, 1)
    assert "1 of 2 photographs" in "; ".join(row(found, "native")["notes"])


def test_the_same_seed_gives_the_same_scores() -> None:
    chosen = {"metrics": ("faithfulness", "sanity", "agreement", "road"), "limit": 1}
    first, second = (toy(**chosen) for _ in range(2))
    assert [r["scores"] for r in first["rows"]] == [r["scores"] for r in second["rows"]]
    other = toy(**chosen, seed=1)
    assert row(first, "control", "random")["scores"] != row(other, "control", "random")["scores"]


def test_the_matrix_is_symmetric_and_stands_beside_its_null() -> None:
    found = toy(backends=("native", "slow"), metrics=("agreement",))["agreement"]["photographs"]
    assert found["names"][:2] == ["native gradcam", "slow gradcam"] and found["size"] == [8, 8]
    for measure in ("pearson", "spearman", "ssim", "overlap", "jaccard"):
        table = found["measures"][measure]["mean"]
        assert table == [list(column) for column in zip(*table, strict=True)] and table[0][1] is not None
        low, middle, high = found["measures"][measure]["null"]
        assert low < middle < high


def test_controls_do_not_cost_an_explanation_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import camkit_toy  # type: ignore[import-not-found]

    calls: list[int] = []

    def maps(self: Any, query: Any) -> Any:
        calls.append(len(query.inputs))
        return query.inputs.mean(1)[:, ::4, ::4]

    monkeypatch.setattr(camkit_toy.Own, "maps", maps)
    found = toy(backends=("own",), metrics=("gini",))
    assert all(row(found, "control", name)["scores"]["photographs"]["gini"] for name in CONTROLS)
    assert calls == [2, 2], "its own and those that are blurred"


# --- mosaics ----------------------------------------------------------------------------------------


def coloured(count: int) -> list[str]:
    """Photographs of one colour each, `count` of each of four that `SURE_NET` tells apart."""
    names = []
    for number in range(4 * count):
        pixels = np.full((32, 32, 3), 10 * (number // 4), np.uint8)
        pixels[..., :3] += np.array(SHADES[number % 4], np.uint8)
        names.append(f"colours/{number:02}.png")
        Path("colours").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(names[-1])
    return names


SHADES = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (100, 100, 100))


def test_the_grid_pointing_game_is_played_on_mosaics_of_sure_photographs() -> None:
    images = tuple(coloured(3))
    chosen = {"model": "toy:colours", "images": images, "metrics": ("localisation",), "quick": False}
    found = toy(**chosen)
    (mosaics,) = [scene for scene in found["scenes"] if scene["name"] == "mosaics"]
    assert mosaics["images"] == 3 * 4 and mosaics["truth_share"] == 0.25
    assert mosaics["photographs"] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], "a mosaic counts once"
    assert mosaics["remark"].startswith("2 x 2 photographs, each recognised with 90% or more")
    grid = {row.key: row.grid for row in results.read(found).rows if row.grid}
    assert (grid["native gradcam"].mean or 0) > 0.7
    assert grid["control uniform"].values == [0.25] * 12
    assert grid["control random"].mean == pytest.approx(0.25, abs=0.1)
    assert list(row(found, "native")["scores"]["mosaics"]) == ["energy-pointing-game"]
    assert found["agreement"]["mosaics"] == {"names": [], "size": [], "measures": {}}
    assert bench_json.all_figures(results.read(found))["native.gradcam.grid"] == grid["native gradcam"].mean
    again = toy(**chosen)
    assert [r["scores"] for r in again["rows"]] == [r["scores"] for r in found["rows"]], "seeded"


def test_without_enough_sure_photographs_the_mosaics_are_of_shapes_and_the_reason_is_told() -> None:
    found = toy(metrics=("energy-pointing-game",), quick=False)
    assert [scene["name"] for scene in found["scenes"]] == ["photographs", "shapes", "mosaics"]
    remark = found["scenes"][2]["remark"]
    assert remark.startswith("2 x 2 shapes, each recognised with 90% or more; of the mosaic's four classes")
    assert "not of photographs: a mosaic of 2 x 2 needs images of 4 classes" in remark
    assert row(found, "native")["scores"]["mosaics"]["energy-pointing-game"]["mean"] > 0.4
    assert remark in markdown(results.read(found)).replace("\\", "")


def test_a_model_that_takes_one_size_only_is_explained_on_mosaics_of_shapes() -> None:
    chosen = {"model": "toy:fixed", "images": tuple(coloured(1)), "metrics": ("energy-pointing-game",)}
    found = toy(**chosen, quick=False)
    assert "twice as large" in found["scenes"][2]["remark"]


def test_a_quick_run_plays_no_grid_pointing_game() -> None:
    assert [scene["name"] for scene in toy(metrics=("localisation",))["scenes"]] == [
        "photographs",
        "shapes",
    ]


# --- hard cases -------------------------------------------------------------------------------------


def test_every_backend_with_a_method_faces_every_hard_case(other_backend: str) -> None:
    wanted = {"backends": ("native", other_backend), "methods": ("gradcam", "extra")}
    found = toy(**wanted, metrics=("agreement",))["hard_cases"]
    cases = ["plain", "in-place ReLU", "frozen", "bfloat16", "ViT"]
    assert [(c["case"], c["backend"]) for c in found] == [
        (case, backend) for case in cases for backend in ("native", "other")
    ]
    assert {c["method"] for c in found} == {"gradcam"}, "extra is of one backend only: nothing to compare"
    assert all(c["equal"] and c["error"] is None for c in found)
    rounded = [c["difference"] for c in found if c["case"] == "bfloat16"]
    assert all(1e-4 < difference < 5e-2 for difference in rounded)


def test_what_differs_or_fails_in_a_hard_case_is_told_with_its_reason() -> None:
    found = toy(backends=("native", "own", "raises", "inplace"), metrics=("agreement",))
    by_key = {(c["backend"], c["case"]): c for c in found["hard_cases"]}
    assert by_key["own", "plain"]["equal"] is False and by_key["own", "plain"]["difference"] > 0.1
    assert by_key["raises", "ViT"]["error"] == "RuntimeError: <b>out of luck</b>"
    assert by_key["inplace", "plain"]["equal"] is True
    assert by_key["inplace", "in-place ReLU"]["equal"] is False, "it keeps what the ReLU overwrites"
    assert by_key["inplace", "frozen"]["error"].startswith("the scores do not depend")
    headers, rows = bench_json.hard_table(results.read(found))
    cells = {line[0]: dict(zip(headers, line, strict=True)) for line in rows}
    assert cells["inplace"]["FROZEN"] == "error" and "frozen: the scores " in cells["inplace"]["NOTES"]
    assert cells["own"]["PLAIN"].endswith(" DIFFERS") and cells["native"]["NOTES"] == "-"
    made = bench_report.report(results.read(found), Path())
    sections = {section.title: section for section in made.sections}
    assert sections["Parity in hard cases"].rows == rows


@pytest.mark.parametrize("chosen", [{"backends": ("native",)}, {"metrics": ("gini",)}])
def test_hard_cases_need_several_backends_and_the_metrics_of_agreement(chosen: dict[str, Any]) -> None:
    found = toy(**({"backends": ("native", "own"), "metrics": ("agreement",)} | chosen))
    assert found["hard_cases"] == [] and bench_json.hard_table(results.read(found))[1] == []


# --- against the controls ---------------------------------------------------------------------------

PHOTOGRAPHS = {"name": "photographs", "images": 12, "with_truth": 0}


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        ([0.6, 0.7, 0.8, 0.7] * 3, "BETTER"),
        ([0.1, 0.0, 0.1, 0.2] * 3, "WORSE"),
        ([0.6, 0.1, 0.8, 0.0] * 3, "UNCLEAR"),
        ([0.6, 0.7, 0.8, 0.7] * 2 + [None] * 4, "BETTER"),
        ([0.6, 0.7, 0.8, 0.7, 0.6, *[None] * 7], "UNCLEAR"),
    ],
)
def test_an_explainer_is_held_against_the_best_control(own: list[float | None], verdict: str) -> None:
    def line(kind: str, backend: str, method: str, values: list[float | None]) -> dict[str, Any]:
        mean = float(np.mean([v for v in values if v is not None]))
        gain = {"mean": mean, "low": None, "high": None, "values": values}
        scores = {"photographs": {"symmetric-relevance-gain": gain}}
        return {"kind": kind, "backend": backend, "method": method, "scores": scores}

    rows = [
        line("explainer", "a", "gradcam", own),
        line("explainer", "b", "gradcam", [None if v is None else v + 1e-7 for v in own]),
        line("control", "control", "random", [0.0] * 12),
        line("control", "control", "edges", [0.3, 0.4] * 6),
        line("control", "control", "blurred", [0.9] * 12),
    ]
    (found,) = significance.better(document(rows=rows, scenes=[PHOTOGRAPHS]))
    cells = dict(zip(significance.BETTER, found, strict=True))
    assert (cells["BACKEND"], cells["BEST CONTROL"]) == ("a", "edges"), "the one that is alike is left out"
    assert cells["VERDICT"] == verdict and (float(cells["P"]) <= 0.05) is (verdict != "UNCLEAR")


def test_equal_differences_prove_no_exact_one() -> None:
    """Six hits against six misses: the interval is that of a share, and not of width zero."""

    def line(kind: str, name: str, value: float) -> dict[str, Any]:
        hits = {"mean": value, "low": None, "high": None, "values": [value] * 6}
        return {
            "kind": kind,
            "backend": name,
            "method": name,
            "scores": {"photographs": {"pointing-game": hits}},
        }

    rows = [line("explainer", "a", 1.0), line("control", "centre", 0.0)]
    (found,) = significance.better(document(rows=rows, scenes=[PHOTOGRAPHS]))
    assert dict(zip(significance.BETTER, found, strict=True))["DIFFERENCE"] == "+1.000 [+0.081, +1.000]"


def test_other_methods_of_nearly_the_same_scores_have_rows_of_their_own() -> None:
    """And count in the correction for the number of rows: only backends of one method are shown once."""

    def line(kind: str, backend: str, method: str, values: list[float]) -> dict[str, Any]:
        gain = {"mean": float(np.mean(values)), "low": None, "high": None, "values": values}
        scores = {"photographs": {"symmetric-relevance-gain": gain}}
        return {"kind": kind, "backend": backend, "method": method, "scores": scores}

    better, worse = [4e-4, 5e-4] * 6, [-4e-4, -5e-4] * 6
    rows = [
        line("explainer", "a", "gradcam", better),
        line("explainer", "b", "gradcam", better),
        line("explainer", "a", "layercam", worse),
        line("control", "control", "random", [0.0] * 12),
    ]
    found = significance.better(document(rows=rows, scenes=[PHOTOGRAPHS]))
    assert [(cells[0], cells[1], cells[-1]) for cells in found] == [
        ("a", "gradcam", "BETTER"),
        ("a", "layercam", "WORSE"),
    ]


def contest(random: np.random.Generator, count: int, rows: int, ahead: float = 0.0) -> list[list[str]]:
    """Verdicts on `rows` explainers, `ahead` of four controls, by scores of `count` images."""

    def line(kind: str, method: str, values: Any) -> dict[str, Any]:
        gain = {"mean": float(values.mean()), "low": None, "high": None, "values": values.tolist()}
        scores = {"photographs": {"symmetric-relevance-gain": gain}}
        return {"kind": kind, "backend": kind, "method": method, "scores": scores}

    lines = [line("explainer", str(n), random.beta(0.6, 0.2, count) + ahead) for n in range(rows)]
    lines += [line("control", name, random.beta(6, 2, count)) for name in significance.BLIND]
    return significance.better(document(rows=lines, scenes=[PHOTOGRAPHS]))


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("count", [8, 16])
def test_there_is_a_false_verdict_in_at_most_six_of_a_hundred_tables(count: int, rows: int) -> None:
    """The means of all are equal, and the best of the controls is chosen by the same images."""
    random = np.random.default_rng(0)
    tables = [contest(random, count, rows) for _ in range(100)]
    wrong = np.mean([any(line[-1] != "UNCLEAR" for line in table) for table in tables])
    assert wrong <= MOST - 0.01


def test_what_is_better_than_the_controls_is_seen_in_many_rows() -> None:
    random = np.random.default_rng(0)
    said = [line[-1] for _ in range(20) for line in contest(random, 16, 6, ahead=0.6)]
    assert said.count("BETTER") > 0.9 * len(said)


def test_without_an_explainer_that_works_there_is_one_line() -> None:
    with pytest.raises(CamkitError, match=r"no explainer .*RuntimeError"):
        toy(backends=("raises",))


def test_photographs_are_spread_evenly_and_bad_ones_told() -> None:
    names = [photo(f"many/{n:02}.png", n) for n in range(9)]
    Path("many/03.png").write_bytes(b"no picture")
    found = toy(images=("many",), limit=3, metrics=("gini",))["scenes"][0]
    assert found["titles"] == ["00.png", "06.png"] and len(names) == 9
    assert found["failures"] == [
        "many/03.png is not an image that camkit reads (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM)"
    ]


# --- the document -----------------------------------------------------------------------------------


def test_a_document_survives_writing_and_reading() -> None:
    found = toy(metrics=("latency", "gini"))
    path = bench_json.write(Path("out"), results.read(found))
    assert bench_json.read(Path("out")) == bench_json.read(path) == results.read(found)
    assert json.loads(path.read_text("utf-8")) == found and found["schema"] == results.SCHEMA
    assert not list(Path("out").glob(".*"))


def test_no_number_is_nan() -> None:
    found = typed_json.mapped({"a": [math.nan, (math.inf, 1 / 3)], "b": "x"}, typed_json.finite)
    assert found == {"a": [None, [None, 0.3333333]], "b": "x"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"x\.json"),
        ("{", "JSON"),
        ("[]", "was not written by camkit bench"),
        ("{}", "was not written by camkit bench"),
        ('{"schema": 99}', "schema 99, .* 1"),
        ('{"schema": 1}', "damaged: command "),
        ("[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_document_is_told_in_one_line(text: str | None, said: str) -> None:
    if text is not None:
        Path("x.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        bench_json.read(Path("x.json"))


def test_the_command_repeats_the_request_without_private_folders() -> None:
    assert request.command(BenchRequest()) == "camkit bench"
    wanted = BenchRequest(
        model="/home/somebody/models/mine",
        backends=("native", "captum"),
        options={"fast": "true"},
        images=("/home/somebody/my photos", "more"),
        batch_sizes=(1, 8),
        metrics=("latency", "sanity"),
        quick=True,
        seed=3,
    )
    assert request.command(wanted) == (
        "camkit bench --model mine --backend native --backend captum --option fast=true "
        "--images 'my photos' --images more --batch-size 1,8 --metrics latency,sanity --seed 3 --quick"
    )


def test_every_field_of_a_request_has_its_option() -> None:
    """What is said of a model has those of `camkit explain`."""
    assert {*request.OPTIONS, "facts"} == {*vars(BenchRequest())}
    options = {option for param in bench_command.params for option in param.opts}
    assert {*request.OPTIONS.values(), *(f"--{name}" for name in FACTS)} <= options


def test_figures_by_hand() -> None:
    record = {"seconds": {"median": 0.02}, "ratio": {"median": 1.5}, "memory": {"resident": 2**21}}
    record |= {"cold": 0.5, "compile": None}
    fast = {"seconds": {"median": 0.1}, "ratio": None, "memory": {}, "images_per_second": 80.0, "batch": 8}
    scores = {
        "first": {"gini": {"mean": 0.5, "passed": None}, "random-logit": {"mean": 0.1, "passed": True}},
        "second": {
            "gini": {"mean": 0.9, "passed": None},
            "sanity-cascading": {"mean": 0.9, "passed": False},
        },
        "mosaics": {"energy-pointing-game": {"mean": 0.6, "passed": None}},
    }
    line = {
        "backend": "grad-cam",
        "method": "gradcam++",
        "latency": [record | {"images_per_second": 50.0, "batch": 1}, fast],
        "parity": 0.01,
        "scores": scores,
    }
    assert bench_json.all_figures(document(rows=[line])) == {
        f"grad_cam.gradcampp.{name}": value
        for name, value in {
            "ms": 20.0,
            "ratio": 1.5,
            "throughput": 80.0,
            "memory": 2.0,
            "cold": 500.0,
            "compile": None,
            "parity": 0.01,
            "grid": 0.6,
            "energy_pointing_game": 0.6,
            "sanity": 0.0,
            "gini": 0.5,
            "random_logit": 0.1,
            "sanity_cascading": 0.9,
        }.items()
    }


# --- two documents ----------------------------------------------------------------------------------


def timed(bare: float, own: float, processes: bool = True, **changes: Any) -> Document:
    """A document in which a call takes `own` seconds, the forward `bare`, with 2 % of noise, four times."""
    random = np.random.default_rng(0)

    def record(seconds: float) -> dict[str, Any]:
        host = (seconds * random.normal(1, 0.02, 40)).tolist()
        process = [number // 10 for number in range(40)] if processes else None
        return {"batch": 1, "samples": {"host": host, "process": process}}

    settings = {"model_sha256": "0" * 64, "layer": "l", "size": [8, 8], "dtype": "float32", "options": {}}
    machine = {"device_name": "chip", "threads": 1}
    return document(
        settings={"model": "m"} | settings | {k: v for k, v in changes.items() if k in settings},
        environment=machine | {k: v for k, v in changes.items() if k in machine},
        rows=[
            {"backend": "bare", "method": "forward", "latency": [record(bare)]},
            {"backend": "native", "method": "gradcam", "latency": [record(own)]},
        ],
    )


@pytest.mark.parametrize(
    ("bare", "own", "verdicts"),
    [
        (1.0, 2.0, ["SAME", "SAME"]),
        (1.0, 2.5, ["SAME", "SLOWER"]),
        (1.0, 1.5, ["SAME", "FASTER"]),
        (3.0, 6.0, ["SLOWER", "SAME"]),  # the whole machine is slower, and the explainer is not to blame
    ],
)
def test_rows_are_compared_by_their_multiple_of_the_forward(
    bare: float, own: float, verdicts: list[str]
) -> None:
    found = compare.compare(timed(1.0, 2.0), timed(bare, own))
    assert [one.verdict for one in found] == verdicts
    assert found[1].ratio.middle == pytest.approx(own / bare / 2, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_sha256": "1" * 64}, "000000000000… and 111111111111…"),
        ({"device_name": "other", "threads": 2}, "chip and other; number of threads 1 and 2"),
        ({"dtype": "bfloat16"}, "float32 and bfloat16"),
        ({"options": {"fast": "true"}}, "{} and {'fast': 'true'}"),
    ],
)
def test_different_conditions_are_refused_unless_told(changes: dict[str, Any], said: str) -> None:
    before, after = timed(1, 2), timed(1, 2, **changes)
    with pytest.raises(UsageError, match=re.escape(said)):
        compare.compare(before, after)
    assert compare.compare(before, after, force=True)


def test_a_document_of_old_has_one_process_and_says_so() -> None:
    old, new = timed(1, 2, processes=False), timed(1, 200)
    assert [one.verdict for one in compare.compare(old, new)] == ["UNCLEAR", "UNCLEAR"]
    said = compare.unknown_spread(old, new)
    assert said and said.startswith("before: ") and "one process" in said and "--processes" in said
    both = compare.unknown_spread(old, old)
    assert both and both.startswith("before and after: ") and "one process" in both
    assert compare.unknown_spread(new, new) is None


def test_nothing_in_common_is_no_success() -> None:
    with pytest.raises(UsageError, match="no row and batch size was timed in both"):
        compare.compare(timed(1, 2), dataclasses.replace(timed(1, 2), rows=[]))


# --- the command, and the report of it --------------------------------------------------------------


def bench(*arguments: object) -> Result:
    """`camkit bench ARGUMENTS` in this process; nothing may escape as an exception."""
    result = runner().invoke(cli, ["bench", *map(str, arguments)], prog_name="camkit")
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    return result


@pytest.fixture(scope="module")
def quick(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A quick run as a user starts it, with the shapes, once for several tests."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(site))
        patch.setenv("CAMKIT_PLUGINS", "camkit-toy")
        images = ["--images", photo("a b.png"), "--images", photo("<img src=x>.png", 1)]
        chosen = ["--model", "toy:net", "--quick", "--rounds", "5", "--batch-size", "2,1"]
        chosen += ["--processes", "2"]
        result = bench(*chosen, *images, "--backend", "native", "--backend", "own")
    return result, folder / "camkit-bench"


def test_a_quick_run_prints_one_table_and_writes_everything(quick: tuple[Result, Path]) -> None:
    result, folder = quick
    assert result.exit_code == 0, result.stderr
    table, hard, *words = result.stdout.split("\n\n")
    assert (
        words[0].startswith(("native gradcam ", "own gradcam ")) and "maps that know nothing" in words[-1]
    )
    header, *lines = table.splitlines()
    names = [*bench_json.HEADERS[:-2], "COUNT", "EVEN", *bench_json.HEADERS[-2:]]
    assert header.split() == " ".join(names).split(), "metrics of another package have their columns"
    assert re.split(" {2,}", lines[1])[-4:-2] == ["64", "1"]
    assert [line.split()[:2] for line in lines] == [
        ["bare", "forward"],
        ["native", "gradcam"],
        ["own", "gradcam"],
        *(["control", name] for name in ("random", "centre", "uniform", "edges", "blurred")),
    ]
    _, header, *lines = hard.splitlines()
    assert re.split(" {2,}", header)[2:] == ["PLAIN", "IN-PLACE RELU", "FROZEN", "BFLOAT16", "VIT", "NOTES"]
    assert [line.split()[:2] for line in lines] == [["native", "gradcam"], ["own", "gradcam"]]
    assert "DIFFERS" in lines[1] and "DIFFERS" not in lines[0]
    assert "spearman of independent random maps of 8 x 8, 95 %: -0." in result.stderr
    names = {path.name for path in folder.iterdir()}
    assert names == {"bench.json", "report.md", "report.html", "examples"}
    found = loaded(folder)
    assert [scene["name"] for scene in found["scenes"]] == ["photographs", "shapes"]
    scores = row(found, "native")["scores"]
    assert scores["shapes"]["energy-pointing-game"]["mean"] > 2 * found["scenes"][1]["truth_share"]
    assert scores["shapes"]["sanity-cascading"]["passed"] is True
    assert row(found, "control", "random")["scores"]["shapes"]["sanity-cascading"]["passed"] is False
    assert row(found, "own")["latency"][0]["against"]["verdict"] in ("FASTER", "SLOWER", "UNCLEAR")
    assert [len(shown["maps"]) for shown in found["shown"]] == [2, 2]
    for timed_row in found["rows"][:3]:
        assert [record["batch"] for record in timed_row["latency"]] == [1, 2]
        for record in timed_row["latency"]:
            assert record["samples"]["process"] == [0] * 5 + [1] * 5 and record["cold"] > 0
            assert len(record["samples"]["host"]) == 10
    assert "ratio" in row(found, "bare", "forward")["latency"][0]


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_outside(quick: tuple[Result, Path]) -> None:
    text = (quick[1] / "report.html").read_text("utf-8")
    page = Page(text)
    kinds = [tag for tag, _ in page.tags]
    assert not set(kinds) & {"link", "iframe", "object", "embed", "form", "a", "base"}
    assert kinds.count("script") == 1, "that of camkit, which the policy names"
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        if tag == "img":
            assert re.match("data:image/(png|jpeg);base64,", str(attributes["src"]))
        else:
            assert not {"src", "href"} & set(attributes)
    policy = next(str(attributes["content"]) for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert "url(" not in text and "@import" not in text and "://" not in text
    for heading in (
        "Latency and memory",
        "Parity",
        "Agreement: photographs",
        "Scores: shapes",
        "Environment",
    ):
        assert heading in page.text
    assert "Where explainers disagree most" in page.text and "camkit bench --model toy:net" in page.text


def test_a_class_called_script_is_a_text(quick: tuple[Result, Path]) -> None:
    found = loaded(quick[1])
    titles = [example["title"] for example in found["examples"]]
    assert titles and any("<img src=x>.png" in title for title in titles)
    found["rows"][1]["notes"] = ["<script>alert(1)</script> | `x` [a](b)"]
    page = html(results.read(found), quick[1])
    assert page.count("<script") == 1 and "<img src=x>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;img src=x&gt;" in page
    told = markdown(results.read(found))
    assert "<script" not in told and r"\| \`x\` \[a\](b)" in told


def test_tables_of_the_markdown_are_whole(quick: tuple[Result, Path]) -> None:
    lines = (quick[1] / "report.md").read_text("utf-8").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    widths = {line: len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert len(tables) > 30 and widths[tables[0]] == len(bench_json.HEADERS) + 2 + 1
    assert any("count (size): how many values a map has" in line for line in lines)
    for above, below in pairwise(lines):
        assert not (above in widths and below in widths) or widths[above] == widths[below]
    assert lines[0] == "# camkit bench"


def test_a_document_of_a_stranger_reads_no_file_outside(quick: tuple[Result, Path], tmp_path: Path) -> None:
    found = loaded(quick[1])
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    found["examples"] = [
        {"file": f"../../{secret.name}", "title": "t"},
        {"file": str(secret), "title": "t"},
    ]
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "Where explainers disagree most" not in html(results.read(found), tmp_path / "a" / "b")


def test_report_makes_the_same_page_from_the_document_alone(quick: tuple[Result, Path]) -> None:
    shutil.copytree(quick[1], "copy")
    Path("copy/report.html").unlink()
    result = bench("report", "copy/bench.json")
    assert result.exit_code == 0 and result.stdout.split() == ["copy/report.md", "copy/report.html"]
    assert Path("copy/report.html").read_bytes() == (quick[1] / "report.html").read_bytes()


@pytest.fixture
def steady(quick: tuple[Result, Path]) -> dict[str, Any]:
    """The document as a quiet machine would have given it, in the folder `steady`."""
    found = loaded(quick[1])
    for timed_row in found["rows"]:
        for record in timed_row["latency"]:
            record["samples"]["host"] = [1.0, 1.001, 1.002, 1.001, 1.0, 1.01, 1.02, 1.01, 1.01, 1.01]
    written("steady", found)
    return found


def test_a_run_compared_with_itself_is_the_same(steady: dict[str, Any]) -> None:
    result = bench("compare", "steady", "steady/bench.json", "--tolerance", "0.5")
    assert result.exit_code == 0 and result.stderr == ""
    assert {line.split()[-1] for line in result.stdout.splitlines()[1:]} == {"SAME"}


def test_compare_fails_if_something_is_slower(steady: dict[str, Any]) -> None:
    for record in row(steady, "native")["latency"]:
        record["samples"]["host"] = [100 * seconds for seconds in record["samples"]["host"]]
    written("slower", steady)
    result = bench("compare", "steady", "slower")
    assert result.exit_code == 1 and "SLOWER" in result.stdout
    back = bench("compare", "slower", "steady")
    assert "FASTER" in back.stdout and "SLOWER" not in back.stdout and back.exit_code == 0
    for record in row(steady, "native")["latency"]:
        record["samples"].pop("process")
    written("slower", steady)
    result = bench("compare", "steady", "slower")
    assert result.exit_code == 0 and "SLOWER" not in result.stdout and "one process" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("after: ") and "one process" in line


def test_compare_names_the_rows_that_only_one_of_them_has(quick: tuple[Result, Path]) -> None:
    found = loaded(quick[1])
    row(found, "own")["latency"].pop()
    found["rows"][1]["method"] = "layercam"
    written("fewer", found)
    result = bench("compare", quick[1], "fewer", "--tolerance", "1000")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "only before: native gradcam at 1, native gradcam at 2, own gradcam at 2",
        "only after: native layercam at 1, native layercam at 2",
    ]
    assert "layercam" not in result.stdout


def test_compare_does_not_divide_by_zero_or_compare_nothing(quick: tuple[Result, Path]) -> None:
    found = loaded(quick[1])
    samples = found["rows"][1]["latency"][0]["samples"]
    samples["host"], samples["process"] = [], []
    written("odd", found)
    result = bench("compare", quick[1], "odd", "--tolerance", "1000")
    assert result.exit_code == 0 and "only before: native gradcam at 1" in result.stderr
    samples = found["rows"][0]["latency"][0]["samples"]
    samples["host"] = [0.0] * len(samples["host"])
    written("odd", found)
    result = bench("compare", quick[1], "odd")
    assert result.exit_code == 2 and "rows[0].latency[0].samples.host[0] is 0.0" in result.stderr


def broken(found: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> str:
    """A document that was changed by hand."""
    change(found)
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("\0\1", "JSON"),
        ('{"schema": 2}', "has schema 2, this camkit reads 1"),
        ('{"schema": 1, "rows": []}', "damaged: command "),
        (lambda found: found["rows"].append(7), "is damaged: rows["),
        (
            lambda found: found["rows"][1].pop("latency"),
            "is damaged: rows[1].latency is missing or no list",
        ),
        (
            lambda found: found["rows"][1]["latency"][0].pop("samples"),
            "latency[0].samples is missing or no dict",
        ),
        (
            lambda found: found["rows"][1]["latency"][0]["samples"].update(host="x"),
            "samples.host is missing or no list",
        ),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_document_that_was_damaged_is_one_line_and_wrong_usage(
    quick: tuple[Result, Path], command: str, text: Any, said: str
) -> None:
    Path("bad").mkdir()
    content = text if isinstance(text, str) else broken(loaded(quick[1]), text)
    Path("bad/bench.json").write_text(content)
    result = bench(command, *([quick[1]] if command == "compare" else []), "bad")
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert not Path("bad/report.html").exists()


FEW = ("--model", "toy:net", "--backend", "native", "--rounds", "5", "--quick", "--batch-size", "1")


def test_json_is_the_document_and_nothing_else() -> None:
    result = bench(*FEW, "--images", photo("a.png"), "--metrics", "latency", "--json", "--out", "x/y")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == Path("x/y/bench.json").read_text("utf-8")
    assert json.loads(result.stdout)["settings"]["model"] == "toy:net"


@pytest.mark.parametrize(("limit", "code"), [("1e9", 0), ("0", 1)])
def test_fail_if_decides_on_the_exit_code(limit: str, code: int) -> None:
    condition = f"native.gradcam.ms > {limit}"
    result = bench(*FEW, "--images", photo("a.png"), "--metrics", "latency", "--fail-if", condition)
    assert result.exit_code == code, result.stderr
    assert (f"Error: --fail-if holds: {condition} (native.gradcam.ms is " in result.stderr) == bool(code)
    assert Path("camkit-bench/bench.json").is_file()


def test_fail_if_of_what_was_not_measured_fails_in_one_line_after_the_work() -> None:
    condition = ("--fail-if", "native.gradcam.ms > 1e9 or native.gradcam.compile > 1")
    result = bench(*FEW, "--images", photo("a.png"), "--metrics", "latency", *condition)
    assert result.exit_code == 1
    assert "native.gradcam.compile was not measured" in result.stderr.splitlines()[-1]
    assert Path("camkit-bench/bench.json").is_file()


def test_json_stays_json_when_something_failed() -> None:
    result = bench(*FEW, "--images", photo("a.png"), "--backend", "raises", "--metrics", "gini", "--json")
    assert result.exit_code == 3 and "\n" not in result.stdout.rstrip("\n")
    assert row(json.loads(result.stdout), "raises")["failed"]


def test_what_failed_in_part_is_written_and_told_by_the_exit_code() -> None:
    Path("bad.png").write_bytes(b"no picture")
    images = ("--images", photo("a.png"), "--images", "bad.png")
    result = bench(*FEW, *images, "--metrics", "gini")
    assert result.exit_code == 3 and "Error: bad.png " in result.stderr
    result = bench(*FEW, "--images", "a.png", "--backend", "raises", "--metrics", "gini")
    assert result.exit_code == 3 and "out of luck" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--backend", "nativ"), 2, "there is no explainer 'nativ'; did you mean 'native'?"),
        (("--backend", "native", "--method", "gradcm"), 2, "native has no method 'gradcm'"),
        (("--metrics", "latancy"), 2, "there is no metric 'latancy'; did you mean 'latency'"),
        (("--batch-size", "1,x"), 2, "'1,x' is not of the form 1,8,32"),
        (("--batch-size", "0,1"), 2, "0 is not in the range 1<=x<=65536"),
        (("--batch-size", "1,65537"), 2, "65537 is not in the range"),
        (("--rounds", "0"), 2, "--rounds"),
        (("--processes", "65"), 2, "65 is not in the range"),
        (("--seed", str(2**32)), 2, "4294967296 is not in the range"),
        (("--fail-if", "exec('1')"), 2, "is no condition"),
        (("--fail-if", "native.gradcam.mss > 1", "--backend", "native"), 2, "there is no figure"),
        (("-o", "fast"), 2, "is not of the form KEY=VALUE"),
        (("--truth", "nowhere"), 2, "there is no file or folder 'nowhere'"),
        (("--images", "nowhere.png", "--model", "toy:net"), 2, "there is no image 'nowhere.png'"),
        (("--model", "toy:net", "--layer", "nowhere"), 2, "nowhere"),
        (("--model", "nosuch"), 2, "there is no model 'nosuch'"),
        (("compare", "a"), 2, "AFTER"),
        (("compare", "a", "b"), 2, "there is no file or folder 'a'"),
        (("report", "a"), 2, "there is no file or folder 'a'"),
        (("nosuch",), 2, "No such command 'nosuch'"),
    ],
)
def test_errors_are_short_and_come_before_work(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr and result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert len(errors) <= 2
    assert not Path("camkit-bench").exists()


def test_what_is_not_compared_is_not_called_the_same() -> None:
    """A map of NaN has no difference from the reference: whatever follows does not hide that."""
    nothing = torch.full((1, 4, 4), math.nan)
    row, reference = (
        Entrant(kind="explainer", backend=name, method="gradcam") for name in ("other", "native")
    )
    keys = {row.key: reference.key, reference.key: reference.key}
    for maps in (nothing, torch.ones(1, 4, 4)):
        shown = {row.key: maps, reference.key: torch.ones(1, 4, 4)}
        survey._parity("float32", "photographs", [reference, row], shown, keys)
    assert row.parity is not None and math.isnan(row.parity)


def test_agreement_counts_a_photograph_once() -> None:
    torch.manual_seed(0)
    maps = torch.rand(10, 7, 7)
    other = maps.clone()
    other[8:] = -maps[8:]
    of_boxes = survey._agreement({"a": maps, "b": other}, (0,) * 8 + (1, 2), 0)
    assert of_boxes.measures["spearman"].mean[0][1] == pytest.approx(-1 / 3)
    assert survey._agreement({"a": maps, "b": other}, (), 0).measures["spearman"].mean[0][
        1
    ] == pytest.approx(0.6)


def test_the_level_of_chance_is_of_photographs_with_truth() -> None:
    truth = torch.zeros(4, 8, 8, dtype=torch.bool)
    truth[0, :4], truth[1, :2] = True, True
    scene = Scene("photographs", None, "", torch.zeros(4, 3, 8, 8), torch.zeros(4), truth=truth)  # type: ignore[arg-type]
    assert scene.truth_share == pytest.approx((0.5 + 0.25) / 2)
