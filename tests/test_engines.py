"""Large runs in parts: listings, tables, what is resumed, and results at addresses."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tests.conftest import is_of_page

import camkit
from camkit.cli import cli
from camkit.contracts.engine import Part
from camkit.engines import gathering, store, tables
from camkit.engines.parts import Parts
from camkit.engines.running import EngineRun
from camkit.engines.work import ExplainWork
from camkit.errors import CamkitError, UsageError
from camkit.explaining.request import ExplainRequest
from camkit.images import addresses
from camkit.images.listing import Listing
from camkit.images.shard import Shard
from camkit.registry import loading

MODEL = "timm:test_resnet@none"


def photograph(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine photographs, two of them in a folder of their own."""
    for number in range(9):
        folder = tmp_path / "photos" / ("b" if number > 6 else "")
        photograph(folder / f"{number}.png", number)
    return tmp_path / "photos"


def address(path: Path) -> str:
    return f"file://{path}"


def camkit_(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments], input=stdin)


def rows(folder: Path) -> list[dict[str, Any]]:
    found = polars.read_parquet(folder / "part-*.parquet").to_dicts()
    return sorted(found, key=lambda row: str(row["name"]))


# --- addresses --------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[str]:
    import fsspec

    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://box"
    files.store.clear()


def test_an_address_is_no_path() -> None:
    for text in ("s3://a/b", "gs://a", "az://a/b.png", "hf://datasets/a/b", "file:///a", "S3://a"):
        assert addresses.is_address(text), text
    for path in ("a/b", "/a", "C:\\a", "http://a/b", "s3:/a", Path("s3://a"), b"s3://a", "timm:resnet18"):
        assert not addresses.is_address(path), path


def test_files_at_an_address(memory: str) -> None:
    for name in ("b/2.png", "a.png", "b/1.png", "c.txt"):
        addresses.write(f"{memory}/{name}", name.encode())
    assert [entry.address[len(memory) + 1 :] for entry in addresses.below(memory)] == [
        "a.png",
        "c.txt",
        "b/1.png",
        "b/2.png",
    ]
    assert addresses.read(f"{memory}/b/1.png", 100) == b"b/1.png"
    assert addresses.is_file(f"{memory}/a.png") and not addresses.is_file(f"{memory}/b")
    addresses.remove(f"{memory}/a.png")
    addresses.remove(f"{memory}/a.png")
    assert not addresses.is_file(f"{memory}/a.png")
    with pytest.raises(CamkitError, match=r"memory://box/a\.png cannot be read: it is not there"):
        addresses.read(f"{memory}/a.png", 100)
    with pytest.raises(CamkitError, match="it is larger than 0 MiB"):
        addresses.read(f"{memory}/c.txt", 3)


def test_a_glob_of_addresses(photos: Path) -> None:
    assert names(Listing((f"{address(photos)}/*.png",))) == [f"{n}.png" for n in range(7)]
    assert names(Listing((f"{address(photos)}/**/*.png",)))[-2:] == ["b/7.png", "b/8.png"]
    with pytest.raises(UsageError, match="no image found"):
        names(Listing((f"{address(photos)}/*.gif",)))
    with pytest.raises(UsageError, match="no image found"):
        list(camkit.explain_many(camkit.load_model(MODEL, device="cpu"), f"{address(photos)}/none/*.png"))


def test_a_name_with_signs_is_no_secret(memory: str) -> None:
    for name in ("quest?ion.png", "x y#1?q.png", "100%.png", "a@b.png"):
        addresses.write(f"{memory}/{name}", b"x")
        assert addresses.read(f"{memory}/{name}", 9) == b"x"
    with pytest.raises(UsageError, match="s3:///a names no bucket"):
        addresses.check("s3:///a")
    done = camkit_("explain", "https://example.org/a.jpg?token=SECRET")
    assert done.exit_code == 2 and "download it" in done.stderr and "SECRET" not in done.stderr


@pytest.mark.parametrize("call", ["verify", "render", "merge"])
def test_no_command_repeats_a_secret(call: str, tmp_path: Path) -> None:
    place = "s3://KEY:SECRET@bucket/a"
    asked = {"verify": ["verify", place], "render": ["render", place, "--out", tmp_path / "x"]}
    asked["merge"] = ["explain", "merge", place, "--out", tmp_path / "x"]
    done = camkit_(*asked[call])
    assert done.exit_code == 2 and "SECRET" not in done.output and "from the environment" in done.stderr


@pytest.mark.parametrize("text", ["s3://KEY:SECRET@bucket/a", "s3://bucket/a?X-Amz-Signature=SECRET"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="credentials come from the environment") as told:
        addresses.check(text)
    assert "SECRET" not in str(told.value)
    done = camkit_("explain", text, "--out", "file:///nowhere")
    assert done.exit_code == 2 and "SECRET" not in done.output


def test_what_an_address_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("fsspec.get_filesystem_class", gone)
    with pytest.raises(UsageError, match="gs:// needs a package that is not installed: pip install gcsfs"):
        addresses.check("gs://bucket/a")


# --- listings ---------------------------------------------------------------------------------------


def names(of: Listing) -> list[str]:
    return [one.name for one in of]


def test_a_listing_is_the_same_each_time_and_pickles(photos: Path) -> None:
    of = Listing((str(photos),))
    wanted = [*(f"{n}.png" for n in range(7)), "b/7.png", "b/8.png"]
    assert names(of) == names(of) == names(pickle.loads(pickle.dumps(of))) == wanted
    assert names(Listing((address(photos),))) == wanted
    assert {one.path for one in Listing((address(photos),))} == {
        address(path) for path in photos.rglob("*.png")
    }
    halves = [names(Listing((str(photos),), shard=Shard(part, 2))) for part in (1, 2)]
    assert sorted([*halves[0], *halves[1]]) == sorted(wanted) and all(halves)


def test_addresses_and_paths_together_are_named_from_where_they_were_given(photos: Path) -> None:
    of = Listing((address(photos / "b"), str(photos / "b"), address(photos / "0.png")))
    assert names(of) == ["b/7.png", "b/8.png", "b~2/7.png", "b~2/8.png", "0.png/0.png"]
    with pytest.raises(UsageError, match="no image found in 'file:///nowhere'"):
        names(Listing(("file:///nowhere",)))


def test_results_in_the_folder_of_the_photographs_are_no_photographs(memory: str) -> None:
    for name in ("a.png", "out/a.png", "outer/a.png"):
        addresses.write(f"{memory}/{name}", b"x")
    assert names(Listing((memory,), without=f"{memory}/out")) == ["a.png", "outer/a.png"]


LISTS: dict[str, tuple[str, str, str | None]] = {
    "lines": ("list.txt", "{0}\n\n{1}\n{0}\n", None),
    "a table": ("list.csv", "id,path,label\n1,{0},x\n2,{1},y\n3\n", None),
    "a column that is said": ("list.csv", "a,b\n{1},{0}\n{1},{1}\n", "b"),
    "with tabs": ("list.tsv", "file\tx\n{0}\t1\n{1}\t2\n", None),
    "the only column": ("list.csv", "photographs\n{0}\n{1}\n", None),
    "as Windows writes lines": ("list.txt", "\ufeff{0}\n{1}\n", None),
    "as Excel writes tables": ("list.csv", "\ufefffile,x\n{0},1\n{1},2\n", None),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_names_photographs_each_once(kind: str, photos: Path) -> None:
    file, text, column = LISTS[kind]
    paths = [str(photos / "0.png"), address(photos / "1.png")]
    (photos.parent / file).write_text(text.format(*paths))
    of = Listing.of((), str(photos.parent / file), column)
    assert [one.path for one in of] == paths
    assert [one.name for one in of] == [path.partition("://")[2] or path[1:] for path in paths]


def test_names_of_a_list_that_are_taken_get_a_number(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("file:///b/x.png\nmemory:///b/x.png\n/b/x.png\nfile:///b/x.png\n")
    assert names(Listing.of((), str(tmp_path / "list.txt"))) == ["/b/x.png", "/b/x.png~2", "b/x.png"]


def test_other_truth_is_another_request(tmp_path: Path) -> None:
    def asked(truth: str | None) -> str:
        request = ExplainRequest(model=MODEL, device="cpu", truth=truth)
        return ExplainWork.of(request, "out", 0, lambda text: None).id

    file = tmp_path / "coco.json"
    file.write_text("{}")
    ids = [asked(None), asked(str(file)), asked(str(file))]
    file.write_text("[]")
    ids.append(asked(str(file)))
    assert ids[1] == ids[2] and len(set(ids)) == 3


def test_a_table_of_parquet_and_what_is_no_list(photos: Path) -> None:
    file = photos.parent / "list.parquet"
    polars.DataFrame({"n": [1, 2], "url": [str(photos / "0.png"), str(photos / "1.png")]}).write_parquet(
        file
    )
    assert [one.path for one in Listing.of((), str(file))] == [str(photos / f"{n}.png") for n in (0, 1)]
    assert [one.path for one in Listing.of((), address(file))] == [str(photos / f"{n}.png") for n in (0, 1)]
    with pytest.raises(UsageError, match=r"has the columns n, url: say which with --column"):
        names(Listing.of((), str(file), "m"))
    file.write_bytes(b"no table")
    with pytest.raises(UsageError, match="cannot be read"):
        names(Listing.of((), str(file)))
    file.with_suffix(".txt").write_text("\n")
    with pytest.raises(UsageError, match="names no photograph"):
        names(Listing.of((), str(file.with_suffix(".txt"))))


# --- parts ------------------------------------------------------------------------------------------


def test_parts_are_the_same_for_the_same_photographs_and_request(photos: Path) -> None:
    of = Listing((str(photos),))
    parts = list(Parts(of, 4, "asked"))
    assert [len(part.photographs) for part in parts] == [4, 4, 1]
    assert parts == list(pickle.loads(pickle.dumps(Parts(of, 4, "asked"))))
    assert len({part.id for part in parts}) == 3
    assert parts[0].id != next(iter(Parts(of, 4, "other"))).id
    photograph(photos / "5.png", 77)  # other contents under the same name
    again = list(Parts(of, 4, "asked"))
    assert [one.id == other.id for one, other in zip(parts, again, strict=True)] == [True, False, True]


def test_a_part_is_whole_batches() -> None:
    sizes = {1: 256, 16: 256, 100: 300, 256: 256, 1000: 1000}
    for batch, wanted in sizes.items():
        assert ExplainWork(ExplainRequest(batch_size=batch), "", "").photographs == wanted
    assert ExplainWork(ExplainRequest(batch_size=16), "", "", part_size=50).photographs == 48


class Run:
    """Runs with the engine `local`, of parts of four photographs."""

    def __init__(self, photos: Path, out: Path) -> None:
        self.photos, self.out = photos, out

    def __call__(self, images: Sequence[Path] = (), *, resume: bool = True) -> list[str]:
        """The names of the photographs that are done."""
        request = ExplainRequest(model=MODEL, device="cpu", batch_size=4, resume=resume)
        of = Listing(tuple(map(str, images or [self.photos])))
        run = EngineRun(request, of, str(self.out), workers=0)
        if resume:
            left = tables.left(Parts(of, 4, run.work.id), str(self.out))
            run.parts, run._stale = left.parts, left.stale
        outcomes = run.outcomes(loading.make("engine", "local"))
        return [one.name for outcome in outcomes for one in outcome.part.photographs]


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Run:
    return Run(photos, tmp_path / "out")


def test_resume_does_what_is_not_there(run: Run) -> None:
    everything = run()
    assert len(everything) == 9 and run() == []
    gone = sorted(run.out.glob("part-*.parquet"))[1]
    gone.unlink()
    again = run()
    assert 0 < len(again) < 9 and gone.exists()
    assert [row["name"] for row in rows(run.out)] == sorted(everything)


def test_resume_after_the_listing_has_changed_does_nothing_twice(run: Run) -> None:
    run()
    photograph(run.photos / "00.png", 50)  # the first: all parts begin elsewhere now
    assert run() == ["00.png"] and run() == []
    assert len(rows(run.out)) == 10
    before = {row["name"]: row["image_sha256"] for row in rows(run.out)}
    photograph(run.photos / "3.png", 51)  # its contents are others now
    assert "3.png" in run() and run() == []
    after = {row["name"]: row["image_sha256"] for row in rows(run.out)}
    assert len(rows(run.out)) == 10 and [name for name in after if after[name] != before[name]] == ["3.png"]


def test_a_photograph_that_is_repaired_leaves_each_once(run: Run) -> None:
    """Also where it failed in a part that the listing of today has no more."""
    run()
    photograph(run.photos / "00.png", 50)
    (run.photos / "5.png").write_bytes(b"no picture")
    run()
    photograph(run.photos / "5.png", 52)
    run()
    assert [row["name"] for row in rows(run.out)] == sorted(row.name for row in Listing((str(run.photos),)))
    assert {row["status"] for row in rows(run.out)} == {"ok"} and not list(run.out.glob("_failed*"))
    assert run() == []


def test_photographs_that_are_not_listed_today_keep_their_rows(run: Run) -> None:
    """As those of another shard, or of another folder."""
    run([run.photos / "b"])
    photograph(run.photos / "0.png", 53)
    assert run([run.photos / "0.png"]) == ["0.png"]
    assert [row["name"] for row in rows(run.out)] == ["0.png", "7.png", "8.png"]


def test_a_damaged_table_is_named(run: Run) -> None:
    run()
    photograph(run.photos / "00.png", 50)  # so that footers are read
    table = sorted(run.out.glob("part-*.parquet"))[0]
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(CamkitError, match=rf"{table.name} is damaged: remove it") as told:
        run()
    assert "\n" not in str(told.value)
    table.unlink()
    run()
    assert len(rows(run.out)) == 10


@pytest.mark.parametrize("damage", ["cut off", "another table", "no map"])
def test_a_damaged_table_is_named_where_results_are_gathered(run: Run, damage: str) -> None:
    run()
    table = min(run.out.glob("part-*.parquet"))
    if damage == "cut off":
        table.write_bytes(table.read_bytes()[:-1])
    else:
        columns = {"map": [1.0]} if damage == "another table" else {"status": ["ok"]}
        polars.DataFrame(columns).write_parquet(table)
    (found,) = gathering.tell(run.out, run.out, sorted(tables.there(str(run.out)).parts), None)
    assert str(found).startswith(f"{table.name}: it is damaged, or no table of camkit: ")
    assert "\n" not in str(found)


def test_beside_a_damaged_table_the_others_are_done(run: Run, tmp_path: Path) -> None:
    run()
    (run.out / "manifest.jsonl").unlink(missing_ok=True)
    table = min(run.out.glob("part-*.parquet"))
    count = len(rows(run.out)) - len(polars.read_parquet(table))
    table.write_bytes(table.read_bytes()[:-1])
    verified = camkit_("verify", run.out)
    assert verified.exit_code == 1 and f"\n{count} results: {count} maps" in verified.stdout
    assert verified.stdout.startswith(f"{table.name}: it is damaged")
    assert verified.stderr.endswith("Does not hold: 1 finding\n")
    merged = camkit_("explain", "merge", run.out, "--out", tmp_path / "all")
    assert merged.exit_code == 3 and f"Error: {run.out}/{table.name}: it is damaged" in merged.stderr
    assert merged.stdout.startswith(f"{count} results of 1 folder")
    drawn = camkit_("render", run.out, "--engine", "local", "--out", tmp_path / "drawn")
    assert drawn.exit_code == 3 and table.name in drawn.stderr
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == count
    here = camkit_("render", run.out)
    assert here.exit_code == 3 and f"Error: {run.out}/{table.name}: it is damaged" in here.stderr
    for other in run.out.glob("part-*.parquet"):
        other.write_bytes(b"")
    (run.out / "manifest.jsonl").unlink()
    none = camkit_("verify", run.out)
    assert none.exit_code == 1 and f"Error: {run.out}/{table.name}: it is damaged" in none.stderr


def test_results_of_another_request_or_kind_are_not_mixed(run: Run, tmp_path: Path) -> None:
    run()
    request = ExplainRequest(model="timm:test_vit@none", device="cpu", resume=True)
    with pytest.raises(UsageError, match="holds tables of another request"):
        EngineRun(request, Listing((str(run.photos),)), str(run.out), workers=0)
    assert camkit_("explain", run.photos / "0.png", *USUAL, "--out", tmp_path / "own").exit_code == 0
    done = camkit_("explain", run.photos / "0.png", *USUAL, "--out", address(tmp_path / "own"))
    assert done.exit_code == 2 and "holds results that are no tables of an engine" in done.stderr


def test_what_failed_is_tried_again_in_its_part(run: Run) -> None:
    (run.photos / "5.png").write_bytes(b"no picture")
    run()
    (failed,) = run.out.glob("_failed-*.json")
    assert "is not an image that camkit reads" in json.loads(failed.read_text())[0][1]
    assert [row["status"] for row in rows(run.out)].count("error") == 1
    assert len(run()) == 4, "the part with the failure is done again"
    assert len(rows(run.out)) == 9


def test_the_footer_tells_whose_a_table_is(run: Run) -> None:
    run()
    facts = [camkit.explaining.parquet.read_facts(path.read_bytes()) for path in run.out.glob("part-*")]
    assert len({fact["request"] for fact in facts}) == 1
    assert sum(len(fact["marks"]) for fact in facts) == 9


def test_without_resume_nothing_is_done_a_second_time(run: Run) -> None:
    run()
    with pytest.raises(UsageError, match=r"holds parts of an earlier run: --resume does the rest"):
        run(resume=False)


def test_a_table_is_there_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.write

    def fails(place: str, name: str, data: bytes) -> None:
        if name.startswith("part-"):
            raise CamkitError("the disk is full")
        write(place, name, data)

    monkeypatch.setattr(store, "write", fails)
    with pytest.raises(CamkitError, match="the disk is full"):
        run()
    monkeypatch.undo()
    assert not list(run.out.glob("part-*")) and len(run()) == 9


def test_rows_are_those_of_parquet_on_this_machine(run: Run, tmp_path: Path) -> None:
    run()
    done = camkit_("explain", run.photos, "--model", MODEL, "--device", "cpu", "--batch-size", 4,
                   "--workers", 0, "--format", "parquet", "--out", tmp_path / "own")  # fmt: skip
    assert done.exit_code == 0, done.output
    own = polars.read_parquet(tmp_path / "own" / "maps-*.parquet").sort("name")
    table = polars.DataFrame(rows(run.out), schema=own.schema)
    for column in set(own.columns) - {"request"}:
        assert table[column].equals(own[column], null_equal=True), column


# --- the command line -------------------------------------------------------------------------------

USUAL = ("--model", MODEL, "--device", "cpu", "--workers", 0)


def test_results_at_an_address(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    out = address(tmp_path / "out")
    done = camkit_("explain", address(photos), *USUAL, "--out", out)
    assert done.exit_code == 3, done.output
    assert f"Error: {address(photos / 'bad.png')} is not an image" in done.stderr
    assert "9 maps done, 1 failed" in done.stderr and "in 1 table of file://" in done.stderr
    assert len(rows(tmp_path / "out")) == 10
    assert {row["image_path"] for row in rows(tmp_path / "out")} == {
        address(p) for p in photos.rglob("*.png")
    }
    again = camkit_("explain", address(photos), *USUAL, "--out", out)
    assert again.exit_code == 2 and "--resume does the rest" in again.stderr
    told = camkit_("explain", address(photos), *USUAL, "--out", out, "--resume", "--json")
    assert told.exit_code == 3 and json.loads(told.stdout)["failed"] == 1  # tried again

    verified = camkit_("verify", out, "--sample", 2)
    assert verified.exit_code == 0, verified.output
    assert "9 results: 9 maps" in verified.stdout and "2 recomputed maps" in verified.stdout
    drawn = camkit_("render", out, "--out", tmp_path / "drawn", "--look", "lesson")
    assert drawn.exit_code == 0 and len(list((tmp_path / "drawn").rglob("*.png"))) >= 9, drawn.output
    merged = camkit_("explain", "merge", out, tmp_path / "out", "--out", address(tmp_path / "merged"))
    assert merged.exit_code == 0 and "10 results of 2 folders" in merged.stdout, merged.output
    assert camkit_("verify", address(tmp_path / "merged")).exit_code == 0


def test_tables_alone_are_results(photos: Path, tmp_path: Path) -> None:
    """As a folder that was copied from an object store, and read by nobody's manifest."""
    assert camkit_("explain", photos, *USUAL, "--out", address(tmp_path / "out")).exit_code == 0
    assert camkit_("verify", tmp_path / "out").exit_code == 0
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert all(name.startswith("part-") for name in before), "verify leaves a folder as it is"
    drawn = camkit_("render", tmp_path / "out")
    assert drawn.exit_code == 0 and "9.png" not in drawn.output, drawn.output
    assert camkit_("verify", tmp_path / "out").exit_code == 0
    (table,) = (tmp_path / "out").glob("part-*.parquet")
    table.write_bytes(table.read_bytes()[:-9])
    assert camkit_("verify", tmp_path / "out").exit_code == 1


def test_a_name_that_is_no_utf8_is_found_again(photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").rename(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png"))
    done = camkit_("explain", photos, *USUAL, "--out", address(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    verified = camkit_("verify", tmp_path / "out", "--sample", 9)
    assert verified.exit_code == 0 and "9 photographs hold" in verified.stdout, verified.output


def test_a_list_and_the_usual_results(photos: Path, tmp_path: Path) -> None:
    text = f"{photos / '0.png'}\n{address(photos / '1.png')}\n"
    done = camkit_(
        "explain", "--from", "-", *USUAL, "--out", tmp_path / "out", "--format", "npz", stdin=text
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["image_path"] for line in lines] == text.split()
    assert camkit_("verify", tmp_path / "out").exit_code == 0
    again = camkit_(
        "explain",
        "--from",
        "-",
        *USUAL,
        "--out",
        tmp_path / "out",
        "--format",
        "npz",
        "--resume",
        stdin=text,
    )
    assert "2 photographs were done already" in again.stderr


WRONG = {
    "a format": (
        ["--out", "file:///x", "--format", "png"],
        "tables are written here: --format parquet, not png",
    ),
    "pictures": (["--out", "file:///x", "--open"], "tables have no pictures: leave --open out"),
    "a look": (
        ["--out", "file:///x", "--relu", "--image-format", "webp"],
        "tables have no pictures: leave --image-format, --relu out",
    ),
    "actors": (
        ["--out", "file:///x", "--actors", "2"],
        "the engine local has no --actors: --engine ray has",
    ),
    "an engine's options": (["--actors", "2"], "--actors is for an engine: add --engine ray"),
    "a column": (["--column", "a"], "--column is of the table that --from names"),
    "an engine": (["--engine", "rey"], "there is no engine 'rey'"),
    "both": (["--from", "-"], "IMAGES and --from exclude each other"),
    "a model": (["--model", "timm:nothing", "--out", "file:///x"], "has no classifier 'nothing'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_go_together_is_refused(kind: str, photos: Path) -> None:
    options, why = WRONG[kind]
    done = camkit_("explain", photos, *options)
    assert done.exit_code == 2 and why in done.stderr and done.stderr.count("\n") <= 2, done.output


def test_an_engine_that_is_not_installed_says_how_to_get_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMKIT_PLUGINS", "")
    done = camkit_("explain", photos, "--engine", "ray")
    assert done.exit_code == 2 and "pip install camkit-ray" in done.stderr


def test_fail_stops_at_the_part_with_a_failure(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    out = address(tmp_path / "out")
    done = camkit_("explain", photos, *USUAL, "--out", out, "--on-error", "fail", "--batch-size", 2)
    assert done.exit_code == 1


def test_python_takes_addresses(photos: Path) -> None:
    model = camkit.load_model(MODEL, device="cpu")
    one = camkit.explain(model, address(photos / "0.png"))
    assert one.map.equal(camkit.explain(model, photos / "0.png").map)
    assert one.photo.path == address(photos / "0.png")
    many = list(camkit.explain_many(model, address(photos)))
    assert len(many) == 9 and many[0].map.equal(one.map)


def test_all_that_an_engine_is_given_pickles(photos: Path) -> None:
    work = ExplainWork.of(ExplainRequest(model=MODEL, device="cpu"), "out", 0, lambda text: None)
    assert pickle.loads(pickle.dumps(work)) == work
    part: Part = next(iter(Parts(Listing((str(photos),)), 4, work.id)))
    assert pickle.loads(pickle.dumps(part)) == part


# --- pictures, drawn by an engine --------------------------------------------------------------------


def test_an_engine_draws_the_tables_that_are_not_drawn(photos: Path, tmp_path: Path) -> None:
    maps, pictures = tmp_path / "maps", tmp_path / "pictures"
    done = camkit_("explain", photos, "--model", MODEL, "--batch-size", 4, "--part-size", 4,
                   "--out", address(maps))  # fmt: skip
    assert done.exit_code == 0, done.output
    moved = photos.rename(tmp_path / "moved")
    draw = ("render", maps, "--engine", "local", "--out", address(pictures), "--images", moved)
    drawn = camkit_(*draw)
    assert drawn.exit_code == 0 and "3 tables, 9 pictures in 3 parts" in drawn.stderr, drawn.output
    usual = tmp_path / "usual"
    assert camkit_("render", address(maps), "--out", usual, "--images", moved).exit_code == 0
    there = {
        one.relative_to(usual): one.read_bytes() for one in usual.rglob("*.png") if not is_of_page(one)
    }
    assert len(there) == 9
    assert {name: (pictures / name).read_bytes() for name in there} == there
    told = sorted(pictures.glob("pictures-*.jsonl"))
    lines = [json.loads(line) for one in told for line in one.read_text("utf-8").splitlines()]
    assert sorted(line["overlay_file"] for line in lines) == sorted(map(str, there))
    again = camkit_(*draw)
    assert "3 parts were done already" in again.stderr and "Nothing is left to do" in again.stderr
    told[1].unlink()
    assert "1 table, " in camkit_(*draw).stderr
    other = camkit_(*draw, "--look", "spotlight")
    assert "3 tables, 9 pictures" in other.stderr and len(list(pictures.rglob("*.spotlight.png"))) == 9


def test_a_table_of_which_a_picture_failed_is_drawn_again(photos: Path, tmp_path: Path) -> None:
    camkit_("explain", photos, "--model", MODEL, "--batch-size", 4, "--part-size", 4,
            "--out", address(tmp_path / "maps"))  # fmt: skip
    hidden = (photos / "1.png").rename(tmp_path / "1.png")
    draw = ("render", tmp_path / "maps", "--engine", "local", "--out", tmp_path / "pictures")
    done = camkit_(*draw)
    assert done.exit_code == 3 and "1.png cannot be read" in done.stderr
    assert "8 pictures done, 1 failed" in done.stderr
    hidden.rename(photos / "1.png")
    done = camkit_(*draw)
    assert done.exit_code == 0 and "2 parts were done already" in done.stderr
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 9


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--engine", "local"], "an engine needs a place for its pictures: add --out"),
        (["--engine", "local", "--actors", 2, "--out", "x"], "the engine local has no --actors"),
        (["--actors", 2], "--actors is for an engine: add --engine ray"),
        (["--engine", "local", "--out", "x", "--scale", "run"], "--scale run needs all maps at once"),
        (["--engine", "local", "--out", "x"], "out holds no tables: "),
    ],
)
def test_what_an_engine_cannot_draw(
    asked: list[str], said: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    camkit_("explain", photos / "0.png", "--model", MODEL, "--out", "out", "--workers", 0)
    done = camkit_("render", "out", *asked)
    assert done.exit_code == 2 and said in done.stderr and not Path("x").exists()
