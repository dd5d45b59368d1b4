"""Folders of results from strangers, and bad luck: a finding or a line, and everything else is done."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import digests
from tests.fuzz import time_limit
from tests.test_cli import camkit_, explain, lines, photo
from tests.test_output import explanation, output, put
from tests.test_result_folder import CAT, DOG, TABBY, finished
from torch import Tensor

from camkit import files
from camkit.contracts.model import LoadedModel
from camkit.drawing import looks
from camkit.drawing import overlay as render
from camkit.drawing.style import Style
from camkit.errors import CamkitError, LayerError, ModelError
from camkit.explaining import manifest, merging, parquet, redrawing, stored_maps, verification
from camkit.explaining.checked_reading import Reader
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest_lines import Result
from camkit.explaining.plan import plan
from camkit.images import decoding
from camkit.images import finding as images_finding
from camkit.images.finding import find
from camkit.images.preprocess import Preprocess
from camkit.images.workers import LimitError, Processes, processes

pytestmark = pytest.mark.usefixtures("here")

OUT = Path("out")


def rewrite(change: Callable[[dict[str, Any]], object], folder: str = "out", first: int = 1) -> None:
    """Change the first lines of a manifest."""
    found = lines(folder)
    for line in found[:first]:
        change(line)
    text = "".join(manifest.as_json(line) + "\n" for line in found)
    Path(folder, manifest.NAME).write_text(text, "utf-8")


def forged(**values: Any) -> None:
    """A manifest whose first line says something else."""
    rewrite(lambda line: line.update(values))


# --- models that are code -------------------------------------------------------------------------


def test_no_function_that_a_manifest_names_is_run(here: Path) -> None:
    (here / "evil.py").write_text("from pathlib import Path\n\nPath('ran').touch()\nbuild = None\n")
    finished()
    for spec in ("evil.py:build", "evil:build", "python:evil.py:build", "camkit:python:evil:build"):
        forged(model_spec=spec, model=spec)
        done = camkit_("verify", "out", "--sample", 8)
        said = f"1 map of {spec} is not computed again: if you trust that model, which may be code"
        assert done.exit_code == 1 and said in done.stdout
        assert not Path("ran").exists()
    given = camkit_("verify", "out", "--model", "tiny:net")  # which is that of the other lines
    assert given.exit_code == 1 and f"1 map of {spec} is not computed again" in given.stdout
    rewrite(lambda line: line.update(model_spec=spec, model=spec), first=99)
    assert camkit_("verify", "out", "--model", "tiny:net").exit_code == 0  # it lies elsewhere now
    assert not Path("ran").exists()


def test_photographs_that_a_function_prepared_are_not_drawn_otherwise() -> None:
    finished()
    rewrite(lambda line: line["preprocessing"].update(function="mine"))
    done = camkit_("render", "out", "--relu")
    assert (
        done.exit_code == 3 and "shown by a function of its owner, mine, which no file holds" in done.stderr
    )


# --- maps that take too much ----------------------------------------------------------------------


def repeated(path: Path, line: dict[str, Any], count: int = 60_000) -> None:
    """A table of some kilobytes, whose names take gigabytes once they are read."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array(["x" * 50_000]))
    nothing = pa.nulls(count, pa.int32())
    columns = {"name": name, "map_key": name, "height": nothing, "width": nothing}
    columns["map"] = pa.nulls(count, pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000


def test_a_small_table_that_takes_gigabytes_is_a_finding_and_the_rest_is_looked_at() -> None:
    finished()
    repeated(OUT / "cat.parquet", lines()[0])
    forged(map_file="cat.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command in (("verify", "out", "--sample", "0"), ("render", "out", "--relu")):
        done = camkit_(*command)
        assert "out/cat.parquet" in done.stdout + done.stderr
        assert "memory" in done.stdout + done.stderr
        assert done.exit_code == (1 if command[0] == "verify" else 3)
        assert "3 maps, 4 pictures" in done.stdout or "3 pictures drawn, 1 failed" in done.stderr
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200 * 1024  # KiB


def test_a_damaged_table_is_told_by_its_name_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    finished("--format", "parquet")
    (table,) = OUT.glob("*.parquet")
    line = manifest.latest(OUT)[0]
    assert stored_maps.load_map(OUT, line).shape == (8, 8)
    data = bytearray(table.read_bytes())
    data[-20] ^= 1
    table.write_bytes(data)
    monkeypatch.setattr(parquet, "read_map", lambda *_: pytest.fail("it is parsed"))
    with pytest.raises(CamkitError, match="hash in its name"):
        stored_maps.load_map(OUT, line)


def test_of_two_members_of_one_name_none_is_read() -> None:
    finished("--format", "npz")
    line = manifest.latest(OUT)[0]
    with warnings.catch_warnings(), zipfile.ZipFile(OUT / line["map_file"], "a") as archive:
        warnings.simplefilter("ignore")  # that the name is there already
        archive.writestr(f"{line['map_key']}.npy", b"\x93NUMPY" + bytes(100))
    with pytest.raises(CamkitError, match="one name"):
        stored_maps.load_map(OUT, line)


def test_a_member_is_read_no_further_than_it_says() -> None:
    """Its directory says 128 bytes; it holds 300 million."""
    finished("--format", "npz")
    line = manifest.latest(OUT)[0]
    path = OUT / line["map_file"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{line['map_key']}.npy", bytes(300_000_000))
    data = path.read_bytes()
    path.write_bytes(data.replace((300_000_000).to_bytes(4, "little"), (128).to_bytes(4, "little")))
    with pytest.raises(CamkitError, match="cannot be read"):
        stored_maps.load_map(OUT, line)


@pytest.fixture
def pool(here: Path) -> Iterator[Processes]:
    """One process that reads, where one is."""
    with processes(1) as made:
        assert made is not None
        yield made


def test_a_file_that_took_a_process_down_is_not_tried_again_and_others_are(pool: Processes) -> None:
    reader = Reader(pool)
    with pytest.raises(LimitError, match=r"^a\.parquet took down"):
        reader.read(Path("a.parquet"), os._exit, 1)
    with pytest.raises(LimitError, match=r"^a\.parquet took down"):
        reader.read(Path("a.parquet"), divmod, 7, 2)
    assert reader.read(Path("b.parquet"), divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("format", ["png", "npz", "parquet"])
def test_maps_are_the_same_wherever_they_are_read(format: str, pool: Processes) -> None:
    finished("--format", format)
    line = manifest.latest(OUT)[0]
    there, here = (Reader(where).map(OUT, line) for where in (pool, None))
    assert torch.equal(there, here) and list(here.shape) == line["map_shape"]


def test_a_view_of_more_pixels_than_models_see_is_refused() -> None:
    for table in ({"size": [8192, 8192]}, {"size": [64, 64], "presize": [8192, 1024]}):
        with pytest.raises(ModelError, match=r"8192.* 4,194,304 pixels"):
            Preprocess.from_dict(table)
    assert Preprocess.from_dict({"size": [2048, 2048]}).size == (2048, 2048)
    finished()
    forged(preprocessing={"size": [8192, 8192]})
    done = camkit_("render", "out", "--relu")
    assert done.exit_code == 3 and len(done.stdout.splitlines()) == 3
    assert done.stderr.startswith(f"Error: {TABBY}.npy: preprocessing size (8192, 8192) is more than")


# --- names of photographs -------------------------------------------------------------------------

NAMES = [
    "Screenshot 2026-01-01 12:30:00.png",
    "new\nline.png",
    ".hidden?.png",
    "caf\udce9.png",
    "\u202e.png",
]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_photographs_are_found_by_their_real_names(name: str) -> None:
    photo(f"photos/{name}")
    photo(f"photos/{images_finding.display(name)}", 1) if images_finding.display(name) != name else None
    assert explain(f"photos/{name}", "--workers", 0).exit_code == 0
    (line,) = manifest.latest(OUT)
    assert (line["image_path"], line["image_name"]) == (f"photos/{name}", name)
    assert (OUT / manifest.NAME).read_bytes().decode("utf-8").count("\n") == 1
    for where in ([], ["--images", "photos"]):
        assert camkit_("verify", "out", *where).exit_code == 0
        done = camkit_("render", "out", "--relu", *where)
        assert done.exit_code == 0, done.stderr
    Path(f"photos/{name}").unlink()
    done = camkit_("verify", "out", "--images", "photos", "--sample", 0)
    assert done.exit_code == 1 and "No such file" in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_lines_of_older_runs_are_read_and_their_photographs_found() -> None:
    finished()
    rewrite(lambda line: [line.pop("image_path"), line.pop("image_name")], first=9)
    assert camkit_("verify", "out").exit_code == 0
    assert camkit_("verify", "out", "--images", "photos").exit_code == 0


@pytest.mark.parametrize("value", [3, ["a"], {"a": 1}, True])
def test_a_path_that_is_no_text_makes_no_line(value: Any) -> None:
    finished()
    forged(image_path=value)
    assert len(manifest.latest(OUT)) == 3


@pytest.mark.parametrize(
    "name", ["../photos/cat.png", "/etc/passwd", "a/../../x.png", "\0", "\ud800", "x" * 300]
)
def test_a_name_of_a_photograph_that_leads_elsewhere_is_a_finding(name: str) -> None:
    finished()
    rewrite(lambda line: line.update(image_name=name), first=2)
    done = camkit_("verify", "out", "--images", "photos", "--sample", 0)
    assert done.exit_code == 1 and "2 photographs hold" not in done.stdout
    assert len(done.stdout.splitlines()) in (2, 3)


@pytest.mark.parametrize("path", ["/proc/kmsg", "/dev/zero", "fifo", "/dev/tty", "/proc/self/mem", "."])
def test_what_is_no_photograph_is_told_at_once(path: str) -> None:
    finished()
    os.mkfifo("fifo")
    rewrite(lambda line: line.update(image_path=path), first=2)
    with time_limit(20):
        done = camkit_("verify", "out", "--sample", 0)
        assert done.exit_code == 1 and len(done.stdout.splitlines()) in (2, 3)
        assert camkit_("render", "out", "--relu").exit_code == 3  # the other photograph is drawn


def test_a_manifest_that_never_ends_is_no_manifest() -> None:
    Path("folder").mkdir()
    for target in ("/dev/zero", "/proc/kmsg"):
        Path("folder/manifest.jsonl").symlink_to(target)
        with time_limit(20):
            done = camkit_("verify", "folder")
        assert done.exit_code == 1 and "leads out of folder" in done.stderr
        Path("folder/manifest.jsonl").unlink()


# --- the whole photograph -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_large_photograph_is_drawn_reduced_and_its_map_is_the_same(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(CAT, size=(300, 200))
    photo(DOG, 1, size=(40, 20))
    given = ("photos", "--no-caption", "--workers", workers)
    assert explain(*given, "--out", "whole").exit_code == 0
    monkeypatch.setattr(decoding, "DRAWN", 150)
    monkeypatch.setattr("camkit.explaining.runner.DRAWN", 150)
    done = explain(*given)
    assert (done.exit_code, done.stderr) == (
        0,
        "Raw maps and manifest.jsonl are in out; to look through all of it, open out/index.html\n",
    )
    cat, dog = lines()
    whole = {line["name"]: line for line in lines("whole")}
    for line in (cat, dog):
        same = whole[line["name"]]
        assert [line[key] for key in ("map_sha256", "logit")] == [
            same[key] for key in ("map_sha256", "logit")
        ]
    with Image.open(OUT / cat["overlay_file"]) as picture:
        assert picture.size == (150, 100)
    assert dog["overlay_sha256"] == whole[dog["name"]]["overlay_sha256"]
    before = digests(OUT)
    assert camkit_("render", "out", "--no-caption").exit_code == 0
    after = digests(OUT)
    assert all(after[name] == data for name, data in before.items() if name != manifest.NAME)


def test_the_part_that_the_model_saw_lies_where_it_does_in_the_whole_photograph() -> None:
    image = Image.new("RGB", (400, 200))
    wide = Preprocess(size=(50, 50))  # sees the middle
    whole = decoding.Photo(image, "a", "")
    small = decoding.Photo(decoding.reduced(image, 200), "a", "", whole=image.size)
    assert small.image.size == (200, 100)
    style = Style(look="spotlight", alpha=0.0)  # all that the model saw
    heat, full = (
        np.asarray(render.draw(one, torch.tensor([[0.0, 1.0]]), wide, style))[10] == 255
        for one in (small, whole)
    )
    assert heat.all(1).nonzero()[0].tolist() == [49, 150]  # the lines beside it
    assert full.all(1).nonzero()[0].tolist() == [99, 300]


def test_bands_of_a_picture_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (57, 83, 3), dtype=np.uint8))
    map = torch.from_numpy(rng.normal(size=(7, 5)))
    arguments = (image, map, Style(look="lesson", alpha=0.37))
    whole = np.asarray(render.overlay(*arguments))
    monkeypatch.setattr(looks, "BAND", 200)
    assert np.array_equal(whole, np.asarray(render.overlay(*arguments)))


def test_too_little_memory_to_draw_a_photograph_costs_only_that_photograph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo(CAT)
    photo(DOG, 1)
    draw = Explanation.overlay
    drawn: list[str] = []

    def overlay(self: Explanation, **look: Any) -> Image.Image:
        drawn.append(self.photo.source)
        if self.photo.source == CAT and drawn.count(CAT) > 1:  # with one of its files written
            raise MemoryError
        return draw(self, **look)

    monkeypatch.setattr(Explanation, "overlay", overlay)
    done = explain("photos", "--class", "tabby", "--class", "red fox", "--workers", 0)
    assert done.exit_code == 3
    assert f"Error: {CAT} needs more memory " in done.stderr
    assert [line["status"] for line in lines()] == ["error", "ok", "ok"]
    assert not [name for name in digests(OUT) if name.startswith("cat")]
    assert camkit_("verify", "out").exit_code == 0


def test_large_photographs_that_wait_to_be_drawn_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camkit.explaining.output.WAITING", 3 * 3 * 64 * 48)
    begun = []

    def photos() -> Iterator[list[Result]]:
        for position in range(20):
            begun.append(position)
            yield [explanation(f"{position}.jpg", position=position)]

    found = output(tmp_path / "new").write_all(photos())
    next(found)
    assert len(begun) <= 4
    assert len(list(found)) == 19


# --- one bad line ---------------------------------------------------------------------------------

ODD_LINES: dict[str, dict[str, Any]] = {
    "a layout that cannot be a key": {"layout": [["tokens"]]},
    "a class beyond all": {"class_index": 10**30},
    "no class": {"class_index": -1},
    "a shape beyond all": {"map_shape": [10**30, 10**30]},
    "a layer that is many": {"layer": "*"},
    "a backend that is no name": {"backend": "\u0661:\u0661"},
    "options that are no table": {"options": "fast"},
    "a model that is no name": {"model_spec": "tini:\u202e"},
    "a number beyond floats": {"options": {"alpha": 10**400}},
}


@pytest.mark.parametrize("kind", ODD_LINES)
def test_one_odd_line_is_a_finding_and_the_others_are_looked_at(kind: str) -> None:
    finished()
    forged(**ODD_LINES[kind])
    for found in (verification.verify(OUT), verification.verify(OUT, photographs=Path("photos"))):
        assert {finding.file for finding in found.findings} == {f"{TABBY}.npy"}
        assert found.lines == 4 and found.maps >= 3 and found.pictures == 4 and found.photographs == 2
    results = list(redrawing.redraw(OUT, style=Style(relu=True)))
    assert len(results) == 4 and sum(error is None for _, error in results) >= 3


@pytest.mark.parametrize("table", [[1], {"size": [1e308, 1]}, {"size": [10**400] * 2}, {"mean": "x"}, None])
def test_odd_preprocessing_costs_one_picture(table: Any) -> None:
    finished()
    forged(preprocessing=table)
    errors = [error for _, error in redrawing.redraw(OUT, style=Style(relu=True))]
    assert len(errors) == 4 and errors.count(None) == 3


@pytest.mark.parametrize("error", [RecursionError("deep"), KeyError("a"), MemoryError(), OSError(5, "I/O")])
def test_whatever_one_line_raises_is_told_and_hides_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished()
    (OUT / f"{TABBY}.png").unlink()
    load = stored_maps.load_map

    def fail(folder: Path, line: dict[str, Any]) -> Any:
        if line["map_file"] == f"{TABBY}.npy":
            raise error
        return load(folder, line)

    monkeypatch.setattr(stored_maps, "load_map", fail)
    found = verification.verify(OUT, sample=0)
    assert [finding.file for finding in found.findings] == [f"{TABBY}.npy", f"{TABBY}.png"]
    assert found.maps == 3 and all("\n" not in finding.reason for finding in found.findings)
    results = list(redrawing.redraw(OUT, style=Style(relu=True)))
    assert [error is None for _, error in results].count(False) == 1


def test_lines_that_are_nested_deeper_than_camkit_writes_are_none() -> None:
    finished()
    deep: Any = []
    for _ in range(150):
        deep = [deep]
    forged(options={"a": deep})
    assert len(manifest.latest(OUT)) == 3
    forged(options={"a": "[" * 500})  # a text is not deep
    assert len(manifest.latest(OUT)) == 4


@pytest.mark.parametrize("value", [10_000_000, "10000000"])
def test_options_that_would_take_for_ever_are_a_finding_that_names_them(value: Any) -> None:
    finished()
    forged(options={"batch_size": value, "comparisons": 4})
    with time_limit(30):
        found = verification.verify(OUT)
    (finding,) = found.findings
    assert finding.file == f"{TABBY}.npy"
    assert "batch_size = 10000000 " in finding.reason and " 50 times" in finding.reason


def test_options_that_are_somewhat_dearer_than_usual_are_computed() -> None:
    methods = ("--method", "finercam", "--method", "ablationcam")
    finished(*methods, "-o", "comparisons=30", "-o", "batch_size=64")
    assert verification.verify(OUT).findings == ()


# --- deep folders ---------------------------------------------------------------------------------


@pytest.fixture
def deep(here: Path) -> Iterator[str]:
    """A photograph below more folders than Python calls a function inside itself; its path."""
    photo("cat.png")
    usual, below = sys.getrecursionlimit(), 600
    sys.setrecursionlimit(500)  # so that it need not be so deep, which takes long
    os.mkdir("deep")  # noqa: PTH102
    os.chdir("deep")
    for _ in range(below):
        os.mkdir("a")  # noqa: PTH102
        os.chdir("a")
    os.link(here / "cat.png", "cat.png")
    os.chdir(here)
    yield "/".join(["deep", *["a"] * below, "cat.png"])
    sys.setrecursionlimit(usual)
    subprocess.run(["rm", "-rf", "deep", "out", "all"], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such paths")
def test_deep_folders_are_walked_explained_joined_and_verified(deep: str) -> None:
    assert [str(source.path) for source in find(["deep"])] == [deep]
    done = explain("deep", "--workers", 0)
    assert done.exit_code == 0, done.stderr
    done = camkit_("explain", "merge", "out", "--out", "all")
    assert done.exit_code == 0, done.stderr
    assert camkit_("verify", "all", "--sample", 0).exit_code == 0
    done = camkit_("render", "all", "--relu")
    assert done.exit_code == 0, done.stderr
    draft = Path(f".{socket.gethostname()}-999999999-ab.partial")
    Path("deep").rename(draft)
    files.sweep(Path())  # one that is too deep to be camkit's is left, or not, but nothing is raised
    subprocess.run(["rm", "-rf", draft], check=True)


# --- bad luck -------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["removed", "replaced", "moved"])
def test_a_folder_that_goes_away_meanwhile_is_told_with_what_was_finished(
    tmp_path: Path, then: str
) -> None:
    out = tmp_path / "new"

    def photos() -> Iterator[Sequence[Result]]:
        for position in range(6):
            if position == 3:
                shutil.move(out, tmp_path / "old") if then == "moved" else shutil.rmtree(out)
                if then == "replaced":
                    out.mkdir()
            yield [explanation(f"{position}.jpg", position=position)]

    message = "new was removed.* 3 finished maps"
    with pytest.raises(CamkitError, match=message) as caught:
        list(output(out).write_all(photos(), ahead=0))
    assert caught.value.exit_code == 1 and "stays valid" not in str(caught.value)
    assert then == "moved" or not out.exists() or digests(out) == {}


def test_a_folder_that_goes_away_while_it_is_joined_into_or_drawn_in_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished()
    append = manifest.append

    def and_away(folder: Path, lines: Sequence[Any]) -> None:
        append(folder, lines)
        folder.rename(tmp_path / f"old-{folder.name}")
        folder.mkdir()

    monkeypatch.setattr(manifest, "append", and_away)
    with pytest.raises(CamkitError, match=r"new was removed.* 2 "):
        merging.merge([OUT], tmp_path / "new")
    with pytest.raises(CamkitError, match="out was removed"):
        list(redrawing.redraw(OUT, style=Style(relu=True)))
    assert not list(OUT.iterdir()) and not list((tmp_path / "new").iterdir())


LINES: dict[str, Callable[[str], str]] = {
    "it is damaged or cut off": lambda line: line[:100],
    "it is damaged or cut off (a byte)": lambda line: line.replace('"backend"', '"backend\\x"'),
    "it is damaged or cut off (a number)": lambda line: line.replace(
        '"map_range": [', '"map_range": [1e400, '
    ),
    "it is not a table": lambda line: "[1, 2]",
    "its schema is not 2": lambda line: line.replace('"schema": 2', '"schema": 9'),
    "its map_file is missing or invalid": lambda line: line.replace('"map_file"', '"mapfile"'),
    "its map_sha256 is missing or invalid": lambda line: line.replace('"map_sha256"', '"sha"'),
    "its status is missing or invalid": lambda line: line.replace('"status": "ok"', '"status": "good"'),
}


@pytest.mark.parametrize("case", LINES)
def test_a_damaged_line_is_a_finding_wherever_the_manifest_is_read(case: str) -> None:
    finished()
    path = OUT / manifest.NAME
    first, *rest = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text(LINES[case](first.rstrip("\n")) + "\n\n" + "".join(rest), "utf-8")
    found = f"manifest.jsonl, line 1: {case.partition(' (')[0]}"
    done = camkit_("verify", "out", "--sample", 0)
    assert done.exit_code == 1 and done.stdout.startswith(found)
    assert "3 results: 3 maps, 3 pictures and 2 photographs hold; no map was recomputed" in done.stdout
    assert done.stderr == "Does not hold: 1 finding\n"
    done = camkit_("explain", "merge", "out", "--out", "all")
    assert done.exit_code == 3 and f"Error: out/{found}" in done.stderr
    assert done.stdout.startswith("3 results of 1 folder ")
    assert len(lines("all")) == 3
    done = camkit_("render", "out", "--relu")
    assert done.exit_code == 3 and f"Error: out/{found}" in done.stderr


def test_of_many_damaged_lines_some_are_told() -> None:
    finished()
    with (OUT / manifest.NAME).open("a") as file:
        file.write("{\n" * 1000 + "x" * 2**21 + "\n")
    findings: list[manifest.Finding] = []
    assert len(list(manifest.read(OUT, findings))) == 4 and len(findings) == 21
    assert str(findings[0]) == "manifest.jsonl, line 5: it is damaged or cut off"
    assert str(findings[-1]) == "manifest.jsonl: 981 more of its lines are invalid"


def test_a_line_that_was_torn_is_taken_away_by_the_next_and_a_whole_one_is_kept() -> None:
    finished()
    path = OUT / manifest.NAME
    whole = path.read_bytes()
    (line, *_) = lines()
    for tail, kept in (
        (b'{"schema": 2, "sta', b""),
        (whole.splitlines()[0], whole.splitlines()[0] + b"\n"),
        (b'{"schema": 3}', b'{"schema": 3}\n'),  # of a later camkit
    ):
        path.write_bytes(whole + tail)
        manifest.append(OUT, [line])
        assert path.read_bytes() == whole + kept + manifest.as_json(line).encode() + b"\n"


@pytest.mark.parametrize("kind", ["map_file", "overlay_file"])
@pytest.mark.parametrize("first", ["damaged", "whole"])
def test_of_two_folders_the_file_that_holds_is_joined(kind: str, first: str) -> None:
    finished(out="whole")
    shutil.copytree("whole", "damaged")
    (line, *_) = lines("damaged")
    path = Path("damaged", line[kind])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    second = {"damaged": "whole", "whole": "damaged"}[first]
    done = camkit_("explain", "merge", first, second, "--out", "all")
    assert done.exit_code == (3 if first == "damaged" else 0)
    assert (str(path) in done.stderr) == (first == "damaged")
    assert len(lines("all")) == 4 and not merging.merge([Path("all")], Path("again")).findings


@pytest.mark.parametrize("format", ["png", "npz", "parquet"])
def test_a_manifest_that_goes_away_meanwhile_is_told(tmp_path: Path, format: Literal["png", "npz"]) -> None:
    out = tmp_path / "new"
    made = output(out, format=format)
    put(made, explanation("0.jpg"))

    def photos() -> Iterator[Sequence[Result]]:
        (out / manifest.NAME).unlink()
        yield [explanation("1.jpg", position=1)]

    with pytest.raises(CamkitError, match=r"manifest\.jsonl was removed"):
        list(made.write_all(photos(), ahead=0))


def test_one_damaged_file_is_one_finding() -> None:
    finished("--format", "parquet")
    (path,) = OUT.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    done = camkit_("verify", "out", "--sample", 0)
    assert done.exit_code == 1 and done.stderr == "Does not hold: 1 finding\n"
    assert done.stdout.count(path.name) == 1 and "it is damaged or cut off" in done.stdout


def test_a_manifest_that_leads_out_of_its_folder_is_refused() -> None:
    finished()
    (OUT / manifest.NAME).rename("elsewhere.jsonl")
    (OUT / manifest.NAME).symlink_to(Path("elsewhere.jsonl").absolute())
    for words in (("verify", "out"), ("render", "out"), ("explain", "merge", "out", "--out", "all")):
        done = camkit_(*words)
        assert done.exit_code == 1 and done.stdout == ""
        assert done.stderr.startswith("Error: out/manifest.jsonl ") and "leads out of out" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_layer_whose_name_no_manifest_holds_is_refused() -> None:
    module = torch.nn.Sequential()
    module.add_module("a\nb", torch.nn.Conv2d(3, 4, 3))
    module.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
    module.add_module("flat", torch.nn.Flatten())
    model = LoadedModel(module.eval(), tuple("abcd"), Preprocess((8, 8)), name="net", default_layer="a\nb")
    with pytest.raises(LayerError, match="rename"):
        plan(model)


def test_files_whose_lines_cannot_be_written_are_removed_and_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(output(tmp_path), explanation("1.jpg"))
    before = digests(tmp_path)

    def full(*_: Any) -> None:
        raise CamkitError("cannot write manifest.jsonl: No space left on device")

    monkeypatch.setattr(manifest, "append", full)
    for format in ("png", "npz", "parquet"):
        with pytest.raises(CamkitError, match="No space left"):
            photos = [[explanation(f"{i}.jpg", position=i)] for i in (1, 2, 3)]
            list(output(tmp_path, format=format).write_all(photos))
        assert digests(tmp_path) == before


def test_a_manifest_has_all_of_what_is_added_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = put(output(tmp_path), explanation())
    before = (tmp_path / manifest.NAME).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CamkitError, match=r"manifest\.jsonl: No space left"):
        manifest.append(tmp_path, [line] * 3)
    assert (tmp_path / manifest.NAME).read_bytes() == before


def test_drafts_of_a_killed_process_are_swept_by_merge_and_render() -> None:
    finished()
    name = f".{socket.gethostname()}-999999999-ab.partial"
    for folder, command in (
        ("all", ("explain", "merge", "out", "--out", "all")),
        ("out", ("render", "out")),
    ):
        Path(folder, "a").mkdir(parents=True, exist_ok=True)
        for draft in (Path(folder, name), Path(folder, "a", name)):
            draft.write_bytes(b"half")
        assert camkit_(*command).exit_code == 0
        assert not [file for file in digests(Path(folder)) if "partial" in file]


def test_a_file_too_large_to_be_a_result_is_not_joined_and_nothing_is_left_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished()
    with (OUT / f"{TABBY}.png").open("ab") as file:
        file.truncate(2**22)
    monkeypatch.setattr("camkit.explaining.checked_reading.MAX_FILE", 2**21)
    done = camkit_("explain", "merge", "out", "--out", "all")
    assert done.exit_code == 3
    assert done.stderr.startswith(f"Error: out/{TABBY}.png ") and done.stderr.endswith(
        "larger than 2 MiB\n"
    )
    assert not [name for name in digests(Path("all")) if name.startswith(TABBY)]


def test_a_file_that_becomes_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with time_limit(5), pytest.raises(CamkitError, match=r"fifo .*not a regular file"):
        files.copy(tmp_path / "fifo", tmp_path / "copy", 100)
    assert [path.name for path in tmp_path.iterdir() if path.name != "here"] == ["fifo"]


def test_the_processes_are_the_same_as_none_for_a_folder_that_holds() -> None:
    finished("--format", "npz")
    with processes(1) as pool:
        assert verification.verify(OUT, processes=pool) == verification.verify(OUT)
        drawn = list(redrawing.redraw(OUT, style=Style(), processes=pool))
    assert [error for _, error in drawn] == [None] * 4
    assert json.dumps(drawn[0][0])
    assert isinstance(Reader(None).map(OUT, drawn[0][0]), Tensor)
