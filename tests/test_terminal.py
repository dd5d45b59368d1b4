"""A terminal shows what strangers wrote and does nothing that it says."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tests.conftest import runner
from tests.test_bench_strangers import line, made, written

import camkit.cli
from camkit.cli import cli, console
from camkit.cli.train import _progress
from camkit.errors import ESCAPES
from camkit.explaining.comparison import Agreement

# A title of the window, colours, a C1 control, direction, no width, delete, carriage return; then markup.
HIDDEN = "\x1b]0;t\x07\x1b[31m\x9b2J\u202e\u2066\u200b\ufeff\u3164\x7f\r\t"
ODD = f"a{HIDDEN}[bold red]:warning:z"

SOURCE = f"""
from camkit import LoadedModel, ModelSource, Preprocess

class Odd(ModelSource):
    summary = {ODD!r}

    def load(self, reference, *, device, trust):
        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential()
        body = {ODD!r} if reference == "x" else "body"
        net.add_module(body, nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh()))
        net.add_module("pool", nn.AdaptiveAvgPool2d(1))
        net.add_module("flat", nn.Flatten())
        net.add_module("head", nn.Linear(4, 3))
        names = tuple({ODD!r} + str(n) for n in range(3))
        return LoadedModel(net.eval(), names, Preprocess(size=(32, 32)), name={ODD!r})

    def names(self):
        return [{ODD!r}]
"""


@pytest.fixture(autouse=True)
def _odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with an installed package in which every text is odd."""
    info = tmp_path / "site" / "camkit_odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: camkit-odd\nVersion: 1.0{HIDDEN[:-2]}\n")
    (info / "entry_points.txt").write_text(
        f"[camkit.models]\nodd = camkit_odd_model:Odd\nodd{HIDDEN[:-2]} = camkit_odd_model:Odd\n"
        f"[camkit.explainers]\nbroken = camkit_odd_{HIDDEN[:-2]}:None\n"
    )
    (tmp_path / "site" / "camkit_odd_model.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-odd")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def photo(folder: str = "photos") -> Path:
    path = Path(folder, f"{ODD.replace('/', '')}.png")
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((48, 40)).save(path)
    return path


def hidden(text: str) -> set[str]:
    """What a terminal would not show."""
    return {s for s in text if s != "\n" and (unicodedata.category(s)[0] == "C" or ord(s) in ESCAPES)}


def camkit_(*arguments: object) -> Result:
    """`camkit ARGUMENTS`, of which every output may be shown."""
    result = runner().invoke(cli, [*map(str, arguments)], prog_name="camkit")
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    assert hidden(result.stdout) == set() == hidden(result.stderr), result.output
    return result


def test_plugins_and_what_they_say_of_themselves() -> None:
    listed = camkit_("plugin", "list")
    assert listed.exit_code == 0 and r"a\x1b]0;t\x07\x1b[31m\x9b2J\u202e" in listed.stdout
    records = [json.loads(text) for text in camkit_("plugin", "list", "--json").stdout.splitlines()]
    assert {ODD} == {record["summary"] for record in records if record["distribution"] == "camkit-odd"} - {
        ""
    }
    shown = camkit_("plugin", "show", "odd")
    assert shown.exit_code == 0 and r"[bold red]:warning:z" in shown.stdout
    assert camkit_("plugin", "show", ODD).exit_code == 2
    assert camkit_("plugin", "doctor").exit_code == 1


def test_models_with_their_classes_and_layers() -> None:
    for command in ("classes", "layers", "summary"):
        told = camkit_("model", command, "odd:x")
        assert told.exit_code == 0, told.stderr
        assert r"\u202e" in told.stdout or command == "summary"
    assert r"\u202e" in camkit_("model", "list", "odd:*").stdout
    assert camkit_("model", "layers", f"odd{HIDDEN}").exit_code in (1, 2)


def test_photographs_with_their_folders_of_results() -> None:
    photo()
    refused = camkit_("explain", "photos", "--model", "odd:x", "--workers", 0, "--out", "x")
    assert refused.exit_code == 2 and "rename the module" in refused.stderr
    asked = ("explain", "photos", "--model", "odd:y", "--workers", 0)
    told = camkit_(*asked, "-v")
    assert told.exit_code == 0 and r"\u202e" in told.stdout
    lines = [json.loads(text) for text in camkit_(*asked, "--json", "--out", "json").stdout.splitlines()]
    assert lines == [
        json.loads(text) for text in Path("json/manifest.jsonl").read_text("utf-8").splitlines()
    ]
    assert {line["class_name"][:-1] for line in lines} == {ODD}
    done = camkit_("verify", "camkit-out", "--sample", 1)
    assert done.exit_code == 0, done.stderr + done.stdout
    assert camkit_("render", "camkit-out", "--relu").exit_code == 0
    assert camkit_("explain", "merge", "camkit-out", "--out", f"b{HIDDEN}").exit_code == 0


def test_a_manifest_of_a_stranger() -> None:
    photo()
    camkit_("explain", "photos", "--model", "odd:y", "--workers", 0)
    path = Path("camkit-out/manifest.jsonl")
    (found,) = map(json.loads, path.read_text("utf-8").splitlines())
    for field in ("image", "class_name", "model", "model_spec", "backend", "method", "layer"):
        path.write_text(json.dumps(found | {field: ODD, "overlay_file": None}) + "\n", "utf-8")
        camkit_("verify", "camkit-out", "--sample", 1)
        camkit_("render", "camkit-out")
    for field in ("map_file", "map_sha256"):
        path.write_text(json.dumps(found | {field: f"{ODD}.npy"}) + "\n", "utf-8")
        assert camkit_("verify", "camkit-out", "--sample", 0).exit_code in (1, 2)
        camkit_("render", "camkit-out")


def test_benchmarks() -> None:
    found = made(rows=[*made()["rows"], line("explainer", ODD, ODD, notes=[ODD])])
    found["settings"]["model"] = ODD
    before, after = written(Path("before"), found), written(Path(f"after{HIDDEN}"), found)
    assert camkit_("bench", "compare", before, after).exit_code == 0
    found["settings"]["layer"] = ODD
    assert camkit_("bench", "compare", before, written(after, found)).exit_code == 2
    assert camkit_("bench", "report", after).exit_code == 0
    after.joinpath("bench.json").write_text(json.dumps(made(rows=[{ODD: 1}], command=7)))
    assert camkit_("bench", "report", after).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", f"{ODD}.jpg", "--workers", 0),
        ("explain", "--class", ODD, "--model", "odd:x"),
        ("explain", "--model", ODD),
        ("explain", f"--{ODD}"),
        ("explain", "--view", ODD),
        ("explain", "--alpha", ODD),
        (ODD,),
        ("verify", ODD),
        ("train", ODD, "--trainer", "torch"),
        ("train", "--trainer", ODD),
        ("bench", "compare", ODD, ODD),
        ("bench", "--metrics", ODD, "--model", "odd:x"),
    ],
)
def test_what_was_asked_for_is_repeated_as_it_can_be_shown(arguments: tuple[object, ...]) -> None:
    assert camkit_(*arguments).exit_code in (1, 2)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_of_a_training(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", stream)
    with _progress() as progress:
        progress(0.5, ODD)
    told = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert r"a\x1b]0;t\x07\x1b[31m\x9b2J\u202e" in told.replace("\n", "")
    assert "[bold red]:warning:z" in told.replace("\n", "")
    assert not set("\x07\x9b\u202e\u200b\x7f") & set(told)


def test_a_traceback() -> None:
    error = ValueError(ODD)
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", told)
        camkit.cli._show_traceback(ValueError, error, None)
    assert told.getvalue().startswith(r"ValueError: a\x1b]0;t") and hidden(told.getvalue()) == set()


def test_everything_is_printed_in_one_place() -> None:
    root = Path(camkit.cli.__file__).parent.parent
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "click.echo", "click.secho") or name.startswith(
                ("sys.stdout.", "sys.stderr.")
            ):
                found.append((path.relative_to(root).as_posix(), name))
    assert set(found) <= {
        ("cli/terminal.py", "click.echo"),
        ("cli/console.py", "sys.stderr.isatty"),
        ("cli/engine.py", "sys.stderr.isatty"),
        ("cli/inline.py", "sys.stdout.fileno"),
        ("cli/inline.py", "sys.stdout.isatty"),
        ("cli/train.py", "sys.stderr.isatty"),
    }
    assert ("cli/terminal.py", "click.echo") in found


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([1.0, math.nan], "rank correlation 1.000, .*(the worst of 2, 1 without a rank correlation)"),
        ([math.nan, 0.5], "rank correlation 0.500, .*(the worst of 2, 1 without a rank correlation)"),
        ([math.nan, math.nan], "rank correlation not defined, .*(the worst of 2)"),
        ([0.9, 0.5], "rank correlation 0.500, .*(the worst of 2)"),
    ],
)
def test_agreement_that_is_not_defined_is_told(
    monkeypatch: pytest.MonkeyPatch, ranks: list[float], said: str
) -> None:
    """Whichever class comes first."""
    found = [
        Agreement("native", "captum", "gradcam", "l", str(i), rank, 0.0) for i, rank in enumerate(ranks)
    ]
    monkeypatch.setattr("camkit.explaining.comparison.compare", lambda results: found)
    results: Any = [SimpleNamespace(backend="native"), SimpleNamespace(backend="captum")]
    (line,) = console._agreement(results)
    assert re.search(said.replace("(", r"\(").replace(")", r"\)"), line), line
