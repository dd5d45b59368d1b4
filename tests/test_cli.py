"""The command line as people and scripts see it: exit codes, streams, messages and files."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from tests.conftest import CLASSES, runner

import camkit
from camkit.cli import cli
from camkit.drawing import overlay
from camkit.drawing.style import Style
from camkit.images.decoding import sample
from camkit.images.preprocess import Preprocess

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("here")


def camkit_(*arguments: object, debug: bool = False) -> Result:
    """`camkit ARGUMENTS` in this process. Without `debug` nothing may escape as an exception."""
    result = runner().invoke(cli, [str(a) for a in arguments], prog_name="camkit")
    if result.exc_info and not debug and not isinstance(result.exception, SystemExit | None):
        pytest.fail("".join(traceback.format_exception(*result.exc_info)))
    return result


def explain(*arguments: object, model: str = "tiny:net", debug: bool = False) -> Result:
    """`camkit explain ARGUMENTS` with a small model, into the folder `out`."""
    return camkit_("explain", "--model", model, "--out", "out", *arguments, debug=debug)


def process(*arguments: str, path: Sequence[Path] = (), **keywords: Any) -> subprocess.Popen[bytes]:
    """`camkit ARGUMENTS` as a process of its own, which also finds the packages in `path`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    env.pop("PYTHONWARNINGS", None)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "camkit", *arguments], env=env, **(pipes | keywords))


def photo(name: str = "cat.png", seed: int = 0, size: tuple[int, int] = (60, 40)) -> Path:
    """A picture of coarse noise, which the small model sees something in."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, format=None if path.suffix else "PNG")
    return path


def lines(folder: str = "out") -> list[dict[str, Any]]:
    """The manifest."""
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text("utf-8").splitlines()]


def maps(folder: str = "out") -> dict[str, np.ndarray]:
    """The raw maps by file name."""
    return {path.name: np.load(path) for path in sorted(Path(folder).glob("*.npy"))}


def pictures(folder: str = "out") -> dict[str, np.ndarray]:
    """The pixels of the pictures by file name."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))}


# --- what comes out -------------------------------------------------------------------------------


def test_without_images_the_bundled_photograph_is_explained_by_the_default_model() -> None:
    result = camkit_("explain")
    assert result.exit_code == 0, result.stderr
    header, seen, row = result.stdout.splitlines()
    assert header.split() == ["CLASS", "PROB.", "BACKEND", "METHOD", "LAYER", "PICTURE"]
    assert re.fullmatch(
        rf"{re.escape(str(sample()))}: Abyssinian \d+\.\d%, Bengal \d+\.\d%, Maine_Coon \d+\.\d%",
        seen,
    )
    shown = re.match(r"  Abyssinian +\d+\.\d%  +native +gradcam +bn2 +(\S+)$", row)
    assert shown and Path(shown[1]) == Path("camkit-out/chelsea.png.native.gradcam.Abyssinian.png")
    picture = Image.open(shown[1])
    assert picture.width == 451 and picture.height > 300  # below the photograph stands what it shows
    saved = np.load(Path(shown[1]).with_suffix(".npy"))
    assert saved.shape == (7, 7) and saved.dtype == np.float32
    assert [line["predicted_name"] for line in lines("camkit-out")] == ["Abyssinian"]
    assert result.stderr.endswith(" camkit-out/index.html\n") and result.stderr.count("\n") == 1


def test_json_is_the_manifest_and_nothing_else() -> None:
    Path("bad.png").write_bytes(b"no picture")
    result = explain(photo("a.png"), "bad.png", photo("b.png", 1), "--class", "top:2", "--json")
    assert result.exit_code == 3
    assert result.stdout == Path("out/manifest.jsonl").read_text("utf-8")
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == [
        *["ok"] * 2,
        "error",
        *["ok"] * 2,
    ]
    assert result.stderr.splitlines() == [
        "Error: bad.png is not an image that camkit reads (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM)",
        "4 maps done, 1 failed",
        "Raw maps and manifest.jsonl are in out; to look through all of it, open out/index.html",
    ]


def test_the_table_has_a_row_for_each_map_below_its_photograph() -> None:
    result = explain(photo("a.png"), photo("b.png", 1), "--class", "tabby", "--class", "red fox")
    rows = [line.split()[0] for line in result.stdout.splitlines()]
    assert rows == ["CLASS", *("a.png:", "tabby", "red", "side"), *("b.png:", "tabby", "red", "side")]
    named = re.findall(r"\S+\.png$", result.stdout, re.MULTILINE)
    assert sorted(named) == sorted(str(Path("out", name)) for name in pictures())
    assert len(named) == 6


def test_results_of_several_photographs_do_not_run_into_the_progress_bar(site: Path) -> None:
    pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    for name in ("a.png", "b.png", "c.png"):
        photo(name)
    reader, terminal = pty.openpty()
    arguments = ("explain", "a.png", "b.png", "c.png", "--model", "tiny:net", "--batch-size", "1")
    child = process(*arguments, path=[site], stdout=terminal, stderr=terminal)
    os.close(terminal)
    told = b"".join(read_all(reader)).decode()
    assert child.wait() == 0, told
    assert "3/3" in told and "1/3" in told
    for name in ("a.png", "b.png", "c.png"):  # at the start of an empty line
        assert re.search(rf"(\n|\x1b\[2K){name}: ", told), told


def read_all(reader: int) -> Iterator[bytes]:
    """What a pseudo-terminal shows until the last program has left it."""
    while True:
        try:
            data = os.read(reader, 4096)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not data:
            break
        yield data
    os.close(reader)


# --- exit codes -----------------------------------------------------------------------------------


def test_a_bad_file_costs_only_itself() -> None:
    Path("empty.jpg").touch()
    Path("text.png").write_text("no picture")
    result = explain(photo("a.png"), "empty.jpg", "text.png", photo("b.png", 1))
    assert result.exit_code == 3
    assert "Error: empty.jpg is empty" in result.stderr
    assert "Error: text.png is not an image" in result.stderr
    by_image = {line["image"]: line for line in lines()}
    assert [line["status"] for line in by_image.values()] == ["ok", "error", "error", "ok"]
    assert by_image["empty.jpg"]["error"] == "empty.jpg is empty (0 bytes)"
    for name in ("a.png", "b.png"):
        assert Path("out", by_image[name]["map_file"]).is_file()
        assert Path("out", by_image[name]["overlay_file"]).is_file()


def test_nothing_done_is_exit_code_1() -> None:
    Path("bad.png").write_bytes(b"no picture")
    Path("empty.jpg").touch()
    result = explain("bad.png", "empty.jpg")
    assert result.exit_code == 1
    assert [line["status"] for line in lines()] == ["error", "error"]
    assert not maps() and not pictures()


@pytest.mark.parametrize("size", [1, 16])
def test_on_error_fail_stops_at_the_first_bad_file(size: int) -> None:
    Path("bad.png").write_bytes(b"no picture")
    arguments = (photo("a.png"), "bad.png", photo("b.png"), "--batch-size", size)
    result = explain(*arguments, "--on-error", "fail")
    assert result.exit_code == 1
    assert [(line["image"], line["status"]) for line in lines()] == [("a.png", "ok"), ("bad.png", "error")]
    assert "b.png" not in result.stdout
    assert explain(*arguments, "--on-error", "skip").exit_code == 3


@pytest.mark.parametrize(("score", "code", "good"), [("-inf", 3, ["tabby"]), ("nan", 1, [])])
def test_a_class_without_a_score_is_an_error(score: str, code: int, good: list[str]) -> None:
    """One that is minus infinity costs only itself; NaN leaves no class a probability."""
    result = explain(photo(), "--class", "tabby", "--class", "red fox", model=f"tiny:{score}")
    assert result.exit_code == code, result.stderr
    assert [line["class_name"] for line in lines() if line["status"] == "ok"] == good
    bad = [line["error"] for line in lines() if line["status"] == "error"]
    assert len(bad) == 2 - len(good) and "class red fox: " in bad[-1] and "NaN" in bad[-1]
    assert bad[-1] in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny:raises"], "RuntimeError: the disk is on fire"),
        (["--model", "tiny:memory"], "--batch-size"),
        (["--model", "tiny:miscounted"], "'tiny:miscounted' names 3 classes"),
        (["--out", "cat.png/maps"], "cat.png/maps: Not a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(arguments: list[str], message: str) -> None:
    result = explain(photo(), *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not maps() and not pictures()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--device", "tape"], r"'tape': .*auto, cpu, cuda\[:N\], mps or xpu"),
        (["--modle", "x"], r"No such option:? '?--modle'?.*'?--model"),
        (["--alpha", "much"], "'much' is not a valid float"),
        (["--alpha", "1.01"], "alpha .*0 and 1, not 1.01"),
        (["--alpha", "-0.1"], "alpha .*0 and 1, not -0.1"),
        (["--alpha", "nan"], "alpha .*0 and 1, not nan"),
        (["--cmap", "magna"], "'magna'.*'magma'"),
        (["--batch-size", "0"], "0 is not in"),
        (["--batch-size", "65537"], "65537 is not in"),
        (["--batch-size", "9" * 30], "9 is not in"),
        (["--dtype", "float23"], "'float23' is not one of 'float32', 'bfloat16'"),
        (["--view", "side"], "'side' is not one of 'original', 'model'"),
        (["--on-error", "weep"], "'weep' is not one of 'skip', 'fail'"),
        (["--relu", "--counterfactual"], "--counterfactual and --relu"),
        (["--backend", "nativ"], "explainer 'nativ'.*'native'"),
        (["--method", "gradcan"], "native .*'gradcan'.*'gradcam'"),
        (["-o", "reducton=mean"], "native .*'reducton'.*'reduction'"),
        (
            ["-o", "percentile=50"],
            "percentile changes nothing for gradcam, it is for winsorcam: leave it out",
        ),
        (["-o", "libra=true", "--method", "rise"], "libra changes nothing for rise, it is for "),
        (["-o", "reduction=men"], r"reduction of native .*sum\|mean.*'men'"),
        (["--option", "reduction"], "'reduction' .*KEY=VALUE"),
        (["--class", "taby"], "class 'taby': it has tabby, Egyptian cat"),
        (["--class", "4"], "class 4: .*4 classes, 0 to 3"),
        (["--class", "-1"], "class '-1'"),
        (["--class", "top:0"], "top:0.*positive"),
        (["--layer", "bodi"], "layer 'bodi'.*'body'"),
        (["--layer", "fc"], r"\[1, 4\] of layer 'fc' .*not a feature map"),
        (["--out", "cat.png"], "'cat.png' is a file"),
        (["--model", "tini:net"], "there is no model 'tini:net'; did you mean 'tiny'"),
        (
            ["--model", "timm:test_resnt@none"],
            "timm has no classifier 'test_resnt'; did you mean 'test_resnet'",
        ),
        (["--model", "folder/of/nothing"], "there is no bundle folder 'folder/of/nothing'"),
        (["missing.png"], "there is no image 'missing.png'"),
        (["emptyfolder"], "no image found in 'emptyfolder'"),
        (["nothing*.png"], r"no image found in 'nothing\*.png'"),
    ],
)
def test_wrong_usage_is_told_in_two_lines_before_anything_is_written(
    arguments: list[str], message: str
) -> None:
    Path("emptyfolder").mkdir()
    result = explain(photo(), *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.search(message, result.stderr.splitlines()[0]), result.stderr
    assert result.stderr.startswith("Error: ") and len(result.stderr.splitlines()) <= 2
    assert sorted(path.name for path in Path().iterdir()) == ["cat.png", "emptyfolder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verbos"], r"No such option:? '?--verbos"),
        (["explian"], "No such command 'explian'"),
        (["plugin", "lits"], "No such command 'lits'"),
        (["plugin", "show"], "Missing argument 'NAME'"),
        (["plugin", "show", "native", "--kind", "sort"], "'sort' is not one of 'explainer'"),
        (["plugin", "show", "nativ"], "explainer 'nativ'.*'native'"),
        (["plugin", "show", "timm", "--kind", "explainer"], "explainer 'timm'"),
        (["plugin", "check", "nativ"], "explainer 'nativ'.*'native'"),
        (["plugin", "check", "native", "-o", "x"], "'x' .*KEY=VALUE"),
        (["plugin", "new", "Native"], "'Native'"),
        (["model", "list", "resnet*"], r"SOURCE:NAME.*'torchvision:resnet\*'"),
        (["model", "list", "torchvision:resnet19"], "'resnet1"),
        (["model", "list", "imagenet"], "imagenet .*list"),
        (["model", "list", "tiy:x"], "model 'tiy'.*'tiny'"),
    ],
)
def test_wrong_usage_of_the_other_commands(arguments: list[str], message: str) -> None:
    result = camkit_(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.search(message, result.stderr.splitlines()[0]), result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert not list(Path().iterdir())


def test_a_wrong_option_says_where_the_right_ones_are() -> None:
    result = camkit_("model", "layers", "--al")
    assert result.stderr.splitlines()[1:] == ["Try 'camkit model layers --help' for help."]


def test_an_output_folder_that_may_not_be_written_to() -> None:
    Path("out").mkdir()
    Path("out/manifest.jsonl").mkdir()  # which also stops root
    result = explain(photo())
    assert result.exit_code == 1
    assert "out/manifest.jsonl: it is not a regular file" in result.stderr
    assert "Traceback" not in result.stderr


# --- debugging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--debug", "explain", "--model", "tiny:raises"],
        ["explain", "--debug", "--model", "tiny:raises"],
        ["explain", "--model", "tiny:raises", "--debug"],
        ["--debug", "model", "layers", "tiny:raises"],
        ["model", "--debug", "summary", "tiny:raises"],
        ["model", "summary", "tiny:raises", "--debug"],
    ],
)
def test_debug_lets_an_error_through_wherever_it_stands(arguments: list[str]) -> None:
    result = camkit_(*arguments, debug=True)
    assert isinstance(result.exception, RuntimeError) and result.exit_code == 1
    quiet = camkit_(*(a for a in arguments if a != "--debug"))
    assert quiet.exit_code == 1
    assert "RuntimeError: the disk is on fire" in quiet.stderr and "--debug" in quiet.stderr
    assert quiet.stderr.startswith("Error: ") and quiet.stderr.count("\n") == 1


def test_debug_shows_a_traceback() -> None:
    child = process("plugin", "show", "nativ", "--debug")
    out, err = child.communicate()
    assert out == b"" and child.returncode == 1
    assert b"Traceback (most recent call last)" in err and b"PluginNotFound" in err
    child = process("plugin", "show", "nativ")
    out, err = child.communicate()
    assert out == b"" and child.returncode == 2
    assert b"Traceback" not in err and err.count(b"\n") == 1


# --- which photographs ----------------------------------------------------------------------------


def test_files_folders_and_globs_each_file_once() -> None:
    for name in ("one.png", "folder/two.png", "folder/deep/three.jpg", "globbed/four.webp"):
        photo(name)
    Path("folder/notes.txt").write_text("no picture")
    Path("globbed/notes.txt").write_text("no picture")
    result = explain("one.png", "folder", "globbed/*", "./one.png", "folder/two.png")
    assert result.exit_code == 0, result.stderr
    assert [line["image"] for line in lines()] == [
        "one.png",
        "folder/two.png",
        "folder/deep/three.jpg",
        "globbed/four.webp",
    ]


def test_one_file_name_from_two_folders() -> None:
    result = explain(photo("a/cat.png", 1), photo("b/cat.png", 2), "--class", "tabby")
    assert result.exit_code == 0
    assert [(line["image"], line["map_file"]) for line in lines()] == [
        ("a/cat.png", "cat.png.native.gradcam.tabby.tiny_net.npy"),
        ("b/cat.png", "cat.png~2.native.gradcam.tabby.tiny_net.npy"),
    ]
    first, second = maps().values()
    assert not np.allclose(first, second)
    assert "cat.png~2.native.gradcam.tabby.tiny_net.png" in result.stdout


@pytest.mark.parametrize(
    "name", ["my cat.png", "Кошка 猫.png", "-o.png", "cat[1].png", "100%.png", "$(x);'\".png", "noending"]
)
def test_odd_file_names(name: str) -> None:
    photo(name)
    result = explain("--", name)
    assert result.exit_code == 0, result.stderr
    assert f"\n{name}: " in result.stdout
    (line,) = lines()
    assert line["image"] == name
    assert Path("out", line["map_file"]).is_file() and Path("out", line["overlay_file"]).is_file()


def test_a_name_that_is_not_utf_8() -> None:
    name = os.fsdecode(b"c\xe4t.png")
    try:
        photo(name)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    result = explain(name, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["image"] == "c\\xe4t.png"


# --- what is explained ----------------------------------------------------------------------------


def test_classes_by_rank_name_and_index_each_once() -> None:
    photo()
    explain("cat.png", "--class", "all")
    logits = [line["logit"] for line in lines()]
    order = sorted(range(4), key=lambda index: -logits[index])
    assert [line["class_index"] for line in lines()] == [0, 1, 2, 3]
    assert [line["class_name"] for line in lines()] == list(CLASSES)
    assert sum(line["probability"] for line in lines()) == pytest.approx(1)
    for asked, meant in [
        ([], order[:1]),
        (["pred"], order[:1]),
        (["top:2"], order[:2]),
        (["top:99"], order),
        (["egyptian_CAT"], [1]),
        (["3"], [3]),
        (["3", "red fox", "tabby", "RedFox"], [3, 0]),
        ([str(order[1]), "top:3", "pred"], [order[1], order[0], order[2]]),
    ]:
        wanted = [part for name in asked for part in ("--class", name)]
        result = explain("cat.png", "--json", *wanted)
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["class_index"] for line in found] == meant, asked
        assert {line["predicted_index"] for line in found} == {order[0]}


def test_several_layers_by_name_index_and_glob() -> None:
    result = explain(photo(), "--class", "0", "--layer", "auto", "--layer", "s*.0", "--layer", "body[-1]")
    assert result.exit_code == 0, result.stderr
    # `auto` is `body`: its output is that of `body.1`, and it finishes later.
    shapes = {line["layer"]: line["map_shape"] for line in lines()}
    assert shapes == {"body": [8, 8], "stem.0": [16, 16], "body.1": [8, 8]}
    assert list(maps()) == sorted(f"cat.png.native.gradcam.tabby.{layer}.tiny_net.npy" for layer in shapes)
    assert f"  side by side: {Path('out/cat.png.tiny_net.sheet.png')}\n" in result.stdout


def test_an_option_reaches_the_backend() -> None:
    photo()
    explain("cat.png", "--class", "0")
    assert camkit_(
        *("explain", "cat.png", "--model", "tiny:net", "--class", "0", "--out", "mean"),
        *("-o", "reduction=mean"),
    ).exit_code == 0  # fmt: skip
    name = "cat.png.native.gradcam.tabby.tiny_net"
    assert np.allclose(
        maps("mean")[f"{name}.reduction-mean.npy"] * 8, maps()[f"{name}.npy"]
    )  # of the layer's 8 channels
    assert [line["options"]["reduction"] for line in lines() + lines("mean")] == ["sum", "mean"]


def test_methods_of_one_backend_stand_side_by_side_without_agreement() -> None:
    result = explain(photo(), "--method", "gradcam", "--method", "activations")
    assert [line["method"] for line in lines()] == ["gradcam", "activations"]
    assert Image.open("out/cat.png.tiny_net.sheet.png").width > 300
    assert "side by side" in result.stdout and "rank correlation" not in result.stdout


@pytest.mark.parametrize(("size", "difference"), [("1", 0.0), ("3", 2.0)])
def test_backends_are_compared(other_backend: str, size: str, difference: float) -> None:
    """The other backend adds `size - 1` to every value."""
    photo()
    arguments = ("cat.png", "--class", "0", "--backend", "native", "--backend", other_backend)
    arguments += ("--method", "gradcam", "--method", "activations", "-o", f"size={size}")
    result = explain(*arguments)
    assert result.exit_code == 0, result.stderr
    columns = [(line["backend"], line["method"]) for line in lines()]
    assert columns == [("native", "gradcam"), ("native", "activations"), ("other", "gradcam")]
    assert [line["backend_dist"] for line in lines()] == ["camkit", "camkit", "camkit-other"]
    option = "" if size == "1" else f".size-{size}"
    assert Path(f"out/cat.png.tiny_net{option}.sheet.png").is_file()
    assert lines()[-1]["map_file"] == f"cat.png.other.gradcam.tabby.tiny_net{option}.npy"
    assert {line["sheet_file"] for line in lines()} == {f"cat.png.tiny_net{option}.sheet.png"}
    peak = np.abs(maps()["cat.png.native.gradcam.tabby.tiny_net.npy"]).max()
    line = (
        r"^  (\w+) at body, native and other: rank correlation (\S+), largest difference (\S+) of the peak$"
    )
    told = re.findall(line, result.stdout, re.MULTILINE)
    assert [(method, rank) for method, rank, _ in told] == [("gradcam", "1.000")]
    assert float(told[0][2]) == pytest.approx(difference / peak, rel=0.05, abs=1e-3)
    assert "side by side" not in explain(*arguments, "--json").stdout


# --- how it is drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "style", "part"),
    [
        ([], Style(), ""),
        (["--relu"], Style(relu=True), ".relu"),
        (["--counterfactual"], Style(counterfactual=True), ".against"),
        (["--cmap", "viridis", "--alpha", "1"], Style(cmap="viridis", alpha=1), ".alpha-1.0.viridis"),
        (["--alpha", "0"], Style(alpha=0), ".alpha-0.0"),
        (["--cells"], Style(cells=True), ".cells"),
    ],
)
def test_the_look_changes_the_picture_and_not_the_map(
    arguments: list[str], style: Style, part: str
) -> None:
    photo()
    always = ("--class", "1", "--view", "model", "--no-caption")
    explain("cat.png", *always)
    ((name, plain),) = maps().items()
    assert plain.min() < 0 < plain.max()  # else nothing would be rectified
    explain("cat.png", *always, *arguments)
    assert [*maps()] == [name] and np.array_equal(maps()[name], plain)
    seen = Preprocess(size=(32, 32)).view(Image.open("cat.png"))
    expected = np.asarray(overlay.overlay(overlay.sized(seen), torch.from_numpy(plain), style))
    assert np.array_equal(pictures()[name.replace(".npy", f".model{part}.bare.png")], expected)
    assert len(pictures()) == (2 if part else 1)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ("--view model", (256, 256)),
        ("", (240, 160)),
        ("--image-size 45", (45, 30)),
        ("--look lesson", (32, 32)),
    ],
)
def test_a_picture_has_the_size_of_what_it_is_drawn_on(asked: str, size: tuple[int, int]) -> None:
    """A photograph of 60 x 40 is enlarged by a whole number, so that one can see anything."""
    assert explain(photo(), "--no-caption", *asked.split()).exit_code == 0
    (picture,) = Path("out").glob("*.png")
    assert Image.open(picture).size == size


def test_bfloat16_gives_nearly_the_same_map_and_says_so() -> None:
    explain(photo(), "--class", "0")
    result = camkit_(*"explain cat.png --model tiny:net --class 0 --dtype bfloat16 --out half".split())
    assert result.exit_code == 0, result.stderr
    (full,), (half,) = maps().values(), maps("half").values()
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max()
    (before,), (after,) = lines(), lines("half")
    assert (before["dtype"], after["dtype"]) == ("float32", "bfloat16")
    assert before["model_sha256"] == after["model_sha256"]


def test_the_batch_size_does_not_change_the_maps() -> None:
    for seed in range(3):
        photo(f"photos/{seed}.png", seed, size=(60 + seed, 40))
    for size in ("1", "2", "16"):
        arguments = ("explain", "photos", "--model", "tiny:net", "--class", "all", "--batch-size", size)
        assert camkit_(*arguments, "--out", size).exit_code == 0
    assert len(maps("1")) == 12
    for other in ("2", "16"):
        assert list(maps(other)) == list(maps("1"))
        for name, one in maps("1").items():
            assert np.allclose(maps(other)[name], one, rtol=1e-4, atol=1e-6)


def test_pickles_are_trusted_only_when_told_to() -> None:
    refused = explain(photo(), model="tiny:pickled")
    assert refused.exit_code == 1 and "the weights are a pickle" in refused.stderr
    assert explain("cat.png", "--trust-pickle", model="tiny:pickled").exit_code == 0


# --- warnings -------------------------------------------------------------------------------------


def test_what_is_odd_about_a_photograph_is_told_once_and_recorded_with_each_map() -> None:
    frames = [Image.open(photo()), Image.open(photo("other.png", 1))]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    result = explain("moving.gif", "cat.png", "--class", "all")
    assert result.exit_code == 0
    warning = "moving.gif has several frames: the first is explained"
    assert result.stderr.splitlines()[:-1] == [f"Warning: {warning}"]
    noted = [(line["image"], line["warnings"]) for line in lines()]
    assert noted == [("moving.gif", [warning])] * 4 + [("cat.png", [])] * 4


def test_the_same_warning_is_told_again_of_the_next_photograph() -> None:
    result = explain(photo("a.png"), photo("b.png", 1), "--class", "all", model="tiny:flat")
    assert result.exit_code == 0
    about = "gradcam is zero everywhere at layer 'body', as where no gradient arrives"
    assert result.stderr.splitlines()[:-1] == [f"Warning: {name}.png: {about}" for name in "ab"]


def test_a_warning_names_its_photograph_where_no_table_does() -> None:
    result = explain(photo("a.png"), photo("b.png", 1), "--json", model="tiny:flat")
    about = "gradcam is zero everywhere at layer 'body', as where no gradient arrives"
    assert result.stderr.splitlines()[:-1] == [f"Warning: {name}: {about}" for name in ("a.png", "b.png")]


def test_camkits_warnings_are_one_line_and_others_are_not_shown(site: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged" / "camkit_broken-1.0.dist-info"
    damaged.mkdir(parents=True)
    (damaged / "entry_points.txt").write_text("[camkit.models]\nbroken = camkit_broken:Broken\n")
    (damaged / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    photo()
    arguments = ("explain", "cat.png", "--model", "tiny:noisy", "--json")
    child = process(*arguments, path=[site, damaged.parent])
    out, err = child.communicate()
    assert child.returncode == 0, err
    told = err.decode().splitlines()
    assert re.match(r"Warning: the package metadata in .*camkit_broken.* cannot be read", told[0])
    assert [text.partition(";")[0] for text in told[1:]] == [
        "Raw maps and manifest.jsonl are in camkit-out"
    ]
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok"]
    with warnings.catch_warnings():  # the same source, so that the silence above means something
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="a library is deprecated"):
            camkit.load_model("tiny:noisy")


# --- help -----------------------------------------------------------------------------------------


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[str, ...]]:
    """The paths of all commands, groups included."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, *path, name)


def test_the_version() -> None:
    result = camkit_("--version")
    assert (result.exit_code, result.stdout) == (0, f"camkit {camkit.__version__}\n")


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = camkit_(*path, "-h")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(" ".join(("Usage: camkit", *path, "[OPTIONS]")))
    assert result.stdout == camkit_(*path, "--help").stdout
    command: Any = cli
    for name in path:
        command = command.commands[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help and option.opts[-1] in result.stdout


def test_the_help_of_explain_has_every_option_of_the_reference() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    section = page.partition("## `camkit explain")[2].partition("### ")[0]
    documented = set(re.findall(r"`(--?[a-z-]+)", section))
    told = camkit_("explain", "--help").stdout
    assert len(documented) > 15
    assert [name for name in documented if not re.search(rf"{name}\b", told)] == []


def test_help_and_the_plugin_list_do_not_import_torch() -> None:
    code = """
        import sys
        from click.testing import CliRunner
        from camkit.cli import cli
        def run(command, *path):
            assert CliRunner().invoke(cli, [*path, "--help"]).exit_code == 0, path
            for name, child in getattr(command, "commands", {}).items():
                run(child, *path, name)
        run(cli)
        for arguments in (["plugin", "list"], ["model", "list"], ["explain", "--backend", "nativ"]):
            CliRunner().invoke(cli, arguments)
        print([name for name in ("torch", "numpy", "PIL", "matplotlib") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", inspect.cleandoc(code)], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# --- camkit model ---------------------------------------------------------------------------------


def test_a_reader_who_leaves_gets_no_traceback(site: Path) -> None:
    child = process("model", "list", "tiny:*", path=[site])
    assert child.stdout and child.stderr
    assert child.stdout.readline() == b"tiny:net0\n"
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    child.wait()


def test_model_list_shows_the_sources() -> None:
    result = camkit_("model", "list")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    ours = ("bundle", "fastai", "file", "imagenet", "pets", "python", "timm")
    assert [row[:2] for row in rows[1:10]] == [
        *([name, "camkit"] for name in ours),
        ["tiny", "camkit-tiny"],
        ["torchvision", "camkit"],
    ]
    assert "small models for tests" in result.stdout


def test_model_classes_lists_indices_and_names() -> None:
    rows = camkit_("model", "classes", "imagenet").stdout.splitlines()
    assert len(rows) == 1000 and rows[281].split() == ["281", "tabby"]


def test_a_word_of_a_class_name_finds_it() -> None:
    result = camkit_("explain", "--model", "imagenet", "--class", "cat")
    assert result.exit_code == 2
    assert "did you mean 'tiger cat' or 'Persian cat' or 'Siamese cat'? (1000 classes" in result.stderr


@pytest.mark.filterwarnings("default::camkit.errors.CamkitWarning")
@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("test_vit", "blocks.5.norm1", ["-o", "fast=true", "--method", "ablationcam"]),
        ("deit_tiny_patch16_224", "blocks.11.norm1", []),
        ("swin_tiny_patch4_window7_224", "norm", []),
        ("test_convnext", "stages.3", ["--method", "ablationcam"]),
        ("mobilevit_xxs", "final_conv", []),  # a hybrid
    ],
)
def test_transformers_and_their_relatives(name: str, layer: str, options: list[str]) -> None:
    methods = ["gradcam", "layercam", "eigencam", "finercam", "shapleycam"]
    wanted = [argument for method in methods for argument in ("--method", method)]
    result = explain(photo(), "--class", "top:2", *wanted, *options, model=f"timm:{name}@none")
    assert result.exit_code == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    if "fast=true" in options:  # what it does depends on values
        assert len(told) == 1 and "without fast mode: " in told[0]
    else:
        assert not told
    done = lines()
    assert len(done) == 2 * (len(methods) + options.count("--method"))
    assert {line["layer"] for line in done} == {layer}
    assert all(np.ptp(np.load(f"out/{line['map_file']}")) > 0 for line in done)


@pytest.mark.usefixtures("other_backend")
def test_methods_that_a_backend_lacks_are_told() -> None:
    result = explain(
        photo(), "--backend", "native", "--backend", "other", "--method", "gradcam", "--method", "layercam"
    )
    assert result.exit_code == 0 and "Note: other has no layercam" in result.stderr


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("torchvision:resnet?4", ["torchvision:resnet34"]),
        ("torchvision:vgg1[36]", ["torchvision:vgg13", "torchvision:vgg16"]),
        ("camkit-tiny:tiny:net777", ["camkit-tiny:tiny:net777"]),
        ("tiny:net4999?", [f"tiny:net{i}" for i in range(49990, 50_000)]),
    ],
)
def test_model_list_with_a_pattern(pattern: str, names: list[str]) -> None:
    result = camkit_("model", "list", pattern)
    assert (result.exit_code, result.stdout.splitlines(), result.stderr) == (0, names, "")


def layer_rows(*arguments: str) -> list[list[str]]:
    """The table of `camkit model layers` without its header: mark, layer, type, output, map."""
    result = camkit_("model", "layers", *arguments)
    assert result.exit_code == 0 and result.stderr == "", result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["LAYER", "TYPE", "OUTPUT", "MAP"]
    return [[row[0].strip(), *re.split(r"  +", row[1:].strip())] for row in rows]


def test_model_layers_marks_the_automatic_choice() -> None:
    rows = layer_rows("imagenet")
    assert [row[1:] for row in rows if row[0] == "*"] == [["bn2", "Norm", "[1, 1280, 7, 7]", "7 x 7"]]
    assert all(" x " in row[4] for row in rows)
    assert not any(row[1] == "classifier" for row in rows)


def test_model_layers_shows_all_on_request() -> None:
    assert [row[1] for row in layer_rows("tiny:net")] == [
        *("stem.0", "stem.1", "stem", "body.0", "body.1", "body"),
    ]
    everything = {row[1]: row[2:] for row in layer_rows("tiny:net", "--all")}
    assert list(everything)[6:] == ["pool", "flat", "fc"]
    assert everything["fc"] == ["Linear", "[1, 4]", "-"]
    assert everything["body"] == ["Sequential", "[1, 8, 8, 8]", "8 x 8"]


def test_the_model_of_the_lesson_has_its_parameters_and_its_body_is_the_layer() -> None:
    result = camkit_("model", "summary", "tiny:lesson")
    assert result.exit_code == 0, result.stderr
    header, *rows = result.stdout.partition("\n\n")[0].splitlines()
    assert header.split() == ["TYPE", "OUTPUT", "PARAMETERS", "TRAINABLE"]
    assert re.fullmatch(r"Conv2d +\[1, 64, 32, 32\] +9,408 +yes", rows[0])
    assert re.fullmatch(r"BatchNorm1d +\[1, 37\] +74 +yes", rows[-1])
    counted = [int(re.split(r"  +", row)[2].replace(",", "")) for row in rows]
    assert sum(counted) == 21_831_050
    assert (
        "\nTotal parameters: 21,831,050\nTrainable: 21,831,050   frozen: 0\nClasses: 37 " in result.stdout
    )
    assert [row[1] for row in layer_rows("tiny:lesson") if row[0] == "*"] == ["0"]


# --- camkit plugin --------------------------------------------------------------------------------


def test_plugin_list(other_backend: str) -> None:
    result = camkit_("plugin", "list")
    assert result.exit_code == 0 and result.stderr == ""
    rows = {tuple(re.split(r"  +", row)) for row in result.stdout.splitlines()}
    assert ("other", "explainer", "camkit-other 1.0", "ok", "for tests") in rows
    assert ("tiny", "model", "camkit-tiny 1.0", "ok", "small models for tests") in rows
    records = [json.loads(line) for line in camkit_("plugin", "list", "--json").stdout.splitlines()]
    assert {
        (r["name"], r["kind"], f"{r['distribution']} {r['version']}", r["status"], r["summary"])
        for r in records
    } == {row for row in rows if row[0] != "NAME"}
    assert all(r["problem"] is None for r in records)


def test_plugin_list_says_what_is_wrong_on_stderr(site: Path, other_backend: str) -> None:
    info = next(Path(p, "camkit_other-1.0.dist-info") for p in sys.path if p.endswith("/site"))
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: camkit-other\nVersion: 1.0\nRequires-Dist: camkit>=99\n"
    )
    result = camkit_("plugin", "list")
    assert result.exit_code == 0
    assert re.search(r"^other .* broken ", result.stdout, re.MULTILINE)
    assert re.fullmatch(r"explainer 'other' of camkit-other: it needs camkit>=99, .*\n", result.stderr)


def test_plugin_show_tells_methods_and_options() -> None:
    result = camkit_("plugin", "show", "native")
    assert result.exit_code == 0
    assert f"explainer from camkit {camkit.__version__}, camkit.native.explainer:Native\n" in result.stdout
    rows = [re.split(r"  +", row) for row in result.stdout.splitlines()]
    assert ["gradcam"] in rows and ["eigencam", "the same map for every class"] in rows
    (option,) = (row for row in rows if row[0] == "reduction")
    assert option[1:3] == ["sum|mean", "sum"] and "over channels" in option[3]


def test_plugin_show_of_other_kinds(other_backend: str) -> None:
    assert re.search(r"^size +int +1 +of nothing$", camkit_("plugin", "show", "other").stdout, re.MULTILINE)
    shown = camkit_("plugin", "show", "tiny").stdout
    assert shown.splitlines() == [
        "tiny: small models for tests",
        "model from camkit-tiny 1.0, camkit_tiny:Tiny",
    ]


def test_plugin_show_of_a_name_that_several_kinds_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "twins" / "camkit_twin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-twin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[camkit.models]\ntwin = camkit_tiny:Tiny\n"
        "[camkit.explainers]\ntwin = camkit.native.explainer:Native\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-tiny,camkit-twin")
    both = camkit_("plugin", "show", "twin").stdout
    explainer, source = (
        camkit_("plugin", "show", "twin", "--kind", k).stdout for k in ("explainer", "model")
    )
    assert explainer.splitlines()[1] == "explainer from camkit-twin 1.0, camkit.native.explainer:Native"
    assert source.splitlines()[1] == "model from camkit-twin 1.0, camkit_tiny:Tiny"
    assert both == f"{explainer}\n{source}"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--class", "bred"], "camkit model classes tiny:many"),
        (["--layer", "bodi"], "camkit model layers tiny:many"),
        (["--layer", "bodi", "--trust-pickle"], "camkit model layers tiny:many --trust-pickle"),
    ],
)
def test_hints_name_the_model_in_use(arguments: list[str], hint: str) -> None:
    photo()
    result = camkit_("explain", "cat.png", "--model", "tiny:many", "--workers", "0", *arguments)
    assert f"`{hint}`" in result.stderr
    assert camkit_(*hint.split()[1:]).exit_code == 0


def test_the_automatic_layer_of_a_model_whose_scores_are_taken_out() -> None:
    """It is marked as `explain` takes it, wherever the scores stand in what the model returns."""
    Path("mine.py").write_text(
        "import camkit\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)\n"
        "        self.fc = nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        x = self.a(x)\n"
        "        return x.mean((1, 2, 3)), self.fc(self.b(x).mean((2, 3)))\n"
        "def build():\n"
        "    return camkit.load_model(Net(), output=1, preprocess=camkit.Preprocess(size=(32, 32)))\n"
    )
    lines = camkit_("model", "layers", "mine.py:build").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["b"]


def test_plugin_check_holds_a_plugin_against_its_contract() -> None:
    result = camkit_("plugin", "check", "gini")
    assert result.exit_code == 0, result.stdout
    *checks, last = result.stdout.splitlines()
    assert last == "gini: all checks pass."
    assert len(checks) > 5 and all(re.match(r"ok    \w+: .", line) for line in checks)


def test_plugin_check_tells_what_fails(other_backend: str) -> None:
    result = camkit_("plugin", "check", "other", "-o", "size=3")  # whose maps are wrong by 2
    assert result.exit_code == 1
    assert re.search(r"^FAIL  by_hand: .*\n      \S", result.stdout, re.MULTILINE)
    failed = result.stdout.count("\nFAIL")
    assert result.stdout.endswith(f"other: {failed} checks fail.\n")


def test_plugin_doctor_finds_nothing_wrong() -> None:
    result = camkit_("plugin", "doctor")
    assert result.exit_code == 0 and result.stderr == ""
    *rows, last = result.stdout.splitlines()
    assert last == "Everything loads."
    assert "ok    explainer native (camkit 0.1.0)" in rows and "ok    model tiny (camkit-tiny 1.0)" in rows
