"""What can be done with finished folders: joining, verifying and drawing them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import digests, is_of_page
from tests.test_cli import camkit_, explain, lines, photo

from camkit.drawing.style import Style
from camkit.errors import CamkitError
from camkit.explaining import manifest, merging, redrawing, stored_maps, verification

pytestmark = pytest.mark.usefixtures("here")

CAT, DOG = "photos/cat.png", "photos/a/dog.png"
TABBY = "cat.png.native.gradcam.tabby.tiny_net"
SECRET = b"nobody else should read this"
FORMATS = ["png", "npz", "parquet"]


def finished(*arguments: str, out: str = "out", failing: int = 0) -> Path:
    """The results of two photographs and two classes in a folder."""
    photo(CAT, 0)
    photo(DOG, 1)
    given = ("--class", "tabby", "--class", "red fox", "--workers", "0", "--out", out)
    done = explain("photos", *given, *arguments)
    assert done.exit_code == failing, done.stderr
    return Path(out)


def change(path: str, old: Any = None, new: Any = None) -> None:
    """Replace in a file, or turn one of its bytes."""
    data = bytearray(Path(path).read_bytes())
    if old is None:
        data[-20] ^= 255
    else:
        assert data.count(old) >= 1
        data = data.replace(old, new)
    Path(path).write_bytes(data)


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_what_explain_wrote_holds(format: str) -> None:
    finished("--format", format)
    done = camkit_("verify", "out", "--sample", 3)
    assert done.exit_code == 0, done.stdout
    pictures = 4 if format == "png" else 0
    start = f"4 results: 4 maps, {pictures} pictures and 2 photographs hold; 3 recomputed maps differ by"
    assert done.stdout.startswith(start)
    assert done.stderr == "Everything holds\n"


def test_a_folder_may_be_verified_where_only_hashes_can_be() -> None:
    folder = finished()
    assert verification.verify(folder, sample=0).recomputed == 0
    shutil.move("photos", "elsewhere")
    found = verification.verify(folder)
    assert [finding.file for finding in found.findings] == [CAT, DOG]
    assert (found.maps, found.pictures, found.photographs, found.recomputed) == (4, 4, 0, 0)
    assert camkit_("verify", "out").exit_code == 1
    assert camkit_("verify", "out", "--images", "elsewhere").exit_code == 0
    assert verification.verify(folder, photographs=Path("elsewhere")).recomputed == 4


def forge() -> None:
    """A map with another value, and a manifest that knows it."""
    values = np.load(f"out/{TABBY}.npy")
    before = stored_maps.map_digest(values)
    values[0, 0] += 0.01 * np.abs(values).max()
    np.save(f"out/{TABBY}.npy", values)
    change("out/manifest.jsonl", before.encode(), stored_maps.map_digest(values).encode())


DAMAGE: dict[str, tuple[Callable[[], object], str, str]] = {
    "another map": (
        lambda: np.save(f"out/{TABBY}.npy", np.zeros((8, 8), np.float32)),
        f"{TABBY}.npy",
        "is not the map in the manifest",
    ),
    "one byte of a map": (lambda: change(f"out/{TABBY}.npy"), f"{TABBY}.npy", "is not the map"),
    "half a map": (lambda: os.truncate(f"out/{TABBY}.npy", 200), f"{TABBY}.npy", "cannot be read"),
    "no map": (lambda: os.remove(f"out/{TABBY}.npy"), f"{TABBY}.npy", "no such file"),  # noqa: PTH107
    "a forged map": (forge, f"{TABBY}.npy", "recomputed, it differs by 1.0e-02 of its peak"),
    "one byte of a picture": (
        lambda: change(f"out/{TABBY}.png"),
        f"{TABBY}.png",
        "is not the picture that was",
    ),
    "no picture": (lambda: os.remove(f"out/{TABBY}.png"), f"{TABBY}.png", "no such file"),  # noqa: PTH107
    "another photograph": (lambda: photo(CAT, 7), CAT, "it has changed"),
    "no photograph": (lambda: os.remove(CAT), CAT, "No such file or directory"),  # noqa: PTH107
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_hold_is_named(kind: str) -> None:
    damage, file, reason = DAMAGE[kind]
    finished()
    damage()
    done = camkit_("verify", "out")
    assert done.exit_code == 1
    *found, _ = done.stdout.splitlines()
    assert found and all(file in line for line in found)
    assert reason in found[0]
    assert done.stderr == f"Does not hold: {len(found)} finding{'s' * (len(found) > 1)}\n"


STATEMENTS: dict[str, tuple[Any, str]] = {
    "class_name": ("Bengal", "the manifest says Bengal, it is tabby"),
    "probability": (0.99, "the manifest says 0.99, it is 0."),
    "logit": (-3, "the manifest says -3, it is "),
    "predicted": (["Bengal"], "the manifest says ['Bengal'], it is ['"),
    "predicted_index": (7, "the manifest says 7, it is "),
    "predicted_name": ("Bengal", "the manifest says Bengal, it is "),
    "predicted_probability": ("0.5", "the manifest says 0.5, it is "),
    "scores": ("sigmoid", "the manifest says sigmoid, it is softmax"),
    "label": ("Bengal", "the manifest says Bengal, it is None"),
    "border_share": (0.999, "the manifest says 0.999, it is 0."),
    "map_range": ([0, 1], "the manifest says [0, 1], it is ["),
}


@pytest.mark.parametrize("field", STATEMENTS)
def test_what_is_said_of_a_map_and_is_not_so_is_named(field: str) -> None:
    finished()
    path = Path("out/manifest.jsonl")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    (line,) = (line for line in lines if line["map_file"] == f"{TABBY}.npy")
    line[field], said = STATEMENTS[field]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    done = camkit_("verify", "out")
    assert done.exit_code == 1
    first, _ = done.stdout.splitlines()
    assert first.startswith(f"{TABBY}.npy: {field}: {said}"), first


def test_a_smaller_request_into_the_same_folder_takes_nothing_away() -> None:
    finished()
    assert explain("photos", "--class", "tabby", "--workers", "0", "--out", "out").exit_code == 0
    done = camkit_("verify", "out")
    assert done.exit_code == 0 and done.stderr == "Everything holds\n", done.stdout


@pytest.mark.parametrize("kind", ["a line is gone", "a line is of another photograph"])
def test_results_that_the_manifest_no_longer_tells_of_are_named(kind: str) -> None:
    finished()
    path = Path("out/manifest.jsonl")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    first = next(number for number, line in enumerate(lines) if line["name"] == "cat.png")
    if kind == "a line is gone":
        del lines[first]
    else:
        lines[first]["image_sha256"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    done = camkit_("verify", "out")
    assert done.exit_code == 1
    assert "cat.png: its lines tell of 2 results, and 1 of them are there" in done.stdout


def spoil_npz(path: Path) -> None:
    """Change one value of the last map."""
    with np.load(path) as arrays:
        values = {key: array.copy() for key, array in arrays.items()}
    values[list(values)[-1]][0, 0] += 1
    np.savez(path, **values)


def spoil_parquet(path: Path) -> None:
    """Change one value of the last map."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    table = parquet.read_table(path)
    values = table["map"].to_pylist()
    values[-1][0] += 1
    place, kind = table.schema.get_field_index("map"), table.schema.field("map").type
    parquet.write_table(table.set_column(place, "map", pyarrow.array(values, kind)), path)


@pytest.mark.parametrize(("format", "spoil"), [("npz", spoil_npz), ("parquet", spoil_parquet)])
def test_a_change_in_a_file_of_several_maps_is_named(format: str, spoil: Callable[[Path], None]) -> None:
    finished("--format", format)
    file = lines()[-1]["map_file"]
    spoil(Path("out", file))
    done = camkit_("verify", "out", "--sample", 0)
    assert done.exit_code == 1
    if format == "npz":
        reason = f"out/{file} is not the map in the manifest\n4 results: 3"
    else:  # a table is told by its name as a whole
        reason = f"out/{file} cannot be read: it is damaged or cut off: its contents do not match"
    assert done.stdout.startswith(reason)


@pytest.mark.parametrize("arguments", [(), ("--model", "tiny:flat")])
def test_another_model_is_not_the_one_that_made_the_maps(arguments: tuple[str, ...]) -> None:
    finished()
    if not arguments:
        change("out/manifest.jsonl", b'"model_spec": "tiny:net"', b'"model_spec": "tiny:flat"')
    done = camkit_("verify", "out", "--sample", 1, *arguments)
    assert done.exit_code == 1
    assert "tiny:flat is not the model that made it" in done.stdout
    assert camkit_("verify", "out", "--model", "tiny:net").exit_code == 0


def test_a_model_that_is_gone_is_a_finding_and_the_rest_is_verified() -> None:
    finished()
    change("out/manifest.jsonl", b'"model_spec": "tiny:net"', b'"model_spec": "tini:net"')
    found = verification.verify(Path("out"), sample=2)
    assert (found.maps, found.pictures, found.photographs) == (4, 4, 2)
    assert len(found.findings) == 2 and "'tini:net'" in found.findings[0].reason


def test_the_sample_is_chosen_by_the_seed() -> None:
    folder = finished()
    change("out/manifest.jsonl", b'"model_spec": "tiny:net"', b'"model_spec": "tini:net"')

    def chosen(seed: int) -> list[str]:  # which is named, because the model is not there
        return [finding.file for finding in verification.verify(folder, sample=2, seed=seed).findings]

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(8)}) > 1


def test_failures_are_no_results_to_verify() -> None:
    photo("photos/bad.png").write_bytes(b"no picture")
    finished(failing=3)
    assert camkit_("verify", "out").exit_code == 0
    explain("photos/bad.png", "--out", "bad", "--workers", 0)
    for command in ("verify", "render"):
        done = camkit_(command, "bad")
        assert done.exit_code == 2 and done.stderr.startswith("Error: bad ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"options": {', b'"options": {"workers": 9, '),
        (b'"options": {', b'"options": {"model": "pets", '),
        (b'"method": "gradcam"', b'"method": "gradcan"'),
        (b'"backend": "native"', b'"backend": "nativ"'),
        (b'"layer": "body"', b'"layer": "fc"'),
        (b'"dtype": "float32"', b'"dtype": "float23"'),
        (b'"class_index": 0', b'"class_index": 99'),
        (b'"class_index": 0', b'"class_index": true'),
    ],
)
def test_a_manifest_that_asks_for_what_there_is_not(old: bytes, new: bytes) -> None:
    finished()
    change("out/manifest.jsonl", old, new)
    done = camkit_("verify", "out")
    assert done.exit_code == 1, done.stderr
    assert "Does not hold" in done.stderr and "Traceback" not in done.stderr


# --- render ---------------------------------------------------------------------------------------

LOOKS: list[tuple[str, ...]] = [
    (),
    ("--cmap", "viridis", "--alpha", "0.3"),
    ("--relu",),
    ("--counterfactual", "--view", "model"),
    ("--look", "lesson"),
    ("--look", "spotlight", "--cells"),
    ("--scale", "2.5", "--image-size", "200", "--no-caption"),
]


def is_picture(name: str) -> bool:
    """Whether a file is the picture of one map."""
    return name.endswith(".png") and not name.endswith(".sheet.png")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_pictures_drawn_afterwards_are_those_of_explain(
    look: tuple[str, ...], format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digests(finished(*look, out="expected"))
    folder = finished("--format", format)
    before = {name for name in digests(folder) if is_picture(name)} if look else set()
    monkeypatch.setenv("CAMKIT_PLUGINS", "")  # no model is needed
    done = camkit_("render", "out", *look)
    assert done.exit_code == 0, done.stderr
    drawn = {name: data for name, data in digests(folder).items() if is_picture(name)}
    assert before <= drawn.keys()  # pictures of another look stay
    new = {name: data for name, data in drawn.items() if name not in before}
    assert new == {name: data for name, data in expected.items() if is_picture(name)}
    assert done.stdout.splitlines() == [f"out/{line['overlay_file']}" for line in lines()[-4:]]
    latest = {line["overlay_file"]: line for line in manifest.latest(folder)}
    assert latest.keys() == drawn.keys()
    for line in manifest.latest(Path("expected")):
        same = latest[line["overlay_file"]]
        assert [same[key] for key in ("overlay_sha256", "picture", "map_sha256")] == [
            line[key] for key in ("overlay_sha256", "picture", "map_sha256")
        ]
    count = len(drawn)
    assert verification.verify(folder, sample=0) == verification.Verdict(count, 4, count, 2, 0, 0.0, (), {})


def test_drawing_anew_adds_pictures_of_another_look_and_leaves_everything_else() -> None:
    folder = finished()
    before = digests(folder)
    assert camkit_("render", "out", "--cmap", "viridis").exit_code == 0
    after = digests(folder)
    assert {name for name in before if after[name] != before[name]} == {manifest.NAME}
    assert sorted(after.keys() - before.keys()) == sorted(
        f"{name.removesuffix('.png')}.viridis.png" for name in before if is_picture(name)
    )
    again = camkit_("render", "out", "--cmap", "viridis")  # which are their own
    assert (again.exit_code, again.stderr) == (0, "")
    assert digests(folder) == after
    assert camkit_("verify", "out").stdout.startswith("8 results: 4 maps, 8 pictures and")


def test_pictures_of_a_run_share_a_scale_whatever_is_asked_for_when() -> None:
    ask = ("--scale", "run")
    folder = finished(*ask)
    told = [line for line in manifest.latest(folder) if line["overlay_file"]]
    ends = [abs(value) for line in told for value in line["map_range"]]
    assert [line["full_scale"] for line in told] == [max(ends)] * 4
    assert all(line["overlay_file"].endswith(".scale-run.png") for line in told)
    files = digests(folder)
    done = explain("photos", "--class", "tabby", "--class", "red fox", "--workers", "0", *ask, "--resume")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 4, done.stderr
    assert digests(folder) == files
    other = finished("--format", "npz", out="other")
    assert camkit_("render", other, *ask).exit_code == 0
    drawn = {name: data for name, data in files.items() if is_picture(name)}
    assert {name: data for name, data in digests(other).items() if is_picture(name)} == drawn
    fixed = finished("--scale", max(ends), out="fixed")
    with Image.open(folder / told[0]["overlay_file"]) as one:
        same = told[0]["overlay_file"].replace("scale-run", f"scale-{max(ends)}")
        with Image.open(fixed / same) as two:
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "1/2"), "camkit render DIR --scale run"),
        (("--format", "npz"), "--format npz draws none of the pictures"),
    ],
)
def test_a_scale_over_the_run_needs_all_of_it(arguments: tuple[str, ...], message: str) -> None:
    photo(CAT)
    done = explain("photos", "--scale", "run", *arguments)
    assert done.exit_code == 2 and message in done.stderr and not Path("out").exists()


def test_open_shows_the_sheet_or_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", lambda name: opened.append(name) or 0)
    photo(CAT)
    first = explain("photos", "--open")
    assert first.exit_code == 0, first.stderr
    assert opened == [
        str(Path("out", overlay)) for overlay in [line["overlay_file"] for line in lines()][:1]
    ]
    for look in ((), ("--scale", "run")):
        explain("photos", "--class", "top:2", "--open", *look)
    assert opened[1].endswith("sheet.png") and Path(opened[2]).is_file()
    monkeypatch.setattr("click.launch", lambda name: 1)
    alone = explain("photos", "--open")
    assert alone.exit_code == 0 and f"nothing here opens pictures; it is {opened[0]}" in alone.stderr
    without = explain("photos", "--open", "--format", "npz", "--out", "none")
    assert without.exit_code == 2 and "none of the pictures of --open" in without.stderr


def test_a_line_without_the_range_of_its_map_has_no_scale_of_the_run() -> None:
    finished()
    change("out/manifest.jsonl", b'"map_range": [', b'"map_range_": [')
    done = camkit_("render", "out", "--scale", "run")
    assert done.exit_code == 1 and "does not tell the range of the map" in done.stderr


# --- show -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_picture_tells_the_command_that_makes_it_again(format: str) -> None:
    look = ("--relu", "--look", "contour", "--image-format", format)
    folder = finished(*look)
    (picture, *_) = (folder / line["overlay_file"] for line in lines())
    Path("elsewhere").write_bytes(picture.read_bytes())
    shown = camkit_("show", "elsewhere").stdout.splitlines()
    assert "class_name       tabby" in shown
    words = shlex.split(shown[-1])
    assert words[:2] == ["camkit", "explain"]
    again = camkit_(*words[1:], "--image-format", format, "--out", "again", "--workers", "0")
    assert again.exit_code == 0, again.stderr
    (line,) = lines("again")
    with Image.open(picture) as one, Image.open(Path("again", line["overlay_file"])) as two:
        # But for the last digits of a map that was computed for another number of classes.
        assert np.abs(np.asarray(one).astype(int) - np.asarray(two)).mean() < 0.1
    carried = json.loads(camkit_("show", "--json", "elsewhere").stdout)
    assert carried["picture"] == line["picture"] and carried["full_scale"] > 0
    (sheet,) = {folder / told["sheet_file"] for told in lines() if "cat" in told["name"]}
    assert len(camkit_("show", "--json", sheet).stdout.splitlines()) == 2
    assert "--class tabby --class 'red fox'" in camkit_("show", sheet).stdout


def test_a_file_that_tells_nothing() -> None:
    photo(CAT)
    done = camkit_("show", CAT)
    assert done.exit_code == 1 and "does not tell how it was made" in done.stderr
    assert camkit_("show", "nowhere.png").exit_code == 2


def test_a_picture_of_somebody_else_is_in_nobodys_way() -> None:
    folder = finished("--format", "npz")
    (folder / f"{TABBY}.png").write_bytes(b"mine")
    done = camkit_("render", "out")
    assert done.exit_code == 0
    assert f"out/{TABBY}~2.png" in done.stdout.splitlines()
    assert done.stderr.splitlines() == [
        f"Files of the same names with other contents are kept; the new ones are out/{TABBY}~2.png"
    ]
    assert (folder / f"{TABBY}.png").read_bytes() == b"mine"
    assert verification.verify(folder, sample=0).pictures == 4


@pytest.mark.parametrize("kind", ["missing", "another", "elsewhere"])
def test_a_photograph_that_cannot_be_drawn_on_costs_only_its_own_pictures(kind: str) -> None:
    folder = finished("--format", "npz")
    {"missing": Path.unlink, "another": lambda p: photo(CAT, 9), "elsewhere": lambda p: p}[kind](Path(CAT))
    where = ["--images", "photos/a"] if kind == "elsewhere" else []
    done = camkit_("render", "out", *where)
    drawn = sorted(name for name in digests(folder) if name.endswith(".png"))
    if kind == "elsewhere":  # where the photographs do not lie
        assert (done.exit_code, drawn) == (1, [])
        assert done.stderr.endswith("0 pictures drawn, 4 failed\n")
        return
    assert done.exit_code == 3
    assert drawn == [f"a/dog.png.native.gradcam.{name}.tiny_net.png" for name in ("red_fox", "tabby")]
    assert done.stderr.endswith("2 pictures drawn, 2 failed\n")
    assert verification.verify(folder, sample=0).pictures == 2


def test_a_damaged_map_costs_only_its_own_picture() -> None:
    finished()
    change(f"out/{TABBY}.npy")
    done = camkit_("render", "out", "--relu")
    assert done.exit_code == 3 and len(done.stdout.splitlines()) == 3
    assert f"Error: out/{TABBY}.npy is not the map" in done.stderr


# --- merge ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_joined_folders_hold_every_result_once(format: str) -> None:
    photo("photos/bad.png").write_bytes(b"no picture")
    everything = ("--format", format, "--method", "gradcam", "--method", "activations")
    parts = [Path("one"), Path("two"), Path("again")]
    assert explain(photo(CAT), photo(DOG, 1), *everything, "--out", "one").exit_code == 0
    assert explain("photos/bad.png", *everything, "--out", "two").exit_code == 1
    shutil.copytree("one", "again")
    done = camkit_("explain", "merge", *parts, "--out", "all")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("5 results of 3 folders ")  # 2 x 2 and the failure
    assert len(lines("all")) == 5
    merged = digests(Path("all"))
    for part in parts:
        assert all(merged[name] == data for name, data in digests(part).items() if name != manifest.NAME)
    assert ("cat.png.tiny_net.sheet.png" in merged) == (format == "png")
    assert camkit_("verify", "all").exit_code == 0
    before = digests(Path("all"))
    for sources in (parts, [Path("all")]):
        assert merging.merge(sources, Path("all")) == merging.Merged(0, ())
    assert digests(Path("all")) == before


def test_of_several_lines_for_one_map_the_last_is_joined() -> None:
    finished("--format", "npz")
    list(redrawing.redraw(Path("out"), style=Style()))
    assert len(lines()) == 8
    assert merging.merge([Path("out")], Path("all")).added == 4
    assert all(line["overlay_file"] for line in lines("all"))
    assert camkit_("verify", "all").stdout.startswith("4 results: 4 maps, 4 pictures")


def test_two_files_of_one_name_are_an_error_and_nothing_is_overwritten() -> None:
    finished(out="a")
    finished(out="c")
    change(f"c/{TABBY}.npy")
    photo(CAT, 7)
    explain("photos", "--class", "tabby", "--workers", "0", "--out", "b")  # of another photograph
    for other in ("b", "c"):
        shutil.copytree("a", "all")
        before = digests(Path("all"))
        done = camkit_("explain", "merge", "a", other, "--out", "all")
        if other == "c":  # the same results, which are there already
            assert done.exit_code == 0 and done.stdout.startswith("0 results")
        else:
            assert done.exit_code == 1 and "choose another --out" in done.stderr
        assert digests(Path("all")) == before
        shutil.rmtree("all")
    photo(CAT, 0)
    done = camkit_("explain", "merge", "c", "--out", "all")
    assert done.exit_code == 3 and f"c/{TABBY}.npy is not the map" in done.stderr
    lost, told = camkit_("verify", "all").stdout.splitlines()
    assert told.startswith("3 results")
    assert lost == "cat.png: its lines tell of 2 results, and 1 of them are there"


def test_several_looks_of_one_map_are_joined() -> None:
    finished(out="a")
    finished("--cmap", "viridis", out="b")
    list(redrawing.redraw(finished("--format", "npz", out="c"), style=Style(relu=True)))
    for _ in range(2):
        assert camkit_("explain", "merge", "a", "b", "c", "--out", "all").exit_code == 0
        assert camkit_("verify", "all").stdout.startswith("12 results: 8 maps, 12 pictures and")
    assert len(lines("all")) == 12


@pytest.mark.parametrize(
    "hostile",
    [
        *("../secret.npy", "/etc/passwd", "link/secret.npy", "linked.npy", "a/../../secret.npy"),
        *("manifest.jsonl", "photo.jpg", "a\0.npy", "", ".", "missing.npy", "folder.npy", "fifo.npy"),
    ],
)
@pytest.mark.parametrize("field", ["map_file", "overlay_file", "name"])
def test_a_hostile_manifest_writes_and_reads_nothing_outside(field: str, hostile: str) -> None:
    """Whatever a line names: `merge`, `render` and `verify` leave everything else as it is."""
    folder = finished(out="safe/out")
    Path("safe/secret.npy").write_bytes(SECRET)
    (folder / "link").symlink_to(Path("safe").resolve())
    (folder / "linked.npy").symlink_to(Path("safe/secret.npy").resolve())
    (folder / "folder.npy").mkdir()
    os.mkfifo(folder / "fifo.npy")
    (folder / "photo.jpg").write_bytes(b"mine")
    told = lines("safe/out")
    told[0][field] = hostile.replace(".npy", ".png") if field == "overlay_file" else hostile
    (folder / manifest.NAME).write_text("".join(json.dumps(line) + "\n" for line in told))
    before = {path: path.read_bytes() for path in Path("safe").rglob("*") if path.is_file()}
    outcomes = [
        camkit_("explain", "merge", "safe/out", "--out", "merged/all"),
        camkit_("verify", "safe/out", "--images", "photos"),
        camkit_("render", "safe/out"),
    ]
    for done in outcomes:
        assert done.exit_code in (0, 1, 3) and "unexpected" not in done.stderr, done.stderr
    assert [path.name for path in Path("merged").glob("*")] in ([], ["all"])
    copied = Path("merged").rglob("*")
    assert not any(SECRET in path.read_bytes() or path.is_symlink() for path in copied if path.is_file())
    allowed = {folder / manifest.NAME, *(folder.rglob("*.gradcam.*.png"))}
    for path, data in before.items():
        assert path in allowed or is_of_page(path) or path.read_bytes() == data
    assert {path.name for path in Path().iterdir()} <= {"merged", "photos", "safe"}


def test_a_full_line_of_someone_else_is_passed_on_as_it_is() -> None:
    finished()
    told = lines()
    told[0] |= {"class_name": "\ud800 \u2028", "more": [1, {"a": None}]}
    Path("out/manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    assert merging.merge([Path("out")], Path("all")).added == 4
    assert list(manifest.read(Path("all"))) == told


# --- folders that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("verify",), ("render",), ("explain", "merge", "--out", "all")])
@pytest.mark.parametrize("kind", ["missing", "empty", "file", "manifest is a folder", "manifest is empty"])
def test_folders_without_results_are_wrong_usage(command: tuple[str, ...], kind: str) -> None:
    if kind == "file":
        photo("folder")
    elif kind != "missing":
        Path("folder").mkdir()
    if kind == "manifest is a folder":
        Path("folder/manifest.jsonl").mkdir()
    if kind == "manifest is empty":
        Path("folder/manifest.jsonl").touch()
    before = digests(Path())
    done = camkit_(*command, "folder")
    assert done.exit_code == 2, done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) <= 2
    assert "folder" in done.stderr and "unexpected" not in done.stderr
    assert digests(Path()) == before and not Path("all").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "merge", "--out", "all"), "Missing argument 'FOLDER...'"),
        (("explain", "merge", "out"), "Missing option '--out'"),
        (("verify",), "Missing argument 'FOLDER'"),
        (("verify", "out", "--sample", "-1"), "-1 is not in the range"),
        (("render", "out", "--relu", "--counterfactual"), "exclude each other"),
        (("render", "out", "--cmap", "magna"), "no colour map 'magna'; did you mean 'magma'"),
        (("render", "out", "--alpha", "2"), "alpha must lie between 0 and 1"),
        (("render", "out", "--view", "side"), "'side' is not one of"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    before = digests(finished("--format", "npz"))
    done = camkit_(*arguments)
    assert done.exit_code == 2 and message in done.stderr
    assert digests(Path("out")) == before


def test_a_photograph_called_merge_is_explained() -> None:
    photo("merge")
    assert explain("./merge").exit_code == 0
    assert [line["name"] for line in lines()] == ["merge"]


def test_merge_has_help_of_its_own() -> None:
    done = camkit_("explain", "merge", "--help")
    assert done.exit_code == 0 and done.stdout.startswith("Usage: camkit explain merge [OPTIONS] FOLDER...")


def test_errors_of_the_functions_are_camkits() -> None:
    with pytest.raises(CamkitError):
        merging.merge([Path("nowhere")], Path("all"))
    with pytest.raises(CamkitError):
        verification.verify(Path("nowhere"))
    with pytest.raises(CamkitError):
        list(redrawing.redraw(Path("nowhere"), style=Style()))
