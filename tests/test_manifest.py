"""The manifest: written by several at a time, read whatever happened to it, trusted in nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camkit.errors import CamkitError, UsageError
from camkit.explaining import answers, manifest, parquet, stored_maps

MAP = np.array([[-1.5, 0.25, 7], [1e-7, 3, -2]], np.float32)


def line(**changes: Any) -> dict[str, Any]:
    """A line of a finished map."""
    facts = {
        "schema": 2,
        "request": "r",
        "name": "cat.jpg",
        "results": 1,
        "image": "photos/cat.jpg",
        "image_sha256": "ab" * 32,
        "status": "ok",
        "backend": "native",
        "method": "gradcam",
        "layer": "0",
        "class_index": 0,
        "map_file": "cat.npy",
        "map_key": "native.gradcam.cat",
        "map_sha256": stored_maps.map_digest(MAP),
        "map_shape": list(MAP.shape),
        "model": "tiny",
        "dtype": "float32",
        "warnings": [],
    }
    return dict.fromkeys(manifest.FIELDS) | facts | changes


def failure(error: str = "it is empty", **changes: Any) -> dict[str, Any]:
    """A line of a file that could not be explained."""
    nothing = dict.fromkeys(
        ["image_sha256", "map_file", "map_key", "map_sha256", "map_shape", "class_index"]
    )
    return line(status="error", error=error, **(nothing | changes))


# --- writing --------------------------------------------------------------------------------------

APPENDER = """
import sys, time
from pathlib import Path
from camkit.explaining import manifest
folder, me, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print(flush=True)
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(count):
    pair = [dict.fromkeys(manifest.FIELDS) | {
        "schema": 2, "status": "error", "request": "r", "name": f"{me} {number} {part}", "image": "猫",
        "error": me * (number * 37 % 30_000),
    } for part in "ab"]
    manifest.append(folder, pair)
"""


def test_what_is_appended_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: brought.append((tmp_path / manifest.NAME).read_bytes()))
    manifest.append(tmp_path, [line(name="first")])
    assert len(brought) == 2 and b"first" in brought[0]  # the file, and its new name
    manifest.append(tmp_path, [line(name="second")])
    assert len(brought) == 3 and b"second" in brought[2]


def appender(folder: Path, me: str, count: int) -> subprocess.Popen[bytes]:
    """A process that appends `count` pairs of lines as soon as there is a file `go`."""
    arguments = [sys.executable, "-c", APPENDER, str(folder), me, str(count)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"\n"
    return child


@pytest.mark.slow
def test_several_processes_append_and_no_line_is_torn_or_lost(tmp_path: Path) -> None:
    children = [appender(tmp_path, me, 150) for me in "abcd"]
    (tmp_path / "go").touch()
    while any(child.poll() is None for child in children):  # reading meanwhile sees whole lines
        if (tmp_path / manifest.NAME).exists():
            for found in manifest.read(tmp_path):
                assert set(found["error"]) <= {found["name"][0]}
        time.sleep(0.01)
    assert [child.returncode for child in children] == [0] * 4
    names = [found["name"] for found in manifest.read(tmp_path)]
    assert sorted(names) == sorted(f"{me} {i} {part}" for me in "abcd" for i in range(150) for part in "ab")
    assert len((tmp_path / manifest.NAME).read_bytes().splitlines()) == len(names)
    for me in "abcd":  # each in its own order, and what was appended together stays together
        own = [name for name in names if name[0] == me]
        assert own == [f"{me} {i} {part}" for i in range(150) for part in "ab"]
    assert all(names[i][:-1] == names[i + 1][:-1] for i in range(0, len(names), 2))


def test_an_appender_that_is_killed_costs_its_last_lines_at_most(tmp_path: Path) -> None:
    victim, other = appender(tmp_path, "v", 100_000), appender(tmp_path, "o", 50)
    (tmp_path / "go").touch()
    assert other.wait() == 0
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    manifest.append(tmp_path, [line(name="after")])
    names = [found["name"] for found in manifest.read(tmp_path)]
    assert [name for name in names if name[0] == "o"] == [
        f"o {i} {part}" for i in range(50) for part in "ab"
    ]
    kept = [name for name in names if name[0] == "v"]
    assert kept == [f"v {i // 2} {'ab'[i % 2]}" for i in range(len(kept))]
    assert names[-1] == "after"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / manifest.LOCK).symlink_to(elsewhere)
    manifest.append(folder, [line(name="first")])
    assert [found["name"] for found in manifest.read(folder)] == ["first"]
    elsewhere.write_text("precious")
    manifest.append(folder, [line(name="second")])
    assert elsewhere.read_text() == "precious" and len(list(manifest.read(folder))) == 2


@pytest.mark.parametrize("torn", [b"{", b'{"schema": 2, "image": "\xe7', b"\0\0\0", b'"' * 2_000_000])
def test_a_torn_last_line_is_taken_away_and_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    manifest.append(tmp_path, [line(name="first")])
    with (tmp_path / manifest.NAME).open("ab") as file:
        file.write(torn)
    assert [found["name"] for found in manifest.read(tmp_path)] == ["first"]
    manifest.append(tmp_path, [line(name="second")])
    assert [found["name"] for found in manifest.read(tmp_path)] == ["first", "second"]
    kept = (tmp_path / manifest.NAME).read_bytes().split(b"\n")[1]
    assert kept == torn if len(torn) > manifest.MAX_LINE else b"second" in kept


@pytest.mark.parametrize(
    "text", ["", "plain", 'the "best"\n\r\t\0\x7f', "\u2028\u0085猫\U0001f600", "\udce9\ud800"]
)
def test_any_text_comes_back_from_one_line_of_utf8(tmp_path: Path, text: str) -> None:
    manifest.append(tmp_path, [line(class_name=text, warnings=[text])])
    raw = (tmp_path / manifest.NAME).read_bytes()
    assert raw.endswith(b"\n") and raw.count(b"\n") == 1 and raw.decode("utf-8")
    assert list(manifest.read(tmp_path)) == [line(class_name=text, warnings=[text])]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).mkdir()
    with pytest.raises(CamkitError, match=r"manifest\.jsonl: Is a directory"):
        manifest.append(tmp_path, [line()])


# --- reading --------------------------------------------------------------------------------------

NO_LINES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"schema: 2",
    "another value": b'[{"schema": 2}]',
    "not UTF-8": json.dumps(line()).encode().replace(b"cat.jpg", b"c\xe4t.jpg"),
    "nested too deeply": b"[" * 100_000,
    "longer than a line may be": json.dumps(line(error="x" * 2**20)).encode(),
    "a longer number than Python reads": b'{"schema": 2, "results": ' + b"9" * 5000 + b"}",
    **{
        f"{key} is {value!r}"[:40]: json.dumps(line(**{key: value})).encode()
        for key, value in (
            *(("schema", 1), ("schema", "2"), ("status", "fine"), ("status", None), ("status", ["ok"])),
            *(("name", None), ("name", 3), ("request", None), ("image", ["a"]), ("image_sha256", None)),
            *(("map_file", None), ("map_file", 3), ("map_key", None), ("overlay_file", ["a"])),
            *(("map_shape", None), ("map_shape", [2]), ("map_shape", [2, "3"]), ("map_shape", {"a": 1})),
            *(("results", None), ("results", "1"), ("class_index", "0"), ("class_index", 1.5)),
            *(("probability", float("nan")), ("logit", float("inf"))),
        )
    },
    "a number beyond all": json.dumps(line(logit=12345.0)).encode().replace(b"12345.0", b"1e999"),
}


@pytest.mark.parametrize("kind", NO_LINES)
def test_what_is_no_line_is_left_out(tmp_path: Path, kind: str) -> None:
    good = [json.dumps(line(name=name)).encode() for name in ("first", "last")]
    (tmp_path / manifest.NAME).write_bytes(b"\n".join([good[0], NO_LINES[kind], good[1]]))
    assert [found["name"] for found in manifest.read(tmp_path)] == ["first", "last"]
    assert manifest.latest(tmp_path) == list(manifest.read(tmp_path))
    manifest.append(tmp_path, manifest.latest(tmp_path))  # what was read can be written


def test_missing_fields_are_none_and_unknown_ones_stay(tmp_path: Path) -> None:
    less = {key: value for key, value in line(more=[1]).items() if value is not None}
    (tmp_path / manifest.NAME).write_text(json.dumps(less) + "\n")
    assert list(manifest.read(tmp_path)) == [line(more=[1])]


@pytest.mark.parametrize("make", [None, Path.mkdir])
def test_a_folder_without_a_manifest_is_wrong_usage(tmp_path: Path, make: Callable[[Path], None]) -> None:
    if make:
        make(tmp_path / manifest.NAME)
    with pytest.raises(UsageError, match=r"manifest\.jsonl .*(give a folder of|regular)"):
        list(manifest.read(tmp_path))


def test_a_later_line_of_the_same_map_supersedes_the_earlier(tmp_path: Path) -> None:
    lines = [
        line(logit=1.0),
        line(map_file="dog.npy"),
        failure(),
        line(logit=2.0, request="other"),  # which wrote over the same file
        failure(image="elsewhere/cat.jpg"),
        failure("another reason"),
    ]
    manifest.append(tmp_path, lines)
    assert manifest.latest(tmp_path) == [lines[1], lines[3], lines[4], lines[5]]


def test_maps_of_one_file_are_told_apart_by_photograph_and_key(tmp_path: Path) -> None:
    lines = [line(map_key=key, name=name) for key in ("a", "b") for name in ("c", "d")]
    manifest.append(tmp_path, lines * 2)
    assert manifest.latest(tmp_path) == lines


def test_a_map_may_have_several_pictures_so_long_as_it_stays_the_same(tmp_path: Path) -> None:
    bare, plain, relu = line(), line(overlay_file="a.png"), line(overlay_file="a.relu.png", request="other")
    manifest.append(tmp_path, [bare, plain, relu])
    assert manifest.latest(tmp_path) == [plain, relu]
    manifest.append(tmp_path, [bare, plain | {"logit": 2.0}])  # a map without picture adds nothing
    assert manifest.latest(tmp_path) == [relu, plain | {"logit": 2.0}]
    new = line(overlay_file="a.relu.png", map_sha256="cd" * 32)
    manifest.append(tmp_path, [new])
    assert manifest.latest(tmp_path) == [new]


def test_what_a_request_found_in_a_photograph_holds_until_it_has_other_contents(tmp_path: Path) -> None:
    old = [line(class_index=i, map_file=f"{i}.npy") for i in range(2)]
    elsewhere, asked = line(image="b/cat.jpg", map_file="b.npy"), line(request="q", map_file="q.npy")
    new = line(map_file="cat~2.npy", image_sha256="cd" * 32)
    manifest.append(tmp_path, [*old, elsewhere, asked, failure(), new])
    assert manifest.latest(tmp_path) == [elsewhere, asked, failure(), new]


def test_a_file_belongs_to_the_answer_that_the_last_line_tells(tmp_path: Path) -> None:
    lines = [
        line(overlay_file="a.png", picture={"view": "model"}, sheet_file="s.png"),
        line(overlay_file="b.png", picture={"view": "original"}, request="q", sheet_file="t.png"),
        line(name="dog.jpg", map_file="a/dog.npz", image_sha256="cd" * 32),
        line(map_file="maps-1.parquet"),
        line(map_file="cat.npy", class_index=1),
        failure(),
    ]
    owners = answers.Owners()
    assert list(owners.noting(lines)) == lines
    one, two, dog, _, other, _ = lines
    assert owners.get("cat.npy") == answers.question(other, "map") != answers.question(one, "map")
    assert answers.question(one, "map") == answers.question(two, "map")  # of another look
    assert owners.get("a.png") == answers.question(one, "picture") != owners.get("b.png")
    assert owners.get("s.png") == answers.question(one, "run") != owners.get("t.png")
    assert owners.get("a/dog.npz") == answers.question(dog, "run")
    assert owners.get("maps-1.parquet") is owners.get("dog.npz") is owners.get("") is None
    assert answers.Owners().get("cat.npy") is None


# --- what is done already -------------------------------------------------------------------------


def test_a_photograph_is_done_if_all_its_results_and_their_files_are_there(tmp_path: Path) -> None:
    photo = {"image_sha256": "ab" * 32, "results": 2}
    first, second = line(**photo), line(class_index=1, map_file="a/dog.npy", overlay_file="d.png", **photo)
    other = line(name="other.jpg", map_file="other.npy")
    names = ("cat.jpg", "other.jpg")

    def done() -> list[bool]:
        return [manifest.Done(tmp_path, "r").photo(name, "ab" * 32) for name in names]

    assert done() == [False, False]  # no manifest at all
    manifest.append(tmp_path, [first, second, first, other, failure()])
    for file, expected in (
        *(("cat.npy", [False, False]), ("other.npy", [False, True]), ("a/dog.npy", [False, True])),
        ("d.png", [True, True]),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        assert done() == expected, file
    found = manifest.Done(tmp_path, "r")
    assert found.line(first) and found.line(second) and found.line(failure())
    assert not found.line(first | {"class_index": 2}) and not found.line(failure("another"))
    assert not found.photo("cat.jpg", "cd" * 32) and not found.photo("cat.jpg", None)
    assert not manifest.Done(tmp_path, "another").photo("cat.jpg", "ab" * 32)


# --- files that a line names ----------------------------------------------------------------------

REFUSED = [
    *("", ".", "..", "../a.npy", "a/../../b.npy", "a/..", "/etc/passwd", "//etc/passwd", "a\0.npy", "\0"),
    *(
        "out/a.npy",
        "way/out/a.npy",
        "loop/a.npy",
        "\ud800.npy",
        "x" * 300,
        "fifo.npy",
        "a",
        None,
        3,
        ["a.npy"],
    ),
]


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path, target_is_directory=True)
    (folder / "way").symlink_to(folder, target_is_directory=True)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo.npy")
    np.save(tmp_path / "a.npy", MAP)
    with pytest.raises(CamkitError):
        stored_maps.load_map(folder, line(map_file=name))
    manifest.append(folder, [line(map_file=name if isinstance(name, str) else "")])
    assert not manifest.Done(folder, "r").photo("cat.jpg", "ab" * 32)


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    np.save(tmp_path / "real" / "a" / "b.npy", MAP)
    (tmp_path / "real" / "within.npy").symlink_to(tmp_path / "real" / "a" / "b.npy")
    for name in ("a/b.npy", "a//./b.npy", "within.npy"):
        assert np.array_equal(stored_maps.load_map(tmp_path / "link", line(map_file=name)), MAP)


# --- maps -----------------------------------------------------------------------------------------

KEY = "native.gradcam.cat"


def as_bytes(ending: str, values: Any = MAP, **changes: Any) -> bytes:
    """A file that holds a map."""
    buffer = io.BytesIO()
    if ending == "npy":
        np.save(buffer, values)
    elif ending == "npz":
        np.savez(buffer, **{KEY: values})
    else:
        return parquet.to_bytes([line(map_sha256="", **changes)], [values])
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
def test_damage_is_found(tmp_path: Path, ending: str) -> None:
    """Of every file: cut at several places, one byte changed at many; what loads is the map."""
    data = as_bytes(ending)
    path = tmp_path / f"cat.{ending}"
    known = line(map_file=path.name)
    path.write_bytes(data)
    assert np.array_equal(stored_maps.load_map(tmp_path, known), MAP)
    rng = np.random.default_rng(0)
    cuts = [data[: int(end)] for end in rng.integers(0, len(data), 20)]
    flips = []
    for place in rng.integers(0, len(data), 150):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        flips.append(bytes(changed))
    refused = 0
    for damaged in cuts + flips:
        path.write_bytes(damaged)
        try:
            assert np.array_equal(stored_maps.load_map(tmp_path, known), MAP)
        except CamkitError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 20


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """A `.npy` file that declares a shape and holds next to nothing."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(24)


def zipped(data: bytes, name: str = f"{KEY}.npy") -> bytes:
    """A `.npz` file with one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


HOSTILE: dict[str, tuple[str, bytes]] = {
    "nothing": ("cat.npy", b""),
    "another map": ("cat.npy", as_bytes("npy", MAP + 1)),
    "another shape": ("cat.npy", as_bytes("npy", MAP.T)),
    "a flat one": ("cat.npy", as_bytes("npy", MAP.ravel())),
    "other numbers": ("cat.npy", as_bytes("npy", MAP.astype(np.int64))),
    "records": ("cat.npy", as_bytes("npy", np.zeros((2, 3), "f4,f4"))),
    "pickled objects": ("cat.npy", as_bytes("npy", np.array([[print, print]], object))),
    "pickled objects in an archive": ("cat.npz", as_bytes("npz", np.array([[print, print]], object))),
    "more than there is": ("cat.npy", header("(1000000, 1000000)")),
    "more than there is in an archive": ("cat.npz", zipped(header("(1000000, 1000000)"))),
    "more than 64 bits": ("cat.npy", header("(99999999999, 99999999999)")),
    "a negative shape": ("cat.npy", header("(-1, 3)")),
    "a header that is code": ("cat.npy", header("(__import__('os').getpid(), 3)")),
    "a bomb": ("cat.npz", zipped(header("(300000000,)") + bytes(300_000_000))),
    "an archive without the map": ("cat.npz", zipped(as_bytes("npy"), "other.npy")),
    "an archive with something else": ("cat.npz", zipped(b"text")),
    "no archive": ("cat.npz", as_bytes("npy")),
    "a table without the map": ("cat.parquet", as_bytes("parquet", map_key="other")),
    "a table without the photograph": ("cat.parquet", as_bytes("parquet", name="other.jpg")),
    "no table": ("cat.parquet", as_bytes("npz")),
    "an ending that nobody knows": ("cat.pkl", as_bytes("npy")),
    "no ending": ("cat", as_bytes("npy")),
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's, of the size that is declared
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_the_map_is_an_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    name, data = HOSTILE[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CamkitError, match=rf"{name} .*(read|not the map)") as caught:
        stored_maps.load_map(tmp_path, line(map_file=name))
    assert "\n" not in str(caught.value)


def test_a_large_sparse_file_is_not_read(tmp_path: Path) -> None:
    """Its size is what it declares, which is still no map."""
    with (tmp_path / "cat.npy").open("wb") as file:
        file.write(header("(40000, 40000)"))
        file.truncate(4 * 40000**2 + 1000)
    with pytest.raises(CamkitError, match="too large for a map"):
        stored_maps.load_map(tmp_path, line(map_file="cat.npy", map_shape=[40000, 40000]))


def test_the_digest_is_of_the_values_wherever_they_lie(tmp_path: Path) -> None:
    digest = stored_maps.map_digest(MAP)
    for same in (MAP.astype(">f4"), np.asfortranarray(MAP), np.repeat(MAP, 2, 1)[:, ::2]):
        assert stored_maps.map_digest(same) == digest
    for other in (MAP.T, -MAP, np.nextafter(MAP, 9)):
        assert stored_maps.map_digest(other) != digest
