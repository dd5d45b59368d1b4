"""`camkit explain` on folders: interrupted and resumed, in parts, several at once, and told or not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import digests, runner
from tests.test_cli import camkit_, explain, lines, photo, process
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from camkit.cli import cli
from camkit.cli.console import Report
from camkit.explaining import manifest, run_page, stored_maps
from camkit.explaining.output import Output

resource: Any = pytest.importorskip("resource", reason="limits and signals are those of POSIX")
pytestmark = pytest.mark.usefixtures("here")


def photos(count: int, folder: str = "photos") -> list[str]:
    """Photographs in a folder and one below; their names as `find` has them."""
    names = [f"{i:03}.png" for i in range(count - count // 3)]
    names += [f"below/{i:03}.png" for i in range(count // 3)]
    for seed, name in enumerate(names):
        photo(f"{folder}/{name}", seed)
    return names


def content(folder: str = "out") -> dict[str, str]:
    """What all files but the manifest and its lock hold, by name."""
    return {name: what for name, what in digests(Path(folder)).items() if "manifest" not in Path(name).name}


def test_what_options_said_of_the_model_holds_for_its_verification() -> None:
    photos(1)
    quick("photos", "--size", "24x40", "--fit", "squash", "--mean", "0.1,0.2,0.3", "--std", "0.9,0.8,0.7")
    assert camkit_("verify", "out").exit_code == 0
    assert camkit_("verify", "out", "--model", "tiny:net").exit_code == 0


def told(folder: str = "out") -> list[str]:
    """The lines of the manifest in an order of their own."""
    return sorted(json.dumps(line) for line in manifest.read(Path(folder)))


def quick(*arguments: Any, out: str = "out", code: int = 0) -> Any:
    """`camkit explain` read without processes of its own, which must end as it should."""
    done = explain(*arguments, "--workers", 0, "--out", out)
    assert done.exit_code == code, done.stdout + done.stderr
    return done


@contextmanager
def at_every_forward(then: Callable[[int], object]) -> Iterator[None]:
    """Calls `then` with the size of each batch that the small model computes meanwhile."""

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear):
            then(len(given[0]))

    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


# --- resume ---------------------------------------------------------------------------------------

FORMATS = ["png", "npz", "parquet"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_finished_run_is_resumed_without_any_work(format: str) -> None:
    photos(9)
    arguments = ("photos", "--format", format, "--batch-size", 4, "--resume")
    sizes: list[int] = []
    with at_every_forward(sizes.append):
        quick(*arguments)
    assert sizes[-3:] == [4, 4, 1]
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    sizes.clear()
    with at_every_forward(sizes.append):
        done = quick(*arguments)
    assert 4 not in sizes
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    assert (done.stdout, done.stderr) == ("", "9 photographs were done already\n")


@pytest.mark.parametrize("format", FORMATS)
def test_only_what_is_missing_is_done_and_the_end_is_that_of_an_undisturbed_run(format: str) -> None:
    names = photos(12)
    arguments = ("photos", "--format", format, "--batch-size", 3, "--class", "all")
    quick(*arguments)
    calm, calm_lines = content(), told()
    # A photograph without lines, one with some, one without files: each in a batch of its own.
    kept = [line for line in lines() if line["name"] != names[1]]
    kept.remove(next(line for line in kept if line["name"] == names[4]))
    Path("out/manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    if format != "parquet":
        for line in lines():
            if line["name"] == names[9]:
                Path("out", line["map_file"]).unlink(missing_ok=True)
    sizes: list[int] = []
    with at_every_forward(sizes.append):
        done = quick(*arguments, "--resume", "--json")
    missing = [4, 1] if format == "parquet" else [4, 1, 4]
    assert sizes.count(3) == len(missing)
    redone = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert redone == [name for name, count in zip((names[1], names[4], names[9]), missing, strict=False)
                      for _ in range(count)]  # fmt: skip
    assert sorted(set(told())) == calm_lines if format != "parquet" else len(told()) == len(calm_lines)
    if format == "parquet":  # what was missing is in a further table
        assert calm.items() < content().items()
    else:
        assert content() == calm
    assert camkit_("verify", "out").exit_code == 0


@pytest.mark.parametrize(
    "other",
    [
        *(["--class", "tabby"], ["--method", "activations"], ["--layer", "stem"], ["-o", "reduction=mean"]),
        *(["--cmap", "viridis"], ["--relu"], ["--view", "model"], ["--format", "npz"]),
        *(["--dtype", "bfloat16"], ["--model", "tiny:flat"]),
    ],
    ids=" ".join,
)
def test_another_question_starts_anew(other: list[str]) -> None:
    photos(3)
    quick("photos")
    assert "done already" not in quick("photos", "--resume", *other).stderr
    assert len(lines()) == 6


TWO = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, act=torch.relu):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.one, self.other = nn.Conv2d(3, 4, 5, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.act, self.temperature = act, 1.0

    def forward(self, x):
        seen = self.act(self.features(x)).mean((2, 3))
        return {"one": self.one(seen) / self.temperature, "other": self.other(seen)}

def relu():
    return Two().eval()

def tanh():
    return Two(torch.tanh).eval()
"""


@pytest.mark.parametrize(
    ("function", "output", "edited"),
    [
        ("relu", "other", ("", "")),
        ("tanh", "one", ("", "")),
        ("relu", "one", ("temperature = act, 1.0", "temperature = act, 2.0")),
    ],
)
def test_the_same_weights_in_another_model_start_anew(
    function: str, output: str, edited: tuple[str, str]
) -> None:
    photos(3)
    Path("two.py").write_text(TWO)
    shown = ("--classes", "a,b,c", "--size", 32, "--mean", "0,0,0", "--std", "1,1,1", "--class", "a")
    asked = ("photos", *shown, "--format", "npz")
    quick(*asked, "--model", "two.py:relu", "--output", "one")
    Path("two.py").write_text(TWO.replace(*edited) if edited[0] else TWO)
    again = quick(*asked, "--model", f"two.py:{function}", "--output", output, "--resume")
    assert "done already" not in again.stderr
    first, second = ([line["probability"] for line in lines()][part] for part in (slice(3), slice(3, None)))
    assert len(second) == 3 and not set(first) & set(second)
    repeated = quick(*asked, "--model", f"two.py:{function}", "--output", output, "--resume")
    assert "3 photographs were done already" in repeated.stderr


def test_other_annotations_start_anew() -> None:
    """Their shares are in the results."""
    (name, *_) = photos(1)
    Path("masks").mkdir()
    for column in (0, 20):
        mask = np.zeros(np.asarray(Image.open(Path("photos", name))).shape[:2], np.uint8)
        mask[:, column : column + 10] = 255
        Image.fromarray(mask).save(f"masks/{Path(name).stem}.png")
        assert "done already" not in quick("photos", "--truth", "masks", "--resume").stderr
    first, second = (line["truth_share"] for line in lines())
    assert first != second


def test_photographs_that_are_new_or_changed_are_done() -> None:
    names = photos(4)
    quick("photos", "--batch-size", 1)
    photo(f"photos/{names[2]}", seed=50)
    photo("photos/zzz.png", seed=51)
    done = quick("photos", "--resume", "--batch-size", 1, "--json")
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == [names[2], "zzz.png"]
    assert done.stderr.startswith("3 photographs ")
    assert camkit_("verify", "out").exit_code == 0


def test_a_photograph_that_moved_is_done_under_its_new_name() -> None:
    names = photos(3)
    quick("photos")
    Path("photos", names[0]).rename("photos/moved.png")
    assert "moved.png" in quick("photos", "--resume", "--batch-size", 1).stdout


def test_what_failed_is_tried_and_told_again_but_not_written_again() -> None:
    photos(3)
    Path("photos/bad.png").write_bytes(b"no picture")
    quick("photos", code=3)
    before = content(), told()
    done = quick("photos", "--resume", code=3)
    assert "Error: photos/bad.png " in done.stderr
    assert "3 photographs " in done.stderr and "0 maps done, 1 failed\n" in done.stderr
    assert (content(), told()) == before
    photo("photos/bad.png", 9)
    done = quick("photos", "--resume")
    assert "photos/bad.png: " in done.stdout
    assert camkit_("verify", "out").stdout.startswith("4 results: 4 maps")


def test_results_below_the_photographs_are_not_explained_themselves() -> None:
    photos(3, ".")
    for _ in range(2):
        assert camkit_("explain", ".", "*.png", "--model", "tiny:net").exit_code == 0
    done = camkit_("explain", ".", "--model", "tiny:net", "--resume")
    assert {line["name"] for line in lines("camkit-out")} == {
        *("000.png", "001.png", "below/000.png"),
        *("here/000.png", "here/001.png", "here/below/000.png"),
    }
    assert done.exit_code == 0
    assert camkit_("explain", "camkit-out", "--model", "tiny:net").exit_code == 0  # if that is asked for


@pytest.mark.parametrize("format", ["png", "npz"])
def test_what_stands_beside_an_earlier_run_keeps_its_names_when_it_is_resumed(format: str) -> None:
    names = photos(6)
    quick("photos", "--format", format)
    before = content()
    for seed, name in enumerate(names):
        photo(f"photos/{name}", seed=40 + seed)
    arguments = ("photos", "--format", format, "--class", "all", "--batch-size", 2)
    done = quick(*arguments)
    assert "Files of the same names with other contents are kept" in done.stderr
    assert before.items() <= content().items()
    calm = content()
    kept = lines()[: len(names) + 5]  # killed while the second photograph was told
    Path("out/manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    quick(*arguments, "--resume")
    assert content() == calm
    *findings, told = camkit_("verify", "out").stdout.splitlines()  # the earlier ones are still told of
    assert findings == [f"photos/{name}: it has changed" for name in names]
    assert told.startswith("30 results: 30 maps")


def test_requests_that_differ_share_a_folder_and_lose_nothing() -> None:
    photos(2)
    requests: list[tuple[str, ...]] = [
        *((), ("--relu",), ("--counterfactual",), ("--view", "model"), ("--cmap", "viridis")),
        *(("--layer", "stem"), ("-o", "reduction=mean"), ("--dtype", "bfloat16"), ("--alpha", "0.2")),
    ]
    seen: dict[str, str] = {}
    for request in requests:
        quick("photos", "--class", "all", *request)
        found = content()
        assert seen.items() <= found.items() and len(found) > len(seen)
        seen = found
    assert not [name for name in seen if "~" in name]
    maps = 2 * 4 * 4  # photographs, classes, and what makes another map
    assert len([name for name in seen if name.endswith(".npy")]) == maps
    done = camkit_("verify", "out", "--sample", 40)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"72 results: {maps} maps, 72 pictures and")
    for request in requests:  # which are their own
        assert "Files of the same names" not in quick("photos", "--class", "all", *request).stderr
    assert content() == seen


# --- interrupted ----------------------------------------------------------------------------------

MANY = ("photos", "--model", "tiny:net", "--batch-size", "2")


def running(site: Path, *arguments: str, out: str = "out") -> subprocess.Popen[bytes]:
    """`camkit explain` on many photographs, slowly, in a process group of its own as in a terminal."""
    os.environ["TINY_PAUSE"] = "0.03"
    try:
        return process("explain", *MANY, "--out", out, *arguments, path=[site], start_new_session=True)
    finally:
        del os.environ["TINY_PAUSE"]


def wait_for(count: int, child: subprocess.Popen[bytes], out: str = "out") -> None:
    """Until the manifest has more lines than `count`, or the process has ended."""
    path = Path(out, manifest.NAME)
    while child.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") <= count):
        time.sleep(0.002)


def undisturbed(*arguments: str) -> tuple[dict[str, str], list[str]]:
    """The files and lines of a run without interruption."""
    assert camkit_("explain", *MANY, *arguments, "--out", "calm").exit_code == 0
    return content("calm"), told("calm")


def test_nothing_is_lost_and_nothing_done_twice_when_the_run_is_killed(site: Path) -> None:
    names = photos(60)
    for count in (10, 90):
        child = running(site, "--class", "all", "--resume")
        wait_for(count, child)
        assert child.poll() is None, child.communicate()
        child.kill()
        child.communicate()
        for line in manifest.read(Path("out")):  # at any moment what the manifest tells of is there
            assert Path("out", line["overlay_file"]).is_file()
            stored_maps.load_map(Path("out"), line)
    kept = {name: data for name, data in content().items() if not name.endswith(".partial")}
    began = told()
    assert 90 < len(began) < 240 and len(set(began)) == len(began)
    done = camkit_("explain", *MANY, "--class", "all", "--out", "out", "--resume", "--json")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 240 - len(began)
    files, expected = undisturbed("--class", "all")
    assert told() == expected and len(expected) == 4 * len(names)
    assert content() == files  # no draft is left either
    assert kept.items() <= files.items()


def skip_without_ctrl_c() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals go to the main thread")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("Ctrl-C is ignored, as it is in what a shell runs in the background")


def test_ctrl_c_finishes_what_was_begun_and_says_so(site: Path) -> None:
    skip_without_ctrl_c()
    photos(250)  # more than may wait to be written
    child = running(site, "--json")
    assert child.stdout and Path("out", json.loads(child.stdout.readline())["map_file"]).is_file()
    assert len(told()) < 250  # results are told as they are done
    wait_for(5, child)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    finished = len(told())
    assert 5 < finished < 250
    assert err.decode().split("\n") == [
        "",
        "Finishing what was begun; press Ctrl-C again to stop at once",
        "",
        f"Interrupted: {finished} maps are finished, in out, to look through in out/index.html; "
        "--resume does the rest",
        "",
    ]
    page = Path("out/index.html").read_text("utf-8")
    assert page.count('"overlay_file":') == page.count('"thumb":') == finished
    assert camkit_("verify", "out").exit_code == 0
    assert not [name for name in content() if "partial" in name]
    assert camkit_("explain", *MANY, "--out", "out", "--resume").exit_code == 0
    assert (content(), told()) == undisturbed()


def test_ctrl_c_again_stops_at_once_while_the_page_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_ctrl_c()
    photos(70)  # more than may wait to be written: the first are told before the last are begun
    monkeypatch.setattr(Output, "_is_time", lambda _: True)
    printed = Report.written

    class Stopped(BaseException):
        """Instead of the end of the process."""

    def stop(code: int) -> None:
        assert code == 130
        raise Stopped

    def written(*given: Any, **named: Any) -> None:
        printed(*given, **named)
        if not Path("first").exists():
            Path("first").touch()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "_exit", stop)
    monkeypatch.setattr(Report, "written", written)
    monkeypatch.setattr(run_page, "write", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped):
        runner().invoke(
            cli,
            ["explain", *MANY, "--out", "out", "--workers", "0", "--batch-size", "4"],
            prog_name="camkit",
        )


def test_ctrl_c_while_pictures_are_drawn_on_one_scale_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_ctrl_c()
    photos(5)
    printed = Report.drawn

    def drawn(*given: Any) -> None:
        printed(*given)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Report, "drawn", drawn)
    done = camkit_("explain", *MANY, "--out", "out", "--workers", "0", "--scale", "run")
    assert done.exit_code == 130 and "5 maps are finished" in done.stderr
    page = Path("out/index.html").read_text("utf-8")
    assert page.count('"thumb":') == 1 and page.count('"map_file":') == 5


def test_ctrl_c_before_anything_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("camkit.explaining.planning.load_quietly", interrupted)
    done = explain(photo())
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "\nInterrupted\n")


def test_two_runs_into_one_folder_at_once(site: Path) -> None:
    photos(60)
    child = running(site, "-q")
    wait_for(3, child)
    assert camkit_("explain", *MANY, "--out", "out", "-q", "--resume").exit_code == 0
    assert child.communicate() == (b"", b"") and child.returncode == 0
    files, expected = undisturbed()
    assert content() == files
    assert sorted(set(told())) == expected  # each at least once
    assert len(Path("out/manifest.jsonl").read_bytes().splitlines()) == len(told())


# --- nothing can be written, nothing can be read --------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may become larger: as on a full disk, the system refuses to write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "kept", "what"), [(40_000, 16, "manifest.jsonl"), (1000, 0, ".png")])
def test_a_full_disk_ends_the_run_and_what_was_finished_stays(size: int, kept: int, what: str) -> None:
    photos(40)  # of which 16 are told at once
    asked = ("--look", "lesson")  # whose pictures are smaller than the manifest
    with files_up_to(size):
        done = quick(*MANY, *asked, code=1)
    assert len(done.stderr.splitlines()) == 1 and "unexpected" not in done.stderr
    assert done.stderr.startswith("Error: cannot write out/")
    assert done.stderr.splitlines()[-1].rpartition(what)[2].startswith(": File too large")
    assert kept - 8 < len(told()) < kept + 8 if kept else not Path("out/manifest.jsonl").exists()
    known = {line[key] for line in lines() for key in ("map_file", "overlay_file")} if kept else set()
    assert content().keys() == known  # no draft, and no file without its line
    quick(*MANY, *asked, "--resume")
    assert (content(), told()) == undisturbed(*asked)
    assert camkit_("verify", "out").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write anything")
def test_without_permission() -> None:
    photos(3)
    Path("photos/000.png").chmod(0)
    Path("photos/below").chmod(0)
    done = quick("photos", code=3)
    assert "photos/000.png cannot be read: Permission denied\n" in done.stderr
    assert "Error: photos/below cannot be read: Permission denied\n" in done.stderr
    Path("out").chmod(0o500)
    assert "out: Permission denied" in quick("photos", code=1).stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_meanwhile_costs_only_itself(workers: int) -> None:
    names = photos(30)

    def first_batch(size: int) -> None:
        if size == 3:  # by now the folder was seen to hold it
            Path("photos/019.png").unlink(missing_ok=True)

    with at_every_forward(first_batch):
        done = explain("photos", "--batch-size", 3, "--workers", workers)
    assert done.exit_code == 3
    assert "Error: photos/019.png cannot be read: No such file or directory\n" in done.stderr
    assert [line["name"] for line in lines()] == names
    assert [line["name"] for line in lines() if line["status"] == "error"] == ["019.png"]


def test_on_error_fail_reads_nothing_after_the_first_bad_file() -> None:
    names = photos(30)
    Path("photos", names[4]).write_bytes(b"no picture")
    Path("photos", names[20]).write_bytes(b"no picture")
    for workers in (0, 1):
        arguments = ("photos", "--on-error", "fail", "--batch-size", 2, "--workers", workers)
        done = explain(*arguments, "--out", workers)
        assert done.exit_code == 1
        assert done.stderr.count("Error: ") == 1
        assert [line["name"] for line in lines(str(workers))] == names[:5]


# --- parts ----------------------------------------------------------------------------------------


def test_the_parts_add_up_to_the_whole_and_each_photograph_is_in_one() -> None:
    names = photos(20)
    Path("photos/bad.png").write_bytes(b"no picture")
    quick("photos", "--class", "all", out="whole", code=3)
    for part in (1, 2, 3):
        explain("photos", "--class", "all", "--shard", f"{part}/3", "--out", part)
        explain("photos", "--class", "all", "--shard", f"{part}/3", "--out", "together")
    parts = [{line["name"] for line in lines(str(part))} for part in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted([*names, "bad.png"])
    assert all(parts)
    merged = camkit_("explain", "merge", 1, 2, 3, "--out", "merged")
    assert merged.exit_code == 0 and merged.stdout.startswith("81 results of 3 folders ")
    for joined in ("merged", "together"):
        assert len(lines(joined)) == 81
        assert content(joined).keys() == content("whole").keys()
        for name in content("whole"):
            if name.endswith(".npy"):  # batches differ, so the last digits may
                one, other = (np.load(Path(folder, name)) for folder in ("whole", joined))
                assert np.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert camkit_("verify", "merged").exit_code == 0


def test_the_part_of_a_photograph_depends_on_its_name_alone() -> None:
    photos(9)
    quick("photos", "--shard", "2/2", out="all")
    before = {line["name"] for line in lines("all")}
    for name in before:
        photo(f"elsewhere/{name}", 70)
    for name in ("below/x.png", "x.png"):
        photo(f"elsewhere/{name}", 71)
    quick("elsewhere", "--shard", "2/2", out="some")
    assert before <= {line["name"] for line in lines("some")}
    assert quick("elsewhere", "--shard", "1/2", out="rest").exit_code == 0
    assert not before & {line["name"] for line in lines("rest")}


def test_a_part_may_be_empty() -> None:
    photos(1)
    outs = [quick("photos", "--shard", f"{part}/4", out=str(part)) for part in (1, 2, 3, 4)]
    empty = [done for done in outs if done.stdout == ""]
    assert len(empty) == 3
    assert {done.stderr for done in empty} == {"Nothing to do: no photograph belongs to this shard\n"}
    assert len([path for path in Path().iterdir() if path.name in "1234"]) == 1


@pytest.mark.parametrize(
    "shard", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1 / 2", "1/9999999", "٣/٤", "½"]
)
def test_wrong_parts_are_wrong_usage(shard: str) -> None:
    done = explain(photo(), "--shard", shard)
    assert done.exit_code == 2 and not Path("out").exists()
    assert done.stderr == f"Error: --shard is I/N with I from 1 to N, such as 2/4, not {shard!r}\n"


# --- what is told ---------------------------------------------------------------------------------


def test_quiet_tells_errors_alone() -> None:
    photos(3)
    assert (quick("photos", "-q").stdout, quick("photos", "--quiet", "--resume").stderr) == ("", "")
    Path("photos/bad.png").write_bytes(b"no picture")
    photo("photos/moving.gif")
    done = quick("photos", "-q", "--shard", "1/1", code=3)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Error: photos/bad.png is not an image that camkit reads (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM)",
        "4 maps done, 1 failed",
    ]


def test_quiet_and_json_are_the_lines_alone() -> None:
    photos(3)
    done = quick("photos", "-q", "--json")
    assert done.stdout == Path("out/manifest.jsonl").read_text("utf-8") and done.stderr == ""


def test_verbose_tells_what_is_run_and_how_much_was_done() -> None:
    photos(3)
    done = quick("photos", "-v", "--batch-size", 2, "--class", "top:2")
    first, options, where, last, stages = done.stderr.splitlines()
    request, sha256 = lines()[0]["request"], lines()[0]["model_sha256"]
    assert first == (
        f"model tiny:net ({sha256[:12]}) on cpu in float32 (ieee), layers body; "
        f"batches of 2, 0 processes read; request {request}"
    )
    assert options.startswith("native: reduction=sum, ") and "fast=False" in options
    assert where.endswith("; to look through all of it, open out/index.html")
    assert last.startswith("3 photographs, 6 maps in ")
    shares = [int(share) for share in re.findall(r"(\d+)%", stages)]
    assert len(shares) == 3 and 98 <= sum(shares) <= 102 and "--workers" in stages


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_formats_without_pictures_tell_the_file_of_each_map(format: str) -> None:
    names = photos(3)
    done = quick("photos", "--format", format, "--class", "all")
    header, *rows = done.stdout.splitlines()
    assert header.split()[-1] == "FILE" and len(rows) == 3 * 5
    files = {row.split()[-1] for row in rows if row.startswith("  ")}
    assert files == {f"out/{name}" for name in content()}
    assert len(files) == (len(names) if format == "npz" else 1)
