"""`bench.json` and pictures of strangers: what a report takes from a folder, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from tests.conftest import runner

from camkit import Trainer
from camkit.bench import bench_json, compare, page_formats, results
from camkit.bench.typed_json import Fault
from camkit.cli import cli
from camkit.errors import UsageError
from camkit.training import recipe

# Of pictures that are left out, which a user sees as a line.
pytestmark = pytest.mark.filterwarnings("default::camkit.errors.CamkitWarning")
HIDDEN = "\x1b]0;t\x07\x9b31m\u202e\u2066\u200b\ufeff\x7f"


def latency(seconds: float) -> dict[str, Any]:
    """A record of one process with six rounds."""
    value = {"median": seconds, "low": None, "high": None}
    samples = {"process": [0] * 6, "host": [seconds] * 6}
    return {
        **{"batch": 1, "seconds": value, "ratio": value, "against": None, "images_per_second": 1 / seconds},
        **{"memory": {"resident": 2**20}, "samples": samples},
    }


def score(*values: float | None) -> dict[str, Any]:
    """A score of some images."""
    return {"mean": 0.5, "low": None, "high": None, "passed": None, "values": list(values), "curves": None}


def line(kind: str, backend: str, method: str, **more: Any) -> dict[str, Any]:
    """A row."""
    row = {"kind": kind, "backend": backend, "method": method, "parity": None, "latency": [latency(1.0)]}
    return {**row, "scores": {"photographs": {"road": score(0.1, 0.9)}}, "notes": [], **more}


def made(**changes: Any) -> dict[str, Any]:
    """A small document that is well."""
    measure = {"mean": [[None, 0.5], [0.5, None]], "null": [-0.1, 0.0, 0.1]}
    names = ["native gradcam", "control random"]
    measures = {"spearman": measure, "ssim": measure}
    metric = {"direction": "higher", "limit": None, "summary": "what it tells", "paper": "a paper"}
    return {
        "schema": results.SCHEMA,
        "command": "camkit bench",
        "settings": {"model": "m", "layer": "l", "dtype": "float32"},
        "environment": {"device_name": "chip", "cores": 2, "threads": 1},
        "conditions": {"before": {"load": 0.1}},
        "scenes": [{"name": "photographs", "images": 2, "with_truth": 0}],
        "metrics": {"road": metric},
        "rows": [
            line("forward", "bare", "forward"),
            line("explainer", "native", "gradcam"),
            line("control", "control", "random"),
        ],
        "agreement": {"photographs": {"names": names, "size": [2, 2], "measures": measures}},
        "examples": [],
        **changes,
    }


def written(folder: Path, found: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bench.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return folder


def bench(*arguments: object) -> Result:
    """`camkit bench ARGUMENTS` in this process."""
    result = runner().invoke(cli, ["bench", *map(str, arguments)], prog_name="camkit")
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    return result


def refused(folder: Path) -> str:
    """The one line for which `bench report` and `bench compare` refuse a folder or file."""
    told = [bench("report", folder), bench("compare", folder, folder)]
    assert [result.exit_code for result in told] == [2, 2], [result.output for result in told]
    assert told[0].stderr == told[1].stderr and told[0].stdout == "" == told[1].stdout
    (said,) = told[0].stderr.splitlines()
    return said


# --- pictures ---------------------------------------------------------------------------------------


def png(size: tuple[int, int] = (4, 3), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def outside(folder: Path) -> Path:
    """A picture that lies beside the folder."""
    path = folder.parent / "secret.png"
    path.write_bytes(png(colour="blue"))
    return path


def make_large(path: Path) -> None:
    path.write_bytes(png())
    os.truncate(path, 9 * 2**20)


def make_jpeg(path: Path) -> None:
    Image.new("RGB", (4, 3)).save(path, "JPEG")


PICTURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a link to a text": (lambda path: path.symlink_to("/etc/hostname"), "leads out of"),
    "a link to a picture": (lambda path: path.symlink_to(outside(path.parent.parent)), "leads out of"),
    "a link to no end": (lambda path: path.symlink_to("/dev/zero"), "leads out of"),
    "a link that is missing": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "nothing": (lambda path: None, "No such file"),
    "a pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
    "a text": (lambda path: path.write_text("root:x:0:0"), "(PNG)"),
    "a JPEG": (make_jpeg, "(PNG)"),
    "half a picture": (lambda path: path.write_bytes(png((64, 64))[:-30]), "cannot be decoded"),
    "a large file": (make_large, "larger than 8 MiB"),
    "many pixels": (lambda path: path.write_bytes(png((3000, 2000))), "more than 4,000,000 pixels"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_only_pictures_in_the_folder_are_shown(tmp_path: Path, kind: str) -> None:
    make, said = PICTURES[kind]
    files = [{"file": name, "title": f"title of {name}"} for name in ("odd.png", "good.png")]
    folder = written(tmp_path / "b", made(examples=files))
    (folder / "examples").mkdir()
    (folder / "examples" / "good.png").write_bytes(png())
    make(folder / "examples" / "odd.png")
    result = bench("report", folder)
    assert result.exit_code == 0, result.stderr
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("Warning: left out of the report: ") and said in warning
    page, text = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    assert "title of good.png" in page and "title of odd.png" not in page
    assert "Pictures that are left out" in page and said.replace("_", r"\_") in text


@pytest.mark.parametrize(
    "name", ["../../secret.png", "{}/secret.png", "a/../../../secret.png", "", "a\0.png"]
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    outside(tmp_path / "b")
    folder = written(tmp_path / "b", made(examples=[{"file": name.format(tmp_path), "title": "t"}]))
    (folder / "examples").mkdir()
    result = bench("report", folder)
    assert result.exit_code == 0 and len(result.stderr.splitlines()) == 1
    assert "Where explainers disagree most" not in (folder / "report.html").read_text("utf-8")


def test_the_folder_of_pictures_is_no_link_out(tmp_path: Path) -> None:
    outside(tmp_path / "b")
    folder = written(tmp_path / "b", made(examples=[{"file": "secret.png", "title": "t"}]))
    (folder / "examples").symlink_to(tmp_path)
    assert "leads out of" in bench("report", folder).stderr


def test_a_picture_brings_nothing_but_what_it_shows(tmp_path: Path) -> None:
    folder = written(tmp_path / "b", made(examples=[{"file": "x.png", "title": "t"}]))
    (folder / "examples").mkdir()
    (folder / "examples" / "x.png").write_bytes(png() + b"and a secret")
    assert bench("report", folder).stderr == ""
    page = (folder / "report.html").read_text("utf-8")
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)]
    assert not any(b"secret" in data for data in pictures)
    shown = Image.open(io.BytesIO(pictures[-1]))
    assert shown.size == (4, 3) and shown.getpixel((0, 0)) == (255, 0, 0)


# --- the document -----------------------------------------------------------------------------------


def test_a_small_document_is_well(tmp_path: Path) -> None:
    folder = written(tmp_path / "b", made())
    assert bench_json.read(folder) == results.read(made()) and bench("report", folder).exit_code == 0
    assert bench("compare", folder, folder).exit_code == 0


@pytest.mark.parametrize("kind", ["a link to no end", "a pipe", "a folder"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    PICTURES[kind][0](folder / "bench.json")
    assert refused(folder).endswith("not a regular file")
    assert refused(folder / "bench.json").count("cannot be read") == 1


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "b", made())
    os.truncate(folder / "bench.json", bench_json.MAX_BYTES + 1)
    assert refused(folder).endswith("16 MiB")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 10**6, "500,000 lists"),
        ("[" * 10**5, "is no JSON"),
        ('{"schema": NaN}', "NaN"),
        ('{"schema": 1' + "0" * 9999 + "}", "is no JSON"),
        ('{"schema": 1, "a": ' + "[" * 99 + "]" * 99 + "}", "16 deep"),
        (f'{{"schema": "{HIDDEN * 99}"}}', "is no JSON"),
        (json.dumps({"schema": HIDDEN * 99}), "has schema"),
    ],
)
def test_json_that_would_take_too_much(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(written(tmp_path / "b", text))


def change(found: Any, place: str, value: Any) -> None:
    """Set what lies at a place such as `rows.1.latency`."""
    *above, last = (int(part) if part.isdecimal() else part for part in place.split("."))
    for part in above:
        found = found[part]
    found[last] = value


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("rows", [line("explainer", "native", "gradcam")] * 6000, "rows is a list of 6,000"),
        ("rows.1", 7, "rows[1] is missing or no dict"),
        ("rows.1.backend", "x" * 201, "rows[1].backend is a text of 201 characters"),
        ("rows.1.backend", None, "rows[1].backend is missing or no str"),
        ("rows.1.latency.0.batch", 1.5, "rows[1].latency[0].batch is missing or no number"),
        ("rows.1.latency.0.batch", True, "rows[1].latency[0].batch is missing or no number"),
        ("rows.1.latency.0.samples.host", "x", "rows[1].latency[0].samples.host is missing or no list"),
        ("rows.1.latency.0.samples.host.2", 0.0, "host[2] is 0.0, not between 1e-09 and 1e+09"),
        ("rows.1.latency.0.samples.host.2", 10**400, "host[2] is 1000000"),
        ("rows.1.latency.0.samples.process", [0], "samples of one record differ in number"),
        ("rows.1.latency.0.images_per_second", 0, "images_per_second is 0, not between"),
        (
            "rows.1.latency.0.ratio",
            {"median": "x"},
            "rows[1].latency[0].ratio.median is missing or no number",
        ),
        ("rows.1.scores", {HIDDEN: 1}, r"rows[1].scores.\x1b]0;t\x07"),
        (
            "rows.1.scores.photographs.road.values",
            [0.5] * 1001,
            "values is a list of 1,001, more than 1,000",
        ),
        ("rows.1.scores.photographs.road.passed", "x", "road.passed is missing or no bool"),
        ("rows.1.scores.photographs.road.curves", [[1, 2], [1]], "curves of one score differ in length"),
        ("rows.1.notes", [7], "rows[1].notes[0] is missing or no str"),
        ("scenes", [7], "scenes[0] is missing or no dict"),
        ("metrics.road.summary", 7, "metrics.road.summary is missing or no str"),
        ("agreement.photographs.names", ["a"], "agreement.photographs.measures.spearman is no square"),
        ("agreement.photographs.measures.ssim", {}, "measures.ssim.mean is missing or no list"),
        (
            "rows.1.scores.photographs.road.values",
            [0.5],
            "different numbers of road of the photographs",
        ),
        ("examples", [{"file": 1, "title": 2}], "examples[0].file is missing or no str"),
        ("environment.cores", "x", "environment.cores is missing or no number"),
        ("environment.more", list(range(6000)), "environment.more has more than 5,000 parts"),
        (
            "environment.more",
            "x" * 10**6,
            "environment.more has more than 5,000 parts or 100,000 characters",
        ),
        ("conditions.before", [1], "conditions.before is missing or no dict"),
        ("settings.layer", ["l"], "settings.layer is missing or no str"),
        ("hard_cases", [{}], "hard_cases[0].method is missing or no str"),
    ],
)
def test_a_value_of_the_wrong_kind_is_damage_and_has_its_place(
    tmp_path: Path, place: str, value: Any, said: str
) -> None:
    found = made()
    change(found, place, value)
    told = refused(written(tmp_path / "b", found))
    assert "bench.json is damaged: " in told and said in told
    assert not list((tmp_path / "b").glob("report.*"))


def fault(found: Any) -> str | None:
    """What is wrong with a document."""
    try:
        results.read(found)
    except Fault as wrong:
        return str(wrong)
    return None


def test_many_batch_sizes_or_scores_are_refused() -> None:
    many = [latency(1.0) | {"batch": n + 1} for n in range(40)]
    found = made(rows=[line("explainer", "native", str(n), latency=many) for n in range(2)])
    assert fault(found) is None
    for record in found["rows"][1]["latency"] + found["rows"][0]["latency"]:
        record["batch"] += 1000 * (record is found["rows"][1]["latency"][0])
    found["rows"][1]["latency"] = [latency(1.0) | {"batch": 100 + n} for n in range(40)]
    assert fault(found) == "it has 80 batch sizes, more than 64"
    scores = {"photographs": {str(n): score(*[0.5] * 1000) for n in range(100)}}
    found = made(rows=[line("explainer", "native", str(n), scores=scores) for n in range(11)])
    assert fault(found) == "it has 1,100,000 scores, more than 1,000,000"


def test_a_fault_of_ours_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "b", made())
    monkeypatch.setattr(compare, "compare", lambda *_, **__: {}["key"])
    result = bench("compare", folder, folder)
    assert result.exit_code == 1 and "KeyError: 'key'" in result.stderr and "damaged" not in result.stderr


@pytest.mark.parametrize("kind", ["a link to no end", "a pipe"])
def test_a_recipe_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    PICTURES[kind][0](tmp_path / "recipe.toml")
    with pytest.raises(UsageError, match="not a regular file"):
        recipe.text(Trainer, tmp_path / "recipe.toml")


def test_too_many_rows_are_told_before_they_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from camkit.bench import entrants

    entrant = entrants.Entrant("explainer", "a", "b")
    monkeypatch.setattr(entrants, "_explainer_rows", lambda _: [entrant] * 200)
    with pytest.raises(UsageError, match=r"these are 20\d rows, and a benchmark has 200 at most"):
        entrants.all_rows(entrants.BenchRequest())


WORST = {  # what takes the most memory for its bytes
    "lists": "[" + ",".join(["[" * 15 + "]" * 15] * (bench_json.MAX_NESTED // 16)) + "]",
    "texts": json.dumps(["ab"] * (bench_json.MAX_BYTES // 7)),
    "numbers": json.dumps([1000] * (bench_json.MAX_BYTES // 7)),
    "a text with an astral sign": '["' + "x" * (bench_json.MAX_BYTES - 100) + '\U0001f600"]',
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
@pytest.mark.parametrize("kind", WORST)
def test_no_document_takes_a_gigabyte_to_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"schema": 1, "a": ' + WORST[kind] + "}", "utf-8")
    assert path.stat().st_size <= bench_json.MAX_BYTES
    code = (
        "import pathlib, sys; from camkit.bench import bench_json\n"
        "try: bench_json.read(pathlib.Path(sys.argv[1]))\n"
        "except Exception as error: print(str(error)[-60:])\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"  # rusage also tells of the parent
        "print(int(status.partition('VmHWM:')[2].split()[0]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    said, megabytes = done.stdout.splitlines()
    assert "is damaged" in done.stdout or "missing or no" in said
    assert int(megabytes) < 700  # with numpy and scipy; the pictures need torch beside it


# --- what is written --------------------------------------------------------------------------------


def test_nothing_hides_in_a_report(tmp_path: Path) -> None:
    odd = f"a{HIDDEN}<b>"
    found = made(command=f"camkit {odd}", created=odd)
    found["rows"][1] |= {"backend": odd, "notes": [f"{odd}\nnext"]}
    found["settings"] |= {"model": odd, odd: odd}
    found["scenes"][0]["remark"] = found["metrics"]["road"]["summary"] = odd
    found["agreement"]["photographs"]["names"] = [odd, "\ud800"]
    found["examples"] = [{"file": odd, "title": odd}]
    folder = written(tmp_path / "b", found)
    result = bench("report", folder)
    assert result.exit_code == 0
    reports = [(folder / f"report.{kind}").read_text("utf-8") for kind in ("md", "html")]
    for text in (*reports, result.stderr):
        assert not [sign for sign in HIDDEN if sign in text and not 32 <= ord(sign) < 127]
        assert "x1b]0;t" in text.replace("\\", "") and "u202e" in text
    assert "<b>" not in reports[0].partition("## Again")[0] + reports[1]


@pytest.mark.parametrize(
    "text", ["# a", "- a", "+ a", "1. a", "12) a", "=== a", "~~a~~", "*a*", "<a>", "`a`"]
)
def test_a_text_stays_a_text_in_markdown(text: str) -> None:
    parts = page_formats.render(page_formats.MARKDOWN, page_formats.Report("t", [text], [], []))
    told = "".join(parts).splitlines()[4]
    assert re.sub(r"\\(.)", r"\1", told).replace("&lt;", "<").replace("&gt;", ">") == text
    assert told != text
